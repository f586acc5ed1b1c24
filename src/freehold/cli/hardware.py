"""`freehold hardware MODEL --users N`: hardware that serves this many users, prices, and why other hardware does not.

Knows options and columns; the sizing is advisor/places.py's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from freehold.base.errors import UsageError
from freehold.base.machine import show_bytes
from freehold.base.terminal import Ticking
from freehold.cli.shared import Amount, json_option, table

if TYPE_CHECKING:
    from freehold.base.catalog.hardware import Money
    from freehold.base.catalog.questions import Question
    from freehold.choose.advisor.places import Option, Sizing

SCHEMA = 1
_ANSWERED = ("model", "users", "context", "hardware needed")  # parts of a question that `hardware` uses
_SHOWN, _FAILED = 8, 5  # rows without --all
_HEAD = ("HARDWARE", "QUANT", "ENGINE", "NEEDS", "OF", "TOK/S EACH", "FIRST s", "$ AN HOUR", "$ TO BUY")


@click.command("hardware")
@click.argument("model")
@click.option("--users", type=click.IntRange(1, 4096), default=1, show_default=True, help="Concurrent users.")
@click.option("--context", type=Amount(whole=True), help="Context of each user in tokens; default: 8,192.")
@click.option("--prompt", type=Amount(whole=True), default=1000, help="Tokens of a prompt; default: 1,000.")
@click.option("--max-tokens", type=Amount(whole=True), default=300, help="Tokens of an answer; default: 300.")
@click.option(
    "--min-speed", type=click.FloatRange(0, 1e6), help="Minimum tokens a second for each user; default: 10."
)
@click.option("--quant", metavar="Q", default="", help="Only in this quantisation, such as FP8.")
@click.option(
    "--engine", metavar="NAME", default="", help="Only on this engine: vllm, sglang, llama.cpp, ..."
)
@click.option(
    "--all", "everything", is_flag=True, help="List all hardware, with the reason if it does not suffice."
)
@json_option
def command(model: str, everything: bool, as_json: bool, **options: Any) -> None:
    """Find the hardware that serves MODEL to N concurrent users at a minimum speed, with prices.

    Lists the smallest sufficient number of each device, lowest rent first. Speeds are per user, with 80 % ranges,
    while all users are active. Hardware that does not suffice is listed with the reason.

    With --json: {"schema": 1, "model", "users", "context", "options": [...], "failures": [...]}.
    """
    with Ticking(f"comparing hardware for {model}"):
        from freehold.choose.choosing import hardware

        sizing = hardware(model, **{key: value for key, value in options.items() if value is not None})
    if as_json:
        click.echo(json.dumps(as_plain(sizing), indent=1))
    else:
        show(sizing, everything=everything)
    if not sizing.options:
        raise click.exceptions.Exit(1)


def show(sizing: Sizing, *, everything: bool = False) -> None:
    """Print the options, the first one's command, and why others do not suffice."""
    load = sizing.load
    each = f"{load.prompt:,} + {load.answer:,} tokens per request, memory for {sizing.context:,} each"
    name = sizing.model.name or sizing.model.id
    click.echo(f"{name} for {load.users} at a time, {sizing.pace:g} tokens a second or more; {each}")
    shown = sizing.options if everything else sizing.options[:_SHOWN]
    if shown:
        table(_HEAD, [_cells(o) for o in shown], right=(3, 4, 6))
        if len(sizing.options) > len(shown):
            click.echo(f"and {len(sizing.options) - len(shown)} more: --all")
        first = shown[0]
        click.echo(
            f"on {first.rig.name}: {first.line.command or f'no command is known: {first.line.why_none}'}"
        )
    else:
        click.echo("no hardware of the catalogue suffices")
        from freehold.choose.advisor.places import boxes

        for way in (*boxes(sizing), "a shorter --context, a lower --min-speed or a smaller model may fit"):
            click.echo(f"hint: {way}", err=True)
    failed = sizing.failures if everything else sizing.failures[:_FAILED]
    for one in failed:
        click.echo(f"not {one.rig.name}: {one.why}")
    if len(sizing.failures) > len(failed):
        click.echo(f"and {len(sizing.failures) - len(failed)} more that do not suffice: --all")


def _cells(option: Option) -> tuple[str, ...]:
    return (
        option.rig.name,
        option.quant,
        option.engine,
        show_bytes(option.memory),
        show_bytes(option.rig.memory_bytes),
        str(option.answer),
        f"{option.first.mid:.2g}" if option.first else "?",
        _money(option.rent),
        _money(option.price),
    )


def _money(money: Money | None) -> str:
    if money is None:
        return "?"
    digits = 2 if money.mid < 100 else 0
    return f"{money.mid:,.{digits}f} ({money.low:,.{digits}f} to {money.high:,.{digits}f})"


def as_plain(sizing: Sizing) -> dict[str, Any]:
    """Return the answer as JSON has it."""
    return {
        "schema": SCHEMA,
        "model": sizing.model.id,
        "users": sizing.load.users,
        "prompt": sizing.load.prompt,
        "answer": sizing.load.answer,
        "context": sizing.context,
        "min_speed": sizing.pace,
        "options": [_plain(o) for o in sizing.options],
        "failures": [{"hardware": f.rig.name, "why": f.why} for f in sizing.failures],
    }


def _plain(option: Option) -> dict[str, Any]:
    return {
        "hardware": option.rig.name,
        "devices": option.rig.count,
        "quant": option.quant,
        "engine": option.engine,
        "memory": option.memory,
        "has": option.rig.memory_bytes,
        "streams": option.streams,
        "tok_s_each": option.answer.as_json(),
        "first_token_s": option.first and option.first.as_json(),
        "rent_hour": _money_json(option.rent),
        "price": _money_json(option.price),
        "command": option.line.command or None,
        "why_no_command": option.line.why_none or None,
    }


def _money_json(money: Money | None) -> dict[str, Any] | None:
    if money is None:
        return None
    bounds = {"low": money.low, "mid": money.mid, "high": money.high}
    return bounds | {"checked": money.checked.isoformat(), "source": money.source}


def for_question(parsed: Question, *, users: int | None, context: int | None, as_json: bool) -> None:
    """Answer a question about hardware given to `advise`; options override its words.

    Raises UsageError where no hardware suffices.
    """
    room = context or parsed.context or None
    with Ticking(f"comparing hardware for {parsed.model}"):
        from freehold.choose.choosing import hardware

        sizing = hardware(parsed.model, users=users or parsed.users or 1, context=room)
    if as_json:
        click.echo(json.dumps(as_plain(sizing), indent=1))
    else:
        context_text = f", {sizing.context:,} tokens of context" if room else ""
        click.echo(f"understood: hardware for {sizing.model.id}, {sizing.load.users} at a time{context_text}")
        unused = [p.words for p in parsed.parts if p.what not in _ANSWERED]
        if ignored := [*parsed.ignored, *unused]:
            click.echo(f"ignored: {', '.join(ignored)}")
        show(sizing)
    if not sizing.options:
        raise UsageError(f"no hardware of the catalogue serves {sizing.load.users} users of {parsed.model}")
