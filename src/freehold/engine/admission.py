"""Which requests an engine takes in: the limits on its queue, and those that entered since the latest step.

Knows requests, the scheduler's queue and its expected wait; knows no step, no model and no token of an answer.
Path: Generation.start -> Engine.enter -> Admission.enter -> Engine.step -> Admission.take -> Scheduler.add
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from freehold.engine.schedule.scheduler import Scheduler
from freehold.engine.sequence import Request, Sequence
from freehold.errors import DeadlineExceeded, Overloaded


class Admission:
    """Checks limits at once and never waits for a step. Safe from many threads."""

    def __init__(self, scheduler: Scheduler, max_queued: int | None, max_queued_tokens: int | None) -> None:
        """`max_queued`, `max_queued_tokens`: requests and their prompts' tokens that may wait; None: no limit."""
        self._scheduler = scheduler
        self._max_queued, self._max_queued_tokens = max_queued, max_queued_tokens
        self._lock = threading.Lock()  # requests are checked one at a time, or two could take one place
        self._entered: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._entered)

    @property
    def expected_wait_s(self) -> float:
        """Seconds until a request that came now would begin."""
        return self._scheduler.wait.seconds(entered=list(self._entered))

    def enter(self, seq: Sequence) -> None:
        """Let a sequence into the next step's schedule. Raises Overloaded, DeadlineExceeded."""
        with self._lock:
            # Answers to one prompt are admitted with the first of them.
            if seq.parent is None and not seq.request.admitted:
                self._check(seq.request)
            self._entered.append(seq)

    def take(self) -> Iterator[Sequence]:
        """Yield the sequences that entered and were not taken yet."""
        while self._entered:
            yield self._entered.popleft()

    def _check(self, request: Request) -> None:
        entered = [s for s in list(self._entered) if s.request.priority in ("interactive", request.priority)]
        count, tokens = self._scheduler.live.queued(request.priority)
        count, tokens = count + len(entered), tokens + sum(len(s.tokens) for s in entered)
        limits = self._exceeded(count, tokens, request)
        if not limits and request.deadline is None:
            return
        wait = self._scheduler.wait.seconds(request, entered)
        if limits:
            raise Overloaded(
                f"waiting requests: {count:,}, with {tokens:,} tokens; the limit is {' and '.join(limits)}",
                f"the wait would be about {wait:.1f} s; try again later",
                wait,
            )
        if request.deadline is not None and time.monotonic() + wait > request.deadline:
            raise DeadlineExceeded(
                f"the time limit would pass in the queue, where the wait is about {wait:.1f} s",
                "give it more time, or ask later",
            )

    def _exceeded(self, count: int, tokens: int, request: Request) -> list[str]:
        """List the limits that one more request would exceed; the first to wait exceeds none by its length."""
        limits = []
        if self._max_queued is not None and count >= self._max_queued:
            limits.append(f"{self._max_queued:,} requests")
        most = self._max_queued_tokens
        if most is not None and count and tokens + len(request.prompt) > most:
            limits.append(f"{most:,} tokens")
        return limits
