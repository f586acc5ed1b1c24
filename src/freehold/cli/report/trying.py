"""`freehold advise --try FILE`: the shortlist on the user's own cases, ranked by the results; `--run`: the first pick.

Knows the store, options and wording; evals runs and judges, advisor.advice ranks and predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, ModelNotFound, UsageError
from freehold.base.terminal import Ticking
from freehold.cli.progress import StatusLine
from freehold.cli.report.advice import name
from freehold.cli.shared import held_or_fetched
from freehold.run.store.records import digest

if TYPE_CHECKING:
    from freehold.adapt.evals.paired import Compared
    from freehold.adapt.evals.samples import Samples
    from freehold.adapt.evals.trial import TrialResult
    from freehold.base.catalog import Model
    from freehold.base.types import ChatModel
    from freehold.choose.advisor.advice import Advice, Judged, Own, Placement
    from freehold.choose.advisor.interval import Interval
    from freehold.run.store import ModelRef, Store


MOST_TRIED = 5  # models, unless --top says otherwise
_NAMED = 5  # models left out that are named


@dataclass(frozen=True, slots=True)
class Tried:
    """The results: the new ranking, each model's share, and pairs of models on the same cases."""

    advice: Advice
    before: tuple[str, ...]  # ids of the tried, in the order before
    samples: Samples
    own: Mapping[str, Own]  # by the catalogue's id
    results: Mapping[str, TrialResult]
    pairs: tuple[tuple[str, str, Compared], ...]  # the best beside each other one, by id
    left_out: tuple[tuple[str, str], ...]  # names, and why

    def lines(self) -> list[str]:
        """Return the results as lines."""
        from freehold.adapt.evals.paired import resolution

        n = len(self.samples.cases)
        lines_of_trial = [f"on your own cases ({self.samples.name}, {n}):"]
        for judged in self._tried():
            own, r = self.own[judged.model.id], self.own[judged.model.id].range
            share = f"{r.mid:.0f} % ({r.low:.0f} to {r.high:.0f})"
            lines_of_trial.append(f"  {name(judged.model)} passed {own.passed} of {own.cases}, {share}")
        named = {j.model.id: name(j.model) for j in self._tried()}
        lines_of_trial += [f"  {_pair_words(named[a], named[b], c)}" for a, b, c in self.pairs]
        why_not: dict[str, list[str]] = {}
        for what, why in self.left_out:
            why_not.setdefault(why, []).append(what)
        lines_of_trial += [f"  left out, {why}: {_few(names)}" for why, names in why_not.items()]
        lines_of_trial.append(
            f"  {n} {'case' if n == 1 else 'cases'}: differences below {resolution(n):.0f} points prove little"
        )
        return [*lines_of_trial, f"  {self.change()}"]

    def change(self) -> str:
        """Return how the order of the tried models changed."""
        after = tuple(j.model.id for j in self._tried())
        if after == self.before:
            return "the ranking stays as it was"
        named = {j.model.id: name(j.model) for j in self._tried()}
        was, now = (", ".join(named[i] for i in order) for order in (self.before, after))
        return f"the ranking changed: {now}; by published results it was {was}"

    def as_plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        from freehold.adapt.evals.paired import resolution

        return {
            "samples": self.samples.name,
            "digest": self.samples.digest,
            "cases": len(self.samples.cases),
            "resolution": resolution(len(self.samples.cases)),
            "before": list(self.before),
            "models": [self._model(j.model.id) for j in self._tried()],
            "pairs": [
                {"one": a, "other": b, "wins": c.wins, "losses": c.losses, "ties": c.ties, "p": c.p}
                | dict(zip(("low", "mid", "high"), c.difference, strict=True))
                for a, b, c in self.pairs
            ],
            "left_out": [{"name": what, "why": why} for what, why in self.left_out],
        }

    def _model(self, model_id: str) -> dict[str, Any]:
        own, result = self.own[model_id], self.results[model_id]
        lines = {c.digest: c.line for c in self.samples.cases}
        answers = [
            {
                "line": lines[a.case],
                "passed": bool(a.passed),
                "why": a.why,
                "text": a.text,
                "seconds": a.seconds,
            }
            for a in result.answers
        ]
        return {"id": model_id, "passed": own.passed, "range": own.range.as_json(), "answers": answers}

    def _tried(self) -> list[Judged]:
        return [j for j in self.advice.picks if j.model.id in self.own]


