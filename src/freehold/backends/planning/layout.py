"""A layout: sizes, context, streams and cache of an engine, and what decides them.

Types alone; planning.py and processors.py fill them, each engine's driver words them in its own flags.
Path: EngineDriver.plan -> EngineTraits, Wishes -> planning.laid_out -> Layout
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from freehold.advisor.anatomy import WeightGroup
from freehold.advisor.engines import UpstreamEngine
from freehold.advisor.interval import Interval
from freehold.backends.contract import DeployedModel, ParallelSizes
from freehold.catalog.hardware import Device
from freehold.errors import UsageError
from freehold.layers import CONV_WIDTH

# Spreads a model over devices: tensor parallel inside a node before pipeline across nodes.
# Heads divide, and heads of keys and values divide or are copied evenly; experts divide among the devices of
# a tensor group.
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


def _does_not_divide(model: DeployedModel, tensor: int, devices: int, copies: bool) -> UsageError:
    heads = f"{model.heads} heads" if model.heads else "its heads"
    kv = f" and {model.kv_heads} of keys and values" if model.kv_heads else ""
    fitting = ", ".join(map(str, tensor_sizes(model, max(devices, 1), copies=copies)))
    return UsageError(
        f"{model.name} has {heads}{kv}, which {tensor} devices cannot share out",
        f"tensor parallel sizes that do on {devices} devices: {fitting}",
    )


GIB = 1 << 30
USUAL = 4096  # tokens of a conversation by which streams are counted; longer ones take the room of several
CPU_CONTEXT = 8192  # on a processor, whose prompts are slow, unless another number is asked for
WANTED_STREAMS = 8  # that the sizes leave room for, where it is to be had
CPU_STREAMS = 16  # at a time on processors, where no number is asked for
# A server process and each rank of vLLM's CPU build before weights: 1.1 GB was measured of the server.
PROCESS_BYTES = 1.2 * GIB
CPU_SHARE = 0.85  # of the free memory; the rest is the system's, and this server's own
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


@dataclass(frozen=True, slots=True)
class Layout:
    """What an engine is given, and what it then takes. `why`: a reason by field's name."""

    sizes: ParallelSizes
    replicas: int
    across: int  # nodes of one replica
    context: int
    streams: int
    memory_share: float  # of a device; 0: none is set (processors)
    cache_bytes: int  # of keys and values, on each device
    cache_type: str  # fp8; "": as the model
    cache_tokens: int = field(default=0, kw_only=True)  # that a replica's cache holds; 0: not counted
    quantise: str  # fp8: the engine rounds while it loads; "": nothing
    memory_bytes: int  # of one replica, on all its devices
    decode: Interval | None
    prefill: Interval | None
    basis: str
    why: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""  # why it serves hardly anyone
    notes: tuple[str, ...] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on processors."""
        return not self.memory_share


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
