"""What decides a layout: how a model may be spread, what an engine can, what the user wants; and what would fit.

planning.py fills a Layout for engines that spread a model, and the functions here for those that stay on one machine:
vLLM's CPU build, llama.cpp, Ollama and MLX. Each engine's driver words it in its own flags. Knows no flag.

vLLM's CPU build takes a share of all memory for its cache unless it is given bytes, and its ranks are processes. No
speed is predicted: no row of it was published or measured. The others' speeds on accelerators are the advisor's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from freehold.base import catalog
from freehold.base.catalog import hardware, quants
from freehold.base.catalog.hardware import Device, Rig
from freehold.base.catalog.model import Stretch
from freehold.base.errors import UsageError
from freehold.base.layers import CONV_WIDTH
from freehold.base.machine import show_bytes
from freehold.choose.advisor import engines, roofline
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup, from_catalogue, in_quant
from freehold.choose.advisor.engines import UpstreamEngine
from freehold.outgrow.contract import DeployedModel, Layout, ParallelSizes, PlanRequest
from freehold.outgrow.planning.eyes import PICTURES_GIB

# A model is spread over devices tensor parallel inside a node before pipeline across nodes. Heads divide, and heads of
# keys and values divide or are copied evenly; experts divide among the devices of a tensor group.
EXPERTS_FROM = 8  # devices of a tensor group from which each holds whole experts: their slices get too narrow


@dataclass(frozen=True, slots=True)
class Wanted:
    """Sizes that the user's flags fix; 0: left to the plan."""

    tensor: int = 0
    pipeline: int = 0
    data: int = 0
    expert: bool | None = None

    @property
    def any(self) -> bool:
        """Whether anything is fixed."""
        return bool(self.tensor or self.pipeline or self.data)


def divides(model: DeployedModel, tensor: int, *, copies: bool = True) -> bool:
    """Say whether a tensor group of this size can share the heads out.

    `copies`: the engine keeps heads of keys and values on several devices where there are fewer heads than devices.
    What is not known divides.
    """
    if model.heads and model.heads % tensor:
        return False
    if not slices(model, tensor) and (not model.experts or model.experts % tensor):
        return False
    kv = model.kv_heads
    return not kv or kv % tensor == 0 or (copies and tensor % kv == 0)


def slices(model: DeployedModel, tensor: int) -> bool:
    """Say whether quantised matrices can be sliced so often: a slice holds whole blocks of weights and scales.

    Where they cannot, experts may be spread whole.
    """
    return not model.blocks or model.blocks % tensor == 0


def tensor_sizes(model: DeployedModel, devices: int, *, copies: bool = True) -> tuple[int, ...]:
    """Return the sizes of tensor groups that share out a node's devices and the model's heads, smallest first."""
    return tuple(t for t in range(1, devices + 1) if devices % t == 0 and divides(model, t, copies=copies))


def candidates(
    model: DeployedModel, devices: int, nodes: int, wanted: Wanted, *, copies: bool = True
) -> tuple[ParallelSizes, ...]:
    """Return the ways to spread one replica over `nodes` of `devices` each, those of fewer devices first.

    Among as many devices, the larger tensor group first: its devices compute at once, a pipeline's after each other.
    Latents, which no device can share out, may also be kept once: each device of a group then attends to sequences of
    its own (data parallel attention), and holds whole experts for all.
    Raises UsageError where the user's own sizes do not divide.
    """
    if wanted.tensor and not divides(model, wanted.tensor, copies=copies):
        raise _does_not_divide(model, wanted.tensor, devices, copies)
    tensors = (wanted.tensor,) if wanted.tensor else tensor_sizes(model, devices, copies=copies)
    depth = model.anatomy.depth or 1
    sizes = {
        with_experts(ParallelSizes(tensor=t, pipeline=p, data=max(wanted.data, 1)), model, wanted)
        for t in tensors
        for p in _pipelines(t, devices, nodes, wanted)
        if p <= depth
    }
    if any(g.kind == "latent" for g in model.anatomy.layers) and not wanted.any:
        sizes |= {
            ParallelSizes(tensor=1, data=s.tensor, expert=s.tensor)
            for s in sizes
            if s.pipeline == 1 and s.expert == s.tensor > 1
        }
    return tuple(sorted(sizes, key=lambda s: (s.devices, -s.tensor)))


def _pipelines(tensor: int, devices: int, nodes: int, wanted: Wanted) -> Iterable[int]:
    """Return the stages that a tensor group of this size may have: within a node, then as many nodes as there are."""
    inside = devices // (tensor * max(wanted.data, 1))
    within = [p for p in range(1, inside + 1) if inside % p == 0]
    whole = devices % (tensor * max(wanted.data, 1)) == 0
    sizes = [*within, *(inside * n for n in range(2, nodes + 1) if whole)]
    return [p for p in sizes if p == wanted.pipeline] if wanted.pipeline else sizes


