"""One engine, simulated: continuous batching, chunked prefill, admission by KV room, preemption, a prefix cache.

A step makes one token of each answer and reads prompt tokens with what the chunk leaves. Between two events (an
arrival, an end, a prompt's last chunk) steps are alike but for depths that grow by one token each, so their seconds
have a closed form and are taken at once. Knows no trace and no other engine.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Self

from freehold.outgrow.capacity.steptime import EngineModel
from freehold.outgrow.capacity.trace import TracedRequest

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
