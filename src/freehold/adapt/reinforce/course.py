"""Reinforce: a model learns from the scores that a verifier gives to its own answers.

Each step samples a group of answers to some prompts from the policy as it is, has them scored, and moves the adapter
by the advantages within each group. Before the first step the verifier is attacked; before and after the run the
policy is measured on unseen prompts. Everything random follows from the seed and the step's number. The account of a
run is here too: each step's line in steps.jsonl, what unseen prompts earn before and after, the receipt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold.adapt.evals.paired import compared
from freehold.adapt.evals.verifier import RewardScore, Verifier
from freehold.adapt.licences import base_licence
from freehold.adapt.loop import OnStep, OnText, TrainingLoop, TrainingRun
from freehold.adapt.reinforce.policy import Objective, Policy, PolicyRow, PolicyUpdate, advantages, seeds_of
from freehold.adapt.reinforce.prompts import PROBES, PromptItem, PromptPlan, PromptSet, prompts_of
from freehold.adapt.run import RunFolder, cpu_seconds, on_disk, template_digest, write_whole
from freehold.adapt.sampling import AS_IT_IS, GREEDY, SamplingModel
from freehold.adapt.settings import ReinforceSettings
from freehold.adapt.stages import StageBase
from freehold.adapt.teaching import Nearness, still_known, written
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import check_trainable
from freehold.base.errors import StoreError, UsageError
from freehold.base.types import SamplingParams
from freehold.choose.advisor.verdict import Facts
from freehold.run.models.lora import Adapter
from freehold.run.store import ModelRef

STAGES = ("sample", "score", "train")
SHOWN = 3  # answers that two verifiers score apart: in a step's line, and of the latest in the receipt


def step_line(
    scores: Sequence[Sequence[RewardScore]],
    passes_at: float,
    looks: AnswerLooks,
    update: PolicyUpdate,
    dropped: int,
    spent: Mapping[str, float],
) -> dict[str, Any]:
    """Return a step's line. `dropped`: groups whose scores were equal; `spent`: processor seconds by stage."""
    every = [each for group in scores for each in group]
    mismatch = update.mismatch
    return {
        "score": sum(each.value for each in every) / len(every),
        "passed": sum(each.value >= passes_at for each in every) / len(every),
        "groups": len(scores),
        "dropped": dropped,
        "failures": failures(every),
        "tokens": looks.tokens,
        "cut": looks.cut,
        "repetition": looks.repetition,
        "distinct": looks.distinct,
        "mismatch": mismatch.mean_size if mismatch else None,
        "mismatch_mean": mismatch.mean if mismatch else None,
        "mismatch_p99": mismatch.p99_size if mismatch else None,
        "trained_tokens": mismatch.tokens if mismatch else 0,
        "capped": update.capped,
        "gradient": update.norm,
        "rate": update.rate,
        **({} if update.drift is None else {"drift": update.drift}),
        "cpu": {stage: round(spent[stage], 3) for stage in STAGES},
    }


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the receipt's parts on a run's steps: mismatch, groups, failures, speed."""
    spent = {stage: round(sum(line["cpu"][stage] for line in lines), 2) for stage in STAGES}
    kinds: Counter[str] = Counter()
    for line in lines:
        kinds.update(line["failures"])
    measured = [line for line in lines if line["trained_tokens"]]
    parted = [line["parted"] for line in lines if "parted" in line]
    shown = [each for line in lines for each in line.get("parted_shown", ())]
    return {
        "steps": {
            "count": len(lines),
            "groups": sum(line["groups"] for line in lines),
            "dropped": sum(line["dropped"] for line in lines),
            "failures": dict(kinds),
            "score_first": lines[0]["score"] if lines else None,
            "score_last": lines[-1]["score"] if lines else None,
            "parted": sum(parted) / len(parted) if parted else None,
            "parted_shown": shown[-SHOWN:],
        },
        "mismatch": {
            "mean_size": _mean(measured, "mismatch"),
            "mean": _mean(measured, "mismatch_mean"),
            "p99_size": max((line["mismatch_p99"] for line in measured), default=None),
            "most": max((line["mismatch"] for line in measured), default=None),
            "capped": _mean(measured, "capped"),
            "unit": "nats per token, trainer less sampler",
        },
        "speed": {
            "cpu_seconds": spent,
            "sampling_share": round(spent["sample"] / max(sum(spent.values()), 1e-9), 4),
        },
    }


def _mean(lines: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean over trained tokens; None without any."""
    total, tokens = 0.0, 0
    for line in lines:
        total += line[key] * line["trained_tokens"]
        tokens += line["trained_tokens"]
    return total / tokens if tokens else None


