"""Monthly costs of APIs, of self-hosting and of a gateway's requests, as plain values.

Knows fields; the arithmetic is the advisor's and the router's, prices are the catalogue's.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from datetime import time as clock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, UsageError
from freehold.choose.advisor.interval import Interval

if TYPE_CHECKING:
    from freehold.choose.advisor.breakeven import Assumption, Comparison, Even, Swing
    from freehold.route.router.gateway import GatewayModel
    from freehold.route.router.ledger.rows import LedgerRow
    from freehold.route.router.price import Price
    from freehold.route.router.savings import OwnedMachine, Savings


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
    from freehold.base.catalog import prices

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
    shown = {
        name: getattr(one, name) for name in ("key", "title", "unit", "value", "source", "checked", "given")
    }
    return shown | {"value": one.value.as_json(), "checked": one.checked.isoformat()}


def _swing_json(swing: Swing) -> dict[str, Any]:
    return {"key": swing.assumption.key, "at_low": _finite(swing.at_low), "at_high": _finite(swing.at_high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- what a gateway's requests did cost -------------------------------------------------------------
# Owned machines included, beside what they would have cost elsewhere.
# The arithmetic is router/savings.py's; here its inputs are found: rows, file, bars, hosts, machines.


@dataclass(frozen=True, slots=True)
class LedgerCost:
    """Figures of a period, and what they hang on. `speeds`: measured tokens/s of owned places, while busy."""

    found: Savings
    machines: Mapping[str, OwnedMachine]
    speeds: Mapping[str, float]
    since: float
    until: float


def from_ledger(
    settings: Settings,
    ledger: Path | None,
    gateway: Path | None,
    since_s: float,
    machines: Mapping[str, str],
    *,
    bought: bool = False,
    share: Interval | None = None,
    overrides: Mapping[str, Interval] | None = None,
) -> LedgerCost:
    """Compare the rows of the last `since_s` seconds with what they would have cost otherwise.

    `machines`: hardware by place. Raises UsageError for hardware or a place that is not known.
    """
    from freehold.route.router.bar import Bars, Identities
    from freehold.route.router.ledger.rows import rows_in
    from freehold.route.router.opening import ledger_path
    from freehold.route.router.savings import owned_machine, savings
    from freehold.run.store import Store
    from freehold.serve.reports.gateway_file import read_gateway

    read = read_gateway(settings, gateway, keys=False)
    for place in machines:
        if place not in read.owned_places:
            known = ", ".join(sorted(read.owned_places))
            raise UsageError(f"{place!r} is not an owned place of gateway.toml", f"places: {known}")
    path, until = ledger or ledger_path(read, settings.home), time.time()
    since = until - since_s
    rows = list(rows_in(path, since, until))
    bars = Bars(settings.home, Identities(Store(settings)).of)

    def passing(task: str, model: GatewayModel) -> bool:
        return task in read.tasks and bars.passes(read.tasks[task], model)[0]

    rented = {
        place: owned_machine(on, bought=bought, share=share, overrides=overrides)
        for place, on in machines.items()
    }
    before = rows_in(path, since - since_s, since)
    result = savings(rows, before, read.models, rented, since_s, passing=passing, hosts=hosts)
    return LedgerCost(result, rented, _speeds(rows, result.busy_s), since, until)


def hosts(model: GatewayModel) -> Sequence[tuple[str, Price]]:
    """Return who sells the weights of a model by tokens, and for how much; empty for weights that are not open."""
    from freehold.base import catalog
    from freehold.base.catalog import prices
    from freehold.route.router.price import price_of

    try:
        known = catalog.model(model.local or (model.remote.model if model.remote is not None else ""))
    except FreeholdError:
        return ()
    today = datetime.combine(datetime.now(UTC).date(), clock(), UTC)
    return [(offer.name, price_of(offer, today)) for offer in prices.hosts(known)]


def _speeds(rows: Sequence[LedgerRow], busy_s: Mapping[str, float]) -> dict[str, float]:
    tokens: Counter[str] = Counter()
    for row in rows:
        if row.owned:
            tokens[row.place] += row.usage.completion_tokens
    return {place: tokens[place] / seconds for place, seconds in busy_s.items() if seconds > 0}


def savings_json(cost: LedgerCost) -> dict[str, Any]:
    """Return it as --json has it."""
    assumed = {a.key: a for machine in cost.machines.values() for a in machine.assumed}
    return {
        "schema": SCHEMA,
        "since": cost.since,
        "until": cost.until,
        **cost.found.as_json(),
        "tokens_per_second": dict(cost.speeds),
        "machines": {
            place: {"on": machine.owned.name, "dollars_an_hour": _ends(machine.hour)}
            for place, machine in cost.machines.items()
        },
        "assumptions": [
            {"key": a.key, "value": _ends(a.value), "unit": a.unit, "source": a.source, "given": a.given}
            for a in assumed.values()
        ],
    }


def _ends(value: Interval) -> dict[str, float]:
    return {"low": value.low, "mid": value.mid, "high": value.high}
