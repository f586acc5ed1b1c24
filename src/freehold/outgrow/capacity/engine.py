"""One engine, simulated: continuous batching, chunked prefill, admission by KV room, preemption, a prefix cache.

A step of `batch` answers whose contexts have `depth` tokens together, and of prompt tokens that attend to `positions`
together, takes fixed(batch) + depth * a + tokens * b + positions * c seconds, measured or computed, and kept as JSON.
It may be any function of the batch, and is linear in the rest.

A step makes one token of each answer and reads prompt tokens with what the chunk leaves. Between two events (an
arrival, an end, a prompt's last chunk) steps are alike but for depths that grow by one token each, so their seconds
have a closed form and are taken at once. Knows no trace and no other engine.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, Self

from freehold.base.catalog.hardware import Rig
from freehold.base.errors import UsageError
from freehold.base.regular import read_bounded
from freehold.choose.advisor import engines, roofline
from freehold.choose.advisor.anatomy import Anatomy, in_quant
from freehold.choose.advisor.engines import Speed, UpstreamEngine, speed
from freehold.choose.advisor.interval import Interval
from freehold.outgrow.capacity.trace import TracedRequest
from freehold.outgrow.contract import DeployedModel, DeployPlan, ParallelSizes
from freehold.outgrow.finding import ADVISED
from freehold.outgrow.planning.layout import attention, large_step, sequence_bytes, value_width

# --- what one step takes ---------------------------------------------------------------------------

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


# --- the engine ------------------------------------------------------------------------------------

LONGEST_S = 1.0  # of a step whose prompts are paced, whatever its answers take
BRIEF_S = 1.0  # a prompt that takes no more is brief: several of them make a burst
LEAST_TOKENS = 2  # prompt tokens of a paced step, however little room its answers leave
BLOCK = 16  # tokens of KV that each running answer may grow by before a prompt is admitted: a page of vLLM's
DRIFT = 512  # positions after which the cost of a paced chunk is computed anew


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """A request on its way. Times are seconds of the trace; `first` and `last` are of its tokens."""

    at: float
    prompt: int
    answer: int
    blocks: tuple[int, ...]
    order: int
    made: int = 0  # tokens of its answer
    left: int = 0  # prompt tokens that are not read yet
    done_to: int = 0  # the position of the next one
    hit: int = 0  # prompt tokens that the prefix cache had
    own: int = 0  # tokens of KV that no other request shares, but for those of its answer
    first: float = math.nan
    last: float = math.nan

    @classmethod
    def of(cls, request: TracedRequest, order: int) -> Self:
        """Return a traced request that arrives now."""
        return cls(request.at, request.prompt, request.answer, request.blocks, order)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.first - self.at

    @property
    def tpot(self) -> float:
        """Seconds from one token to the next, at the mean of the answer; nan for a single token."""
        return (self.last - self.first) / (self.answer - 1) if self.answer > 1 else math.nan


class SimulatedEngine:
    """One replica. `clock` is when its next step begins."""

    def __init__(self, model: EngineModel, block: int = 0, ready_at: float = 0.0) -> None:
        self._time, self._limits = model.time, model.limits
        self._prefixes = PrefixBlocks(block) if block else None
        self._fixed = [model.time.of_batch(0)]
        self._waiting: deque[SimulatedRequest] = deque()
        self._reading: list[SimulatedRequest] = []
        self._decoding: list[tuple[int, int, SimulatedRequest]] = []  # a heap by the step that ends each
        self._unread = 0  # tokens that `_reading` has left
        self._step = self._depth = self._own = 0
        self.clock = self.ready_at = ready_at
        self.outstanding = self.steps = self.preempted = 0
        self.busy_s = 0.0

    @property
    def held(self) -> int:
        """Tokens of KV in use."""
        return self._own + (self._prefixes.tokens if self._prefixes else 0)

    def takes(self, request: TracedRequest) -> bool:
        """Say whether its memory could ever hold the request."""
        return not self._limits.room or request.prompt + request.answer <= self._limits.room

    def submit(self, request: SimulatedRequest) -> None:
        """Take a request that arrives now; `run` has been called up to its arrival."""
        self.clock = max(self.clock, request.at) + self._time.request
        self.busy_s += self._time.request
        self._waiting.append(request)
        self.outstanding += 1

    def run(self, until: float) -> None:
        """Take every step that begins before `until`."""
        while self.clock < until:
            if self._waiting:
                self._admit()
            if self._reading:
                self._read(until)
            elif self._decoding:
                self._decode(until)
            else:
                return

    # --- admission ---------------------------------------------------------------------------------

    def _admit(self) -> None:
        limits = self._limits
        while self._waiting:
            full = limits.streams and len(self._reading) + len(self._decoding) >= limits.streams
            # A prompt is admitted when the step has room for its first tokens: until then it waits without memory.
            if full or (not limits.shortest and limits.chunk and self._unread >= limits.chunk):
                return
            request = self._waiting[0]
            if not self._allocate(request):
                return
            self._waiting.popleft()
            self._reading.append(request)
            self._unread += request.left

    def _allocate(self, request: SimulatedRequest) -> bool:
        room, prefixes, blocks = self._limits.room, self._prefixes, request.blocks
        own = request.prompt + request.made
        hit = new = 0
        if prefixes is not None:
            if room:
                prefixes.trim(room - self.held)
            own -= prefixes.block * len(blocks)
            new = prefixes.new_tokens(blocks)
            hit = min(prefixes.known(blocks) * prefixes.block, request.prompt - 1)
        alone = not self._reading and not self._decoding
        if room and self.held + own + new + 1 + BLOCK * len(self._decoding) > room and not alone:
            return False
        if prefixes is not None:
            prefixes.take(blocks)
        request.own, self._own = own - request.made, self._own + own
        # After a preemption the tokens of its answer so far are read again too, but for the newest.
        total = request.prompt + max(request.made - 1, 0)
        request.hit = request.hit if request.made else hit
        request.done_to, request.left = hit, total - hit
        return True

    def _release(self, request: SimulatedRequest) -> None:
        self._own -= request.own + request.made
        if self._prefixes is not None:
            self._prefixes.release(request.blocks)

    def _preempt(self) -> None:
        """Give up the youngest request; it is computed again once there is room."""
        if self._reading:
            youngest = max(self._reading, key=lambda r: r.order)
            self._reading.remove(youngest)
            self._unread -= youngest.left
        else:
            entry = max(self._decoding, key=lambda e: e[1])
            self._decoding.remove(entry)
            heapify(self._decoding)
            youngest = entry[2]
            youngest.made = youngest.answer - (entry[0] - self._step)
            self._depth -= youngest.prompt + youngest.made
        self._release(youngest)
        self._waiting.appendleft(youngest)
        self.preempted += 1

    # --- steps -------------------------------------------------------------------------------------

    def _growth(self, batch: int) -> int:
        """Return the steps for which there is room, at least one: the youngest makes room where there is none."""
        room = self._limits.room
        if not room or not batch:
            return 1 << 60
        while (steps := (room - self.held) // len(self._decoding)) < 1 and self.outstanding > 1:
            if len(self._decoding) == 1 and not self._reading:
                return 1
            self._preempt()
        return max(steps, 1)

    def _decode(self, until: float) -> None:
        most = self._growth(len(self._decoding))
        batch = len(self._decoding)
        most = min(most, self._decoding[0][0] - self._step)
        slope = self._time.depth
        self._advance(most, self._of_batch(batch) + slope * self._depth, slope * batch, until)

    def _read(self, until: float) -> None:
        most = self._growth(len(self._decoding))
        if not self._reading:  # the youngest was preempted
            return
        batch, time = len(self._decoding), self._time
        head = min(self._reading, key=lambda r: r.left) if self._limits.shortest else self._reading[0]
        chunk = self._prompt_tokens(batch, head)
        if head.left <= chunk:
            self._mixed_step(batch, chunk)
            return
        most = min(most, (head.left - 1) // chunk)
        if batch:
            most = min(most, self._decoding[0][0] - self._step)
        if self._limits.pace and time.positions:
            most = min(most, max(1, DRIFT // chunk))
        times = time.beside if batch else 1.0
        attended = chunk * head.done_to + chunk * (chunk - 1) / 2
        first = self._of_batch(batch) + time.depth * self._depth
        first += times * (chunk * time.prompt + attended * time.positions)
        more = time.depth * batch + times * chunk * chunk * time.positions
        read = chunk * self._advance(most, first, more, until)
        head.left -= read
        head.done_to += read
        self._unread -= read

    def _mixed_step(self, batch: int, chunk: int) -> None:
        """Take the step that reads the last tokens of at least one prompt."""
        time, ended = self._time, []
        tokens, attended = 0, 0.0
        order = sorted(self._reading, key=lambda r: r.left) if self._limits.shortest else self._reading
        for request in order:
            part = min(request.left, chunk - tokens)
            if part <= 0:
                break
            attended += part * request.done_to + part * (part - 1) / 2
            request.left -= part
            request.done_to += part
            tokens += part
            if not request.left:
                ended.append(request)
        self._unread -= tokens
        self._reading = [r for r in self._reading if r.left]
        seconds = self._of_batch(batch) + time.depth * self._depth
        seconds += (time.beside if batch else 1.0) * (tokens * time.prompt + attended * time.positions)
        self._advance(1, seconds, 0.0, math.inf)
        for request in ended:
            self._first_token(request)

    def _advance(self, most: int, first: float, more: float, until: float) -> int:
        """Take up to `most` steps, as many as begin before `until`, and return how many.

        The first takes `first` seconds, each next one `more` longer.
        """
        steps, gap = most, until - self.clock
        seconds = steps * first + more * steps * (steps - 1) / 2
        if seconds > gap:
            steps = min(_fewest(first, more, gap), most)
            seconds = steps * first + more * steps * (steps - 1) / 2
        batch = len(self._decoding)
        self.clock += seconds
        self.busy_s += seconds
        self.steps += steps
        self._step += steps
        self._depth += batch * steps
        self._own += batch * steps
        while self._decoding and self._decoding[0][0] <= self._step:
            request = heappop(self._decoding)[2]
            self._depth -= request.prompt + request.answer
            self._end(request)
        return steps

    def _first_token(self, request: SimulatedRequest) -> None:
        """Make the token that a prompt's last chunk gives: the first, or the next one after a preemption."""
        request.made += 1
        self._own += 1
        if math.isnan(request.first):
            request.first = self.clock + self._time.arrival
        if request.made >= request.answer:
            self._end(request)
            return
        heappush(self._decoding, (self._step + request.answer - request.made, request.order, request))
        self._depth += request.prompt + request.made

    def _end(self, request: SimulatedRequest) -> None:
        request.made = request.answer
        request.last = self.clock + self._time.arrival
        self._release(request)
        self.outstanding -= 1

    # --- what a step may have ----------------------------------------------------------------------

    def _prompt_tokens(self, batch: int, head: SimulatedRequest) -> int:
        """Return how many prompt tokens the next step may have, at least one."""
        limits, time = self._limits, self._time
        tokens = max((limits.chunk or 1 << 40) - batch, 1)
        each = time.prompt + time.positions * head.done_to
        if batch and limits.pace and each:
            alone = self._of_batch(batch) + time.depth * self._depth
            limit = max(min(limits.pace * alone, LONGEST_S), limits.floor_s, alone)
            if limits.burst_s and sum(r.left * time.prompt <= BRIEF_S for r in self._reading) > 1:
                limit = max(limit, limits.burst_s)
            return min(tokens, max(int((limit - alone) / (time.beside * each)), LEAST_TOKENS))
        if limits.alone_s and each and not batch:
            return min(tokens, max(int(limits.alone_s / each), LEAST_TOKENS))
        return tokens

    def _of_batch(self, batch: int) -> float:
        while batch >= len(self._fixed):
            self._fixed.append(self._time.of_batch(len(self._fixed)))
        return self._fixed[batch]


