"""A plan for people and for programs: a text with a reason for each flag, and JSON without any secret.

Knows a DeployPlan's fields; starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from freehold.base.machine import show_bytes
from freehold.outgrow.contract import DeployedModel, DeployPlan, ParallelSizes

# Fields of a plan that its JSON has as they are.
_COUNTS = ("replicas", "across", "context", "streams")
_MEMORY = ("cache_bytes", "cache_tokens", "cache_type", "memory_bytes", "shared_bytes")
_WIDEST = 46  # characters of a flag before its reason goes to the next line


def text(plan: DeployPlan) -> str:
    """Return the plan for people."""
    return "\n".join(_attached(plan) if plan.attached else _started(plan))


def _attached(plan: DeployPlan) -> Iterable[str]:
    named = f" {plan.version}" if plan.version else ""
    yield f"{plan.model.name} at {plan.attached}: {plan.engine}{named}, which calls it {plan.served}"
    if plan.context:
        yield f"  context    {plan.context:,} tokens"
    for secret in plan.secrets:
        yield f"  key        from {secret.source}, where freehold serve runs"
    for note in plan.notes:
        yield f"note: {note}"


def _started(plan: DeployPlan) -> Iterable[str]:
    yield f"{plan.model.name} on {where(plan)}: {engine(plan)}"
    if plan.warning:
        yield f"warning: {plan.warning}"
    model = plan.model
    rounded = next(
        (f" rounded to {f.value}" for f in plan.flags if f.name == "--quantization" and f.value), ""
    )
    weights = f"{model.anatomy.quant}{rounded}, {show_bytes(model.anatomy.weight_bytes)}"
    yield f"  weights    {model.source}, {weights}"
    if plan.sees:
        yield f"  vision     {pictures(model)}"
    count = plan.inner.replicas if plan.inner else plan.replicas
    replicas = f"{count} {'replica' if count == 1 else 'replicas'}"
    several = f"{replicas} of {plan.across} nodes" if plan.across > 1 else replicas
    yield f"  layout     {sizes(plan.sizes)}; {several}"
    length = f"{plan.context:,} tokens of context, " if plan.context else ""
    kind = plan.cache_type or "16 bits"
    cache = f"a cache of {plan.cache_tokens:,} tokens in {kind}, " if plan.cache_tokens else ""
    yield f"  capacity   {length}{cache}{plan.streams:,} {'request' if plan.streams == 1 else 'requests'} at a time"
    if plan.memory_bytes and not plan.shared_bytes:
        yield f"  memory     {show_bytes(plan.memory_bytes)} for each replica"
    elif plan.memory_bytes:
        once, each = show_bytes(plan.shared_bytes), show_bytes(plan.memory_bytes - plan.shared_bytes)
        yield f"  memory     {show_bytes(plan.total_bytes)}: weights of {once} once, {each} for each replica"
    if plan.decode:
        prompts = f", prompts at {plan.prefill}" if plan.prefill else ""
        yield f"  speed      {plan.decode} tokens/s for one user{prompts}"
    if plan.basis:
        yield f"             by {plan.basis}"
    yield f"  listens    {listens(plan)}"
    for number, place in enumerate(plan.places):
        yield f"  processors {place} for replica {number}"
    for secret in plan.secrets:
        origin = "made at each start" if secret.source == "random" else f"from {secret.source}"
        way = f"in {secret.file}" if secret.file else "passed by environment"
        yield f"  secret     {secret.variable}: {origin}, {way}"
    yield "command"
    yield f"  {' '.join(plan.command)}"
    for flag in plan.flags:
        words = " ".join(flag.words())
        if len(words) <= _WIDEST:
            yield f"    {words:<{_WIDEST}}  {flag.reason}"
        else:
            yield f"    {words}"
            yield f"    {'':<{_WIDEST}}  {flag.reason}"
    for flag in plan.follower:
        yield f"    {' '.join(flag.words()):<{_WIDEST}}  on every node but the first: {flag.reason}"
    yield "environment"
    for name, value in plan.environment.items():
        yield f"  {name}={value}"
    for name, target in plan.links.items():
        yield f"link {name} -> {target}"
    for note in plan.notes:
        yield f"note: {note}"


def pictures(model: DeployedModel) -> str:
    """Word a model's tower: its weights, and how many tokens a picture becomes."""
    size = show_bytes(round(sum(part.bytes for part in model.anatomy.parts if part.role == "towers")))
    tower = model.tower
    if tower is None or not tower.most:
        return f"encoder of {size}"
    counts = f"{tower.least:,} to {tower.most:,}" if tower.least < tower.most else f"{tower.most:,}"
    return f"encoder of {size}; {counts} tokens per picture"


def engine(plan: DeployPlan) -> str:
    """Name the engine, and whose flags it was checked against."""
    version = f"{plan.engine} {plan.version}" if plan.version else f"{plan.engine}, unknown version"
    return f"{version} (flags of {plan.schema})" if plan.schema else version


def where(plan: DeployPlan) -> str:
    """Name the hardware."""
    rig, count = plan.nodes.rig, plan.nodes.count
    name = "this machine" if plan.nodes.here and rig.device.kind == "cpu" else rig.name
    return name if count == 1 else f"{count} x {name}"


def sizes(parallel: ParallelSizes) -> str:
    """Word how a model is spread; one device needs no more words."""
    parts = [f"{name} {count}" for name, count in asdict(parallel).items() if count > 1]
    return ", ".join(parts) or "one device"


def listens(plan: DeployPlan) -> str:
    """Say where the engine listens."""
    address = plan.listens
    port = address.port or "(chosen at the start)"
    return str(address.socket) if address.socket else f"{address.host}:{port}"


def as_dict(plan: DeployPlan) -> dict[str, Any]:
    """Return the plan as plain JSON values under stable names; secrets by reference."""
    return {
        "engine": plan.engine,
        "attached": plan.attached,
        "version": plan.version,
        "schema": plan.schema,
        "model": {
            "name": plan.model.name,
            "source": plan.model.source,
            "quant": plan.model.anatomy.quant,
            "family": plan.model.family,
            "base": plan.model.base,
            "sees": plan.sees,
        },
        "hardware": {"rig": plan.nodes.rig.name, "nodes": plan.nodes.count, "here": plan.nodes.here},
        "command": list(plan.command),
        "flags": [asdict(flag) for flag in plan.flags],
        "follower": [asdict(flag) for flag in plan.follower],
        "argv": list(plan.argv()),
        "shell": plan.shell(),
        "shells": [plan.shell(rank) for rank in range(plan.across)],
        "environment": dict(plan.environment),
        "secrets": [asdict(secret) for secret in plan.secrets],
        "listens": {
            "socket": str(plan.listens.socket) if plan.listens.socket else None,
            "host": plan.listens.host,
            "port": plan.listens.port,
        },
        "sizes": {**asdict(plan.sizes), "devices": plan.sizes.devices},
        **{name: getattr(plan, name) for name in (*_COUNTS, *_MEMORY)},
        "places": list(plan.places),
        "links": dict(plan.links),
        "decode": plan.decode.as_json() if plan.decode else None,
        "prefill": plan.prefill.as_json() if plan.prefill else None,
        "basis": plan.basis,
        "warning": plan.warning,
        "notes": list(plan.notes),
    }
