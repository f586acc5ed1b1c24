"""Whether licences allow a use, and their terms, as plain values.

Knows names of models and licences; terms come from the catalogue, the answer from the advisor.
Path: cli/license, asked -> rulings -> advisor.verdict -> verdicts_json
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from freehold.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from freehold.advisor.facts import Facts
    from freehold.advisor.lineage import Subject
    from freehold.advisor.verdict import Reason, Verdict
    from freehold.catalog.licence import Licence

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
    from freehold.advisor.lineage import OWN
    from freehold.advisor.verdict import verdict

    subjects = _subjects(tuple(names)) or [OWN]
    _no_other_input(subjects, multimodal)
    return [(one, verdict(one, facts, merged, teachers)) for one in subjects]


def _no_other_input(subjects: list[Subject], multimodal: bool | None) -> None:
    """Raise UsageError for --multimodal or --text-only that contradicts the catalogue's fact about a model."""
    for one in subjects:
        if multimodal is not None and one.multimodal is (not multimodal):
            option, takes = (
                ("--multimodal", "text alone") if multimodal else ("--text-only", "more than text")
            )
            raise UsageError(f"{option} contradicts the catalogue: {one.name} takes {takes}", "leave it out")


def _subjects(names: tuple[str, ...]) -> list[Subject]:
    """Find each name; one with spaces that was not quoted arrives as several."""
    from freehold.advisor.lineage import subject

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
    from freehold.catalog.licence import licences

    return {"schema": SCHEMA, "licences": [_licence_json(one) for one in licences()]}


def verdicts_json(rulings: Sequence[Ruling]) -> dict[str, Any]:
    """Return verdicts as --json has them."""
    return {"schema": SCHEMA, "verdicts": [_verdict_json(subject, v) for subject, v in rulings]}


def _verdict_json(subject: Subject, v: Verdict) -> dict[str, Any]:
    from freehold.advisor.lineage import openness
    from freehold.advisor.verdict import DISCLAIMER

    return {
        "subject": v.subject,
        "answer": v.answer,
        "licences": list(v.licences),
        "facts": asdict(v.facts),
        "missing": list(v.missing),
        "questions": list(v.questions),
        "reasons": [_reason_json(r) for r in v.reasons],
        "openness": {**asdict(place := openness(subject)), "name": place.name},
        "licence_source": subject.source,
        "disclaimer": DISCLAIMER,
    }


def _reason_json(r: Reason) -> dict[str, Any]:
    return {
        "bearing": r.bearing,
        "topic": r.topic,
        "clause": r.clause,
        "says": r.says,
        "licence": r.licence,
        "source": r.source,
        "model": r.model,
        "via": list(r.via),
        "waits_for": list(r.waits_for),
        "do": r.term.duty if r.term else "",
        "text": r.term.text if r.term else "",
    }


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
            {
                "topic": t.topic,
                "effect": t.effect,
                "clause": t.clause,
                "says": t.says,
                "do": t.duty,
                "text": t.text,
            }
            for t in one.terms
        ],
    }
