"""Shares this machine out among replicas of our own engine: cores, memory nodes, and memory besides the weights.

Weights are mapped from one packed file, so all replicas have them once; a cache and two processes are each one's own.
Knows sizes and processors; knows no flag. Path: OwnEngine.plan -> shared_out -> Portion
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.advisor.anatomy import Anatomy
from freehold.backends.contract import PlanRequest
from freehold.backends.planning.misfits import check_context
from freehold.errors import UsageError
from freehold.machine import cpu_quota, default_threads, processor, show_bytes, usable_cores
from freehold.machine.processor import listed, memory_nodes
from freehold.platforms import allowed_processors

USUAL_CONTEXT = 8192  # of a model whose files name none
# Conversations of the whole context that a cache has room for at most: opening.py's POOL_CONTEXTS
STREAMS = 8
WIDTHS = {"f16": 2.0, "q8": 1.125, "f32": 4.0}  # bytes of a cached value, with q8's scales
# A replica beside weights and cache: HTTP server, engine process, activations of a step.
# Measured with SmolLM2-135M after prompts of 1,000 tokens: 150 MB of its own; wider models have more activations.
PROCESS_BYTES = 300 << 20
LEAST_CACHE = 64 << 20
_SHARE = 0.9  # of the free memory that replicas may take
_SLACK = 1.1  # of a cache: whole blocks, and window blocks beside them
_STATES = 32  # of recurrent layers that an engine makes room for
_BLOCK = 32  # tokens of a page of the cache: _native.BLOCK_TOKENS
_STEP = 256  # tokens by which a context is cut to what fits
_LEAST_CONTEXT = 256


@dataclass(frozen=True, slots=True)
class Portion:
    """What each replica is given, and what all of them take."""

    threads: int
    places: tuple[str, ...]  # processors of each; (): any
    context: int
    cache_bytes: int
    memory_bytes: int  # of one replica, with all weights
    shared_bytes: int  # the weights
    cut: bool  # the context is shorter than the model's own, because memory is short


def shared_out(request: PlanRequest) -> Portion:
    """Return each replica's part of this machine. Raises UsageError for too few cores or too little memory."""
    replicas = max(request.replicas, 1)
    threads, places = _cores(replicas)
    context, cache, cut = _memory(request, replicas)
    weights = request.model.anatomy.weight_bytes
    return Portion(threads, places, context, cache, weights + PROCESS_BYTES + cache, weights, cut)


# --- cores ---------------------------------------------------------------------------------------------


def _cores(replicas: int) -> tuple[int, tuple[str, ...]]:
    """Return the threads of each replica, and the processors of each where there are several memory nodes."""
    cores = default_threads()
    if replicas > cores:
        raise UsageError(
            f"{replicas} replicas need a core each, and this machine has {cores} for them",
            f"--replicas {cores}",
        )
    nodes = memory_nodes(allowed_processors())
    if replicas == 1 or len(nodes) == 1:
        return cores // replicas, ()
    places = places_of(replicas, nodes)
    sharing = -(-replicas // len(nodes))
    least = min(usable_cores(processor(), set(place), cpu_quota()) for place in places)
    return max(min(least // sharing, cores // replicas), 1), tuple(map(listed, places))


def places_of(replicas: int, nodes: tuple[frozenset[int], ...]) -> list[frozenset[int]]:
    """Return the processors of each replica: whole nodes where there are enough, else a node that several share."""
    count = len(nodes)
    if replicas >= count:
        return [nodes[number % count] for number in range(replicas)]
    bounds = [number * count // replicas for number in range(replicas + 1)]
    return [frozenset[int]().union(*nodes[bounds[n] : bounds[n + 1]]) for n in range(replicas)]


# --- memory --------------------------------------------------------------------------------------------


def _memory(request: PlanRequest, replicas: int) -> tuple[int, int, bool]:
    """Return the context of each replica, the bytes of its cache, and whether memory cut the context."""
    model, width = request.model, _width(request.cache_type)
    anatomy, asked = model.anatomy, request.context
    check_context(model, asked)
    usable = int(request.nodes.rig.memory_bytes * _SHARE)
    room = (usable - anatomy.weight_bytes) // replicas - PROCESS_BYTES  # of one cache
    most = anatomy.context or USUAL_CONTEXT
    # A default takes half of it, so that an upgrade finds room for one replica more.
    context = asked or _longest(anatomy, most, room // 2, width) or _longest(anatomy, most, room, width)
    need = max(_cache(anatomy, context or _LEAST_CONTEXT, 1, width), LEAST_CACHE)
    if need > room or context < min(_LEAST_CONTEXT, most):
        raise _too_large(request, replicas, usable, need, _longest(anatomy, most, room, width))
    wanted = max(_cache(anatomy, context, min(request.streams or STREAMS, STREAMS), width), need)
    cache = min(wanted, room if request.streams else max(room // 2, need))
    return context, cache, not asked and context < most


def _width(cache_type: str) -> float:
    if (cache_type or "f16") not in WIDTHS:
        raise UsageError(
            f"{cache_type!r} is not a cache of Freehold's own engine", f"it has {', '.join(WIDTHS)}"
        )
    return WIDTHS[cache_type or "f16"]


def _cache(anatomy: Anatomy, context: int, streams: int, width: float) -> int:
    """Return the bytes of a cache for a number of conversations of `context` tokens."""
    states = max(_STATES, streams) * anatomy.state_bytes
    return int(_SLACK * streams * anatomy.cache_bytes(-(-context // _BLOCK) * _BLOCK, width)) + states


def _longest(anatomy: Anatomy, most: int, room: int, width: float) -> int:
    """Return the longest context of which one conversation fits into `room` bytes, up to `most`; 0 for none."""
    if _cache(anatomy, most, 1, width) <= room:
        return most
    low, high = 0, most // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _cache(anatomy, middle * _STEP, 1, width) <= room else (low, middle - 1)
    return low * _STEP


def _too_large(request: PlanRequest, replicas: int, usable: int, cache: int, longest: int) -> UsageError:
    weights = request.model.anatomy.weight_bytes
    each = PROCESS_BYTES + cache
    fewer = (usable - weights) // each if usable > weights else 0
    ways = [f"--context {longest}"] if longest >= _LEAST_CONTEXT and request.context else []
    ways += [f"--replicas {fewer}"] if 0 < fewer < replicas else []
    return UsageError(
        f"{replicas} {'replica takes' if replicas == 1 else 'replicas take'} {show_bytes(weights + replicas * each)}: "
        f"weights of {show_bytes(weights)} once and {show_bytes(each)} for each; "
        f"{show_bytes(usable)} are free for them",
        ", or ".join(ways) or "free memory, or choose a smaller model",
    )
