"""Queues with threads of their own, one for each kind of work that takes long to prepare.

Knows ids, clients, messages and threads; knows no model. Only this queue keeps a waiting request, so cancelling
one frees its text; one that runs ends at its next check (stopping.py). The next message is of the client with the
fewest at work, then of the one whose turn was longest ago, and one thread is left to others: whatever a client sends,
another's message waits for none of that client's.
Path: Intake.take -> IntakeQueue.put -> Intake._start or Intake._answer
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from freehold.platforms import run_thread_below
from freehold.stopping import Stopped, stops_when

NICE = 5  # of their threads: they work beside the steps of all
T = TypeVar("T")


class IntakeQueue(Generic[T]):
    """Messages that wait for one of `threads`, or are run by one; `run` is called with each."""

    def __init__(self, name: str, threads: int, run: Callable[[T], None]) -> None:
        """`threads`: what one client's messages may hold; there is one more for those of others."""
        self._run = run
        self._pool = ThreadPoolExecutor(threads + 1, f"freehold-{name}", run_thread_below, (NICE,))
        self._most = threads
        self._live: dict[int, T] = {}
        self._lock = threading.Lock()  # of what follows
        self._waiting: dict[str, deque[int]] = {}  # by client, the one whose turn was longest ago first
        self._working: Counter[str] = Counter()

    def put(self, id: int, message: T, client: str = "") -> None:
        """Queue a message of a client's."""
        self._live[id] = message
        with self._lock:
            self._waiting.setdefault(client, deque()).append(id)
        self._pool.submit(self._work)

    def cancel(self, id: int) -> None:
        """Drop a message that waits, or stop its work. Harmless for any other id."""
        self._live.pop(id, None)

    def _work(self) -> None:
        """Run messages as long as there is one that may run now."""
        while (turn := self._next()) is not None:
            try:
                self._run_turn(*turn)
            except BaseException:
                self._pool.submit(self._work)  # for those that wait
                raise

    def _run_turn(self, client: str, id: int) -> None:
        try:
            self._run_one(id)
        finally:
            with self._lock:
                self._working[client] -= 1
                self._working += Counter()  # drops those at zero

    def _next(self) -> tuple[str, int] | None:
        with self._lock:
            ready = [client for client in self._waiting if self._working[client] < self._most]
            if not ready:
                return None
            client = min(ready, key=self._working.__getitem__)
            waiting = self._waiting.pop(client)
            id = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting  # behind the others
            self._working[client] += 1
            return client, id

    def _run_one(self, id: int) -> None:
        message = self._live.get(id)
        if message is None:
            return
        try:
            with stops_when(lambda: id not in self._live):
                self._run(message)
        except Stopped:
            pass
        finally:
            self._live.pop(id, None)
