"""What a route keeps of whole answers: for equal requests (cache), and as texts in a file (keep = "text").

A request is equal if its whole job is, and it comes from the same key with the same labels over the same route. Such
answers are in memory, with a bound in bytes; the oldest goes first. Knows jobs, digests and chunks; knows no label.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from freehold.base import private
from freehold.base.serving import Begin, Job
from freehold.base.types import ToolCall
from freehold.route.providers.contract import Cleared, Piece
from freehold.route.router.gateway import GatewayModel
from freehold.route.router.price import letters_in
from freehold.route.router.record import RequestRecord, added

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


# --- prompts and answers of routes that say keep = "text" -------------------------------------------
# Of whole answers to requests without any label, and of nothing else; the ledger itself has no text. The file is
# beside the ledger, by the row's id; it can be deleted at any time, and no request waits for it or fails because of it.

_log = logging.getLogger("freehold.route.router")
_TABLE = """CREATE TABLE IF NOT EXISTS texts (
  id TEXT PRIMARY KEY, at REAL NOT NULL, route TEXT NOT NULL, target TEXT NOT NULL, prompt BLOB NOT NULL,
  answers BLOB NOT NULL) WITHOUT ROWID"""


def texts_beside(ledger: Path) -> Path:
    """Return the file of the texts of a ledger."""
    return ledger.with_name(f"{ledger.stem}-texts.sqlite")


class KeptTexts:
    """The file; it is made with the first text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def keep(self, id: str, at: float, route: str, target: str, job: Job, pieces: list[Piece]) -> None:
        """Write one request's texts. Called in a thread; what fails is logged, without the texts."""
        prompt = {"messages": job.messages, "prompt": job.prompt, "tools": job.tools}
        row = (id, at, route, target, _json(prompt), _json(_answers(pieces)))
        try:
            with self._lock:
                private.file(self.path)
                with closing(sqlite3.connect(self.path, timeout=5.0)) as db, db:
                    db.execute(_TABLE)
                    db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?, ?)", row)
        except (sqlite3.Error, OSError) as e:
            _log.warning("the texts of request %s were not kept: %s", id, type(e).__name__)


_json = msgspec.json.Encoder().encode


def _answers(pieces: list[Piece]) -> list[dict[str, object]]:
    answers: dict[int, dict[str, object]] = {}
    calls: dict[int, list[ToolCall]] = {}
    for index, chunk in pieces:
        answer = answers.setdefault(index, {"text": "", "thinking": "", "refusal": "", "finish_reason": ""})
        for name in ("text", "thinking", "refusal"):
            answer[name] = f"{answer[name]}{getattr(chunk, name)}"
        for piece in chunk.tool_calls:
            piece.join(calls.setdefault(index, []))
        answer["finish_reason"] = chunk.finish_reason or answer["finish_reason"]
    return [{**answer, "tool_calls": calls.get(index, [])} for index, answer in sorted(answers.items())]
