"""Answers that a route keeps for equal requests, where its file says cache_s: exact, by tenant and labels.

A request is equal if its whole job is, and it comes from the same key with the same labels over the same route. Kept
in memory, whole answers only, with a bound in bytes; the oldest goes first. Knows digests and chunks.
Path: handle.py -> AnswerCache.find -> CachedStream; RoutedStream -> AnswerCache.keep
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from freehold.providers.cleared import Cleared
from freehold.providers.contract import Piece
from freehold.router.gateway import GatewayModel
from freehold.router.record import RequestRecord, added
from freehold.router.tokens import letters_in
from freehold.serving import Begin, Job

MEMORY = 64 << 20  # bytes of all kept answers, about
PIECE_BYTES = 400  # of a chunk's objects beside its text


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A whole answer, and the target that made it."""

    target: GatewayModel
    begin: Begin
    pieces: tuple[Piece, ...]
    size: int
    until: float


def answer_key(cleared: Cleared[Job], tenant: str, route: str, file: str) -> bytes:
    """Return what two requests have in common whose answers may be exchanged. `file`: digest of gateway.toml."""
    job = replace(cleared.work, tenant=tenant, client="", timeout_s=None, priority="interactive")
    plain = msgspec.to_builtins(job, str_keys=True, order="deterministic")
    digest = hashlib.sha256()
    _feed(digest, (tenant, *cleared.label_names, route, file))
    _feed(digest, plain)
    return digest.digest()


SLICE = 1 << 16  # characters that are encoded at once, without releasing the interpreter's lock


def _feed(digest: Any, value: object) -> None:
    """Add a value of a job, each with its kind and length, so that two jobs are equal only where their fields are.

    No encoder of msgspec or json takes all that a job may hold: half of a surrogate pair, an integer of 100 bits, NaN.
    """
    if isinstance(value, str):
        digest.update(b"s%d:" % len(value))
        for start in range(0, len(value), SLICE):
            digest.update(value[start : start + SLICE].encode("utf-8", "surrogatepass"))
    elif isinstance(value, dict):
        digest.update(b"d%d:" % len(value))
        for name, member in value.items():
            _feed(digest, name)
            _feed(digest, member)
    elif isinstance(value, list | tuple):
        digest.update(b"l%d:" % len(value))
        for member in value:
            _feed(digest, member)
    else:
        shown = f"{value:x}" if type(value) is int else repr(value)
        digest.update(f"v{shown};".encode())


class AnswerCache:
    """Whole answers by `answer_key`."""

    def __init__(self, memory: int = MEMORY, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory, self._clock = memory, clock
        self._kept: OrderedDict[bytes, KeptAnswer] = OrderedDict()
        self.bytes = 0

    def find(self, key: bytes) -> KeptAnswer | None:
        """Return an answer that still holds."""
        kept = self._kept.get(key)
        if kept is not None and kept.until < self._clock():
            self._drop(key)
            return None
        return kept

    def keep(
        self, key: bytes, target: GatewayModel, begin: Begin, pieces: list[Piece], seconds: float
    ) -> None:
        """Keep an answer; one that is larger than an eighth of the memory is not kept."""
        size = sum(PIECE_BYTES + letters_in(chunk) for _, chunk in pieces)
        if size > self._memory // 8:
            return
        if key in self._kept:
            self._drop(key)
        self._kept[key] = KeptAnswer(target, begin, tuple(pieces), size, self._clock() + seconds)
        self.bytes += size
        while self.bytes > self._memory:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        self.bytes -= self._kept.pop(key).size


class CachedStream:
    """The Stream of a kept answer; its row costs nothing."""

    def __init__(self, record: RequestRecord, kept: KeptAnswer) -> None:
        self._record, self._kept, self._next = record, kept, 0
        self.begin = replace(kept.begin, labels=record.label_names)

    @property
    def more(self) -> bool:
        return self._next < len(self._kept.pieces)

    def __aiter__(self) -> CachedStream:
        return self

    async def __anext__(self) -> Piece:
        pieces = self._kept.pieces
        if self._next >= len(pieces):
            raise StopAsyncIteration
        piece = pieces[self._next]
        self._next += 1
        if self._next == len(pieces):
            usages = [chunk.usage for _, chunk in pieces if chunk.usage is not None]
            reason = piece[1].finish_reason or ""
            await self._record.book("cached", self._kept.target, added(usages), reason)
        return piece

    async def aclose(self) -> None:
        if not self._record.booked:
            await self._record.book_quietly("left", self._kept.target)
