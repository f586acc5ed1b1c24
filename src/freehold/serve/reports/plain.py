"""Verdicts of licences, a model's facts and the advice as plain values.

Knows names of fields; terms come from the catalogue, answers from the advisor.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Any

from freehold.base.catalog.model import STALE_DAYS, Model
from freehold.base.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from freehold.base.catalog.licence import Licence
    from freehold.choose.advisor.advice import Advice, Judged, Own
    from freehold.choose.advisor.lineage import Subject
    from freehold.choose.advisor.quality import Quality
    from freehold.choose.advisor.verdict import Facts, Reason, Verdict


SCHEMA = 1

Ruling = tuple["Subject", "Verdict"]


def rulings(
    names: Sequence[str],
    facts: Facts,
    merged: Sequence[str] = (),
    teachers: Sequence[str] = (),
    *,
    multimodal: bool | None = None,
) -> list[Ruling]:
    """Judge each name; without names a model of the user's own.

    `multimodal`: what was said of these names; UsageError where the catalogue knows otherwise. Raises ModelNotFound.
    """
    from freehold.choose.advisor.lineage import OWN
    from freehold.choose.advisor.verdict import verdict

    subjects = _subjects(tuple(names)) or [OWN]
    for one in subjects:  # an option that contradicts the catalogue's fact about a model
        if multimodal is not None and one.multimodal is (not multimodal):
            option, takes = (
                ("--multimodal", "text alone") if multimodal else ("--text-only", "more than text")
            )
            raise UsageError(f"{option} contradicts the catalogue: {one.name} takes {takes}", "leave it out")
    return [(one, verdict(one, facts, merged, teachers)) for one in subjects]


def _subjects(names: tuple[str, ...]) -> list[Subject]:
    """Find each name; one with spaces that was not quoted arrives as several."""
    from freehold.choose.advisor.lineage import subject

    try:
        return [subject(name) for name in names]
    except ModelNotFound as e:
        match, whole = None, " ".join(names)
        with suppress(ModelNotFound):
            match = subject(whole)
        if len(names) < 2 or match is None:
            raise
        raise UsageError(
            f"{whole!r} was given as {len(names)} names", f"quote it: freehold license '{whole}'"
        ) from e


def licences_json() -> dict[str, Any]:
    """Return every licence with its terms, as --json has it."""
    from freehold.base.catalog.licence import licences

    return {"schema": SCHEMA, "licences": [_licence_json(one) for one in licences()]}


def verdicts_json(rulings: Sequence[Ruling]) -> dict[str, Any]:
    """Return verdicts as --json has them."""
    return {"schema": SCHEMA, "verdicts": [_verdict_json(subject, v) for subject, v in rulings]}


def _verdict_json(subject: Subject, v: Verdict) -> dict[str, Any]:
    from freehold.choose.advisor.lineage import openness
    from freehold.choose.advisor.verdict import DISCLAIMER

    return {
        "subject": v.subject,
        "answer": v.answer,
        "licences": list(v.licences),
        "facts": asdict(v.facts),
        "missing": list(v.missing),
        "questions": list(v.questions),
        "reasons": [
            reason_json(r) | {"do": r.term.duty if r.term else "", "text": r.term.text if r.term else ""}
            for r in v.reasons
        ],
        "openness": {**asdict(place := openness(subject)), "name": place.name},
        "licence_source": subject.source,
        "disclaimer": DISCLAIMER,
    }


def reason_json(r: Reason) -> dict[str, Any]:
    """Return a reason without its term, which is the catalogue's."""
    return {k: v for k, v in asdict(r).items() if k != "term"}


def _licence_json(one: Licence) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "aliases": list(one.aliases),
        "publisher": one.publisher,
        "class": one.kind,
        "issued": one.issued.isoformat() if one.issued else None,
        "url": one.url,
        "text": one.text,
        "sha256": one.sha256,
        "evidence": one.evidence,
        "checked": one.checked.isoformat(),
        "covers": list(one.covers),
        "note": one.note,
        "terms": [
            {"topic": t.topic, "effect": t.effect, "clause": t.clause, "says": t.says}
            | {"do": t.duty, "text": t.text}
            for t in one.terms
        ],
    }


# --- a model's facts as --json has them: the catalogue's and what follows from them -----------------

DEEP = 1 << 40  # tokens after which every window is full


def facts_json(model: Model, today: date) -> dict[str, Any]:
    """Return all facts and derived values for JSON; null where unknown."""
    plain = {k: v.isoformat() if isinstance(v, date) else v for k, v in asdict(model).items()}
    known = model.cache_known
    return plain | {
        "tier": model.tier,
        "cache_bytes_per_token": model.bytes_per_token(0) if known else None,
        "cache_bytes_per_token_deep": model.bytes_per_token(DEEP) if known else None,
        "state_bytes": model.state_bytes if model.state_known else None,
        "age_days": model.age_days(today),
        "stale": model.age_days(today) > STALE_DAYS,
    }


# --- the advice as JSON -----------------------------------------------------------------------------
# For `advise --json`: what was understood, the ranking, and everything that was ruled out.


def as_plain(advice: Advice) -> dict[str, Any]:
    """Return the answer as JSON has it."""
    return {
        "schema": SCHEMA,
        "task": advice.request.task.id,
        "understood": [asdict(p) for p in advice.asked.understood] if advice.asked else [],
        "ignored": list(advice.asked.question.ignored) if advice.asked else [],
        "notes": list(advice.asked.notes) if advice.asked else [],
        "benchmark": advice.benchmark,
        "bar": advice.bar,
        "good_enough": bool(advice.picks),
        "considered": advice.considered,
        "speed": advice.request.speed,
        "context": advice.request.context,
        "beside": _beside(advice),
        "picks": [_plain(j, advice.own.get(j.model.id)) for j in advice.picks],
        "below": [_plain(j) for j in advice.below],
        "unproven": [_plain(j) for j in advice.unproven],
        "instead": [_plain(j) for j in advice.instead],
        "tiers": {tier: j.model.id for tier, j in advice.by_tier.items()},
        "ruled_out": [_plain(j) for j in advice.ruled_out],
        "relax": [{"without": option, "models": count} for option, count in advice.relax],
    }


def _beside(advice: Advice) -> dict[str, Any] | None:
    beside = advice.beside
    return beside and {
        **{
            key: one and {"id": one.model.id, "says": one.says, "command": one.line.command}
            for key, one in (("embedder", beside.embedder), ("reranker", beside.reranker))
        },
        "no_reranker": beside.no_reranker,
    }


def quality_json(quality: Quality) -> dict[str, Any]:
    """Return a model's quality on a benchmark, as JSON has it."""
    more = {"basis": quality.basis, "evidence": quality.evidence}
    return {"benchmark": quality.benchmark, **quality.range.as_json(), **more}


def _plain(judged: Judged, own: Own | None = None) -> dict[str, Any]:
    model, place, quality = judged.model, judged.placement, judged.quality
    return {
        "id": model.id,
        "name": model.name,
        "tier": model.tier,
        "params_b": model.params_b,
        "quality": quality and quality_json(quality),
        "languages": [asdict(t) for t in judged.languages],
        "own": own and {"cases": own.cases, "passed": own.passed, **own.range.as_json()},
        "licence": {"id": model.licence, "answer": judged.verdict.answer if judged.verdict else None},
        "placement": place
        and asdict(place)
        | {"decode": place.decode.as_json(), "prefill": place.prefill and place.prefill.as_json()},
        "refusals": [asdict(r) for r in judged.refusals],
    }
