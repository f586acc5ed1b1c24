"""Reinforce: a model learns from the scores that a verifier gives to its own answers.

Each step samples a group of answers to some prompts from the policy as it is, has them scored, and moves the adapter
by the advantages within each group. Before the first step the verifier is attacked; before and after the run the
policy is measured on unseen prompts. Everything random follows from the seed and the step's number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold.adapt.evals.verifier import RewardScore, Verifier
from freehold.adapt.licences import base_licence, check_base
from freehold.adapt.loop import OnStep, OnText, TrainingLoop, TrainingRun
from freehold.adapt.reinforce import account
from freehold.adapt.reinforce.account import (
    SHOWN,
    UnseenScore,
    change,
    keep,
    kept,
    measured,
    step_line,
    summary,
    text_of,
)
from freehold.adapt.reinforce.policy import Objective, Policy, PolicyRow, advantages, seeds_of
from freehold.adapt.reinforce.prompts import PROBES, PromptItem, PromptPlan, PromptSet, prompts_of
from freehold.adapt.run import RunFolder, cpu_seconds, model_digest, template_digest
from freehold.adapt.sampling import open_sampling
from freehold.adapt.settings import ReinforceSettings
from freehold.adapt.teaching import still_known
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import check_trainable
from freehold.base.errors import UsageError
from freehold.choose.advisor.verdict import Facts
from freehold.run.store import ModelRef

BEFORE, AFTER = "before.json", "after.json"
ADAPTER = "reinforced"  # its name in the engine that is asked what is still known
_NAMED = 3  # attacks that a message names


@dataclass(frozen=True, slots=True)
class ReinforceSources:
    """What is scored and by whom: specs of verifiers, and files of prompts."""

    reward: str
    check: str = ""
    prompts: Path | None = None
    test: Path | None = None


@dataclass(slots=True)
class Course:
    """What the steps of one run share."""

    policy: Policy
    prompts: PromptSet
    verifier: Verifier
    check: Verifier | None
    settings: ReinforceSettings

    def step(self, number: int) -> dict[str, Any]:
        """Sample, score, learn; return the step's line. `number` counts from 0."""
        settings, sampler = self.settings, self.policy.sampler
        items = self.prompts.step(number + 1)
        seeds = seeds_of(settings.seed, number + 1, len(items))
        start = cpu_seconds()
        prompts = [sampler.render(each.messages) for each in items]
        groups = self.policy.sample(prompts, settings.group, seeds=seeds, max_tokens=settings.max_tokens)
        sampled = cpu_seconds()
        texts = [[text_of(sampler, a.ids) for a in group] for group in groups]
        scores, parted = self._scored(items, texts)
        scored = cpu_seconds()
        gained = advantages([[each.value for each in group] for group in scores], settings.loss)
        rows = [
            PolicyRow(tuple(prompt), answer.ids, answer.logprobs, advantage)
            for prompt, group, of_group in zip(prompts, groups, gained, strict=True)
            if of_group is not None  # else dropped
            for answer, advantage in zip(group, of_group, strict=True)
        ]
        update = self.policy.update(
            rows,
            answers=len(items) * settings.group,
            max_tokens=settings.max_tokens,
            updates=settings.updates,
            bound=settings.most_mismatch,
        )
        spent = {"sample": sampled - start, "score": scored - sampled, "train": cpu_seconds() - scored}
        looks = account.looks(
            texts,
            [len(a.ids) for group in groups for a in group],
            [a.finish_reason == "length" for group in groups for a in group],
        )
        line = step_line(scores, settings.passes_at, looks, update, gained.count(None), spent)
        return {**line, **parted, "seeds": seeds}

    def _scored(
        self, items: Sequence[PromptItem], texts: Sequence[Sequence[str]]
    ) -> tuple[list[list[RewardScore]], dict[str, Any]]:
        """Score every answer, by the second verifier too; return the scores, and where the two part."""
        tasks = [(each.prompt, t, each.item) for each, group in zip(items, texts, strict=True) for t in group]
        scores, size = self.verifier.score(tasks), self.settings.group
        groups = [scores[i : i + size] for i in range(0, len(scores), size)]
        if self.check is None:
            return groups, {}
        apart = account.parted([t[0] for t in tasks], [t[1] for t in tasks], scores, self.check.score(tasks))
        shown = [asdict(each) for each in apart[:SHOWN]]
        return groups, {"parted": len(apart) / len(tasks), "parted_shown": shown}

    def measured(self, *, trained: bool) -> UnseenScore:
        """Answer the unseen prompts with the policy as it is, or with the model itself."""
        return measured(
            self.policy.sampler,
            self.verifier,
            self.prompts.unseen,
            seed=self.settings.seed,
            max_tokens=self.settings.max_tokens,
            adapter=self.policy.packed() if trained else None,
        )


