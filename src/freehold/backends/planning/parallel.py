"""Spreads a model over devices: tensor parallel inside a node before pipeline across nodes.

Heads divide, and heads of keys and values divide or are copied evenly; experts divide among the devices of a tensor
group. Knows counts and bytes; knows no engine's flag.
Path: planning.laid_out -> candidates -> ParallelSizes
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from freehold.advisor.anatomy import WeightGroup
from freehold.backends.contract import DeployedModel, ParallelSizes
from freehold.errors import UsageError
from freehold.layers import CONV_WIDTH

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
