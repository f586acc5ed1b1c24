"""Queues with threads of their own, one for each kind of work that takes long to prepare.

Knows ids, messages and threads; knows no model. A waiting request is held here alone, so that cancelling
one frees its text; one that runs ends at its next check (stopping.py).
Path: Intake.take -> IntakeQueue.put -> Intake._start or Intake._answer
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from freehold.stopping import Stopped, stops_when

T = TypeVar("T")


class IntakeQueue(Generic[T]):
    """Messages that wait for one of `threads`, or are run by one; `run` is called with each."""

    def __init__(self, name: str, threads: int, run: Callable[[T], None]) -> None:
        self._pool, self._run = ThreadPoolExecutor(threads, f"freehold-{name}"), run
        self._live: dict[int, T] = {}

    def put(self, id: int, message: T) -> None:
        """Queue a message."""
        self._live[id] = message
        self._pool.submit(self._work, id)

    def cancel(self, id: int) -> None:
        """Drop a message that waits, or stop its work. Harmless for any other id."""
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
