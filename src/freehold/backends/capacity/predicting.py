"""Step times and memory of hardware that is not here: from roofline's terms, as `freehold fit --on` has them.

Knows a model's sizes, a rig and an engine's published speeds; measures nothing.
Path: reports/capacity.py -> predicted -> roofline.step -> EngineModel
"""

from __future__ import annotations

import math

from freehold.advisor import roofline
from freehold.advisor.engines import Speed, UpstreamEngine, speed
from freehold.advisor.roofline import RigPlacement, Work
from freehold.backends.capacity.steptime import EngineLimits, EngineModel, StepTime
from freehold.catalog.hardware import Device, Rig
from freehold.errors import UsageError

_WIDTH = 2 * 1.2816  # standard deviations between the bounds that hold 80 %
_GIB = 1 << 30
_GRID = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def predicted(
    work: Work, rig: Rig, engine: UpstreamEngine, *, prompt: int, answer: int, width: float = 0
) -> EngineModel:
    """Return one replica on `rig`. `prompt`, `answer`: usual lengths, at which the line over depths is exact.

    `width`: bytes of a cached value. Raises UsageError where it does not fit or its speed is not known.
    """
    usual = prompt + answer
    placed = roofline.place(work, rig, engine, usual, width)
    _check(placed, work, rig, engine)
    time = _step_time(work, rig, engine, max(prompt, 2), max(prompt + answer // 2, 1))
    about = {"model": work.name, "quant": work.quant, "hardware": rig.name, "engine": engine.name}
    return EngineModel(time, _limits(placed, work, rig.device, usual), about)


def _check(placed: RigPlacement, work: Work, rig: Rig, engine: UpstreamEngine) -> None:
    """Raise UsageError where it does not fit or its speed is not known."""
    if not placed.fits:
        raise UsageError(
            f"{work.name} in {work.quant} on {rig.name}: {placed.why}",
            f"--on larger hardware: freehold hardware {work.name} finds some",
        )
    if math.isinf(roofline.rate(work, rig.device, engine)):
        raise UsageError(
            f"no operations a second are published for {rig.device.title}",
            "measure an engine there: freehold deploy bench",
        )


def _step_time(work: Work, rig: Rig, engine: UpstreamEngine, prompt: int, depth: int) -> StepTime:
    """Return a step's terms. `prompt`, `depth`: tokens, at which the curve of prompts and the line are exact."""
    pace = speed(engine, rig.device)

    def seconds(batch: int, tokens: int) -> float:
        return roofline.step(work, rig, engine, batch, tokens).seconds(pace)

    batches = [b for b in _GRID if b <= max(engine.streams, 1)]
    fixed = [seconds(b, 0) for b in batches]
    slope = (seconds(1, depth) - seconds(1, 0)) / depth
    factor = pace.factors.get("prompts", 1.0)
    one, all_of = (factor * roofline.prompt_s(work, rig, engine, n) for n in (1, prompt))
    # prompt_s is linear in the tokens but for attention, which grows with their square.
    curve = max(all_of - prompt * one, 0.0) / (prompt * (prompt - 1) / 2)
    return StepTime(
        batches=(0, *batches),
        fixed=(fixed[0], *fixed),
        depth=max(slope, 0.0),
        prompt=one,
        positions=curve,
        arrival=pace.factors.get("arrival", 0.0),
        spread=_spread(pace),
        basis=f"predicted: {engine.title}, published figures of {rig.device.title}, and rows measured by others",
    )


def _spread(pace: Speed) -> float:
    """Return the deviation of the logarithm of a step's seconds; a factor of two in 80 % where none is known."""
    found = pace.spread.get("tpot") or pace.spread.get("answer")
    return math.log(found.high / found.low) / _WIDTH if found and found.low > 0 else 2 * math.log(2) / _WIDTH


def _limits(placed: RigPlacement, work: Work, device: Device, usual: int) -> EngineLimits:
    """Return answers, cached tokens and tokens of a step; `usual`: tokens of a whole request."""
    engine = placed.engine
    tokens = max(placed.sequence - work.state_bytes, 1) / usual
    large = _large_step(device)
    return EngineLimits(
        streams=engine.streams if large or engine.name != "vllm" else min(engine.streams, 256),
        room=int(placed.room / tokens),
        chunk=large or 2048,
    )


def _large_step(device: Device) -> int:
    """Return the tokens of a step by default where a device is large, else 0.

    vLLM 0.32.0's get_batch_defaults: 16,384 from 160 GiB on, 8,192 from 70 GiB on except for A100, else 2,048 and 256
    answers. Other servers are taken to have the same.
    """
    if device.kind != "gpu" or device.name.startswith("a100"):
        return 0
    return 16384 if device.memory_bytes >= 160 * _GIB else 8192 if device.memory_bytes >= 70 * _GIB else 0
