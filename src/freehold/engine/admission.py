"""Which requests an engine takes in: the limits on its queue, and those that entered since the latest step.

Clients share the queue: one that has no more than its part of it (the limit over the clients that wait) is not refused
because of what others have there. So the queue may exceed its limit, with n clients at most by the factor 1 + ln n.
Knows requests, the scheduler's queue and its expected wait; knows no step, no model and no token of an answer.
Path: Generation.start -> Engine.enter -> Admission.enter -> Engine.step -> Admission.take -> Scheduler.add
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from freehold.engine.schedule.live import own_tokens
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
        waiting = self._scheduler.live.queued(request.priority)
        waiting += [(s.request.client, 1, own_tokens(s)) for s in entered]
        limits = self._exceeded(waiting, request)
        if not limits and request.deadline is None:
            return
        wait = self._scheduler.wait.seconds(request, entered)
        if limits:
            raise Overloaded(
                f"waiting requests: {sum(n for _, n, _ in waiting):,}, with "
                f"{sum(tokens for _, _, tokens in waiting):,} tokens; the limit is {' and '.join(limits)}",
                f"the wait would be about {wait:.1f} s; try again later",
                wait,
            )
        if request.deadline is not None and time.monotonic() + wait > request.deadline:
            raise DeadlineExceeded(
                f"the time limit would pass in the queue, where the wait is about {wait:.1f} s",
                "give it more time, or ask later",
            )

    def _exceeded(self, waiting: list[tuple[str, int, int]], request: Request) -> list[str]:
        """List the limits that a request's answers would exceed, both in all and in its client's part."""
        if not waiting:  # the first to wait exceeds none by its size
            return []
        clients = len({client for client, _, _ in waiting} | {request.client})
        own = [(count, tokens) for client, count, tokens in waiting if client == request.client]
        sizes = (
            (
                self._max_queued,
                "requests",
                request.answers,
                sum(n for _, n, _ in waiting),
                [n for n, _ in own],
            ),
            (
                self._max_queued_tokens,
                "tokens",
                len(request.prompt),
                sum(tokens for _, _, tokens in waiting),
                [tokens for _, tokens in own],
            ),
        )
        limits = []
        for most, unit, more, in_all, mine in sizes:
            if (
                most is not None
                and in_all + more > most
                and (mine or more > most)
                and sum(mine) + more > most // clients
            ):
                limits.append(f"{most:,} {unit}")
        return limits
