"""Evidence for a model in a language: published results, the card's statement, or nothing.

A result in a benchmark of several languages counts for each of them. Nothing is carried over from English.
Knows codes and benchmarks; knows no text. Path: advice -> evidence -> LanguageEvidence -> Judged
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from freehold.catalog.model import Model
from freehold.catalog.question_words import language_name, results_in

RESULT, STATED, UNKNOWN, DENIED = "result", "stated", "unknown", "denied"
_RANK = (RESULT, STATED, UNKNOWN, DENIED)


@dataclass(frozen=True, slots=True)
class LanguageEvidence:
    """Evidence for one language: a result, stated, unknown, or denied (the card states other languages)."""

    code: str
    level: str
    says: str


def evidence(model: Model, codes: Iterable[str]) -> tuple[LanguageEvidence, ...]:
    """Return what is known of a model in each language."""
    return tuple(_one(model, code) for code in codes)


def known(languages: Iterable[LanguageEvidence]) -> bool:
    """Say whether something is known in every language."""
    return all(t.level in (RESULT, STATED) for t in languages)


def _one(model: Model, code: str) -> LanguageEvidence:
    name = language_name(code)
    scores = [s for s in model.scores if s.benchmark in results_in(code)]
    if scores:
        order = results_in(code)
        first = min(scores, key=lambda s: (order.index(s.benchmark), -s.value))
        return LanguageEvidence(code, RESULT, f"{name}: {first.benchmark} {first.value:g}")
    speaks = model.speaks(code)
    if speaks:
        return LanguageEvidence(code, STATED, f"{name}: stated, no result")
    if speaks is None:
        return LanguageEvidence(code, UNKNOWN, f"no evidence for {name}")
    return LanguageEvidence(
        code, DENIED, f"its lab states {len(model.languages)} languages, and {name} is none of them"
    )
