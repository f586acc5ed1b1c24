"""Lays a model out on processors: memory decides, and the cache is given in bytes.

vLLM's CPU build takes a share of all memory for its cache unless it is given bytes, and its ranks are processes. No
speed is predicted: no row of it was published or measured.
Path: planning.laid_out -> on_processors -> Layout
"""

from __future__ import annotations

from freehold.advisor.anatomy import Anatomy
from freehold.backends.contract import DeployedModel, ParallelSizes, PlanRequest
from freehold.backends.planning import layout
from freehold.backends.planning.layout import (
    CPU_CONTEXT,
    CPU_SHARE,
    CPU_STREAMS,
    PROCESS_BYTES,
    EngineTraits,
    Layout,
    Wishes,
)
from freehold.backends.planning.misfits import check_context, misfit
from freehold.errors import UsageError
from freehold.layers import CONV_WIDTH
from freehold.machine import show_bytes

_READS = ("BF16", "F16", "F32", "INT4", "INT4-32", "FP8")
_SHORTER = (4096, 2048, 1024, 512, 256)  # contexts to offer instead; below them no model is of use
_BLOCK = 128  # tokens of a block of vLLM's cache on processors


def on_processors(request: PlanRequest, traits: EngineTraits, wishes: Wishes) -> Layout:
    """Return the layout on processors. Raises UsageError for what does not fit, with what would."""
    anatomy = request.model.anatomy
    if anatomy.quant not in _READS:
        raise misfit(request, traits, f"{traits.title} has no kernels for {anatomy.quant} on processors")
    context = wishes.context or request.context or min(anatomy.context or CPU_CONTEXT, CPU_CONTEXT)
    check_context(request.model, context)
    sizes, replicas = _sizes(request, traits, wishes), request.replicas or 1
    streams = wishes.streams or request.streams or CPU_STREAMS
    fixed = PROCESS_BYTES * (1 + sizes.devices) + anatomy.weight_bytes * sizes.data
    free = CPU_SHARE * request.nodes.rig.memory_bytes / replicas - fixed
    each = _sequence(anatomy, context)
    cache = wishes.cache_bytes * sizes.devices or _cache(streams, each, free, sizes, request.model)
    if cache > free or cache < each:
        raise _too_large(request, traits, fixed + max(each, cache), free, context)
    return Layout(
        sizes=sizes,
        replicas=replicas,
        across=1,
        context=context,
        streams=streams,
        memory_share=0.0,
        cache_bytes=max(int(cache // sizes.devices), 1),
        cache_type=wishes.cache_type or request.cache_type,
        quantise="",
        memory_bytes=round(fixed + cache),
        decode=None,
        prefill=None,
        basis="the files' headers and 1.2 GiB a process; speeds of it on processors are not known",
        why=_why(request, wishes, sizes, context, int(cache // each) if each else streams),
    )


def _sequence(anatomy: Anatomy, tokens: int) -> int:
    """Return the bytes of a sequence in whole blocks."""
    return anatomy.cache_bytes(-(-tokens // _BLOCK) * _BLOCK) + anatomy.state_of(CONV_WIDTH)


def _cache(streams: int, each: int, free: float, sizes: ParallelSizes, model: DeployedModel) -> int:
    """Return the bytes of all ranks' caches: for the streams, of at most half of what is free, one block to spare.

    Ranks beyond the heads of keys and values hold copies of them.
    """
    copies = max(sizes.tensor // model.kv_heads, 1) if model.kv_heads else 1
    wanted = min(streams * each, max(free / 2 / copies, each))
    return int(wanted + model.anatomy.cache_bytes(_BLOCK)) * copies


def _too_large(
    request: PlanRequest, traits: EngineTraits, need: float, free: float, context: int
) -> UsageError:
    memory, replicas = request.nodes.rig.memory_bytes, request.replicas or 1
    fitting = (n for n in _SHORTER if n < context and _sequence(request.model.anatomy, n) <= free)
    shorter = next(fitting, 0)
    why = f"{replicas} x {show_bytes(need)} of weights, processes and cache; {show_bytes(memory)} are free"
    return misfit(request, traits, why, f"--context {shorter} fits" if shorter else "")


def _sizes(request: PlanRequest, traits: EngineTraits, wishes: Wishes) -> ParallelSizes:
    """Return the ranks: as the flags say, else one a socket, in tensor groups if the heads divide, in copies if not."""
    wanted, sockets = wishes.sizes, request.nodes.rig.count
    if request.nodes.count > 1:
        raise misfit(request, traits, f"{traits.title} on processors does not span machines")
    if wanted.any:
        ranks = max(wanted.tensor, 1) * max(wanted.pipeline, 1) * max(wanted.data, 1)
        ways = layout.candidates(request.model, ranks, 1, _whole(wanted), copies=traits.kv_copies)
        return ways[0] if ways else ParallelSizes(max(wanted.tensor, 1), wanted.pipeline, max(wanted.data, 1))
    shared = layout.divides(request.model, sockets, copies=traits.kv_copies)
    return ParallelSizes(tensor=sockets) if shared else ParallelSizes(data=sockets)


def _whole(wanted: layout.Wanted) -> layout.Wanted:
    return layout.Wanted(max(wanted.tensor, 1), max(wanted.pipeline, 1), max(wanted.data, 1), wanted.expert)


def _why(
    request: PlanRequest, wishes: Wishes, sizes: ParallelSizes, context: int, fits: int
) -> dict[str, str]:
    wanted = wishes.context or request.context
    trained = request.model.anatomy.context
    own = (
        "what the model was made for"
        if context == trained
        else "as long as processors read prompts in bearable time"
    )
    more = wishes.streams or request.streams
    heads = request.model.heads
    return {
        "context": "asked for" if wanted else own,
        "streams": "asked for" if more else "as many as processors advance together usefully",
        "cache": f"{fits} conversations of {context:,} tokens; without it a share of all memory is taken",
        "tensor": f"shares out {heads} heads over {sizes.tensor} sockets",
        "pipeline": "asked for: each rank takes a part of the layers",
        "data": "copies inside one engine: they end together; replicas do not",
        "expert": "each rank holds whole experts",
    }
