"""`freehold gateway check|convert` and `route explain|admit`: what a gateway.toml says, and what it would do.

Knows options and words; the file's rules are router/reading.py's. Sends nothing, and starts no engine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import ModelNotFound, UsageError
from freehold.cli.shared import gateway_option, json_option, table

if TYPE_CHECKING:
    from freehold.route.router.admission.verdict import RouterFigures, RouterVerdict, SampledFigure
    from freehold.route.router.attempts import Explanation
    from freehold.route.router.gateway import Gateway
    from freehold.route.router.toml.table import BadGateway


SCHEMA = 1


@click.group("gateway")
def command() -> None:
    """Check a gateway.toml, or make one from a LiteLLM proxy's configuration.

    `freehold serve --gateway FILE` serves it.
    """


@command.command("check", epilog="Example: freehold gateway check gateway.toml")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--without-keys", is_flag=True, help="Look up no keys, for a machine that does not have them.")
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path, without_keys: bool, as_json: bool) -> None:
    """Check FILE as `serve` does when it starts: each error with its line, the invalid value and a fix.

    Exits with status 1 if the file has errors. For a valid file, prints each route's targets, where they run, their
    prices, and the labels that they accept. Sends nothing.
    """
    from freehold.cli.report.routes import as_rows, show
    from freehold.route.router.reading import read
    from freehold.route.router.toml.table import BadGateway
    from freehold.serve.reports.gateway_file import outside_of

    settings: Settings = ctx.obj
    try:
        gateway = read(file.expanduser(), outside_of(settings, keys=not without_keys))
    except BadGateway as e:
        _refuse(e, as_json=as_json)
        ctx.exit(1)
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "file": str(file), "mistakes": [], **as_rows(gateway)}, indent=1)
        )
    else:
        show(gateway, str(file))


def _refuse(e: BadGateway, *, as_json: bool) -> None:
    """Print mistakes: on stdout, as they are what was asked for."""
    if as_json:
        rows = [{"line": m.line, "key": m.key, "message": m.message, "hint": m.hint} for m in e.mistakes]
        click.echo(json.dumps({"schema": SCHEMA, "file": e.name, "mistakes": rows}, indent=1))
        return
    for mistake in e.mistakes:
        place = f":{mistake.line}" if mistake.line else ""
        click.echo(f"{e.name}{place}: {mistake.key}{': ' if mistake.key else ''}{mistake.message}")
        if mistake.hint:
            click.echo(f"  hint: {mistake.hint}")
    count = "a mistake" if len(e.mistakes) == 1 else f"{len(e.mistakes)} mistakes"
    click.echo(f"error: {e.name} has {count}", err=True)


@command.command("convert", epilog="Example: freehold gateway convert config.yaml > gateway.toml")
@click.argument("file", type=click.Path(path_type=Path))
def convert(file: Path) -> None:
    """Turn FILE, the config.yaml of a LiteLLM proxy, into a gateway.toml on stdout.

    Settings without a counterpart are listed on stderr, and in the file as comments. Keys in FILE are not copied:
    the result names the variables that must contain them.
    """
    from freehold.route.router.convert import read_yaml
    from freehold.route.router.convert.litellm import converted

    draft = converted(read_yaml(file.expanduser()), file.name)
    click.echo(draft.text(), nl=False)
    for each in draft.left:
        click.echo(f"not taken over: {each}", err=True)
    click.echo("write it to gateway.toml, then: freehold gateway check gateway.toml", err=True)


# --- `freehold route explain|admit`: what becomes of a request, and whether a prompt router earns its place


@click.group("route")
def route_command() -> None:
    """Show which models of a gateway would answer a request, and why; judge a prompt router."""


@route_command.command(
    "explain",
    epilog='Example: freehold route explain "Who is our supplier?" --key alice --gateway gateway.toml',
)
@click.argument("prompt", required=False)
@click.option(
    "--recording",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A recording to transcribe, instead of PROMPT.",
)
@click.option("--route", "name", metavar="NAME", help="Route or model. Default: the file's first route.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="Label of the request, as in the header X-Freehold-Label.",
)
@click.option(
    "--key", default="", metavar="NAME", help="Name of the requesting key; its labels and budget apply."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Longest answer, for the prices.",
)
@gateway_option
@json_option
@click.pass_context
def explain_prompt(
    ctx: click.Context,
    prompt: str | None,
    recording: Path | None,
    name: str | None,
    labels: tuple[str, ...],
    key: str,
    max_tokens: int,
    gateway: Path | None,
    as_json: bool,
) -> None:
    """Show where PROMPT or a recording would go: its labels, each target with the reason, and the price.

    Sends nothing and loads no model. Breakers of a running server and spent budgets are unknown here. A label with
    a classifier counts as set, because the classifier does not run.
    """
    import asyncio

    from freehold.base.serving import Job, Origin
    from freehold.base.types import Message
    from freehold.route.router.attempts import explain
    from freehold.route.router.bar import Bars, Identities
    from freehold.route.router.hearing import explain_recording
    from freehold.route.router.routing import GatewayPlan
    from freehold.run.sounds.opening import measure_sound
    from freehold.run.store import Store
    from freehold.serve.reports.gateway_file import holds, read_gateway

    if (prompt is None) == (recording is None):
        raise UsageError("expected either PROMPT or --recording FILE", "see: freehold route explain --help")
    settings: Settings = ctx.obj
    read = read_gateway(settings, gateway, keys=False)
    if key and key not in read.keys:
        known = ", ".join(read.keys) or "none"
        raise UsageError(
            f"gateway.toml has no key {key!r}", f"keys of the file: {known}; any other has no limits"
        )
    origin = Origin(key=key, labels=labels, door="cli")
    bars, plan = Bars(settings.home, Identities(Store(settings)).of), GatewayPlan(read)
    if name and plan.route(name) is None and not holds(settings, name):
        raise ModelNotFound(
            f"neither gateway.toml nor the store has {name!r}", f"names of the file: {', '.join(plan.names)}"
        )
    name = name or _first(read, hears=recording is not None)
    if recording is not None:
        data = recording.read_bytes()
        explanation = explain_recording(plan, name, measure_sound(data), len(data), origin, when=time.time())
    else:
        job = Job(messages=(Message("user", prompt or ""),), max_tokens=max_tokens)
        explanation = asyncio.run(explain(plan, name, job, origin, bars=bars, when=time.time()))
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **_plain(explanation)}, indent=1))
    else:
        _show(explanation)


@route_command.command("admit", epilog="Example: freehold route admit answers.csv")
@click.argument("table", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def admit_router(ctx: click.Context, table: Path, as_json: bool) -> None:
    """Test routers between two models on a TABLE of questions that both answered.

    TABLE is CSV or JSON lines (optionally .gz) with id, task, prompt, weak and strong (the two models' scores, 0 to 1).
    Optional columns: `score` is your router's output, where a higher value selects the strong model; `seen` is 1 if the
    router was trained on the question's task; weak_cost and strong_cost are the costs of the answers. Exits 1 unless
    your router, or without `score` one that this command trains, beats prompt length and the mean of each task on whole
    tasks that were held out.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices this small lose more to waiting threads
    from freehold.route.router.admission import read_table
    from freehold.route.router.admission.verdict import admit

    verdict = admit(read_table(table.expanduser()))
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **verdict.as_json()}, indent=1))
    else:
        show(verdict)
    if not verdict.wanted:
        ctx.exit(1)


