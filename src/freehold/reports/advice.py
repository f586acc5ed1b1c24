"""The advice as JSON, for `advise --json`: what was understood, the ranking, and everything that was ruled out.

Knows the fields that docs/guides/advise.md names; knows no wording. Path: cli/advise, asked -> as_plain
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freehold.advisor.advice import Advice, Judged, Own


SCHEMA = 1


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


def _plain(judged: Judged, own: Own | None = None) -> dict[str, Any]:
    model, place, quality = judged.model, judged.placement, judged.quality
    return {
        "id": model.id,
        "name": model.name,
        "tier": model.tier,
        "params_b": model.params_b,
        "quality": quality
        and {
            "benchmark": quality.benchmark,
            **quality.range.as_json(),
            "basis": quality.basis,
            "evidence": quality.evidence,
        },
        "languages": [asdict(t) for t in judged.languages],
        "own": own and {"cases": own.cases, "passed": own.passed, **own.range.as_json()},
        "licence": {"id": model.licence, "answer": judged.verdict.answer if judged.verdict else None},
        "placement": place
        and asdict(place)
        | {"decode": place.decode.as_json(), "prefill": place.prefill and place.prefill.as_json()},
        "refusals": [asdict(r) for r in judged.refusals],
    }
