"""What is in the store and in the catalogue, a row each: fit and speed here, licence, quality, origin.

Each figure is the one that `fit`, `license` and `why` state of the model: in its file where the store has one,
otherwise in the quantisation that would be pulled. Knows no wording and nothing of what is in memory.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from freehold.base import catalog
from freehold.base.catalog.model import Model
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue
from freehold.choose.advisor.engines import quant_of
from freehold.choose.advisor.file_anatomy import from_file
from freehold.choose.advisor.fit import Fit, Place, fit
from freehold.choose.advisor.verdict import verdict
from freehold.choose.choosing import company_facts, here, refusal, starters
from freehold.run.models.families import naming
from freehold.run.store import Listed, Store
from freehold.serve.reports.card import quality_by_task
from freehold.serve.reports.fit import needs, place_json
from freehold.serve.reports.plain import quality_json

if TYPE_CHECKING:
    from freehold.choose.advisor.verdict import Facts


SCHEMA = 1


def models_json(settings: Settings, *, held: bool = False) -> dict[str, Any]:
    """Return the rows, those in the store first, and the place and purpose that they are judged for.

    `held`: only those in the store, which takes a tenth of the time. A machine that was never measured is measured
    for the whole list alone.
    """
    place, facts = here(settings, measure=False), company_facts(settings, {})
    if not held and place.machine and not place.machine.rates.measured:
        place = here(settings)
    judged = facts if settings.company else None
    rows = [_held(each, place, judged) for each in Store(settings).list()]
    known = {row["id"] for row in rows if row["state"] == "ready"}
    if not held:
        rows += [_catalogued(model, place, judged) for model in catalog.models() if model.id not in known]
    return {
        "schema": SCHEMA,
        "place": place_json(place),
        "company": bool(settings.company),
        "purpose": facts.purpose,
        "models": rows,
    }


def _held(listed: Listed, place: Place, facts: Facts | None) -> dict[str, Any]:
    known, sizes = None, None
    for name in (listed.name, *listed.aliases):
        with suppress(ModelNotFound):
            known = known or catalog.model(name)
    if listed.state in ("ready", "changed"):
        with suppress(FreeholdError, OSError):
            sizes = from_file(listed.path, listed.rounding)
            known = known if known and known.may_have(sizes.weights) else None
    row = {
        "name": listed.name,
        "held": True,
        "state": listed.state,
        "pull": listed.name if listed.state == "incomplete" else None,
        "bytes": listed.bytes,
        "bytes_known": True,
        "licence": listed.licence or (known.licence if known else ""),
    }
    if known is None and sizes is not None:  # a file of one's own
        encodes = any(family.encoder for family in naming(sizes.architecture))
        row["role"] = "embedder" if encodes else "generator"
    quant = (
        sizes.quant if sizes else quant_of(known) if known else ""
    )  # an unfinished download has no file to read
    return _about(known, facts, quant) | _placed(sizes, place) | row


def _catalogued(model: Model, place: Place, facts: Facts | None) -> dict[str, Any]:
    sizes = None
    with suppress(FreeholdError):
        sizes = from_catalogue(model, quant_of(model))
    entry = catalog.find(model.name) if model.name else None
    sourced = bool(entry and (entry.hub_repo or entry.packages)) or model.hub
    row = {
        "name": model.name or model.id,
        "held": False,
        "state": "",
        "pull": (model.name or model.id) if sourced and not refusal(model.structure) else None,
        "bytes": (entry.bytes if entry else 0) or (sizes.weight_bytes if sizes else 0),
        "bytes_known": bool(entry and entry.bytes),
        "licence": model.licence,
    }
    return _about(model, facts, quant_of(model)) | _placed(sizes, place) | row


def _about(model: Model | None, facts: Facts | None, quant: str) -> dict[str, Any]:
    """Return what the catalogue knows of a model, and what follows for the user."""
    if model is None:
        words = dict.fromkeys(("id", "lab", "country", "family", "released", "role"), "")
        return {**words, "params_b": 0.0, "active_b": 0.0, "modalities": [], "verdict": None, "quality": []}
    return {
        "id": model.id,
        "lab": model.lab,
        "country": model.country,
        "family": model.family,
        "released": model.released,
        "role": model.role,
        "params_b": model.params_b,
        "active_b": model.active_b,
        "modalities": list(model.modalities),
        "verdict": _verdict(model, facts) if facts else None,
        "quality": [{**quality_json(q), "tasks": tasks} for tasks, q in quality_by_task(model, quant)],
    }


def _verdict(model: Model, facts: Facts) -> dict[str, Any] | None:
    try:
        judgement = verdict(model, facts)
    except ModelNotFound:
        return None
    return {
        "answer": judgement.answer,
        "licences": list(judgement.licences),
        "reasons": [
            {"bearing": r.bearing, "says": r.sentence, "clause": r.clause, "source": r.source}
            for r in judgement.deciding
        ],
        "questions": list(judgement.questions),
    }


def _placed(sizes: Anatomy | None, place: Place) -> dict[str, Any]:
    """Return whether and how fast it runs here; null where its sizes are not known."""
    result = None
    if sizes is not None:
        with suppress(FreeholdError):
            result = fit(sizes, place)
    fits = isinstance(result, Fit)
    refused = refusal(sizes.structure) if sizes else ""
    memory = result.memory.total if result and result.memory else None
    return {
        "context": sizes.context if sizes else 0,
        "quant": sizes.quant if sizes else "",
        "runs": sizes is not None and not refused,
        "refused": refused,
        "fits": fits if result else None,
        "reason": "" if result is None or isinstance(result, Fit) else result.reason,
        "memory": memory,
        "needs": needs(result) if result else "",
        "at_context": result.context if result else None,
        "longest": (result.longest or None) if result else None,
        "decode": result.decode.as_json() if isinstance(result, Fit) else None,
        "pace": pace(result.decode.mid) if isinstance(result, Fit) else "",
        "prefill": result.prefill.as_json() if isinstance(result, Fit) and result.prefill else None,
        "basis": result.basis if isinstance(result, Fit) else "",
    }


# --- the models that a person without any begins with, a row each, and how fast a speed is in a word
# The page's first screen shows the same models as `freehold run` without a name.

STARTERS_SCHEMA = 1
SHOWN = 5
Pace = Literal["fast", "readable", "slow", "unusable"]
# Tokens a second. A person reads about 5: below one, an answer of 300 tokens takes over five minutes.
FAST, READABLE, SLOW = 15.0, 5.0, 1.0


def pace(tokens_per_second: float) -> Pace:
    """Return how fast an answer is for who reads it while it is written."""
    if tokens_per_second >= FAST:
        return "fast"
    if tokens_per_second >= READABLE:
        return "readable"
    return "slow" if tokens_per_second >= SLOW else "unusable"


def starters_json(settings: Settings) -> dict[str, Any]:
    """Return up to SHOWN models that run well here and can be fetched here, the best first."""
    return {
        "schema": STARTERS_SCHEMA,
        "models": [
            {
                "name": each.name,
                "bytes": each.download.bytes,
                "source": each.download.source,
                "held": each.held,
                "disk": each.disk,
                "memory": each.memory,
                "speed": each.speed.as_json(),
                "pace": pace(each.speed.mid),
                "about": each.about,
            }
            for each in starters(settings, SHOWN)
        ],
    }
