"""What a gateway's requests did cost, owned machines included, beside what they would have cost elsewhere.

The arithmetic is router/savings.py's; here its inputs are found (rows, file, bars, hosts, machines) and its figures
put into words. Path: cli/cost.py -> from_ledger -> savings -> show or JSON
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

import click

from freehold.advisor.interval import Interval
from freehold.cli.shared import pairs, table
from freehold.config import Settings
from freehold.errors import FreeholdError, UsageError

if TYPE_CHECKING:
    from freehold.router.gateway import GatewayModel
    from freehold.router.ledger.rows import LedgerRow
    from freehold.router.owned_cost import OwnedMachine
    from freehold.router.price import Price
    from freehold.router.savings import DollarRange, Savings

HEAD = ("INSTEAD", "WOULD HAVE COST, USD", "SAVED, USD", "REQUESTS", "MODELS")


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
    given: Mapping[str, Interval] | None = None,
) -> LedgerCost:
    """Compare the rows of the last `since_s` seconds with what they would have cost otherwise.

    `machines`: hardware by place. Raises UsageError for hardware or a place that is not known.
    """
    from freehold.cli.serving.gatewayfile import read_gateway
    from freehold.router.bar import Bars
    from freehold.router.identity import Identities
    from freehold.router.ledger.queries import rows_in
    from freehold.router.opening import ledger_path
    from freehold.router.owned_cost import owned_machine
    from freehold.router.savings import savings
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
        place: owned_machine(on, bought=bought, share=share, given=given) for place, on in machines.items()
    }
    before = rows_in(path, since - since_s, since)
    found = savings(rows, before, read.models, rented, since_s, passing=passing, hosts=hosts)
    return LedgerCost(found, rented, _speeds(rows, found.busy_s), since, until)


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
    made: Counter[str] = Counter()
    for row in rows:
        if row.owned:
            made[row.place] += row.usage.completion_tokens
    return {place: made[place] / seconds for place, seconds in busy_s.items() if seconds > 0}


def as_json(cost: LedgerCost) -> dict[str, Any]:
    """Return plain values."""
    assumed = {a.key: a for machine in cost.machines.values() for a in machine.assumed}
    return {
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


def show(cost: LedgerCost) -> None:
    """Print a comparison."""
    found = cost.found
    days = found.period_s / 86400
    rows = [
        ("requests", f"{found.requests:,} in {days:g} days"),
        ("to providers", f"{found.rented:,.6f} USD, as the ledger's rows add up"),
        ("owned machines", _range(found.owned)),
        ("in all", _range(found.cost)),
    ]
    for place, seconds in found.busy_s.items():
        speed = f", {cost.speeds[place]:,.1f} tokens/s while busy" if place in cost.speeds else ""
        on = f" on {cost.machines[place].owned.name}" if place in cost.machines else ""
        rows.append((place, f"busy for {seconds:,.1f} s{speed}{on}"))
    pairs(rows)
    click.echo()
    against = [
        (one.name, _range(one.cost), _range(one.saved), f"{one.requests:,}", one.what)
        for one in found.against
    ]
    table(HEAD, against, right=(3,))
    click.echo(
        "\nA negative saving is a loss. REQUESTS: those it says something of; the others keep their cost."
    )
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    for place, machine in cost.machines.items():
        click.echo(f"\n{place}: {machine.owned.name}, {_words(machine.hour)} USD an hour")
        pairs([(a.key, f"{_words(a.value)} {a.unit}: {a.source}") for a in machine.assumed])


def _ends(value: Interval) -> dict[str, float]:
    return {"low": value.low, "mid": value.mid, "high": value.high}


def _words(value: Interval) -> str:
    return f"{value.mid:g}" if value.low == value.high else f"{value.low:g}-{value.high:g}"


def _range(value: DollarRange) -> str:
    if value.low == value.high:
        return f"{value.mid:,.6f}"
    return f"{value.mid:,.4f} ({value.low:,.4f} to {value.high:,.4f})"
