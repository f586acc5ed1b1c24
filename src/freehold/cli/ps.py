"""`freehold ps`: models in the running server's memory, with their streams and speed; replicas of deployments.

Path: main -> ps -> attach.server_here -> GET /admin/ps, /admin/deployments -> stdout. Loads nothing.
"""

from __future__ import annotations

import json
import time

import click
import msgspec

from freehold.cli.serving.attach import Loaded, RunningServer, server_here
from freehold.cli.shared import json_option, table
from freehold.config import Settings
from freehold.errors import ServerUnreachable
from freehold.serving import EngineStats
from freehold.store.space import human
from freehold.terminal import printable

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
    from freehold.cli.deploying import tables
    from freehold.cli.deploying.running import RunningDeployments

    with server_here(settings) as server:
        models, rates = _sampled(server)
        needs = server.needs() if models else {}
        try:
            deployments = RunningDeployments(server).rows()
        except ServerUnreachable:  # of an earlier version, which deploys nothing
            deployments = []
    if as_json:
        figures = [{"tok_s": rates.get(m.name, 0.0), "needs": needs.get(m.name, "")} for m in models]
        rows = [{**m.plain, **each} for m, each in zip(models, figures, strict=True)]
        summary = {"schema": SCHEMA, "server": msgspec.to_builtins(server.greeting), "models": rows}
        more = [tables.as_json(each) for each in deployments]
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
        table(tables.HEAD, tables.rows(deployments), right=tables.RIGHT)
        for line in tables.deaths(deployments):
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
