"""Words why an engine cannot run a model on some hardware, and what would fit.

Tries more devices and rounder weights by the same arithmetic. Knows no flag.
Path: planning.laid_out -> misfit -> UsageError
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from freehold import catalog
from freehold.advisor import engines, roofline
from freehold.advisor.anatomy import Anatomy, from_catalogue, in_quant
from freehold.backends.planning.layout import tensor_sizes
from freehold.catalog import quants
from freehold.catalog.hardware import Rig
from freehold.catalog.model import Stretch
from freehold.errors import UsageError
from freehold.machine import show_bytes

if TYPE_CHECKING:
    from freehold.backends.contract import DeployedModel, PlanRequest
    from freehold.backends.planning.layout import EngineTraits

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
    for quant in _ROUNDER.get(anatomy.quant, ()):
        if engine.reads(quant, device) and _holds(
            in_quant(anatomy, quant), request.nodes.rig, traits, context
        ):
            ways.append(_smaller(request.model, quant))
            break
    if boxes := _boxes(request, anatomy, traits, context) if not more else "":
        ways.append(boxes)
    if not ways:
        larger = (_count(request, anatomy, name, traits, context) for name in _LARGER if name != device.name)
        ways = [f"--on {first} would hold it" for first in [next(filter(None, larger), "")] if first]
    return ways or ["take a smaller model, or --nodes for several machines"]


def _smaller(model: DeployedModel, quant: str) -> str:
    """Name a published copy of the weights in a type that would fit, with its bytes."""
    known = catalog.model(model.base) if model.base else None
    copy = quants.chosen(known, quant) if known else None
    if known is None or copy is None:
        return f"a copy of the weights in {quant} would fit"
    size = show_bytes(from_catalogue(known, quant).weight_bytes)
    return f"{copy.repository} ({quant}, {size}) would fit: --quant {quant}"


def _boxes(request: PlanRequest, anatomy: Anatomy, traits: EngineTraits, context: int) -> str:
    """Return how many boxes of this hardware would hold it between them; "" for none of the usual numbers."""
    rig, replicas = request.nodes.rig, max(request.replicas, 1)
    for count in _BOXES:
        if _holds(anatomy, Rig(rig.device, rig.count * count), traits, context):
            return f"--on {rig.name} --nodes {count * replicas} would hold it"
    return ""


def _count(request: PlanRequest, anatomy: Anatomy, name: str, traits: EngineTraits, context: int) -> str:
    from freehold.catalog.hardware import device

    gpu = device(name)
    sizes = tensor_sizes(request.model, _COUNTS[-1], copies=traits.kv_copies)
    for count in _COUNTS:
        if count in sizes and _holds(anatomy, Rig(gpu, count), traits, context):
            return Rig(gpu, count * max(request.replicas, 1)).name
    return ""


def _holds(anatomy: Anatomy, rig: Rig, traits: EngineTraits, context: int) -> bool:
    engine = engines.engine(traits.engine)
    return engine.runs_on(rig.device) and roofline.place(anatomy, rig, engine, context).fits
