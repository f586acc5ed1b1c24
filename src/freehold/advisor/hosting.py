"""Chooses hardware and quantisation for a hosted model, and predicts its speed there.

Defaults are chosen here: FP8 where the device has units for it, else what rounds least of what fits, and
as few devices as hold it. Knows no cost.
Path: cost -> host -> Rig, Assumption -> ownership
"""

from __future__ import annotations

from collections.abc import Iterator

from freehold.advisor import breakeven, roofline
from freehold.advisor.anatomy import from_catalogue
from freehold.advisor.breakeven import Assumption
from freehold.advisor.engines import UpstreamEngine, engine, engines
from freehold.advisor.places import quants_of
from freehold.advisor.traffic import Traffic
from freehold.catalog.hardware import Device, Rig, rig
from freehold.catalog.model import Model
from freehold.errors import UsageError

USUAL = "h100"  # what most rent: the most sellers have it
_COUNTS = (1, 2, 4, 8)


def host(
    model: Model, on: str | None, traffic: Traffic, named: str | None, quant: str | None, users: int
) -> tuple[Rig, Assumption]:
    """Place `model` on the hardware `on` names, or on as few of the usual devices as hold it; predict its speed.

    `named`: the engine; the first that runs there if None. Raises UsageError where it does not fit or nothing is
    known to predict from.
    """
    read = max(1, round(traffic.input / traffic.requests))
    written = max(1, round(traffic.output / traffic.requests))
    rig_taken, runs, kind, streams = _place(model, on, named, quant, read + written)
    together = min(users, streams)
    try:
        serves = roofline.serving(from_catalogue(model, kind), rig_taken, runs, read, written, together)
    except UsageError as e:
        raise UsageError(e.message, "give --tokens-per-second in its place") from e
    source = (
        f"predicted for {runs.title}, {kind}, {together} requests of {read:,} + {written:,} tokens at a time, "
        "prompts read in full"
    )
    return rig_taken, breakeven.speed(serves.output, source, runs.checked)


def _place(
    model: Model, on: str | None, named: str | None, quant: str | None, context: int
) -> tuple[Rig, UpstreamEngine, str, int]:
    """Return the first rig that holds the model, engine, type of weights, and how many requests it answers."""
    why = "no hardware"
    for machine in [rig(on)] if on else [rig(f"{n}x{USUAL}") for n in _COUNTS]:
        for runs, kind in _ways(model, machine.device, named, quant):
            placed = roofline.place(from_catalogue(model, kind), machine, runs, context)
            if placed.fits:
                return machine, runs, kind, placed.streams
            why = f"{model.id} as {kind}: {placed.why}"
    raise UsageError(why, "name larger hardware, such as --on 8xh200, or give --tokens-per-second")


def _ways(
    model: Model, device: Device, named: str | None, quant: str | None
) -> Iterator[tuple[UpstreamEngine, str]]:
    """Yield engines and types of weights to try on a device, the best first."""
    able = [engine(named)] if named else [e for e in engines() if e.runs_on(device)]
    kinds = [quant] if quant else sorted(quants_of(model), key=lambda q: q != "FP8" or not device.fp8)
    for runs in able or engines()[:1]:
        for kind in kinds:
            if quant or runs.reads(kind, device):
                yield runs, kind
