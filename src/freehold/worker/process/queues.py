"""Threads for what takes long to take in: each kind of work has its own, and what is cancelled leaves or stops.

Knows ids, messages and threads; knows no model. A request that waits is held here alone, so a cancelled one is
forgotten with its text; one that runs ends at its next check (stopping.py).
Path: process.Intake -> IntakeQueue.put -> a thread -> Intake's own method
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from freehold.stopping import Stopped, stops_when

T = TypeVar("T")


class IntakeQueue(Generic[T]):
    """Messages that wait for one of `threads`, or have one; `run` is called with each in turn."""

    def __init__(self, name: str, threads: int, run: Callable[[T], None]) -> None:
        self._pool, self._run = ThreadPoolExecutor(threads, f"freehold-{name}"), run
        self._live: dict[int, T] = {}

    def put(self, id: int, message: T) -> None:
        """Have a message worked on."""
        self._live[id] = message
        self._pool.submit(self._work, id)

    def cancel(self, id: int) -> None:
        """Forget a message that waits, and stop the work on one that does not. Harmless for any other id."""
        self._live.pop(id, None)

    def _work(self, id: int) -> None:
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