def _few(names: list[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _pair_words(one: str, other: str, c: Compared) -> str:
    low, mid, high = c.difference
    if not c.wins + c.losses:
        return f"{one} and {other} passed the same cases"
    apart = f"{c.wins} win{'s' * (c.wins != 1)}, {c.losses} loss{'es' * (c.losses != 1)}"
    return f"{one} against {other}: {apart}, {mid:.0f} points ({low:.0f} to {high:.0f}), p = {c.p:.2g}"


def tried(
    settings: Settings, advice: Advice, file: str, *, top: int | None, judge: str, fetch: bool
) -> Tried:
    """Run the shortlist in the store, fetched first if `fetch`, on the cases of a file.

    Raises UsageError for a file with bad lines, a task without text, hardware elsewhere, and where no model is left.
    """
    from freehold.adapt.evals.samples import read
    from freehold.adapt.evals.trial import TrialModel, run
    from freehold.choose.advisor.advice import by_own
    from freehold.run.store import Store

    _check(advice)
    store = Store(settings)
    grader = store.resolve(judge) if judge else None
    samples = read(Path(file).expanduser(), f"{judge}@{digest(grader)}" if grader else "")
    chosen, left_out = _shortlist(store, advice, top or MOST_TRIED, fetch)
    refs = {ref.name: (ref, j) for ref, j in chosen}
    opened = _Opener(store, {n: r for n, (r, _) in refs.items()}, advice.request.context, grader)
    results: dict[str, TrialResult] = {}
    for ref, judged in chosen:
        if samples.pictured and not _sees(ref):
            left_out.append(
                (name(judged.model), f"reads text only, and {len(samples.pictured)} cases have pictures")
            )
            continue
        try:
            with TrialProgress(ref.name) as shown:
                (result,) = run(
                    samples, [TrialModel(ref.name, digest(ref))], settings.home, opened, on_case=shown
                )
            results[judged.model.id] = result
        except UsageError:
            raise
        except FreeholdError as e:
            left_out.append((name(judged.model), e.message))
    if not results:
        raise UsageError(
            f"no model could be tried: {'; '.join(f'{n}: {w}' for n, w in left_out[:3])}",
            "pull one, or let --yes pull the shortlist",
        )
    if grader:
        results = _judged(samples, results, settings.home, opened, grader.name)
    own = {model: _own(r) for model, r in results.items()}
    before = tuple(j.model.id for j in advice.runnable if j.model.id in own)
    ranked = by_own(advice, own)
    return Tried(ranked, before, samples, own, results, tuple(_pairs(ranked, results)), tuple(left_out))


def _sees(ref: ModelRef) -> bool:
    """Return whether a stored model comes with a tower of pictures that Freehold knows."""
    from freehold.run.models.sight import tower_need

    with suppress(FreeholdError, OSError):
        return tower_need(ref.eyes or ref.path) is not None
    return False


def _judged(
    samples: Samples, results: Mapping[str, TrialResult], home: Path, opened: _Opener, judge: str
) -> dict[str, TrialResult]:
    """Judge the answers of all models together, so that the judge is loaded once."""
    from freehold.adapt.evals.trial import run

    judged = run(samples, [r.subject for r in results.values()], home, opened, judge=judge)
    return dict(zip(results, judged, strict=True))


def _check(advice: Advice) -> None:
    task = advice.request.task
    if task.encoder or task.reranker:
        raise UsageError(f"--try judges answers in text, and {task.id} has none", "leave --try out")
    places = {j.placement.engine for j in advice.runnable if j.placement}
    if places - {"freehold"}:
        raise UsageError("--try runs models on this machine", "leave --on, --budget and --engine out")
    if not advice.runnable:
        raise UsageError(
            "no model is left to try", "freehold advise without --try says which condition to drop"
        )


def _shortlist(
    store: Store, advice: Advice, most: int, fetch: bool
) -> tuple[list[tuple[ModelRef, Judged]], list[tuple[str, str]]]:
    """Return the first models in the store or fetchable, and those left out before the last of them."""
    chosen: list[tuple[ModelRef, Judged]] = []
    left_out: list[tuple[str, str]] = []
    for judged in advice.runnable:
        if len(chosen) == most:
            break
        wanted = judged.model.name or judged.model.id
        try:
            chosen.append((_ref(store, wanted, fetch), judged))
        except ModelNotFound:
            left_out.append((wanted, "not in the store: --yes pulls it"))
        except FreeholdError as e:
            left_out.append((wanted, e.message))
    return chosen, left_out


def _ref(store: Store, wanted: str, fetch: bool) -> ModelRef:
    return held_or_fetched(store, wanted) if fetch else store.resolve(wanted)


def _own(result: TrialResult) -> Own:
    from freehold.adapt.evals.paired import share
    from freehold.choose.advisor.advice import Own

    return Own(len(result.marks), sum(result.marks), share(result.marks))


def _pairs(advice: Advice, results: Mapping[str, TrialResult]) -> list[tuple[str, str, Compared]]:
    from freehold.adapt.evals.paired import compared

    order = [j.model.id for j in advice.runnable if j.model.id in results]
    return [(order[0], other, compared(results[order[0]].marks, results[other].marks)) for other in order[1:]]


class _Opener:
    """Opens the shortlist's models and the judge."""

    def __init__(
        self, store: Store, refs: Mapping[str, ModelRef], context: int, judge: ModelRef | None
    ) -> None:
        self._store, self._context = store, context
        self._refs = {**refs, **({judge.name: judge} if judge else {})}

    def __call__(self, wanted: str) -> ChatModel:
        from freehold.run.local import open_shown

        return open_shown(self._refs[wanted], context=self._context, packs=self._store.packs)


class TrialProgress(StatusLine):
    """A model's progress through its cases: a line that stays once all are answered."""

    def __init__(self, model: str) -> None:
        super().__init__("the answers so far are kept, and the same command continues")
        Ticking.show(self, f"loading {model}")

    def __call__(self, model: str, done: int, total: int) -> None:
        """Take a step."""
        text = f"{model}: {done} of {total} cases"
        if done == total:
            self.blank()
            self.say(text)
        else:
            self.show(text)


# --- `freehold advise --run`: the first pick that can be had answers the task's sample --------------


def run_first(settings: Settings, advice: Advice, *, quiet: bool) -> None:
    """Run the first available pick on the task's sample, and compare its speed with the prediction."""
    for judged in advice.picks:
        place = judged.placement
        if place is None or place.engine != "freehold" or advice.request.task.encoder:
            raise UsageError(
                "--run needs a model that answers on this machine", "run the command above instead"
            )
        try:
            tried = _try(settings, judged.model, place, advice.request.task.sample, quiet=quiet)
        except FreeholdError as e:
            click.echo(f"{name(judged.model)} cannot be run: {e.message}; trying the next one", err=True)
            continue
        click.echo(
            f"decode {tried:.1f} tokens a second; predicted {_compared(tried, place.decode)}", err=True
        )
        if tried not in place.decode:
            then = _foreseen_now(settings, judged.model, place)
            click.echo(f"predicted at the present load: {_compared(tried, then)}", err=True)
        return
    raise UsageError("none of these models can be fetched", "freehold list shows the models in the store")


def _compared(tried: float, foreseen: Interval) -> str:
    return f"{foreseen}: {'inside' if tried in foreseen else 'outside'}"


def _try(settings: Settings, model: Model, place: Placement, sample: str, *, quiet: bool) -> float:
    """Answer the sample without speculation, as the prediction assumes; return tokens a second."""
    from freehold.base.machine import Crowd
    from freehold.choose.advisor.learning import learn
    from freehold.run.local import open_shown
    from freehold.run.store import Store

    store = Store(settings)
    ref = held_or_fetched(store, model.name or model.id)
    speed, usages, crowd = 0.0, [], Crowd()
    with open_shown(ref, context=place.context, speculate=False, packs=store.packs) as llm:
        for chunk in llm.stream(sample, max_tokens=128, temperature=0):
            if chunk.usage:
                speed = chunk.usage.decode_tok_s
                usages.append(chunk.usage)
            if not quiet:
                click.echo(chunk.text, nl=False)
    if not quiet:
        click.echo("")
    learn(settings.home, ref.path, usages, crowd.share())
    return speed


def _foreseen_now(settings: Settings, model: Model, place: Placement) -> Interval:
    """Predict the speed again from rates measured now, in case the machine is shared or its clock has changed."""
    from freehold.choose.advisor.fit import Fit, fit
    from freehold.choose.advisor.machine import rates_now
    from freehold.choose.choosing import here as this_machine
    from freehold.choose.choosing import weighed

    here = this_machine(settings)
    assert here.machine is not None  # it is this machine
    with Ticking("measuring this machine"):
        then = replace(here, machine=replace(here.machine, rates=rates_now()))
    result = fit(weighed(settings, model.name or model.id), then, place.context)
    return result.decode if isinstance(result, Fit) else place.decode
