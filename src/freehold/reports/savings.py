"""What a gateway's requests did cost, owned machines included, beside what they would have cost elsewhere.

The arithmetic is router/savings.py's; here its inputs are found: rows, file, bars, hosts, machines. Knows no wording.
Path: cli/report/cost_ledger, asked -> from_ledger -> savings -> savings_json
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from datetime import time as clock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.advisor.interval import Interval
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError
from freehold.reports.cost import SCHEMA

if TYPE_CHECKING:
    from freehold.router.gateway import GatewayModel
    from freehold.router.ledger.rows import LedgerRow
    from freehold.router.price import Price
    from freehold.router.savings import OwnedMachine, Savings


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
    from freehold.reports.gateway_file import read_gateway
    from freehold.router.bar import Bars
    from freehold.router.identity import Identities
    from freehold.router.ledger.queries import rows_in
    from freehold.router.opening import ledger_path
    from freehold.router.savings import owned_machine, savings
    from freehold.store import Store

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
    from freehold import catalog
    from freehold.catalog import prices
    from freehold.router.prices import price_of

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
