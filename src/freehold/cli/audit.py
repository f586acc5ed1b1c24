"""`freehold audit --label NAME`: which requests of a label were sent to a provider, and to which.

Knows options and words; the counts are router/ledger/queries.py's. Path: main -> audit -> LabelAudit -> text or JSON
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.serving.gatewayfile import ledger_option
from freehold.cli.shared import Seconds, json_option, pairs
from freehold.config import Settings
from freehold.reports.gateway_file import ledger_file

if TYPE_CHECKING:
    from freehold.router.ledger.queries import LabelAudit

SCHEMA = 1


@click.command("audit")
@click.option("--label", required=True, metavar="NAME", help="The label, as gateway.toml names it.")
@click.option("--since", type=Seconds(), default="90d", show_default=True, help="How far back: 12h, 90d.")
@ledger_option
@json_option
@click.pass_context
def command(ctx: click.Context, label: str, since: float, file: Path | None, as_json: bool) -> None:
    """Show which requests with a label were sent to a provider, and to which.

    Counts ledger rows; rows left by killed processes are listed separately as uncertain. Exits 1 if any request
    left your machines.
    """
    from freehold.router.ledger.queries import audit

    settings: Settings = ctx.obj
    now = time.time()
    result = audit(ledger_file(settings, file), label, now - since, now)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "sure": result.sure, **asdict(result)}, indent=1))
    else:
        show(result)
    if result.left:
        ctx.exit(1)


def show(result: LabelAudit) -> None:
    """Print an audit."""
    what = f"requests labelled {result.label}"
    if result.left:
        click.echo(f"{result.left:,} of {result.rows:,} {what} went to a provider: {_counts(result.left_to)}")
    elif result.rows:
        click.echo(f"none of {result.sure:,} {what} went to a provider")
    else:
        click.echo(f"no {what}")
    if result.other_labels:
        click.echo(f"labels that requests had: {', '.join(result.other_labels)}")
    rows = [
        ("period", f"{_day(result.since)} to {_day(result.until)} UTC, {result.all_rows:,} requests in all")
    ]
    if result.begins is not None and result.begins > result.since:
        rows.append(("ledger begins", f"{_day(result.begins)} UTC; no record of earlier requests"))
    if result.stayed:
        rows.append(("stayed at", _counts(result.stayed_at)))
    if result.unknown:
        rows.append(("not known", f"{result.unknown:,} that were running when a server was killed"))
    for death in result.deaths:
        span = f"between {_day(death.since)} and {_day(death.found)} UTC"
        rows.append(("not known", f"a server was killed {span}; requests that were running may have no row"))
    for departure in result.departures:
        rows.append((departure.id, f"{_day(departure.at)} UTC to {', '.join(departure.places)}"))
    pairs(rows)


def _counts(places: Mapping[str, int]) -> str:
    named = ((place or "sent nowhere", number) for place, number in sorted(places.items()))
    return ", ".join(f"{place} {number:,}" for place, number in named)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
