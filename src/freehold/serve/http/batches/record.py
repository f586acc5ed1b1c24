"""What is known of a batch, and how its folder keeps it: a record, the lines of its input, a journal of results.

Knows OpenAI's words for a batch and three kinds of files; knows no clock.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from msgspec import Meta, Struct

from freehold.serve.http.batches.filestore import new_id, sync_file, write_private
from freehold.serve.http.core.bodies import weigh
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.problems import Refused

RECORD, INPUT = "batch.json", "input.jsonl"
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
OVER = ("failed", "completed", "expired", "cancelled")


class Batch(Struct):
    """One batch. The ids of its result files are drawn at once, so that an end that is repeated makes them once."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str]
    labels: tuple[str, ...] = ()  # of the request that created it, and of its file
    status: Status = "validating"
    times: dict[str, int] = {}  # status -> when it came
    errors: tuple[Wrong, ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str = msgspec.field(default_factory=new_id)
    error_file_id: str = msgspec.field(default_factory=new_id)

    @property
    def over(self) -> bool:
        return self.status in OVER

    def shown(self) -> dict[str, Any]:
        """Return it in OpenAI's words."""
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        errors = {"object": "list", "data": msgspec.to_builtins(self.errors)} if self.errors else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id if self.over and self.completed else None,
            "error_file_id": self.error_file_id if self.over and self.failed else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{name}_at": self.times.get(name) for name in names},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }

    def save(self, folder: Path) -> None:
        """Write it durably."""
        write_private(folder / RECORD, self)


def load(folder: Path) -> Batch:
    """Read a batch again. Raises OSError, or msgspec.DecodeError for a damaged one."""
    return msgspec.json.decode((folder / RECORD).read_bytes(), type=Batch)


# --- the lines of a batch's input: read one at a time, checked once before any is answered ----------

MAX_LINES = 50_000
MAX_EMPTY = MAX_LINES  # beside those
MAX_LINE = 16 << 20  # bytes; the body of a request has no more
MAX_ERRORS = 50  # named of one file


class BatchLine(Struct, frozen=True):
    """One request."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw  # an object, parsed by the route that it asks alone

    def request(self) -> tuple[bytes, bool]:
        """Return the body with priority `batch`, which wins over its own, and whether it asks for a stream."""
        text = bytes(self.body)
        inner = text[1:-1].strip()
        streamed = msgspec.json.decode(text, type=_Streamed)
        return b'{%b%b"priority":"batch"}' % (inner, b"," if inner else b""), bool(streamed.stream)


class _Streamed(Struct):
    """What is read of a body before its route reads it."""

    stream: Any = None


class Wrong(Struct, frozen=True):
    """What is wrong with a line, as OpenAI says it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file holds: `total` lines, or errors."""

    total: int
    errors: tuple[Wrong, ...]


def read_lines(path: Path) -> Iterator[tuple[int, BatchLine | Wrong]]:
    """Give each line with its number; empty ones are left out."""
    decoder = msgspec.json.Decoder(BatchLine)
    with path.open("rb") as file:
        number = empty = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                yield number, Wrong("line_too_long", f"it has more than {MAX_LINE:,} bytes", number)
                return
            if raw.isspace():
                empty += 1
                if empty > MAX_EMPTY:
                    yield (
                        number,
                        Wrong("too_many_lines", f"expected at most {MAX_EMPTY:,} empty lines", number),
                    )
                    return
                continue
            try:
                weigh(raw, ServerLimits())
                line = decoder.decode(raw)
                if not bytes(line.body).startswith(b"{"):
                    raise msgspec.ValidationError("Expected `object` - at `$.body`")
                msgspec.json.decode(line.body)  # what was passed over is JSON too
                yield number, line
            except Refused as e:
                yield number, Wrong(e.code or "", e.message, number)
            except msgspec.ValidationError as e:
                yield number, Wrong("invalid_request", str(e), number)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield number, Wrong("invalid_json_line", "it is not JSON", number)


def check_lines(path: Path, endpoint: str) -> Checked:
    """Read the whole file once."""
    seen: set[str] = set()
    errors: list[Wrong] = []
    for number, line in read_lines(path):
        wrong = line if isinstance(line, Wrong) else _wrong(line, number, endpoint, seen)
        if wrong is not None:
            errors.append(wrong)
        else:
            seen.add(line.custom_id)  # type: ignore[union-attr]
        if len(errors) == MAX_ERRORS:
            break
        if len(seen) > MAX_LINES:
            errors.append(Wrong("too_many_lines", f"expected at most {MAX_LINES:,} lines", number))
            break
    if not seen and not errors:
        errors.append(Wrong("empty_file", "the file has no lines"))
    return Checked(len(seen), tuple(errors))


def _wrong(line: BatchLine, number: int, endpoint: str, seen: set[str]) -> Wrong | None:
    if line.url != endpoint:
        return Wrong("mismatched_url", f"url is {line.url[:80]!r}; expected {endpoint}", number, "url")
    if line.custom_id in seen:
        message = f"the custom_id {line.custom_id[:80]!r} is an earlier line's"
        return Wrong("duplicate_custom_id", message, number, "custom_id")
    return None


# --- the results of a batch: two files, which are also the only record of its progress --------------
# A line is done once its result is on the disk, and never otherwise, so a server that was killed continues at
# the first line without a result; half a line that it left is cut off. Results that come together share one
# flush; those that a full disk refuses wait in memory until it takes them.

PAUSE_S = 5.0  # until a disk that took no result is tried again
OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"


class _Done(Struct):
    custom_id: str


class Journal:
    """Open files in `folder`. `done`: the custom ids that have a result."""

    def __init__(
        self,
        folder: Path,
        reported: Callable[[OSError | None], None] = lambda _: None,
        reserve: Callable[[int], None] = lambda _: None,
        wrote: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Read what is there; blocks, so call it in a thread.

        `reported` is called with the error of a failing disk, and with None once it works again. `reserve` is called,
        in a thread, with the bytes that are about to be written, and `wrote` once they are; Refused of the first ends
        the journal: no result is written any more.
        """
        self.counts = {OUTPUT: 0, ERRORS: 0}
        self.done: set[str] = set()
        self._files = {name: self._opened(folder / name) for name in self.counts}
        self._ends = {name: file.tell() for name, file in self._files.items()}
        self._waiting: list[tuple[str, str, Callable[[], object]]] = []
        self._lock, self._closing = asyncio.Lock(), asyncio.Event()
        self._reported, self._reserve, self._wrote = reported, reserve, wrote
        self._over: Refused | None = None

    async def add(self, custom_id: str, result: Callable[[], object], *, failed: bool) -> None:
        """Write a line's result, which is made and encoded in a thread; returns once it is on the disk.

        Raises Refused where there is no room for it.
        """
        self._waiting.append((ERRORS if failed else OUTPUT, custom_id, result))
        # Shielded: a flush that began is finished even if its caller is cancelled.
        await asyncio.shield(self._flush())
        if self._over is not None and custom_id not in self.done:
            raise self._over

    async def settle(self) -> None:
        """Write the results whose callers were cancelled, so that `done` is complete."""
        await asyncio.shield(self._flush())

    async def close(self) -> None:
        """Settle if the disk takes it, and close both files. Raises OSError if it does not."""
        self._closing.set()
        try:
            await self.settle()
        finally:
            for file in self._files.values():
                file.close()

    async def _flush(self) -> None:
        async with self._lock:
            while self._waiting and self._over is None:
                try:
                    await asyncio.to_thread(self._write)
                except OSError as e:
                    self._reported(e)
                    if self._closing.is_set():
                        raise
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), PAUSE_S)
                else:
                    self._reported(None)

    def _write(self) -> None:
        """Write what waits, file by file; what a full disk took of it is taken back."""
        ready = list(self._waiting)
        for name in dict.fromkeys(name for name, _, _ in ready):
            lines: dict[str, bytes] = {}
            size = 0
            for _, id, result in (item for item in ready if item[0] == name):
                line = msgspec.json.encode(result()) + b"\n"
                try:
                    self._reserve(size + len(line))
                except Refused as e:
                    self._over = e
                    break
                lines[id] = line
                size += len(line)
            self._append(name, b"".join(lines.values()))
            self._wrote(size)
            self._waiting = [item for item in self._waiting if item[0] != name or item[1] not in lines]
            self.counts[name] += len(lines)
            self.done.update(lines)

    def _append(self, name: str, data: bytes) -> None:
        fd, end = self._files[name].fileno(), self._ends[name]
        view, at = memoryview(data), end
        try:
            while at < end + len(data):
                at += os.pwrite(fd, view[at - end :], at)
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, end)
            raise
        self._ends[name] = at

    def _opened(self, path: Path) -> BinaryIO:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        sync_file(path)
        file = os.fdopen(fd, "r+b")
        file.truncate(self._whole(file, path.name))
        file.seek(0, os.SEEK_END)
        return file

    def _whole(self, file: BinaryIO, name: str) -> int:
        """Take in every whole line; return where they end."""
        end = 0
        for raw in file:
            try:
                done = msgspec.json.decode(raw, type=_Done) if raw.endswith(b"\n") else None
            except (msgspec.DecodeError, UnicodeDecodeError):
                done = None
            if done is None:
                break
            self.done.add(done.custom_id)
            self.counts[name] += 1
            end += len(raw)
        return end