# --- what a step's answers look like beside their scores --------------------------------------------
# Length, repetition, how many differ, where two verifiers part.
# A policy that learns to please a verifier rather than to solve its items shows here first: answers grow,
# repeat or become one and the same, or a second verifier disagrees.

NGRAM = 4  # words of a piece whose repetition is counted
APART = 0.5  # scores that differ by more part


@dataclass(frozen=True, slots=True)
class AnswerLooks:
    """Means over a step's answers. `repetition`: share of pieces of 4 words that occurred in their answer before."""

    tokens: float
    repetition: float
    distinct: float  # share of different answers within a group, mean over groups
    cut: float  # share that reached the limit of tokens


@dataclass(frozen=True, slots=True)
class Parting:
    """An answer that two verifiers score apart."""

    prompt: str
    answer: str
    score: float
    check: float


def looks(texts: Sequence[Sequence[str]], tokens: Sequence[int], cut: Sequence[bool]) -> AnswerLooks:
    """Describe the answers of a step: texts by group, each answer's tokens, and whether it was cut at the limit."""
    all_texts = [text for group in texts for text in group]
    return AnswerLooks(
        tokens=sum(tokens) / len(tokens),
        repetition=sum(map(repetition, all_texts)) / len(all_texts),
        distinct=sum(len(set(group)) / len(group) for group in texts) / len(texts),
        cut=sum(cut) / len(cut),
    )


def repetition(text: str) -> float:
    """Return the share of a text's pieces of NGRAM words that it had before."""
    words = text.split()
    pieces = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def failures(scores: Sequence[RewardScore]) -> dict[str, int]:
    """Count failures by kind, the most frequent first."""
    return dict(Counter(each.failed for each in scores if each.failed).most_common())


def parted(
    prompts: Sequence[str], texts: Sequence[str], scores: Sequence[RewardScore], check: Sequence[RewardScore]
) -> list[Parting]:
    """Return the answers that two verifiers score apart, the widest first."""
    partings = [
        Parting(prompt, text, one.value, other.value)
        for prompt, text, one, other in zip(prompts, texts, scores, check, strict=True)
        if abs(one.value - other.value) > APART
    ]
    return sorted(partings, key=lambda each: -abs(each.score - each.check))


# --- what a policy earns on prompts that it never trained on ----------------------------------------
# Before and after: the same prompts and seeds, compared.
# Greedy answers are what a user gets, sampled ones what training moves; both are scored by the run's
# verifier. Answers and scores are kept in a file of the run, so an interrupted run measures its beginning
# once.

_STEP = 0  # whose seeds the sampled answers have: before the first


@dataclass(frozen=True, slots=True)
class UnseenScore:
    """Answers to the unseen prompts, in their order, with their scores."""

    greedy: tuple[str, ...]
    greedy_scores: tuple[float, ...]
    sampled: tuple[str, ...]
    sampled_scores: tuple[float, ...]
    tokens: float  # of a greedy answer, in the mean

    def passed(self, at: float, *, sampled: bool = False) -> list[bool]:
        """Return which answers score `at` or more."""
        return [score >= at for score in (self.sampled_scores if sampled else self.greedy_scores)]


def measured(
    sampler: SamplingModel,
    verifier: Verifier,
    items: Sequence[PromptItem],
    *,
    seed: int,
    max_tokens: int,
    adapter: Adapter | None,
) -> UnseenScore:
    """Answer every item greedily and once sampled, and score both."""
    prompts = [sampler.render(each.messages) for each in items]
    seeds = seeds_of(seed, _STEP, len(items))

    def answered(sampling: SamplingParams) -> tuple[tuple[str, ...], tuple[float, ...], float]:
        samples = sampler.sample(
            prompts, seeds=seeds, max_tokens=max_tokens, sampling=sampling, adapter=adapter
        )
        texts = [text_of(sampler, each[0].ids) for each in samples]
        scores = verifier.score(
            [(each.prompt, text, each.item) for each, text in zip(items, texts, strict=True)]
        )
        tokens = sum(len(each[0].ids) for each in samples) / len(items)
        return tuple(texts), tuple(each.value for each in scores), tokens

    greedy, greedy_scores, tokens = answered(GREEDY)
    sampled, sampled_scores, _ = answered(AS_IT_IS)
    return UnseenScore(greedy, greedy_scores, sampled, sampled_scores, tokens)


