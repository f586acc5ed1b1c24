"""Step times and memory of hardware that is not here: from roofline's terms, as `freehold fit --on` has them.

    of_plan(plan, prompt=1024, answer=256)        # one replica, by the plan's own sizes, streams and cache

Knows a model's sizes, a rig and an engine's published speeds; measures nothing.
Path: reports/capacity.py -> of_plan -> predicted -> roofline.step -> EngineModel; planning/planning.py -> predicted
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from freehold.advisor import engines, roofline
from freehold.advisor.anatomy import in_quant
from freehold.advisor.engines import Speed, UpstreamEngine, speed
from freehold.advisor.roofline import Work
from freehold.backends.capacity.steptime import EngineLimits, EngineModel, StepTime
from freehold.backends.contract import DeployedModel, DeployPlan, ParallelSizes
from freehold.backends.finding import ADVISED
from freehold.backends.planning.layout import attention, large_step, sequence_bytes, value_width
from freehold.catalog.hardware import Device, Rig
from freehold.errors import UsageError

_WIDTH = 2 * 1.2816  # standard deviations between the bounds that hold 80 %
_GRID = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def of_plan(plan: DeployPlan, *, prompt: int, answer: int) -> EngineModel:
    """Return one replica of a plan. `prompt`, `answer`: usual lengths, at which the line over depths is exact.

    Raises UsageError where no speed of it is known.
    """
    name = ADVISED.get(plan.engine, (plan.engine, ""))[0]
    engine, rig = engines.engine(name), plan.nodes.rig
    if not engine.runs_on(rig.device):
        raise UsageError(
            f"the speed of {engine.title} on {rig.device.title} is not known",
            "measure a running engine: freehold deploy bench -o FILE, then capacity --steps FILE",
        )
    work = in_quant(plan.model.anatomy, "FP8") if plan.quantise else plan.model.anatomy
    shape = _Shape.of(plan.sizes, rig, engine)
    limits = EngineLimits(
        streams=plan.streams,
        room=_room(plan, engine, prompt + answer),
        chunk=_flag(plan, "--max-num-batched-tokens", "--chunked-prefill-size", "--max_num_tokens")
        or large_step(rig.device)
        or 2048,
    )
    about = {"model": work.name, "quant": work.quant, "hardware": rig.name, "engine": engine.name}
    return predicted(work, shape, engine, limits, prompt=prompt, answer=answer, about=about)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The devices that compute a layer together, groups that attend apart, and copies that work beside each other."""

    rig: Rig
    apart: int = 1
    copies: int = 1  # stages of a pipeline, and engines in an engine: each has its part of the answers

    @staticmethod
    def of(sizes: ParallelSizes, rig: Rig, engine: UpstreamEngine) -> _Shape:
        if engine.split != "tensors":
            return _Shape(rig)
        apart = attention(sizes)
        return _Shape(Rig(rig.device, sizes.tensor * apart), apart, sizes.pipeline * sizes.data // apart)


def replica(
    model: DeployedModel,
    work: Work,
    sizes: ParallelSizes,
    device: Device,
    engine: UpstreamEngine,
    limits: EngineLimits,
    *,
    prompt: int,
    answer: int,
) -> EngineModel:
    """Return a replica of certain sizes, as a layout is chosen by. Raises UsageError."""
    shape = _Shape.of(sizes, Rig(device, sizes.devices), engine)
    return predicted(work, shape, engine, limits, prompt=prompt, answer=answer, about={"model": model.name})


def predicted(
    work: Work,
    shape: _Shape,
    engine: UpstreamEngine,
    limits: EngineLimits,
    *,
    prompt: int,
    answer: int,
    about: dict[str, str],
) -> EngineModel:
    """Return one replica. Raises UsageError where its speed is not known."""
    if math.isinf(roofline.rate(work, shape.rig.device, engine)):
        raise UsageError(
            f"no operations a second are published for {shape.rig.device.title}",
            "measure an engine there: freehold deploy bench",
        )
    time = _step_time(work, shape, engine, max(prompt, 2), max(prompt + answer // 2, 1), limits.streams)
    return EngineModel(time, limits, dict(about))


def _step_time(
    work: Work, shape: _Shape, engine: UpstreamEngine, prompt: int, depth: int, streams: int
) -> StepTime:
    """Return a step's terms. `prompt`, `depth`: tokens, at which the curve of prompts and the line are exact."""
    rig, copies = shape.rig, shape.copies
    pace = speed(engine, rig.device)

    def seconds(batch: float, tokens: int) -> float:
        share = max(batch / copies, 1)
        return roofline.step(work, rig, engine, share, tokens, apart=shape.apart).seconds(pace)

    batches = [b for b in _GRID if b <= max(streams, 1)]
    fixed = [seconds(b, 0) for b in batches]
    slope = (seconds(copies, depth) - seconds(copies, 0)) / depth / copies
    factor = pace.factors.get("prompts", 1.0) / copies
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
        spread=_spread(pace, work, engine),
        basis=f"predicted: {engine.title}, published figures of {rig.device.title}, and rows measured by others",
    )


def _spread(pace: Speed, work: Work, engine: UpstreamEngine) -> float:
    """Return the deviation of the logarithm of a step's seconds; a factor of two in 80 % where none is known."""
    spread = pace.spread.get("tpot") or pace.spread.get("answer")
    if spread and any(group.kind in engine.unmeasured for group in work.layers):
        spread = spread.wider()
    return (
        math.log(spread.high / spread.low) / _WIDTH if spread and spread.low > 0 else 2 * math.log(2) / _WIDTH
    )


def _room(plan: DeployPlan, engine: UpstreamEngine, usual: int) -> int:
    """Return the tokens of a replica's cache, in requests of `usual` tokens."""
    if engine.split != "tensors":
        return plan.context * plan.streams
    return cache_tokens(plan.model, plan.sizes, plan.cache_bytes, usual, plan.cache_type)


def cache_tokens(
    model: DeployedModel, sizes: ParallelSizes, cache_bytes: float, usual: int, cache_type: str
) -> int:
    """Return the tokens that `cache_bytes` on each device hold, in requests of `usual` tokens; 0: no limit is known."""
    each = sequence_bytes(model, sizes, usual, value_width(cache_type))
    return int(cache_bytes / each * usual) * sizes.data if each else 0


def _flag(plan: DeployPlan, *names: str) -> int:
    """Return a number that a flag of the plan has; 0 where none of them is there."""
    value = next((flag.value for flag in plan.flags if flag.name in names), None) or ""
    return int(value) if value.isdigit() else 0
