"""`freehold ps|stop|open`: the models in the running server's memory; ending it or one of them; its page.

Knows the owner's routes, columns and words; loads no model.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from typing import Any

import click
import msgspec

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, ServerUnreachable, UsageError
from freehold.base.serving import EngineStats
from freehold.base.terminal import Ticking, printable
from freehold.cli.serving.attach import Loaded, RunningServer, ended, holder, running, server_here
from freehold.cli.shared import json_option, table
from freehold.run.store import Store
from freehold.run.store.space import human

SCHEMA = 1
SAMPLE_S = 0.5
HEAD = (
    "NAME",
    "QUANT",
    "RESIDENT",
    "RESERVED",
    "CONTEXT",
    "STREAMS",
    "TOK/S",
    "CACHE",
    "UNLOADS",
    "RESTARTS",
)


@click.command("ps")
@json_option
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """List the models in the running server's memory, and the replicas of deployments.

    RESIDENT is the memory that the engine's process uses; RESERVED is the most that it may use: weights, and the
    caches of all streams at the full context. A line under the table shows what one conversation needs, as `fit`
    does.

    TOK/S is the rate of all streams together, measured over half a second. CACHE shows the share that running
    streams use, and the share that keeps earlier prompts.

    With --json, prints {"schema": 1, "server": ..., "models": [...], "deployments": [...]}.
    """
    from freehold.cli.deploying import running as deployed

    with server_here(settings) as server:
        models, rates = _sampled(server)
        needs = server.needs() if models else {}
        try:
            deployments = deployed.RunningDeployments(server).rows()
        except ServerUnreachable:  # of an earlier version, which deploys nothing
            deployments = []
    if as_json:
        figures = [{"tok_s": rates.get(m.name, 0.0), "needs": needs.get(m.name, "")} for m in models]
        rows = [{**m.plain, **each} for m, each in zip(models, figures, strict=True)]
        summary = {"schema": SCHEMA, "server": msgspec.to_builtins(server.greeting), "models": rows}
        more = [deployed.as_json(each) for each in deployments]
        click.echo(json.dumps({**summary, "deployments": more}, indent=1))
        return
    if server.note:
        click.echo(f"note: {server.note}", err=True)
    beyond = {each.name for each in deployments}
    if own := [m for m in models if m.name not in beyond]:
        table(HEAD, [_row(m, rates.get(m.name, 0.0)) for m in own], right=(2, 3, 4, 6, 9))
        for line in [f"{m.name} {needs[m.name]}" for m in own if m.name in needs]:
            click.echo(printable(line))
    if deployments:
        table(deployed.HEAD, deployed.rows(deployments), right=deployed.RIGHT)
        for line in deployed.deaths(deployments):
            click.echo(printable(line))
    elif not own:
        click.echo(
            f"no model is loaded; {server.greeting.url} loads a model when a request names it", err=True
        )


def _sampled(server: RunningServer) -> tuple[list[Loaded], dict[str, float]]:
    """Return the models, and tokens per second of the busy ones, measured between two samples."""
    before = {m.name: m.stats.generated_tokens for m in server.loaded() if m.stats.running}
    started = time.monotonic()
    if before:
        time.sleep(SAMPLE_S)
    models, passed = server.loaded(), time.monotonic() - started
    return models, {
        m.name: round((m.stats.generated_tokens - before[m.name]) / passed, 1)
        for m in models
        if m.name in before
    }


def _row(m: Loaded, rate: float) -> tuple[str, ...]:
    if m.info is None:
        return m.name, "", "", "", "", f"loading, {m.loading:.0%}", "", "", "", str(m.restarts)
    return (
        m.name,
        m.info.quantization,
        human(resident) if (resident := m.plain.get("resident_bytes", 0)) else "",
        human(m.info.memory_bytes),
        f"{m.info.context:,}",
        _streams(m.stats),
        f"{rate:.1f}" if rate else "",
        _cache(m.stats),
        _unloads(m),
        str(m.restarts),
    )


def _streams(stats: EngineStats) -> str:
    waiting = f", {stats.waiting} waiting" if stats.waiting else ""
    return f"{stats.running} running{waiting}" if stats.running or stats.waiting else "idle"


def _cache(stats: EngineStats) -> str:
    live, kept = (n / max(stats.blocks, 1) for n in (stats.blocks_live, stats.blocks_cached))
    shown = f"{live:.1%} in use, {kept:.1%} cached"
    if not stats.states:
        return shown
    return f"{shown}; {stats.states_live} + {stats.states_cached} of {stats.states} states"


def _unloads(m: Loaded) -> str:
    if m.expires_at is None:
        return "" if m.in_flight else "never"
    left = max(m.expires_at - time.time(), 0)
    return f"in {left / 60:.0f} min" if left >= 90 else f"in {left:.0f} s"


# --- `freehold stop [MODEL]`: unloads a model from the running server, or stops the server ----------


@click.command("stop")
@click.argument("model", required=False)
@click.option("--now", is_flag=True, help="Do not wait for running answers: they end with an error.")
@click.pass_obj
def stop_command(settings: Settings, model: str | None, now: bool) -> None:
    """Unload MODEL, or stop the server.

    The server accepts no new requests, finishes running answers (for at most its --drain) and exits; this command
    waits for that. A model with running answers is unloaded only with --now.
    """
    pid = holder(settings)
    if now and model is None and pid and running(settings) is None:
        # It accepts no connections any more, so it is stopping; a second signal ends it at once.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    else:
        _ask(settings, model, now=now)
    if model is None:
        with Ticking("the server ends"):
            ended(settings)
        click.echo("the server has stopped", err=True)


def _ask(settings: Settings, model: str | None, *, now: bool) -> None:
    with server_here(settings) as server:
        if server.note:
            click.echo(f"note: {server.note}", err=True)
        if model is not None:
            _unload(server, _name(settings, model), now=now)
            return
        under_way = sum(m.in_flight for m in server.loaded())
        server.stop(now=now)
    if under_way and not now:
        click.echo(
            f"waiting for {_answers(under_way)} to finish (freehold stop --now does not wait)", err=True
        )


def _unload(server: RunningServer, name: str, *, now: bool) -> None:
    busy = next((m.in_flight for m in server.loaded() if m.name == name), 0)
    if busy and not now:
        raise UsageError(
            f"{name} has {_answers(busy)} running", f"freehold stop {name} --now does not wait for them"
        )
    server.unload(name)
    click.echo(f"{name} is unloaded", err=True)


def _answers(count: int) -> str:
    return f"{count} answer" if count == 1 else f"{count} answers"


def _name(settings: Settings, model: str) -> str:
    """Return the server's name of the model that the user calls `model`."""
    try:
        return Store(settings).resolve(model).name
    except FreeholdError:  # gone from the store, but perhaps still in memory
        return model