def text_of(sampler: SamplingModel, ids: Sequence[int]) -> str:
    """Return an answer's text as verifiers get it: without control tokens, and without blanks around it."""
    return sampler.detokenize(ids).strip()


def change(before: UnseenScore, after: UnseenScore, at: float) -> dict[str, Any]:
    """Return the receipt's part: pass rates and mean scores before and after, and the chance of such a split."""
    report: dict[str, Any] = {"prompts": len(before.greedy), "passes_at": at}
    for name, sampled in (("greedy", False), ("sampled", True)):
        old, new = (each.passed(at, sampled=sampled) for each in (before, after))
        pairs = compared(new, old)
        means = [
            sum(scores) / len(scores)
            for scores in (
                (each.sampled_scores if sampled else each.greedy_scores) for each in (before, after)
            )
        ]
        report[name] = {
            "before": sum(old) / len(old),
            "after": sum(new) / len(new),
            "mean_before": means[0],
            "mean_after": means[1],
            "gained": pairs.wins,
            "lost": pairs.losses,
            "p": pairs.p,
        }
    report["tokens_before"], report["tokens_after"] = before.tokens, after.tokens
    return report


def kept(path: Path) -> UnseenScore | None:
    """Return what `keep` wrote; None where it did not. Raises StoreError for a damaged file."""
    if not path.exists():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        tokens = float(table.pop("tokens"))
        return UnseenScore(**{name: tuple(values) for name, values in table.items()}, tokens=tokens)
    except (ValueError, TypeError, KeyError) as e:
        raise StoreError(f"{path} is damaged: {e}", "start again with --fresh") from e


def keep(path: Path, score: UnseenScore) -> None:
    """Write a score; the file is there whole or not at all. Raises StoreError."""
    text = json.dumps(asdict(score), indent=1) + "\n"
    with on_disk(path):
        write_whole(path, lambda file: file.write(text.encode()))


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
            step=number,
        )
        spent = {"sample": sampled - start, "score": scored - sampled, "train": cpu_seconds() - scored}
        look = looks(
            texts,
            [len(a.ids) for group in groups for a in group],
            [a.finish_reason == "length" for group in groups for a in group],
        )
        line = step_line(scores, settings.passes_at, look, update, gained.count(None), spent)
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
        apart = parted([t[0] for t in tasks], [t[1] for t in tasks], scores, self.check.score(tasks))
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
    adapter: Path | None = None,
    continued: bool = False,
    packs: Path | None = None,
    facts: Facts | None = None,
    fresh: bool = False,
    on_note: OnText = lambda note: None,
    on_step: OnStep = lambda row: None,
) -> dict[str, Any]:
    """Train an adapter on a verifier's scores; write it to the folder `out` and return its receipt.

    `adapter`, `continued`: as for finetune. An interrupted run with the same arguments continues. Raises UsageError for
    a verifier that pays for what solves nothing, and for a sampler that is further from the trainer than the bound; and
    what reading the model raises.
    """
    base = StageBase.of(model, adapter, continued=continued)
    settings = base.fitted(settings)
    licence = base_licence(model, facts or Facts())
    check_trainable(model.path)
    with ExitStack() as open_:
        verifier = open_.enter_context(Verifier(sources.reward))
        check = open_.enter_context(Verifier(sources.check)) if sources.check else None
        plan = PromptPlan(settings.prompts, settings.unseen, settings.seed, settings.shots, settings.system)
        prompts = prompts_of(verifier, sources.prompts, sources.test, plan)
        training = TrainingRun(
            verb="reinforce",
            base=base,
            out=out,
            inputs={
                "model": model.name,
                "base": base.digest,
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
            trainee = base.trainee(settings)
            optimizer = Optimizer(trainee.parameters(), settings.rate)
            with base.opened(packs, threads=settings.threads) as sampler:
                near = None
                if settings.replay:
                    own = written(sampler, settings.seed, settings.steps * settings.replay)
                    near = Nearness(trainee, own, settings.replay)
                objective = Objective(settings.loss, cap=settings.cap)
                policy = Policy(trainee, sampler, optimizer, objective, near, settings.replay_weight)
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
        findings.append(AttackResult(attack, mean, share, first, failures(scores), pays))
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
