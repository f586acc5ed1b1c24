"""Ends long work on the processor early, when its result is no longer needed.

Work that takes long calls `check_stopped` between its pieces; a caller that may leave says in
`stops_when` how to tell. Knows no thread, no request and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopped(Exception):
    """The work in progress is wanted no more."""


_stopped: ContextVar[Callable[[], bool] | None] = ContextVar("stopped", default=None)


@contextmanager
def stops_when(stopped: Callable[[], bool]) -> Iterator[None]:
    """Within it, in this thread, work raises Stopped at its next check after `stopped` has become true."""
    before = _stopped.set(stopped)
    try:
        yield
    finally:
        _stopped.reset(before)


def check_stopped() -> None:
    """Raise Stopped if the work in progress is wanted no more."""
    stopped = _stopped.get()
    if stopped is not None and stopped():
        raise Stopped
