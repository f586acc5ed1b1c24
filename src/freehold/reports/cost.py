"""Monthly costs of APIs and of self-hosting, as plain values.

Knows fields; the arithmetic is the advisor's, prices are the catalogue's. Path: cli/cost, asked -> cost_json
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freehold.advisor.breakeven import Assumption, Comparison, Even, Swing

SCHEMA = 1
# The words of a stated traffic, and the name of each in traffic.from_figures, which says what they are unless given.
TRAFFIC = {
    "tokens_per_day": "tokens_per_day",
    "input_share": "input_share",
    "cached": "cached_share",
    "request": "request_tokens",
}


def cost_json(comparison: Comparison, today: date) -> dict[str, Any]:
    """Return the answer as documented in docs/details/cost.md; null for what is infinite."""
    from freehold.catalog import prices

    sheet, t = prices.table(), comparison.traffic
    return {
        "schema": SCHEMA,
        "day": comparison.day.isoformat(),
        "prices": {
            "version": sheet.version,
            "noted": sheet.noted.isoformat(),
            "age_days": sheet.age_days(today),
        },
        "traffic": {
            "source": t.source,
            "tokens_per_day": t.tokens,
            "input": t.input,
            "cached": t.cached,
            "output": t.output,
            "requests": t.requests,
        },
        "owned": {
            "model": comparison.model.id if comparison.model else None,
            "on": comparison.owned.rig.name,
            "bought": comparison.owned.bought,
            "machines": comparison.machines,
            "utilisation": comparison.utilisation,
            "dollars_a_month": comparison.month.as_json(),
            "parts": dict(comparison.parts),
            "swings": [_swing_json(s) for s in comparison.swings],
        },
        "bills": [_even_json(e) for e in comparison.evens],
        "left_out": list(comparison.left_out),
        "assumptions": [_assumption_json(a) for a in comparison.assumptions.values()],
    }


def _even_json(even: Even) -> dict[str, Any]:
    offer = even.bill.offer
    return {
        "api": offer.name,
        "same_model": even.bill.same,
        "batch": even.bill.batch,
        "source": offer.source,
        "noted": offer.noted.isoformat() if offer.noted else None,
        "dollars_a_month": even.bill.month.as_json(),
        "break_even_tokens_per_day": even.tokens_per_day.as_json(),
        "break_even_utilisation": even.utilisation.as_json(),
        "swings": [_swing_json(s) for s in even.swings],
    }


def _assumption_json(one: Assumption) -> dict[str, Any]:
    return {
        "key": one.key,
        "title": one.title,
        "unit": one.unit,
        "value": one.value.as_json(),
        "source": one.source,
        "checked": one.checked.isoformat(),
        "given": one.given,
    }


def _swing_json(swing: Swing) -> dict[str, Any]:
    return {"key": swing.assumption.key, "at_low": _finite(swing.at_low), "at_high": _finite(swing.at_high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