def reinforce(
    model: ModelRef,
    sources: ReinforceSources,
    out: Path,
    settings: ReinforceSettings,
    *,
    packs: Path | None = None,
    facts: Facts | None = None,
    fresh: bool = False,
    on_note: OnText = lambda note: None,
    on_step: OnStep = lambda row: None,
) -> dict[str, Any]:
    """Train an adapter on a verifier's scores; write it to the folder `out` and return its receipt.

    An interrupted run with the same arguments continues. Raises UsageError for a verifier that pays for what solves
    nothing, and for a sampler that is further from the trainer than the bound; and what reading the model raises.
    """
    check_base(model)
    licence = base_licence(model, facts or Facts())
    check_trainable(model.path)
    with ExitStack() as open_:
        verifier = open_.enter_context(Verifier(sources.reward))
        check = open_.enter_context(Verifier(sources.check)) if sources.check else None
        plan = PromptPlan(settings.prompts, settings.unseen, settings.seed, settings.shots, settings.system)
        prompts = prompts_of(verifier, sources.prompts, sources.test, plan)
        training = TrainingRun(
            verb="reinforce",
            out=out,
            inputs={
                "model": model.name,
                "base": model_digest(model),
                "reward": {"spec": verifier.spec, "digest": verifier.digest},
                "check": {"spec": check.spec, "digest": check.digest} if check else None,
                "prompts": prompts.digest,
            },
            settings=settings,
            licences={"base": licence},
            fresh=fresh,
        )

        def reinforced(run: RunFolder) -> dict[str, Any]:
            for note in training.notes:
                on_note(note)
            attacks = _attacked(verifier, check, prompts, settings, on_note)
            trainee = settings.trainee(model.path)
            optimizer = Optimizer(trainee.parameters(), settings.rate)
            with open_sampling(model, packs, threads=settings.threads) as sampler:
                policy = Policy(trainee, sampler, optimizer, Objective(settings.loss, cap=settings.cap))
                course = Course(policy, prompts, verifier, check, settings)
                return {"attacks": attacks, **_trained(course, run, on_note, on_step)}

        return training.make(reinforced)


def _trained(course: Course, run: RunFolder, on_note: OnText, on_step: OnStep) -> dict[str, Any]:
    """Measure, run the steps, write the adapter, measure again; return the receipt's parts.

    What is measured again is the score on unseen prompts, and what the model knew before: a reward asks for neither.
    """
    before = kept(run.path(BEFORE))
    if before is None and course.prompts.unseen:
        before = course.measured(trained=False)
        keep(run.path(BEFORE), before)
    if before is not None:
        on_note(f"{len(before.greedy)} unseen prompts before training: {_rates(before, course.settings)}")
    optimizer, trainee, sampler = course.policy.optimizer, course.policy.trainee, course.policy.sampler

    def restore(arrays: Mapping[str, Any]) -> None:
        optimizer.steps = int(arrays["updates"])

    loop = TrainingLoop(
        run,
        trainee,
        optimizer,
        course.settings.steps,
        arrays=lambda: {"updates": np.array(optimizer.steps)},  # none in a step whose groups were all dropped
        restore=restore,
    )
    loop.run(course.step, on_step)
    loop.save()
    sampler.add_adapter(ADAPTER, run.folder)
    parts = {
        "template": template_digest(trainee.template),
        **summary(loop.lines()),
        **still_known(sampler, trainee, ADAPTER),
    }
    if before is not None:
        after = course.measured(trained=True)
        keep(run.path(AFTER), after)
        on_note(f"{len(after.greedy)} unseen prompts after training: {_rates(after, course.settings)}")
        parts["before_after"] = change(before, after, course.settings.passes_at)
    return {**parts, "cpu_seconds": loop.cpu_seconds}


def _rates(score: UnseenScore, settings: ReinforceSettings) -> str:
    greedy, sampled = (score.passed(settings.passes_at, sampled=each) for each in (False, True))
    return (
        f"{sum(greedy) / len(greedy):.2f} pass greedily and {sum(sampled) / len(sampled):.2f} sampled, "
        f"{score.tokens:.0f} tokens"
    )


