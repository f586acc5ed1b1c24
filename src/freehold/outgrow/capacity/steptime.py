"""What one step of an engine takes: T(batch, depths, prompt tokens), measured or computed, kept as JSON.

A step of `batch` answers whose contexts have `depth` tokens together, and of prompt tokens that attend to `positions`
together, takes fixed(batch) + depth * a + tokens * b + positions * c seconds. It may be any function of the batch, and
is linear in the rest: so the sum over many steps has a closed form, and the simulator takes them at once.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from freehold.base.catalog.hardware import Rig
from freehold.base.errors import UsageError
from freehold.base.regular import read_bounded
from freehold.choose.advisor import engines, roofline
from freehold.choose.advisor.anatomy import Anatomy, in_quant
from freehold.choose.advisor.engines import Speed, UpstreamEngine, speed
from freehold.choose.advisor.interval import Interval
from freehold.outgrow.contract import DeployedModel, DeployPlan, ParallelSizes
from freehold.outgrow.finding import ADVISED
from freehold.outgrow.planning.layout import attention, large_step, sequence_bytes, value_width

SCHEMA = 1
MOST_SECONDS = 86_400.0  # of a step: beyond any engine's
MOST_BYTES = 1 << 20  # of a file of them, which has 2,000


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step. `batches` ascend from 0, a step of prompts alone; between two of them lies a line."""

    batches: tuple[int, ...]
    fixed: tuple[float, ...]  # s of a step with each of these batches, at no depth
    depth: float = 0.0  # s for each token of an answer's context
    prompt: float = 0.0  # s for each prompt token, in a step without answers
    positions: float = 0.0  # s for each position that a prompt token attends to
    beside: float = 1.0  # times a prompt token's seconds in a step that has answers too
    # s from a request's arrival until its first step may begin: HTTP, template, tokenizer
    arrival: float = 0.0
    # s that a request takes of the engine's processors outside of steps: its server shares them
    request: float = 0.0
    spread: float = 0.0  # standard deviation of the logarithm of measured over predicted
    basis: str = ""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.batches, self.batches[1:], strict=False))
        numbers = (*self.fixed, self.depth, self.prompt, self.positions, self.beside, self.arrival)
        numbers += (self.request, self.spread)
        if not (self.batches and self.batches[0] == 0 and ascending and len(self.batches) == len(self.fixed)):
            raise UsageError(
                f"batches of {list(self.batches)} with {len(self.fixed)} times are no step times"
            )
        if not all(0 <= n <= MOST_SECONDS for n in numbers) or max(self.fixed) <= 0:
            raise UsageError(f"a step's seconds are not within 0 to {MOST_SECONDS:,.0f}")

    def of_batch(self, batch: int) -> float:
        """Return the seconds of a step of `batch` answers at no depth."""
        last = len(self.batches) - 1
        for i in range(last):
            if batch <= self.batches[i + 1]:
                return self._between(i, batch)
        return max(self._between(last - 1, batch), self.fixed[-1]) if last else self.fixed[0]

    def _between(self, i: int, batch: int) -> float:
        low, high = self.batches[i], self.batches[i + 1]
        share = (batch - low) / (high - low)
        return self.fixed[i] + share * (self.fixed[i + 1] - self.fixed[i])

    def seconds(self, batch: int, depth: float = 0.0, tokens: int = 0, first: int = 0) -> float:
        """Return a step's seconds: `tokens` of one prompt are read, from its position `first` on."""
        attended = tokens * first + tokens * (tokens - 1) / 2
        read = tokens * self.prompt + attended * self.positions
        return self.of_batch(batch) + depth * self.depth + read * (self.beside if batch else 1.0)

    def times(self, factor: float) -> StepTime:
        """Return an engine that takes `factor` times as long for everything."""
        return replace(
            self,
            fixed=tuple(s * factor for s in self.fixed),
            depth=self.depth * factor,
            prompt=self.prompt * factor,
            positions=self.positions * factor,
            arrival=self.arrival * factor,
            request=self.request * factor,
        )

    def doubt(self) -> Interval:
        """Return by what factor steps may take longer or less, four times in five."""
        return Interval.lognormal(1.0, self.spread)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What bounds a step and an engine. 0: nothing does."""

    streams: int = 0  # answers at a time
    room: int = 0  # tokens of KV cache
    chunk: int = 2048  # tokens that a step computes at most, prompts' and answers'
    # Engines that keep answers fluent give prompts what is left of `pace` times the step without them, at least
    # `floor_s`; `burst_s` while several short prompts wait, `alone_s` without answers.
    pace: float = 0.0
    floor_s: float = 0.0
    burst_s: float = 0.0
    alone_s: float = 0.0
    shortest: bool = False  # prompts with the least left to read go first, not the oldest

    def __post_init__(self) -> None:
        counts = self.streams, self.room, self.chunk
        seconds = self.pace, self.floor_s, self.burst_s, self.alone_s
        if not all(isinstance(n, int) and n >= 0 for n in counts):
            raise UsageError(
                f"limits of {counts} streams, tokens of cache and tokens of a step are no counts"
            )
        if not all(math.isfinite(n) and n >= 0 for n in seconds):
            raise UsageError("an engine's limits are not finite, or below 0")


@dataclass(frozen=True, slots=True)
class EngineModel:
    """An engine as the simulator has it: what its steps take, and what bounds them."""

    time: StepTime
    limits: EngineLimits = EngineLimits()
    about: dict[str, Any] = field(default_factory=dict)  # model, engine, machine, load: for people

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        sizes = {"time": asdict(self.time), "limits": asdict(self.limits)}
        return {"schema": SCHEMA, "about": self.about, **sizes}

    @staticmethod
    def load(path: Path) -> EngineModel:
        """Read what `freehold deploy bench -o FILE` wrote. Raises UsageError."""
        try:
            raw = json.loads(read_bounded(path, MOST_BYTES))
        except (OSError, ValueError, RecursionError) as e:
            raise UsageError(
                f"{path} cannot be read: {e}", "--steps takes a file of freehold deploy bench -o FILE"
            ) from e
        return EngineModel.parse(raw, str(path))

    @staticmethod
    def parse(raw: Any, where: str) -> EngineModel:
        """Make it of its JSON. Raises UsageError that names `where`."""
        try:
            if raw["schema"] != SCHEMA:
                raise UsageError(
                    f"{where} has schema {raw['schema']!r}, not {SCHEMA}",
                    "measure again with freehold deploy bench",
                )
            lists = {name: tuple(raw["time"][name]) for name in ("batches", "fixed")}
            time = StepTime(**{**raw["time"], **lists})
            return EngineModel(time, EngineLimits(**raw["limits"]), dict(raw.get("about", {})))
        except (KeyError, TypeError) as e:
            raise UsageError(
                f"{where} holds no step times: {e}", "freehold deploy bench -o FILE writes them"
            ) from e


# --- step times and memory of hardware that is not here ---------------------------------------------
# From roofline's terms, as `freehold fit --on` has them.
#     of_plan(plan, prompt=1024, answer=256)        # one replica, by the plan's own sizes, streams and cache

_WIDTH = 2 * 1.2816  # standard deviations between the bounds that hold 80 %
_GRID = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_CHUNKS = ("--max-num-batched-tokens", "--chunked-prefill-size", "--max_num_tokens")


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
    room = plan.context * plan.streams
    if engine.split == "tensors":
        room = cache_tokens(plan.model, plan.sizes, plan.cache_bytes, prompt + answer, plan.cache_type)
    chunk = next((flag.value for flag in plan.flags if flag.name in _CHUNKS), None) or ""
    tokens = int(chunk) if chunk.isdigit() else 0
    limits = EngineLimits(streams=plan.streams, room=room, chunk=tokens or large_step(rig.device) or 2048)
    about = {"model": work.name, "quant": work.quant, "hardware": rig.name, "engine": engine.name}
    return predicted(work, plan.sizes, rig, engine, limits, prompt=prompt, answer=answer, about=about)


def predicted(
    work: Anatomy,
    sizes: ParallelSizes,
    rig: Rig,
    engine: UpstreamEngine,
    limits: EngineLimits,
    *,
    prompt: int,
    answer: int,
    about: dict[str, str],
) -> EngineModel:
    """Return one replica of certain sizes. Raises UsageError where its speed is not known."""
    if math.isinf(roofline.rate(work, rig.device, engine)):
        raise UsageError(
            f"no operations a second are published for {rig.device.title}",
            "measure an engine there: freehold deploy bench",
        )
    apart = copies = 1
    if engine.split == "tensors":
        apart = attention(sizes)
        # Stages of a pipeline, and engines in an engine: each has its part of the answers.
        copies = sizes.pipeline * sizes.data // apart
        rig = Rig(rig.device, sizes.tensor * apart)
    pace = speed(engine, rig.device)

    def seconds(batch: float, tokens: int) -> float:
        share = max(batch / copies, 1)
        return roofline.step(work, rig, engine, share, tokens, apart=apart).seconds(pace)

    # Where the curve of prompts and the line over depths are exact.
    read, depth = max(prompt, 2), max(prompt + answer // 2, 1)
    batches = [b for b in _GRID if b <= max(limits.streams, 1)]
    fixed = [seconds(b, 0) for b in batches]
    slope = (seconds(copies, depth) - seconds(copies, 0)) / depth / copies
    factor = pace.factors.get("prompts", 1.0) / copies
    one, all_of = (factor * roofline.prompt_s(work, rig, engine, n) for n in (1, read))
    # prompt_s is linear in the tokens but for attention, which grows with their square.
    curve = max(all_of - read * one, 0.0) / (read * (read - 1) / 2)
    time = StepTime(
        batches=(0, *batches),
        fixed=(fixed[0], *fixed),
        depth=max(slope, 0.0),
        prompt=one,
        positions=curve,
        arrival=pace.factors.get("arrival", 0.0),
        spread=_spread(pace, work, engine),
        basis=f"predicted: {engine.title}, published figures of {rig.device.title}, and rows measured by others",
    )
    return EngineModel(time, limits, dict(about))


def _spread(pace: Speed, work: Anatomy, engine: UpstreamEngine) -> float:
    """Return the deviation of the logarithm of a step's seconds; a factor of two in 80 % where none is known."""
    spread = pace.spread.get("tpot") or pace.spread.get("answer")
    if spread and any(group.kind in engine.unmeasured for group in work.layers):
        spread = spread.wider()
    ratio = spread.high / spread.low if spread and spread.low > 0 else 4.0
    return math.log(ratio) / _WIDTH


def cache_tokens(
    model: DeployedModel, sizes: ParallelSizes, cache_bytes: float, usual: int, cache_type: str
) -> int:
    """Return the tokens that `cache_bytes` on each device hold, in requests of `usual` tokens; 0: no limit is known."""
    each = sequence_bytes(model, sizes, usual, value_width(cache_type))
    return int(cache_bytes / each * usual) * sizes.data if each else 0