def attention(sizes: ParallelSizes) -> int:
    """Return the groups that each attend to their own sequences while all share experts; else 1."""
    return sizes.data if sizes.expert > 1 else 1


def with_experts(sizes: ParallelSizes, model: DeployedModel, wanted: Wanted) -> ParallelSizes:
    """Return the sizes with experts spread whole, where there are enough devices and the experts divide."""
    group = sizes.tensor * sizes.data
    spread = bool(model.experts) and model.experts % group == 0 and group > 1
    if not spread or (wanted.expert is False and slices(model, sizes.tensor)):
        return sizes
    whole = wanted.expert or group >= EXPERTS_FROM or not slices(model, sizes.tensor)
    return replace(sizes, expert=group) if whole else sizes


def weight_bytes(parts: Iterable[WeightGroup], sizes: ParallelSizes) -> float:
    """Return the bytes of weights on each device; groups that attend apart each have all but the experts."""
    parts = tuple(parts)
    experts = sum(p.bytes for p in parts if p.role == "experts")
    rest = sum(p.bytes for p in parts) - experts
    group = sizes.tensor * sizes.pipeline
    return rest / group + experts / (group * attention(sizes))


def sequence_bytes(model: DeployedModel, sizes: ParallelSizes, tokens: int, width: float) -> float:
    """Return the bytes of a sequence on each device: heads are shared out, latents are not. `width`: of a value."""
    anatomy = model.anatomy
    latent = any(g.kind == "latent" for g in anatomy.layers)
    group = 1 if latent else min(sizes.tensor, model.kv_heads or sizes.tensor)
    cached = anatomy.cache_bytes(tokens, width)
    return cached / group / sizes.pipeline + anatomy.state_of(CONV_WIDTH) / sizes.tensor / sizes.pipeline


def value_width(cache_type: str) -> float:
    """Return the bytes of a cached value."""
    return 1.0 if "8" in cache_type else 0.5 if "4" in cache_type else 2.0


def heads_of(model: DeployedModel) -> str:
    """Word a model's heads, as far as they are known."""
    heads = f"{model.heads} heads" if model.heads else "its heads"
    return heads + (f" and {model.kv_heads} of keys and values" if model.kv_heads else "")


def _does_not_divide(model: DeployedModel, tensor: int, devices: int, copies: bool) -> UsageError:
    fitting = ", ".join(map(str, tensor_sizes(model, max(devices, 1), copies=copies)))
    return UsageError(
        f"{model.name} has {heads_of(model)}, which {tensor} devices cannot share out",
        f"tensor parallel sizes that do on {devices} devices: {fitting}",
    )


GIB = 1 << 30
USUAL = 4096  # tokens of a conversation by which streams are counted; longer ones take the room of several
WANTED_STREAMS = 8  # that the sizes leave room for, where it is to be had
COPIES = "copies inside one engine: they end together; replicas do not"  # why data parallel has its size
_LEFT = Wanted()


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What decides a layout of one engine, beside advisor.engines' facts of it."""

    engine: str  # advisor.engines' name
    title: str
    cpu: bool  # has a build for processors
    fp8_while_loading: bool  # rounds weights of 16 bits to FP8 by itself
    kv_copies: bool = True  # keeps heads of keys and values on several devices where there are too few


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user's own flags fix, in common terms; 0, "" and None are choices left."""

    sizes: Wanted = _LEFT
    context: int = 0
    streams: int = 0
    cache_type: str = ""
    cache_bytes: int = 0
    memory_share: float = 0.0
    quantisation: str = ""


def large_step(device: Device) -> int:
    """Return the tokens of a step by default where a device is large, else 0.

    vLLM 0.32.0's get_batch_defaults: 16,384 from 160 GiB on, 8,192 from 70 GiB on except for A100, else 2,048 and 256
    answers. Other servers are taken to have the same.
    """
    if device.kind != "gpu" or device.name.startswith("a100"):
        return 0
    return 16384 if device.memory_bytes >= 160 * GIB else 8192 if device.memory_bytes >= 70 * GIB else 0


def usual_streams(engine: UpstreamEngine, device: Device) -> int:
    """Return the requests at a time that an engine takes by default; its cache makes others wait, not this number."""
    return engine.streams if large_step(device) or engine.name != "vllm" else min(engine.streams, 256)


