"""`freehold doctor providers`: one short call to each provider of a gateway.toml, shown before it is made.

A call goes the way of a request: cleared, priced, written into the ledger. Knows the file and what to ask, and no wire.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, UsageError
from freehold.cli.shared import gateway_option, json_option, table
from freehold.serve.reports.gateway_file import read_gateway

if TYPE_CHECKING:
    from freehold.route.router.gateway import Gateway, GatewayModel
    from freehold.route.router.opening import GatewayModels

SCHEMA = 1
PROMPT = "Say yes."
MOST_TOKENS = 16  # of an answer; OpenAI's doors accept no less
PROMPT_TOKENS = 64  # no more than the prompt has on any wire, with what its template adds
WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A call that may be made."""

    provider: str
    model: str  # by the file's name
    asked: str  # as the provider calls it
    most_usd: float


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What became of it. `error` "" for an answer."""

    provider: str
    model: str
    seconds: float
    usd: float
    error: str = ""


@click.command("providers", epilog="Example: freehold doctor providers --gateway gateway.toml")
@gateway_option
@click.option("--yes", is_flag=True, help="Make the calls without asking first.")
@json_option
@click.pass_context
def command(ctx: click.Context, gateway: Path | None, yes: bool, as_json: bool) -> None:
    """Make one short call to each provider of a gateway.toml; exit 1 if one of them fails.

    Before it sends anything, it shows the calls and their highest possible cost. Each call asks the provider's
    cheapest model in the file for one word, and gets a row in the ledger.
    """
    settings: Settings = ctx.obj
    if settings.offline:
        raise UsageError("offline mode forbids the calls", "leave --offline out")
    file = read_gateway(settings, gateway)
    probes = _probes(file)
    if not probes:
        raise UsageError(
            "the file has no model at a provider", "add one: [models.NAME] with provider and model"
        )
    _show(file, probes)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError("the calls cost money, and there is no terminal to ask at", "--yes makes them")
        click.confirm("make these calls?", abort=True, err=True)
    results = asyncio.run(_ask(settings, file, probes))
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "providers": [asdict(each) for each in results]}, indent=1))
    else:
        head = ("PROVIDER", "MODEL", "SECONDS", "COST", "RESULT")
        rows = [
            (r.provider, r.model, f"{r.seconds:.2f}", f"${r.usd:.9f}", r.error or "answers") for r in results
        ]
        table(head, rows, right=(2, 3))
    ctx.exit(1 if any(each.error for each in results) else 0)


def _probes(file: Gateway) -> list[Probe]:
    """Return a call for each provider, of its cheapest model in the file."""
    probes: dict[str, Probe] = {}
    for model in file.models.values():
        if model.remote is None or model.remote.abilities.transcription:
            continue
        probe = Probe(model.place, model.name, model.remote.model, _most(model))
        best = probes.get(model.place)
        if best is None or probe.most_usd < best.most_usd:
            probes[model.place] = probe
    return list(probes.values())


def _most(model: GatewayModel) -> float:
    from freehold.route.router.price import NANO

    price = model.price
    return price.most(PROMPT_TOKENS, MOST_TOKENS, time.time()) / NANO if price is not None else 0.0


def _show(file: Gateway, probes: Sequence[Probe]) -> None:
    """Say on stderr what will be sent, to whom, and what it may cost."""
    for each in probes:
        url = file.providers[each.provider].url
        click.echo(
            f"{each.provider}: {PROMPT!r} to {each.asked} at {url}, {MOST_TOKENS} tokens at most, "
            f"${each.most_usd:.6f} at most",
            err=True,
        )
    for name in file.providers.keys() - {each.provider for each in probes}:
        click.echo(f"{name}: no model of the file is there; it is not asked", err=True)


async def _ask(settings: Settings, file: Gateway, probes: Sequence[Probe]) -> list[ProbeResult]:
    """Make the calls, one after another, each by a route of its own without retries."""
    from freehold.route.router.gateway import GatewayRoute
    from freehold.route.router.ledger.store import Ledger
    from freehold.route.router.opening import GatewayModels, ProviderModels, ledger_path
    from freehold.route.router.record import Budgets
    from freehold.run.store import Store
    from freehold.serve.worker.models import EngineModels

    routes = {
        f"doctor {p.provider}": GatewayRoute(
            f"doctor {p.provider}", (p.model,), retries=0, first_token_s=WAIT_S, timeout_s=WAIT_S
        )
        for p in probes
    }
    plain = replace(file, routes=routes, labels={}, keys={})
    ledger = Ledger.open(ledger_path(file, settings.home))
    rented = ProviderModels(file.providers.values())
    models = GatewayModels(EngineModels(Store(settings)), lambda: plain, rented=rented, books=Budgets(ledger))
    try:
        return [await _probe_answer(models, file, probe) for probe in probes]
    finally:
        await models.close(0.0)
        await rented.close()
        await ledger.close()


async def _probe_answer(models: GatewayModels, file: Gateway, probe: Probe) -> ProbeResult:
    from freehold.base.serving import Job, Origin
    from freehold.base.types import Message, Usage
    from freehold.route.router.price import NANO

    began, used, error = time.monotonic(), Usage(0, 0), ""
    origin = Origin(secrets.token_hex(12), secrets.token_hex(12), door="doctor")
    job = Job(messages=(Message("user", PROMPT),), max_tokens=MOST_TOKENS)
    try:
        handle = await models.asked_by(origin).use(f"doctor {probe.provider}")
        async for _, chunk in await handle.start(job):
            used = chunk.usage or used
    except FreeholdError as e:
        error = e.message
    price = file.models[probe.model].price
    usd = price.cost(used, time.time()) / NANO if price is not None and not error else 0.0
    return ProbeResult(probe.provider, probe.model, time.monotonic() - began, usd, error)
