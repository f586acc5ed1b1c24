"""`freehold cost [MODEL]`: monthly costs of APIs and of self-hosting, and the break-even volume.

Knows options and JSON; the arithmetic is the advisor's, prices are the catalogue's, rows a gateway's ledger's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.options import options_of
from freehold.base.terminal import Ticking
from freehold.choose.advisor.breakeven import CostOptions, TrafficFigures, known
from freehold.choose.advisor.interval import Interval
from freehold.cli.helping import section
from freehold.cli.options import setting_options
from freehold.cli.report.cost import show, show_ledger, spoken
from freehold.cli.shared import Amount, Seconds, gateway_option, json_option, ledger_option, write_beside
from freehold.serve.reports.cost import cost_json


class Range(click.ParamType):
    """A value or a range: 3, 2-4 (the middle is the geometric mean) or 2:3:4."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Interval:
        """Return an interval."""
        if isinstance(value, Interval):
            return value
        parts = re.split(r"[-:]", str(value).strip())
        ends = [Amount().convert(part, param, ctx) for part in parts]
        if len(ends) == 2:
            ends.insert(1, math.sqrt(ends[0] * ends[1]) if ends[0] else ends[1] / 2)
        if len(ends) == 1:
            ends *= 3
        if len(ends) != 3 or not ends[0] <= ends[1] <= ends[2]:
            self.fail(f"{value!r} is not a valid range; write 3, 2-4 or 2:3:4", param, ctx)
        return Interval(*ends)


def assumption_options(command: Callable) -> Callable:
    """Add an option for every assumption, with its default."""
    for one in reversed(known()):
        help_ = f"{one.title[:1].upper()}{one.title[1:]}, {one.unit}: {spoken(one.value)}."
        command = click.option(f"--{one.key}", type=Range(), help=help_)(command)
    return command


@click.command("cost")
@click.argument("model", required=False, metavar="[MODEL]")
@section("The traffic")
@setting_options(TrafficFigures)
@click.option("--csv", "csv_file", metavar="FILE", help="Read the traffic from a CSV file instead.")
@click.option("--growth", type=float, default=0.0, help="Growth in per cent a month, over --months.")
@section("Your own hardware")
@setting_options(CostOptions, "on", "bought")
@click.option("--price", type=Range(), help="Price of all the hardware, in dollars.")
@click.option("--hourly", type=Range(), help="Rent of all the hardware, in dollars an hour.")
@click.option(
    "--tokens-per-second", "speed", type=Range(), help="Decode speed of one machine, all users together."
)
@setting_options(CostOptions, "engine", "quant", "users")
@section("APIs to compare")
@setting_options(CostOptions, "against", "batch")
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="Use the prices of that day.",
)
@section("From a gateway's ledger")
@click.option(
    "--from-ledger", is_flag=True, help="Price the requests in a gateway's ledger instead of stated traffic."
)
@click.option(
    "--since", type=Seconds(), default="7d", show_default=True, help="With --from-ledger: how far back."
)
@gateway_option
@ledger_option
@click.option(
    "--owned",
    multiple=True,
    metavar="PLACE=HARDWARE",
    help="With --from-ledger: the machine of an owned provider; --on is this one's.",
)
@click.option(
    "--share",
    type=Range(),
    help="With --from-ledger: share of the machines charged to the gateway, 0 to 1; default: from busy time to all.",
)
@section("Assumptions")
@assumption_options
@section("Output")
@json_option
@click.option("--html", "page", metavar="FILE", help="Write a report as one HTML page.")
@click.pass_obj
def command(
    settings: Settings,
    model: str | None,
    csv_file: str | None,
    as_json: bool,
    page: str | None,
    day: Any,
    **options: Any,
) -> None:
    """Compare API prices with self-hosting MODEL: dollars a month, and the break-even volume.

    Each assumption is listed with its source and date, and has an option that takes a value or a range: 3, 2-4 or
    2:3:4. Without MODEL, give --tokens-per-second and --on.

    With --from-ledger: shows what a gateway's requests cost, including owned machines, and what they would have
    cost on the most expensive model, on the cheapest model above each task's bar, at the cheapest host of the same
    weights, and with the previous period's mix of models. Of the other options, only --on, --buy, --price, --hourly
    and the machine's assumptions apply.

    With --json: {"schema": 1, "traffic": ..., "owned": ..., "bills": [...], "assumptions": [...], ...}.
    """
    from freehold.base.catalog import prices
    from freehold.choose.advisor.breakeven import from_csv, from_figures
    from freehold.choose.advisor.cost import cost

    ledger = {key: options.pop(key) for key in ("since", "gateway", "file", "owned", "share")}
    if options.pop("from_ledger"):
        _from_ledger(settings, ledger, as_json, model or csv_file or page, options)
        return
    today = date.today()
    keys = (*(one.key for one in known()), "price", "hourly")
    assumed = {key: options.pop(key) for key in keys}
    figures = {key: options.pop(key) for key in options_of(TrafficFigures)}
    with Ticking("comparing prices"):
        comparison = cost(
            model,
            from_csv(Path(csv_file).expanduser(), prices.tiers()) if csv_file else from_figures(**figures),
            day=day.date() if day else today,
            growth=options.pop("growth") / 100,
            **options,
            **{key: value for key, value in assumed.items() if value is not None},
        )
    if page:
        from freehold.cli.report.cost import report

        click.echo(f"wrote {write_beside(page, report(comparison, today))}", err=True)
    if as_json:
        click.echo(json.dumps(cost_json(comparison, today), indent=1))
    elif not page:
        show(comparison, today)


def _from_ledger(
    settings: Settings,
    ledger: Mapping[str, Any],
    as_json: bool,
    other: str | None,
    options: Mapping[str, Any],
) -> None:
    from freehold.route.providers.contract import HOUSE
    from freehold.serve.reports.cost import from_ledger, savings_json

    if other:
        raise UsageError(
            f"--from-ledger goes without {other!r}", "MODEL, --csv and --html are of a stated traffic"
        )
    machines = {HOUSE: options["on"]} if options["on"] else {}
    for text in ledger["owned"]:
        place, equals, hardware = text.partition("=")
        if not equals:
            raise UsageError(
                f"--owned {text!r} names no hardware", "write PLACE=HARDWARE, such as box=2xh100"
            )
        machines[place] = hardware
    keys = (*(one.key for one in known()), "price", "hourly")
    result = from_ledger(
        settings,
        ledger["file"],
        ledger["gateway"],
        ledger["since"],
        machines,
        bought=options["bought"],
        share=ledger["share"],
        overrides={key: options[key] for key in keys if options.get(key) is not None},
    )
    if as_json:
        click.echo(json.dumps(savings_json(result), indent=1))
    else:
        show_ledger(result)