# --- `freehold open`: the page's address with a one-time code that makes its browser the owner's ----


@click.command("open")
@click.option("--print", "only_print", is_flag=True, help="Print the address without opening a browser.")
@json_option
@click.pass_obj
def open_command(settings: Settings, only_print: bool, as_json: bool) -> None:
    """Open the web console of the running server, signed in as the owner.

    Prints an address with a one-time code, valid for 60 seconds, and opens it if there is a browser. The page can
    then also pull and delete models, use tools and create keys. To chat on this machine, the address without the
    code is enough.
    """
    from freehold.cli.serving.options import open_browser, owner_address

    with server_here(settings) as server:
        if not server.greeting.url:
            raise UsageError("this server has no port, so no page", "start it with freehold serve")
        code = _code(server)
        address, seconds = owner_address(server.greeting.url, code["code"]), code["seconds"]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "url": address, "seconds": seconds}))
        return
    click.echo(address)
    opened = not only_print and open_browser(address)
    what = "opened in the browser" if opened else "open it in a browser on this machine"
    click.echo(f"{what}; the code in it works once, within {seconds:.0f} s", err=True)


def _code(server: RunningServer) -> dict[str, Any]:
    """Ask for a code. Raises UsageError where the server has no page."""
    try:
        return server.api.call("POST", "/console/api/code", {})
    except FreeholdError as e:
        if "no route" in e.message:
            raise UsageError(
                "this server was started without its page", "start it without --no-console"
            ) from e
        raise
