"""What the steps of a running engine take, from its name or address to the model that a simulation uses.

    steps = deploy_bench("http://127.0.0.1:8000/v1")
    deploy_capacity(steps=steps, rate=20, objective="ttft-p95=2s")

Knows this home's server and addresses; the measuring is measuring.py's.
Path: freehold.deploy_bench, cli/deploying/bench.py -> deploy_bench -> EngineDoor.models, measure -> fit -> EngineModel
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from freehold.backends.capacity.measuring import MeasurePlan, fit, measure, rules
from freehold.backends.capacity.steptime import EngineModel
from freehold.backends.capacity.timed_client import EngineDoor
from freehold.backends.engines.attach import HERE
from freehold.config import Settings, load_settings, nearest
from freehold.errors import ServerUnreachable, UsageError

_PLAN = MeasurePlan()


def deploy_bench(
    target: str,
    *,
    model: str = "",
    key: str = "",
    batches: Sequence[int] = _PLAN.batches,
    depths: Sequence[int] = _PLAN.depths,
    prompts: Sequence[int] = _PLAN.prompts,
    clients: Sequence[int] = _PLAN.clients,
    max_tokens: int = _PLAN.tokens,
    rounds: int = _PLAN.rounds,
    streams: int | None = None,
    room: int | None = None,
    settings: Settings | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> EngineModel:
    """Measure what the steps of a running engine take, in seconds, for deploy_capacity. Prompts are random words.

    `target`: a deployment or another model of this home's running server, or the URL of an engine of yours that speaks
    OpenAI's protocol, with its `key` and the `model` there. Measured are `batches` of answers of `max_tokens` tokens at
    `depths` tokens of context, prompts of `prompts` tokens alone, and `clients` that ask one request after another;
    all of it `rounds` times. `streams` (answers at a time) and `room` (tokens of KV cache) are the engine's limits,
    where they are known. Its `as_json` is what `freehold deploy bench --json` prints.
    Raises ServerUnreachable, UpstreamFailed where an answer fails, UsageError where too little could be measured, and
    RuntimeError inside a running event loop (asyncio.to_thread calls it from there).
    """
    beside = tuple(b for b in _PLAN.beside if b <= max(batches, default=0))
    sizes = (tuple(batches), tuple(depths), tuple(prompts))
    plan = MeasurePlan(*sizes, beside, tuple(clients), max_tokens, rounds)
    door = _door(settings or load_settings(), target, model, key)
    result = asyncio.run(_measured(door, plan, on_progress))
    limits = {name: value for name, value in (("streams", streams), ("room", room)) if value}
    return replace(result, limits=replace(result.limits, **limits))


async def _measured(
    door: EngineDoor, plan: MeasurePlan, on_progress: Callable[[str], None] | None
) -> EngineModel:
    chosen, engine = _chosen(door, await door.models())
    samples = await measure(chosen, plan, on_progress)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    about = {"model": chosen.model, "engine": engine, "at": chosen.url, "load_average": load}
    return fit(samples, rules(engine), about)


def _door(settings: Settings, target: str, model: str, key: str) -> EngineDoor:
    """Return where to ask: a URL, or this home's server by its owner's socket. Raises UsageError."""
    if target.startswith(("http://", "https://")):
        _check_key(target, key)
        return EngineDoor(target.rstrip("/"), model, key)
    if "://" in target:
        raise UsageError(f"{target[:80]!r} is not an engine's address", "write http://127.0.0.1:8000/v1")
    if model:
        raise UsageError("--model goes with a URL", f"write freehold deploy bench {model}")
    if key:
        raise UsageError("a key goes with a URL", "this home's server is asked by its owner's socket")
    if not settings.socket.exists():
        raise ServerUnreachable(
            "no server of this home runs", f"freehold serve {target} starts one, or give a URL"
        )
    return EngineDoor("http://freehold/v1", target, socket=settings.socket)


def _check_key(url: str, key: str) -> None:
    """Raise UsageError for a key that would be sent in the clear to another machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UsageError(
            f"{url[:80]!r} is not an engine's address", "write http://127.0.0.1:8000/v1"
        ) from None
    if key and parts.scheme == "http" and parts.hostname not in HERE:
        raise UsageError(
            f"{parts.hostname} is not this machine, and http shows the key on the way",
            "use https, a tunnel to a local port, or no key",
        )


def _chosen(door: EngineDoor, offered: dict[str, str]) -> tuple[EngineDoor, str]:
    """Return the door with a model that is there, and its engine as far as the server names it."""
    if not door.model and len(offered) == 1:
        door = replace(door, model=next(iter(offered)))
    if door.model not in offered:
        near = nearest(door.model, [*offered]) if door.model else ""
        hint = f"did you mean {near}?" if near else f"it offers {', '.join(offered) or 'none'}"
        raise UsageError(f"{door.url} has no model {door.model!r}" if door.model else "which model?", hint)
    return door, offered[door.model]
