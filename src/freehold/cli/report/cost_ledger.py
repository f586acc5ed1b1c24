"""What a gateway's requests did cost beside what they would have cost elsewhere, in words and columns.

Knows wording; the figures are reports/cost.py's. Path: cli/cost.py -> show -> stdout
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from freehold.advisor.interval import Interval
from freehold.cli.shared import pairs, table
from freehold.reports.cost import LedgerCost

if TYPE_CHECKING:
    from freehold.router.savings import DollarRange

HEAD = ("INSTEAD", "WOULD HAVE COST, USD", "SAVED, USD", "REQUESTS", "MODELS")


def show(cost: LedgerCost) -> None:
    """Print a comparison."""
    savings = cost.found
    days = savings.period_s / 86400
    rows = [
        ("requests", f"{savings.requests:,} in {days:g} days"),
        ("to providers", f"{savings.rented:,.6f} USD, as the ledger's rows add up"),
        ("owned machines", _range(savings.owned)),
        ("in all", _range(savings.cost)),
    ]
    for place, seconds in savings.busy_s.items():
        speed = f", {cost.speeds[place]:,.1f} tokens/s while busy" if place in cost.speeds else ""
        on = f" on {cost.machines[place].owned.name}" if place in cost.machines else ""
        rows.append((place, f"busy for {seconds:,.1f} s{speed}{on}"))
    pairs(rows)
    click.echo()
    against = [
        (one.name, _range(one.cost), _range(one.saved), f"{one.requests:,}", one.what)
        for one in savings.against
    ]
    table(HEAD, against, right=(3,))
    click.echo(
        "\nA negative saving is a loss. REQUESTS: those it says something of; the others keep their cost."
    )
    for note in savings.notes:
        click.echo(f"note: {note}", err=True)
    for place, machine in cost.machines.items():
        click.echo(f"\n{place}: {machine.owned.name}, {_words(machine.hour)} USD an hour")
        pairs([(a.key, f"{_words(a.value)} {a.unit}: {a.source}") for a in machine.assumed])


def _words(value: Interval) -> str:
    return f"{value.mid:g}" if value.low == value.high else f"{value.low:g}-{value.high:g}"


def _range(value: DollarRange) -> str:
    if value.low == value.high:
        return f"{value.mid:,.6f}"
    return f"{value.mid:,.4f} ({value.low:,.4f} to {value.high:,.4f})"
