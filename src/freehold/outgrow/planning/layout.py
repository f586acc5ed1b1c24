"""What decides a layout: how a model may be spread, what an engine can, what the user wants; and what would fit.

planning.py and one_machine.py fill a Layout, each engine's driver words it in its own flags. Knows no flag.
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
from freehold.outgrow.contract import DeployedModel, ParallelSizes, PlanRequest

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
    return ways or ["take a smaller model, or --nodes for several machines"]


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
