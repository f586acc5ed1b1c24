"""How much the catalogue holds: the one place of the numbers that `advise`, the README and the guides give.

Knows the tables; knows no page.
Path: cli/advise -> advice_text -> counts; tests/test_docs.py -> counts
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.catalog.licence import licences
from freehold.catalog.models import models


@dataclass(frozen=True, slots=True)
class CatalogueCounts:
    """`rated`: models with a published result; `licences`: texts and the terms of services."""

    models: int
    rated: int
    licences: int


def counts() -> CatalogueCounts:
    """Count the shipped facts, and the user's own models."""
    known = models()
    return CatalogueCounts(len(known), sum(bool(m.scores) for m in known), len(licences()))