def _fewest(first: float, more: float, gap: float) -> int:
    """Return the fewest steps, at least one, that take `gap` seconds: n * first + more * n * (n - 1) / 2 >= gap."""
    if gap <= first:
        return 1
    if more <= 0.0:
        return math.ceil(gap / first)
    # The root in the form that does not cancel while `more` is small.
    half = first - more / 2
    return max(1, math.ceil(2 * gap / (half + math.sqrt(half * half + 2 * more * gap))))


class PrefixBlocks:
    """A prefix cache. Idle blocks take what memory is left; the longest unused go first, ends before beginnings.

    A block counts as cached once its request is admitted: prompts are read in that order, so it is there when the next
    one needs it.
    """

    def __init__(self, block: int) -> None:
        """`block`: tokens under one id."""
        self.block = block
        self._users: dict[int, int] = {}
        self._idle: dict[int, None] = {}  # oldest first: dicts keep their order

    @property
    def tokens(self) -> int:
        """Tokens of blocks in use."""
        return self.block * len(self._users)

    def known(self, blocks: Sequence[int]) -> int:
        """Return how many of the first `blocks` are cached, in use or idle."""
        users, idle = self._users, self._idle
        for count, block in enumerate(blocks):
            if block not in users and block not in idle:
                return count
        return len(blocks)

    def new_tokens(self, blocks: Sequence[int]) -> int:
        """Return by how much `tokens` grows when these are taken."""
        return self.block * sum(block not in self._users for block in blocks)

    def take(self, blocks: Sequence[int]) -> None:
        """Use blocks; those that were not there are made."""
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using them. What no other uses becomes idle, the end of the prompt before its beginning."""
        for block in reversed(blocks):
            left = self._users[block] - 1
            if left:
                self._users[block] = left
            else:
                del self._users[block]
                self._idle[block] = None

    def trim(self, tokens: int) -> None:
        """Drop idle blocks until they are no more than `tokens`."""
        over = len(self._idle) - max(tokens, 0) // self.block
        for block in list(self._idle)[:over] if over > 0 else ():
            del self._idle[block]