def _attacked(
    verifier: Verifier,
    check: Verifier | None,
    prompts: PromptSet,
    settings: ReinforceSettings,
    on_note: OnText,
) -> dict[str, Any]:
    """Attack each verifier; return the receipt's part. Raises UsageError for one that pays, unless allowed."""
    report: dict[str, Any] = {}
    for role, each in (("reward", verifier), ("check", check)):
        if each is None:
            continue
        results = attacked(each, prompts.probes)
        paying = [result for result in results if result.pays]
        report[role] = {"gameable": bool(paying), "attacks": [asdict(result) for result in results]}
        if paying and not settings.allow_gameable:
            raise UsageError(
                f"{each.spec} is gameable: it pays for {_named(paying)}",
                "mend it: a policy learns what pays. --allow-gameable trains on it all the same",
            )
        on_note(
            f"{each.spec} pays for {_named(paying)}: trained on it all the same"
            if paying
            else f"{each.spec} withstood {len(results)} attacks on {len(prompts.probes[:PROBES])} prompts"
        )
        share = paid_truths(each, prompts.probes)
        if share is not None and share < 1:
            on_note(f"{each.spec} pays only {share:.0%} of its prompts' own answers in full")
    return report


def _named(paying: Sequence[AttackResult]) -> str:
    first = ", ".join(f"{each.attack} ({each.mean:.2f})" for each in paying[:_NAMED])
    return first + (f" and {len(paying) - _NAMED} more" if len(paying) > _NAMED else "")


# --- answers that solve nothing ---------------------------------------------------------------------
# Given to a verifier before training: what pays for them would be learnt first.
# Each attack is tried on some items. It pays where its score is above a half on more than a fifth of them:
# one item in twenty may have "0123456789" for an answer, and a verifier of yes and no pays half of what is
# always "yes".

PAYS = 0.5  # a score above this is pay
SHARE = 0.2  # of the items: paid more often, an attack is called one
MOST_FREQUENT = 0.5  # what always giving one answer may earn
_LISTED = 200  # candidates that are listed in one answer
_FREQUENT = "the most frequent answer"


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What one attack earned: its mean score, the share of items that it was paid for, and its first answer."""

    attack: str
    mean: float
    share: float
    answer: str
    failures: Mapping[str, int]
    pays: bool


def attacked(verifier: Verifier, items: Sequence[PromptItem]) -> list[AttackResult]:
    """Try every attack on up to PROBES of `items`, and return what each earned, the most first."""
    probes = items[:PROBES]
    findings = []
    for attack, answers in _attacks(probes, items).items():
        tasks = [(each.prompt, text, each.item) for each, text in zip(probes, answers, strict=True)]
        scores = verifier.score(tasks)
        n = max(len(scores), 1)
        mean = sum(each.value for each in scores) / n
        share = sum(each.value > PAYS for each in scores) / n
        pays = share > (MOST_FREQUENT if attack == _FREQUENT else SHARE)
        first = answers[0] if answers else ""
        findings.append(AttackResult(attack, mean, share, first, account.failures(scores), pays))
    return sorted(findings, key=lambda each: (each.pays, each.share, each.mean), reverse=True)


def paid_truths(verifier: Verifier, items: Sequence[PromptItem]) -> float | None:
    """Return the share of items whose own answer is paid in full; None where none states one."""
    told = [(each.prompt, each.truth, each.item) for each in items[:PROBES] if each.truth]
    scores = verifier.score(told)
    return sum(each.value >= 1 for each in scores) / len(scores) if scores else None


def _attacks(probes: Sequence[PromptItem], items: Sequence[PromptItem]) -> dict[str, list[str]]:
    truths = [each.truth for each in items if each.truth]
    attacks = {
        "empty": [""] * len(probes),
        "blank": ["   \n"] * len(probes),
        "all digits": ["0 1 2 3 4 5 6 7 8 9 0123456789"] * len(probes),
        "repetition": ["42 " * 60] * len(probes),
        "yes and no": ["yes no true false True False"] * len(probes),
        "a score": ["1.0"] * len(probes),
        "the prompt": [each.prompt for each in probes],
        "the prompt twice": [f"{each.prompt}\n{each.prompt}" for each in probes],
        "long": ["The answer is what the question asks for. " * 40] * len(probes),
    }
    if truths:
        listed = " ".join(list(dict.fromkeys(truths))[:_LISTED])
        attacks["every candidate listed"] = [listed] * len(probes)
        attacks[_FREQUENT] = [Counter(truths).most_common(1)[0][0]] * len(probes)
    return attacks