def _first(gateway: Gateway, *, hears: bool) -> str:
    """Return the first route for texts, or for recordings; without one the first model."""
    routes = [name for name, route in gateway.routes.items() if route.hears == hears]
    names = [*routes, *gateway.routes, *gateway.models]
    if not names:
        raise UsageError(
            "the gateway.toml has no route and no model", "name a model of the store with --route"
        )
    return names[0]


def _plain(explanation: Explanation) -> dict[str, Any]:
    plain = asdict(explanation)
    return {**plain, "places": sorted(explanation.places), "reserved": explanation.reserved}


def _show(explanation: Explanation) -> None:
    labels = ", ".join(f"{label.name} (by {label.by})" for label in explanation.labels)
    click.echo(f"route {explanation.route}; labels: {labels or 'none'}")
    click.echo(f"allowed places: {', '.join(sorted(explanation.places))}")
    size = f"about {explanation.prompt_tokens:,} prompt tokens and {explanation.max_tokens:,} answer tokens"
    if explanation.seconds:
        size = f"a recording of {explanation.seconds:,.1f} s"
    click.echo(f"estimated cost for {size}:\n")
    rows = [(t.name, t.verdict, t.place, _usd(t.likely), t.reason) for t in explanation.targets]
    table(("TARGET", "VERDICT", "PLACE", "USD", "REASON"), rows, right=(3,))
    if explanation.budget is not None:
        limit, per = _usd(explanation.budget.nano), explanation.budget.per
        click.echo(
            f"\nbudget: {limit} USD a {per}; this request would set aside {_usd(explanation.reserved)} USD"
        )
    if explanation.refused:
        click.echo(f"\nrefused: {explanation.refused}")


def _usd(nano: int) -> str:
    from freehold.route.router.price import NANO

    return "0" if not nano else f"{nano / NANO:.6f}".rstrip("0").rstrip(".")


# --- the verdict of `freehold route admit` as lines -------------------------------------------------

_HEAD = ("", "APGR", "CPT50", "CPT80", "AIQ", "OVER LENGTH", "OVER TASK MEAN")


def show(result: RouterVerdict) -> None:
    """Print both tables and a line for each candidate."""
    click.echo(
        f"{result.table}: {result.questions:,} questions of {result.tasks} tasks; weak {result.weak:.3f}, "
        f"strong {result.strong:.3f}, difference {result.gain}"
    )
    if result.no_router:
        click.echo(f"\nno router: {result.no_router}")
        return
    click.echo("\nwithin the tasks it learned from (5 folds; 95% confidence intervals over questions)")
    _figures(result.in_domain)
    if result.held_out:
        click.echo(f"\n{result.held_out_tasks} tasks held out entirely (95% confidence intervals over tasks)")
        _figures(result.held_out)
    click.echo()
    for name, why in (result.refused or {}).items():
        click.echo(f"{name}: {'refused: ' + why if why else 'admitted'}")


def _figures(rows: Sequence[RouterFigures]) -> None:
    cells = []
    for one in rows:
        a, over = one.apgr, list(one.over.values())
        length = next((s for base, s in one.over.items() if "length" in base), None)
        task = next((s for base, s in one.over.items() if "length" not in base), None) if over else None
        apgr = f"{a.mid:.3f} [{a.low:.3f}, {a.high:.3f}]"
        rates = (f"{one.cpt50:.1f}", f"{one.cpt80:.1f}", f"{one.aiq:.4f}")
        cells.append((one.name, apgr, *rates, _over(length), _over(task)))
    table(_HEAD, cells, right=(2, 3, 4))


def _over(figure: SampledFigure | None) -> str:
    return "" if figure is None else str(figure)
