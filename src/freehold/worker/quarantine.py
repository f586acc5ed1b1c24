"""Quarantine for requests that may have ended their engine: they restart alone, one after another.

An engine's death counts against every request that was running. A request that saw SUSPECT_DEATHS deaths is a suspect:
the next engine runs the suspects first, each of them once the one before has produced a token. Other requests wait for
the suspects, at most ALONE_S. A death while a suspect is on trial counts against that suspect only.
Knows ids, deaths and times; knows no engine and no socket.
Path: EngineHandle -> Quarantine.begin -> submit; EngineHandle._engine_died -> Quarantine.blame
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

MAX_DEATHS = 3  # of engines under one request; the next one ends it
SUSPECT_DEATHS = 2  # from this many deaths a request restarts alone
ALONE_S = 10.0  # others wait at most this long for the suspects, whose prefill may take minutes
STEADY_S = 5.0  # an engine that lived longer did not die of what ended the one before


class Restartable(Protocol):
    """A request that a new engine can take over."""

    id: int
    deaths: int  # engines that died with it


R = TypeVar("R", bound=Restartable)


class Quarantine(Generic[R]):
    """Requests of one model that wait to be submitted to a new engine."""

    def __init__(self, submit: Callable[[R], None], is_live: Callable[[R], bool]) -> None:
        """`submit` sends a request to the engine; `is_live` is false for one that has ended meanwhile."""
        self._submit, self._is_live = submit, is_live
        self._loop = asyncio.get_running_loop()
        self.queue: deque[R] = deque()
        self.suspect: R | None = None
        self._since = 0.0  # the start of the suspect's trial
        self._alone: asyncio.TimerHandle | None = None  # while a suspect shares the engine with no request

    @property
    def hold_others(self) -> bool:
        """Whether new requests must wait until a trial ends."""
        return self._alone is not None

    def begin(self, requests: Iterable[R]) -> None:
        """Submit all requests to a new engine: suspects first, one after another."""
        self.queue = deque(sorted(requests, key=lambda request: (-request.deaths, request.id)))
        self._next()
        if self.suspect is not None:
            self._alone = self._loop.call_later(ALONE_S, self._admit_others)

    def progressed(self, request: R) -> None:
        """Submit the next suspect once this one has produced a token; its last trial lasts at least STEADY_S."""
        if request is self.suspect and (
            request.deaths < MAX_DEATHS or self._loop.time() - self._since > STEADY_S
        ):
            self._next()

    def ended(self, request: R) -> None:
        """Note that a request ended, which ends its trial."""
        if request is self.suspect:
            self._next()

    def blame(self, live: Iterable[R]) -> list[R]:
        """Return the requests that a death counts against: the suspect on trial, else all of `live`."""
        suspect = self.suspect
        self.clear()
        return list(live) if suspect is None else [suspect]

    def clear(self) -> None:
        """Forget the suspect and the requests that wait for its trial."""
        self.queue.clear()
        self.suspect = None
        if self._alone is not None:
            self._alone.cancel()
        self._alone = None

    def _next(self) -> None:
        """Submit the next suspect, or all waiting requests if no suspect is left."""
        self.suspect = None
        while self.queue and self.suspect is None:
            request = self.queue.popleft()
            if self._is_live(request):
                if request.deaths >= SUSPECT_DEATHS:
                    self.suspect, self._since = request, self._loop.time()
                self._submit(request)
        if self.suspect is None:
            self.clear()

    def _admit_others(self) -> None:
        """Submit all but suspects beside a trial that lasts: a death still counts against the one on trial alone.

        Other suspects wait on: one of them may end the engine, and the one on trial would be blamed for it.
        """
        self._alone = None
        waiting, self.queue = self.queue, deque()
        for request in waiting:
            if request.deaths >= SUSPECT_DEATHS:
                self.queue.append(request)
            elif self._is_live(request):
                self._submit(request)