# --- words why an engine cannot run a model on some hardware, and what would fit --------------------
# Tries more devices and rounder weights by the same arithmetic.

_COUNTS = (1, 2, 4, 8)  # devices of a box, as they are sold
_BOXES = (2, 4)
_ROUNDER = {"BF16": ("FP8", "INT4"), "F16": ("FP8", "INT4"), "FP8": ("INT4",)}
_LARGER = ("a100", "h100", "h200", "b200")  # what is rented most, by memory


def misfit(request: PlanRequest, traits: EngineTraits, why: str, *hints: str) -> UsageError:
    """Return the error: why it does not fit, and what would: `hints`, larger hardware, rounder weights."""
    model, nodes = request.model, request.nodes
    where = nodes.rig.name if nodes.count == 1 else f"{nodes.count} x {nodes.rig.name}"
    reasons = [*filter(None, hints), *_would(request, traits)]
    return UsageError(
        f"{model.name} in {model.anatomy.quant} does not fit {traits.title} on {where}: {why}",
        "; ".join(reasons),
    )


def stretch_of(model: DeployedModel, context: int) -> Stretch | None:
    """Return how a model's card stretches its context, where `context` needs that; else None."""
    if not (model.base and model.anatomy.context and context > model.anatomy.context):
        return None
    return catalog.model(model.base).stretch


def check_context(model: DeployedModel, context: int) -> None:
    """Raise UsageError for a context beyond what a model was made for, and its card stretches; 0 is a choice left."""
    most, stretch = model.anatomy.context, stretch_of(model, context)
    if context >= 0 and (not most or context <= (stretch.context if stretch else most)):
        return
    beyond = stretch.says if stretch else ""
    raise UsageError(
        f"a context of {context:,} tokens: {model.name} was made for {most:,}{beyond}", f"--context {most}"
    )


def _would(request: PlanRequest, traits: EngineTraits) -> list[str]:
    """Return what would fit: more of these devices, rounder weights, larger devices, another engine."""
    anatomy, device = request.model.anatomy, request.nodes.rig.device
    engine = engines.engine(traits.engine)
    if device.kind == "mac":
        return ["--engine mlx or llamacpp runs on Macs"]
    if not engine.runs_on(device):
        return ["--engine llamacpp runs there", "--on 1xh100 plans for a GPU"]
    ways = []
    context = request.context or min(anatomy.context or 4096, 4096)
    if more := _count(request, anatomy, device.name, traits, context):
        ways.append(f"--on {more} would hold it")
    rig, replicas = request.nodes.rig, max(request.replicas, 1)
    rounder = (quant for quant in _ROUNDER.get(anatomy.quant, ()) if engine.reads(quant, device))
    for quant in rounder:
        if _holds(in_quant(anatomy, quant), rig, traits, context):
            ways.append(_smaller(request.model, quant))
            break
    for count in () if more else _BOXES:
        if _holds(anatomy, Rig(device, rig.count * count), traits, context):
            ways.append(f"--on {rig.name} --nodes {count * replicas} would hold it")
            break
    if not ways:
        larger = (_count(request, anatomy, name, traits, context) for name in _LARGER if name != device.name)
        first = next(filter(None, larger), "")
        ways = [f"--on {first} would hold it"] if first else []
    return ways or ["use a smaller model, or --nodes for several machines"]


def _smaller(model: DeployedModel, quant: str) -> str:
    """Name a published copy of the weights in a type that would fit, with its bytes."""
    known = catalog.model(model.base) if model.base else None
    copy = quants.chosen(known, quant) if known else None
    if known is None or copy is None:
        return f"a copy of the weights in {quant} would fit"
    size = show_bytes(from_catalogue(known, quant).weight_bytes)
    return f"{copy.repository} ({quant}, {size}) would fit: --quant {quant}"


def _count(request: PlanRequest, anatomy: Anatomy, name: str, traits: EngineTraits, context: int) -> str:
    """Return the fewest devices of a kind that hold a model, in a box as they are sold; "" for none."""
    gpu = hardware.device(name)
    sizes = tensor_sizes(request.model, _COUNTS[-1], copies=traits.kv_copies)
    for count in _COUNTS:
        if count in sizes and _holds(anatomy, Rig(gpu, count), traits, context):
            return Rig(gpu, count * max(request.replicas, 1)).name
    return ""


def _holds(anatomy: Anatomy, rig: Rig, traits: EngineTraits, context: int) -> bool:
    engine = engines.engine(traits.engine)
    return engine.runs_on(rig.device) and roofline.place(anatomy, rig, engine, context).fits


# --- engines that stay on one machine --------------------------------------------------------------

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
        own = "the model's own context"
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
