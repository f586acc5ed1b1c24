"""Where a model is hosted and how fast it then answers: the hardware, the quantisation, the prediction.

What nobody chose is chosen here: the weights' own narrow type or FP8 where the device has units for it, and as
few devices as hold it. Knows no cost.
Path: cost -> host -> Rig, Assumption -> ownership
"""

from __future__ import annotations

from freehold.advisor import ownership, roofline
from freehold.advisor.anatomy import from_catalogue
from freehold.advisor.engines import Engine, engine
from freehold.advisor.ownership import Assumption
from freehold.advisor.traffic import Traffic
from freehold.catalog.hardware import Device, Rig, rig
from freehold.catalog.model import Model
from freehold.errors import UsageError

USUAL = "h100"  # what most rent: the most sellers have it
_COUNTS = (1, 2, 4, 8)


def host(
    model: Model, on: str | None, traffic: Traffic, engine_name: str, quant: str | None, users: int
) -> tuple[Rig, Assumption]:
    """Place `model` on the hardware `on` names, or on as few of the usual devices as hold it; predict its speed.

    Raises UsageError where it does not fit or nothing is known to predict from.
    """
    runs = engine(engine_name)
    read = max(1, round(traffic.input / traffic.requests))
    written = max(1, round(traffic.output / traffic.requests))
    found, kind, streams = _place(model, on, runs, quant, read + written)
    together = min(users, streams)
    serves = roofline.serving(from_catalogue(model, kind), found, runs, read, written, together)
    source = (
        f"predicted for {runs.title}, {kind}, {together} requests of {read:,} + {written:,} tokens at a time, "
        "prompts read in full"
    )
    return found, ownership.speed(serves.output, source, runs.checked)


def _place(
    model: Model, on: str | None, runs: Engine, quant: str | None, context: int
) -> tuple[Rig, str, int]:
    """Return the first rig that holds the model, the type of its weights, and how many requests it answers."""
    why = ""
    for found in [rig(on)] if on else [rig(f"{n}x{USUAL}") for n in _COUNTS]:
        kind = quant or _quant(model, found.device)
        placed = roofline.place(from_catalogue(model, kind), found, runs, context)
        if placed.fits:
            return found, kind, placed.streams
        why = f"{model.id} as {kind}: {placed.why}"
    raise UsageError(
        why, "name larger hardware, such as --on 8xh200, or smaller weights, such as --quant INT4"
    )


def _quant(model: Model, device: Device) -> str:
    """Return the type of weights to host in: MXFP4 where the lab publishes it, FP8 where it is fast, else BF16."""
    if any("MXFP4" in repo.quants for repo in model.repos):
        return "MXFP4"
    return "FP8" if device.fp8 else "BF16"
