"""The licence or the terms under which a model answers, and whether its answers may train another model.

The facts are the catalogue's (catalog/data/licences), cut to one word for the ledger. Where a licence lets outputs
train on conditions the word is "unknown": `freehold license --taught-by` judges those with the user's facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from freehold.base.errors import FreeholdError
from freehold.route.providers.contract import KINDS, NO_KIND

if TYPE_CHECKING:
    from freehold.base.catalog.licence import Licence


@lru_cache(maxsize=1024)
def terms_of(kind: str, model: str, rented: bool) -> tuple[str, bool | None]:
    """Return a licence's id, "" where none is known, and whether answers may teach; None: unknown, or on conditions.

    `rented`: from a seller, whose own terms hold; they are known for the KINDS that name them.
    """
    services = KINDS.get(kind, NO_KIND).terms if rented else ""
    try:
        expression, may = _of(services, model)
    except FreeholdError:
        return "", None
    if rented and not services and may:
        may = None  # the weights' licence allows it; the seller's terms are not known
    return expression, may


def _of(service: str, model: str) -> tuple[str, bool | None]:
    from freehold.base.catalog.licence import licence
    from freehold.choose.advisor.lineage import standing, subject

    expression_of = subject(licence(service) if service else model)
    words = [_teaches(each.choices) for each in standing(expression_of)]
    if False in words:
        return expression_of.expression, False
    return expression_of.expression, True if words and None not in words else None


def _teaches(choices: Sequence[Licence]) -> bool | None:
    """Say what the licences to choose from let outputs do; a permissive one claims nothing of them."""
    effects = {term.effect for each in choices for term in each.about("outputs")}
    if "refuses" in effects:
        return False
    permissive = bool(choices) and all(each.kind == "permissive" for each in choices)
    return True if permissive or ("grants" in effects and "unknown" not in effects) else None
