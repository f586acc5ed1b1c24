"""`freehold ledger [show REQUEST]` and `audit`: a gateway's requests, what each cost and why, and which were sent out.

Knows options and words; reading is router/ledger's. Works while a server writes.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.base.config import Settings
from freehold.base.errors import ModelNotFound
from freehold.cli.shared import Seconds, json_option, ledger_option, pairs, table
from freehold.serve.reports.gateway_file import ledger_file

if TYPE_CHECKING:
    from freehold.route.router.ledger.rows import LabelAudit, LedgerRow, LedgerSum


SCHEMA = 1
HEAD = (
    "REQUESTS",
    "WHOLE",
    "USD",
    "ESTIMATED",
    "PROMPT",
    "CACHED",
    "WRITTEN",
    "ANSWERS",
    "SOUND",
    "FIRST",
    "WHOLE IN",
)


@click.group("ledger", invoke_without_command=True)
@click.option("--since", type=Seconds(), default="7d", show_default=True, help="How far back: 12h, 90d.")
@click.option(
    "--by",
    default="model",
    show_default=True,
    metavar="A,B",
    help="Group by one or more of `model, route, key, task, place, label, door, outcome, day`.",
)
@ledger_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, since: float, by: str, file: Path | None, as_csv: bool, as_json: bool
) -> None:
    """Show what a gateway's requests cost: rows of the ledger, summed.

    USD is exact to the nano-dollar. ESTIMATED is the part whose tokens no provider reported, because the answer
    broke off, its client disconnected, or the server was killed.

    With --json: {"schema": 1, "since": ..., "until": ..., "by": [...], "sums": [...], "total": {...}}; amounts are in
    whole nano-dollars.
    """
    if ctx.invoked_subcommand is not None:
        return
    from freehold.route.router.ledger.rows import sums, sums_json

    path, now = ledger_file(ctx.obj, file), time.time()
    names = [name.strip() for name in by.split(",") if name.strip()]
    if as_json and not as_csv:
        click.echo(json.dumps(sums_json(path, now - since, now, names), indent=1))
        return
    rows_found = sums(path, now - since, now, names)
    if as_csv:
        click.echo(_csv(names, rows_found), nl=False)
        return
    (total,) = sums(path, now - since, now)
    if not total.rows:
        click.echo(f"no requests since {_day(now - since)} UTC")
    else:
        head = (*(name.upper() for name in names), *HEAD)
        rows = [(*(value or "-" for value in one.group), *_cells(one)) for one in rows_found]
        rows.append((*("total" if n == 0 else "" for n in range(len(names))), *_cells(total)))
        table(head, rows, right=tuple(range(len(names), len(head))))


@command.command("show", epilog="Example: freehold ledger show chatcmpl-d0b61afa8c1955441e297abc")
@click.argument("request")
@ledger_option
@json_option
@click.pass_obj
def show(settings: Settings, request: str, file: Path | None, as_json: bool) -> None:
    """Show one REQUEST: its key, the candidate targets with the reasons, attempts, tokens and cost.

    REQUEST is the id in the answer's x-request-id header, the answer's own id, or the provider's. Prints no prompt
    and no answer, because the ledger contains none.
    """
    from freehold.route.router.ledger.rows import find

    path = ledger_file(settings, file)
    rows = find(path, request)
    if not rows:
        raise ModelNotFound(
            f"the ledger has no request {request!r}", "it contains only requests to a gateway"
        )
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "rows": [asdict(row) for row in rows]}, indent=1))
        return
    for number, row in enumerate(rows):
        if number:
            click.echo()
        pairs(_words(row))


def _cells(one: LedgerSum) -> tuple[str, ...]:
    from freehold.route.router.ledger.rows import usd

    tokens = (one.prompt, one.cached, one.written, one.completion)
    money = (usd(one.nano).removesuffix(" USD"), usd(one.estimated).removesuffix(" USD"))
    return (
        *(f"{one.rows:,}", f"{one.whole:,}", *money),
        *(f"{count:,}" for count in tokens),
        f"{one.sound_ms / 1000:,.1f} s" if one.sound_ms else "-",
        *(f"{seconds:.2f} s" for seconds in (one.first_s, one.whole_s)),
    )


def _csv(names: list[str], sums: tuple[LedgerSum, ...]) -> str:
    from freehold.route.router.ledger.rows import sum_json

    out = io.StringIO()
    rows = [sum_json(names, one) for one in sums]
    writer = csv.DictWriter(out, rows[0] if rows else [*names, "rows"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _words(row: LedgerRow) -> list[tuple[str, str]]:
    from freehold.route.router.ledger.rows import usd

    used = row.usage
    prices = "price of gateway.toml" if row.price_version == "file" else f"prices {row.price_version}"
    about = "estimated" if row.estimated else prices if row.price_version else ""
    kinds = {"cached": used.cached_tokens, "written": used.written_tokens + used.written_hour_tokens}
    of = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    thought = f" ({used.thought_tokens:,} of reasoning)" if used.thought_tokens else ""
    teach = {True: "may train models", False: "may not train models", None: ""}[row.may_teach]
    words = [
        ("request", row.request_id or row.id),
        ("at", f"{_day(row.at, 'seconds')} UTC, by key {row.key or '-'}, through {row.door or '-'}"),
        ("model", f"{row.asked}{f', task {row.task}' if row.task else ''}"),
        (
            "answered by",
            f"{row.target} at {row.place}{', owned' if row.owned else ''}" if row.target else "-",
        ),
        ("ended", f"{row.outcome}{f' ({row.finish_reason})' if row.finish_reason else ''}"),
        ("labels", ", ".join(f"{label.name} (by {label.by})" for label in row.labels) or "none"),
        ("sent to a provider", "yes" if row.left_house else "no"),
        (
            "tokens",
            f"{used.prompt_tokens:,}{f' ({of})' if of else ''} in, {used.completion_tokens:,}{thought} out",
        ),
        *([("sound", f"{row.sound_ms / 1000:,.3f} s")] if row.sound_ms else []),
        ("cost", f"{usd(row.nano)}{f' ({about})' if about else ''}"),
        ("seconds", f"{row.first_s:.3f} to the first token, {row.whole_s:.3f} in all"),
    ]
    if row.terms:
        words.append(("terms", f"{row.terms}{f'; answers {teach}' if teach else ''}"))
    if row.upstream_id:
        words.append(("provider's id", row.upstream_id))
    if row.parent:
        words.append(("beside", row.parent))
    for each in row.candidates:
        words.append(("candidate" if each.taken else "skipped", f"{each.target}: {each.reason}"))
    for one in row.attempts:
        status = f" {one.status}" if one.status else ""
        ended = one.cause or "answered"
        words.append(
            ("attempt", f"{one.target} at {one.place}: {ended}{status}, {one.seconds:.3f} s, {usd(one.nano)}")
        )
    return words


def _day(at: float, unit: str = "minutes") -> str:
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat(" ", unit)


# --- `freehold audit --label NAME`: which requests of a label were sent to a provider, and to which -


@click.command("audit")
@click.option("--label", required=True, metavar="NAME", help="The label, as gateway.toml names it.")
@click.option("--since", type=Seconds(), default="90d", show_default=True, help="How far back: 12h, 90d.")
@ledger_option
@json_option
@click.pass_context
def audit_command(ctx: click.Context, label: str, since: float, file: Path | None, as_json: bool) -> None:
    """Show which requests with a label were sent to a provider, and to which.

    Counts ledger rows; rows left by killed processes are listed separately as uncertain. Exits 1 if any request
    left your machines.
    """
    from freehold.route.router.ledger.rows import audit

    settings: Settings = ctx.obj
    now = time.time()
    result = audit(ledger_file(settings, file), label, now - since, now)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "sure": result.sure, **asdict(result)}, indent=1))
    else:
        show_audit(result)
    if result.left:
        ctx.exit(1)


def show_audit(result: LabelAudit) -> None:
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
        (
            "period",
            f"{_minute(result.since)} to {_minute(result.until)} UTC, {result.all_rows:,} requests in all",
        )
    ]
    if result.begins is not None and result.begins > result.since:
        rows.append(("ledger begins", f"{_minute(result.begins)} UTC; no record of earlier requests"))
    if result.stayed:
        rows.append(("stayed at", _counts(result.stayed_at)))
    if result.unknown:
        rows.append(("not known", f"{result.unknown:,} that were running when a server was killed"))
    for death in result.deaths:
        span = f"between {_minute(death.since)} and {_minute(death.found)} UTC"
        rows.append(("not known", f"a server was killed {span}; requests that were running may have no row"))
    for departure in result.departures:
        rows.append((departure.id, f"{_minute(departure.at)} UTC to {', '.join(departure.places)}"))
    pairs(rows)


def _counts(places: Mapping[str, int]) -> str:
    named = ((place or "sent nowhere", number) for place, number in sorted(places.items()))
    return ", ".join(f"{place} {number:,}" for place, number in named)


def _minute(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
