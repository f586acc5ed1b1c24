"""Layouts of engines that stay on one machine: vLLM's CPU build; llama.cpp, Ollama and MLX.

vLLM's CPU build takes a share of all memory for its cache unless it is given bytes, and its ranks are processes. No
speed is predicted: no row of it was published or measured. The others' speeds on accelerators are the advisor's.
"""

from __future__ import annotations

from dataclasses import replace

from freehold.base.errors import UsageError
from freehold.base.layers import CONV_WIDTH
from freehold.base.machine import show_bytes
from freehold.choose.advisor.anatomy import Anatomy
from freehold.outgrow.contract import DeployedModel, Layout, ParallelSizes, PlanRequest
from freehold.outgrow.planning.eyes import PICTURES_GIB
from freehold.outgrow.planning.layout import (
    COPIES,
    EngineTraits,
    Wanted,
    Wishes,
    candidates,
    check_context,
    divides,
    misfit,
    stretch_of,
)

CPU_CONTEXT = 8192  # on a processor, whose prompts are slow, unless another number is asked for
CPU_STREAMS = 16  # at a time on processors, where no number is asked for
# A server process and each rank of vLLM's CPU build before weights: 1.1 GB was measured of the server.
PROCESS_BYTES = 1.2 * (1 << 30)
CPU_SHARE = 0.85  # of the free memory; the rest is the system's, and this server's own
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
    if request.model.sees:  # the server and each engine keep pictures as the processor left them
        fixed += PICTURES_GIB * (1 << 30) * (1 + sizes.data)
    free = CPU_SHARE * request.nodes.rig.memory_bytes / replicas - fixed
    each = _sequence(anatomy, context)
    cache = wishes.cache_bytes * sizes.devices or _cache(streams, each, free, sizes, request.model)
    if cache > free or cache < each:
        raise _too_large(request, traits, fixed + max(each, cache), free, context)
    return Layout(
        sizes=sizes,
        replicas=replicas,
        context=context,
        streams=streams,
        cache_bytes=max(int(cache // sizes.devices), 1),
        cache_type=wishes.cache_type or request.cache_type,
        memory_bytes=round(fixed + cache),
        basis="the files' headers and 1.2 GiB a process; speeds of it on processors are not known",
        why=_why(request, wishes, sizes, context, int(cache // each) if each else streams),
    )


def _sequence(anatomy: Anatomy, tokens: int) -> int:
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
        whole = Wanted(max(wanted.tensor, 1), max(wanted.pipeline, 1), max(wanted.data, 1), wanted.expert)
        ways = candidates(request.model, ranks, 1, whole, copies=traits.kv_copies)
        return ways[0] if ways else ParallelSizes(whole.tensor, wanted.pipeline, whole.data)
    shared = divides(request.model, sockets, copies=traits.kv_copies)
    return ParallelSizes(tensor=sockets) if shared else ParallelSizes(data=sockets)


def _why(
    request: PlanRequest, wishes: Wishes, sizes: ParallelSizes, context: int, fits: int
) -> dict[str, str]:
    own = "as long as processors read prompts in bearable time"
    if context == request.model.anatomy.context:
        own = "what the model was made for"
    usual, heads = "as many as processors advance together usefully", request.model.heads
    return {
        "context": "asked for" if wishes.context or request.context else own,
        "streams": "asked for" if wishes.streams or request.streams else usual,
        "cache": f"{fits} conversations of {context:,} tokens; without it a share of all memory is taken",
        "tensor": f"shares out {heads} heads over {sizes.tensor} sockets",
        "pipeline": "asked for: each rank takes a part of the layers",
        "data": COPIES,
        "expert": "each rank holds whole experts",
    }


# --- llama.cpp and its kin: context, answers at a time, memory, speeds ----------------------------------

USUAL_CONTEXT = 8192
USUAL_STREAMS = 4
MOST_STREAMS = 256
# Bytes of llama-server beside weights and cache: 88 MB with a model of 135M on a processor.
_PROCESS = 90 << 20
_SHARE = 0.9  # of a processor's memory that weights and caches may take


def room(
    request: PlanRequest, title: str, advised: str, context: int = 0, streams: int = 0, *, whole: bool = False
) -> Layout:
    """Return context, streams and what they take. Raises UsageError for a misfit, with what would fit.

    `advised`: what the advisor calls the engine. `context`, `streams`: by the engine's own flags, where those say.
    `whole`: a text as long as the context is computed in one batch.
    """
    nodes, anatomy = request.nodes, request.model.anatomy
    if nodes.count > 1:
        raise UsageError(
            f"{title} answers from one machine, and {nodes.count} are planned",
            f"plan one, with --replicas {nodes.count}",
        )
    context = context or request.context or min(USUAL_CONTEXT, anatomy.context or USUAL_CONTEXT)
    check_context(request.model, context)
    if stretch := stretch_of(request.model, context):
        anatomy = replace(anatomy, context=stretch.context)
    streams = streams or request.streams
    if not 0 <= streams <= MOST_STREAMS:
        raise UsageError(f"{streams} streams are not within 1..{MOST_STREAMS}")
    if nodes.rig.device.kind == "cpu":
        layout = _layout(request, context, streams or USUAL_STREAMS, whole)
        _check_memory(request, layout)
        return replace(layout, basis=f"its sizes; the speed of {title} on a processor is not predicted")
    from freehold.choose.advisor.fit import (  # longer to import than all of a processor's plan
        Misfit,
        fit,
        place_on,
    )

    verdict = fit(anatomy, place_on(nodes.rig, advised), context)
    if isinstance(verdict, Misfit):
        raise UsageError(
            f"{anatomy.name} does not fit {nodes.rig.name} with {title}: {verdict.reason}", verdict.hint
        )
    streams = streams or min(USUAL_STREAMS, max(verdict.streams, 1))
    if streams > max(verdict.streams, 1):
        raise UsageError(
            f"{streams} answers of {context:,} tokens do not fit {nodes.rig.name}: {verdict.streams} do",
            f"--streams {verdict.streams}, or a smaller --context",
        )
    layout = _layout(request, context, streams, whole)
    return replace(layout, decode=verdict.decode, prefill=verdict.prefill, basis=verdict.basis)


def _check_memory(request: PlanRequest, layout: Layout) -> None:
    """Raise UsageError where a processor's memory does not hold the weights and the caches."""
    anatomy, rig = request.model.anatomy, request.nodes.rig
    most = round(rig.memory_bytes * _SHARE)
    if layout.memory_bytes > most:
        raise UsageError(
            f"{anatomy.name} with {layout.streams} answers of {layout.context:,} tokens takes "
            f"{show_bytes(layout.memory_bytes)}, and {rig.name} can hold {show_bytes(most)}",
            "a smaller --context, fewer --streams, or a smaller quantisation",
        )


def _layout(request: PlanRequest, context: int, streams: int, whole: bool) -> Layout:
    anatomy = request.model.anatomy
    cache = streams * anatomy.cache_bytes(context)
    batch = _batch(anatomy, context) if whole else 0
    return Layout(
        replicas=request.replicas or 1,
        context=context,
        streams=streams,
        cache_bytes=cache,
        cache_type=request.cache_type,
        memory_bytes=anatomy.weight_bytes + cache + _PROCESS + batch,
    )


def _batch(anatomy: Anatomy, tokens: int) -> int:
    """Return the bytes of llama-server's buffer for a batch: logits, a few rows as wide as the model, a mask.

    Measured with batches of 512, 2,048 and 8,192 tokens: 100, 401 and 1,682 MiB for SmolLM2-135M, 303, 1,209 and 4,904
    for Qwen2.5-0.5B; this gives 1 to 3 % more. Models that only read (BERT and its kin) have no head, so no logits;
    of them nothing was measured.
    """
    logits = 0 if "bert" in anatomy.architecture else 4 * anatomy.vocab
    return tokens * (logits + 16 * anatomy.hidden + 2 * tokens)
