"""All facts about a model: its card, the licence's verdict, quality by task, speed here, and what is not known.

Adds no fact of its own and knows no wording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from freehold.base import catalog
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.choose.advisor.quality import Evidence, Scale, rounded
from freehold.choose.choosing import company_facts, weighed
from freehold.serve.reports.card import describe
from freehold.serve.reports.plain import reason_json

if TYPE_CHECKING:
    from freehold.adapt.evals.trial import Kept
    from freehold.base.catalog import Model
    from freehold.choose.advisor.calibration import Run
    from freehold.choose.advisor.fit import Fit, Misfit
    from freehold.choose.advisor.quality import Quality
    from freehold.choose.advisor.verdict import Verdict

SCHEMA = 1
_CONTEXT = 4096  # tokens, at which a model is placed here


@dataclass(frozen=True, slots=True)
class SpeedHere:
    """The predicted speed of a model here, and its latest measured runs."""

    foreseen: Fit | Misfit | None
    measured: tuple[Run, ...]
    crowded: int = 0  # runs timed beside others' load, which are left out

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        from freehold.choose.advisor.fit import Fit

        f = self.foreseen
        shown: dict[str, Any] = {
            "fits": None if f is None else isinstance(f, Fit),
            "reason": "" if f is None or isinstance(f, Fit) else f.reason,
        }
        if isinstance(f, Fit):
            shown |= {"context": f.context, "memory": f.memory.total, "longest": f.longest, "basis": f.basis}
            shown |= {"decode": f.decode.as_json(), "prefill": f.prefill and f.prefill.as_json()}
        runs = [
            {"kind": r.kind, "depth": r.depth, "measured": r.measured, "predicted": r.told, "at": r.at}
            for r in self.measured
        ]
        return {**shown, "measured": runs}


@dataclass(frozen=True, slots=True)
class WhyReport:
    """Everything about one model. `quality`: tasks that share a benchmark, with the result there."""

    card: dict[str, Any]
    verdict: Verdict | None
    quality: list[tuple[list[str], Quality]]
    own: list[Kept]
    here: SpeedHere
    unknown: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return it as --json has it."""
        ruled = self.verdict
        return {
            "schema": SCHEMA,
            "model": self.card,
            "licence": ruled and {"answer": ruled.answer, "reasons": [reason_json(r) for r in ruled.reasons]},
            "quality": [
                {"tasks": names, "benchmark": q.benchmark, "basis": q.basis, "evidence": q.evidence}
                | q.range.as_json()
                for names, q in self.quality
            ],
            "own": [asdict(k) for k in self.own],
            "here": self.here.as_json(),
            "unknown": self.unknown,
        }


def why_report(settings: Settings, model: str, company: Mapping[str, Any], *, disk: bool = True) -> WhyReport:
    """Collect what is known of a model. `company`: the user's facts; `disk`: whether it may be a path.

    Raises ModelNotFound.
    """
    from freehold.run.store import Store

    card = describe(Store(settings), model, disk=disk)
    known = _catalogued(card)
    ruled = _verdict(known, card, settings, company)
    quality = quality_by_task(known, weighed(settings, card["name"]).quant if known else "")
    here = _speed_here(settings, card)
    own = _own(settings, card)
    return WhyReport(card, ruled, quality, own, here, _unknown(card, known, quality, here, own))


def _catalogued(card: dict[str, Any]) -> Model | None:
    try:
        return catalog.model(card["model"]) if card.get("model") else None
    except ModelNotFound:
        return None


def _verdict(
    known: Model | None, card: dict[str, Any], settings: Settings, company: Mapping[str, Any]
) -> Verdict | None:
    """Return the verdict on the model, or on the licence its file names; None where neither is known."""
    from freehold.choose.advisor.verdict import verdict

    facts = company_facts(settings, company)
    try:
        return verdict(known or card["licence"], facts) if known or card["licence"] else None
    except ModelNotFound:
        return None


def quality_by_task(known: Model | None, quant: str) -> list[tuple[list[str], Quality]]:
    """Return a model's quality in a quantisation by task, tasks with one benchmark together."""
    qualities: dict[str, tuple[list[str], Quality]] = {}
    for scales in _scales(catalog.stamp()) if known else ():
        task = scales[0].task
        quality = next((q for scale in scales if known and (q := scale.of(known))), None)
        if quality and known:
            quality = rounded(quality, quant, known)
            below = f" (below its bar of {task.bar:g})" if quality.range.low < task.bar else ""
            qualities.setdefault(quality.benchmark, ([], quality))[0].append(task.id + below)
    return list(qualities.values())


@lru_cache(maxsize=1)
def _scales(stamp: object) -> list[tuple[Scale, Scale]]:
    """Return each task's scale and its quick one; all models are read for them, so once while `stamp` is the same."""
    from freehold.base.catalog.benchmarks import tasks

    everything = catalog.models()
    evidence = Evidence(m for m in everything if m.scores)
    scales = [Scale(task, everything, evidence=evidence) for task in tasks()]
    return [(scale, scale.without_thinking()) for scale in scales]


def _untold(quality: list[tuple[list[str], Quality]]) -> list[str]:
    from freehold.base.catalog.benchmarks import tasks

    rated = {name.partition(" ")[0] for names, _ in quality for name in names}
    return [t.id for t in tasks() if t.benchmarks and t.id not in rated]


def _unknown(
    card: dict[str, Any],
    known: Model | None,
    quality: list[tuple[list[str], Quality]],
    here: SpeedHere,
    own: list[Kept],
) -> list[str]:
    from freehold.choose.advisor.fit import left_out

    gaps = []
    if known is None:
        gaps.append("lab, lineage and published results: it is not in the catalogue")
    elif not known.cache_known:
        gaps.append("its layers, so that the cache's bytes are a guess")
    if not card.get("licence") and not (known and known.licence):
        gaps.append("its licence")
    if card["state"] == "not held":
        gaps.append("digest, template and defaults of the file: it is not in the store")
    if known and not known.scores:
        gaps.append("its own benchmark results")
    elif known and known.role == "generator" and (untold := _untold(quality)):
        gaps.append(f"its quality for {', '.join(untold)}: no published result")
    if not here.measured:
        why = left_out(here.crowded) if here.crowded else "no answer was timed yet"
        gaps.append(f"its measured speed here: {why}")
    if not own:
        gaps.append("its quality on your own work: freehold advise --try samples.jsonl measures that")
    return gaps


def _own(settings: Settings, card: dict[str, Any]) -> list[Kept]:
    from freehold.adapt.evals.trial import kept
    from freehold.run.store import Store
    from freehold.run.store.records import digest

    try:
        return kept(settings.home, digest(Store(settings).resolve(card["name"])))
    except FreeholdError:
        return []


def _speed_here(settings: Settings, card: dict[str, Any]) -> SpeedHere:
    """Predict a model's speed here, and look up its measured runs."""
    from freehold.choose.advisor.fit import fit, model_key
    from freehold.choose.choosing import here as this_machine

    try:
        anatomy, place = weighed(settings, card["name"]), this_machine(settings)
        most = min(_CONTEXT, anatomy.context or _CONTEXT)
        past, key = place.history, model_key(anatomy)
        mine = tuple(r for r in past.runs if r.model == key) if past else ()
        return SpeedHere(fit(anatomy, place, most), mine, past.timed(key)[1] if past else 0)
    except FreeholdError:
        return SpeedHere(None, ())
