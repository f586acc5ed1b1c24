"""What plans of engines that stay in one box share: context, answers at a time, memory, speeds.

Knows the advisor's predictions; knows no flag. Path: LlamaCpp.plan, Ollama.plan, Mlx.plan -> room -> Layout
"""

from __future__ import annotations

from dataclasses import replace

from freehold.advisor.anatomy import Anatomy
from freehold.advisor.fit import Misfit, fit, place_on
from freehold.backends.contract import ParallelSizes, PlanRequest
from freehold.backends.planning.layout import Layout
from freehold.backends.planning.misfits import check_context, stretch_of
from freehold.errors import UsageError
from freehold.machine import show_bytes

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
    if layout := stretch_of(request.model, context):
        anatomy = replace(anatomy, context=layout.context)
    streams = streams or request.streams
    if not 0 <= streams <= MOST_STREAMS:
        raise UsageError(f"{streams} streams are not within 1..{MOST_STREAMS}")
    if nodes.rig.device.kind == "cpu":
        return _processor(request, title, context, streams or USUAL_STREAMS, whole)
    told = fit(anatomy, place_on(nodes.rig, advised), context)
    if isinstance(told, Misfit):
        raise UsageError(
            f"{anatomy.name} does not fit {nodes.rig.name} with {title}: {told.reason}", told.hint
        )
    streams = streams or min(USUAL_STREAMS, max(told.streams, 1))
    if streams > max(told.streams, 1):
        raise UsageError(
            f"{streams} answers of {context:,} tokens do not fit {nodes.rig.name}: {told.streams} do",
            f"--streams {told.streams}, or a smaller --context",
        )
    layout = _layout(request, context, streams, whole)
    return replace(layout, decode=told.decode, prefill=told.prefill, basis=told.basis)


def _processor(request: PlanRequest, title: str, context: int, streams: int, whole: bool) -> Layout:
    anatomy, rig = request.model.anatomy, request.nodes.rig
    memory = _memory(anatomy, context, streams, whole)
    most = round(rig.memory_bytes * _SHARE)
    if memory > most:
        raise UsageError(
            f"{anatomy.name} with {streams} answers of {context:,} tokens takes {show_bytes(memory)}, "
            f"and {rig.name} can hold {show_bytes(most)}",
            "a smaller --context, fewer --streams, or a smaller quantisation",
        )
    layout = _layout(request, context, streams, whole)
    return replace(layout, basis=f"its sizes; the speed of {title} on a processor is not predicted")


def _layout(request: PlanRequest, context: int, streams: int, whole: bool) -> Layout:
    anatomy = request.model.anatomy
    return Layout(
        sizes=ParallelSizes(),
        replicas=request.replicas or 1,
        across=1,
        context=context,
        streams=streams,
        memory_share=0.0,
        cache_bytes=streams * anatomy.cache_bytes(context),
        cache_type=request.cache_type,
        quantise="",
        memory_bytes=_memory(anatomy, context, streams, whole),
        decode=None,
        prefill=None,
        basis="",
    )


def _memory(anatomy: Anatomy, context: int, streams: int, whole: bool) -> int:
    kept = anatomy.weight_bytes + streams * anatomy.cache_bytes(context) + _PROCESS
    return kept + (_batch(anatomy, context) if whole else 0)


def _batch(anatomy: Anatomy, tokens: int) -> int:
    """Return the bytes of llama-server's buffer for a batch: logits, a few rows as wide as the model, a mask.

    Measured with batches of 512, 2,048 and 8,192 tokens: 100, 401 and 1,682 MiB for SmolLM2-135M, 303, 1,209 and 4,904
    for Qwen2.5-0.5B; this gives 1 to 3 % more. Models that only read (BERT and its kin) have no head, so no logits;
    of them nothing was measured.
    """
    logits = 0 if "bert" in anatomy.architecture else 4 * anatomy.vocab
    return tokens * (logits + 16 * anatomy.hidden + 2 * tokens)
