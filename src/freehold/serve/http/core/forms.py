"""The fields of a multipart form, and its file, which goes to the disk as it comes and is counted there.

Every bound is checked as the bytes come. Knows parts, names and bytes; knows no field of any route.

Bytes of recordings are counted until their requests are over: of one caller, and of all. A recording counts as soon as
its request has stated a length, so that many at once fit together; one that states none counts as it comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from freehold.run.store.space import human
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.problems import Refused

MAX_PARTS = 16
MAX_FIELD = 4096  # bytes of a field without a file
MOST_HEADERS, MOST_HEADER = 8, 4224  # of a part: how many, and bytes of one with its name
MAX_NAME = 255  # characters of the file's name
TOGETHER = 256 << 10  # bytes that are read and written at a time
Apart = Callable[..., Awaitable[Any]]  # runs work, and its arguments, elsewhere


class UploadForm:
    """A form as far as it has come. `bytes`: of its file, which was written to `sink`."""

    def __init__(self, boundary: bytes, sink: BinaryIO, most: int = MAX_PARTS) -> None:
        """`most`: parts that it may have."""
        from python_multipart.multipart import MultipartParser

        self.fields: dict[str, str] = {}  # the last one of each name
        self.values: dict[str, list[str]] = {}  # all of each name, in order
        self.filename: str | None = None
        self.bytes = 0
        self.whole = False
        self._sink, self._parts, self._most = sink, 0, most
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_named,
                "on_header_value": self._header_said,
                "on_header_end": self._header_ended,
                "on_headers_finished": self._headers_ended,
                "on_part_data": self._data,
                "on_part_end": self._part_ends,
                "on_end": self._ended,
            },
        )

    def write(self, data: bytes) -> None:
        """Take in the next bytes of the body."""
        from python_multipart.exceptions import FormParserError

        try:
            self._parser.write(data)
        except FormParserError as e:
            raise _malformed(str(e)) from None

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > self._most:
            raise _malformed(f"it has more than {self._most} parts")
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value, self._content = b"", b"", b""

    def _header_named(self, data: bytes, start: int, end: int) -> None:
        self._check_header(end - start)
        self._header += data[start:end]

    def _header_said(self, data: bytes, start: int, end: int) -> None:
        self._check_header(end - start)
        self._value += data[start:end]

    def _check_header(self, more: int) -> None:
        """Raise beyond what any client sends; older parsers have no bound of their own."""
        if len(self._header) + len(self._value) + more > MOST_HEADER or len(self._headers) >= MOST_HEADERS:
            raise _malformed(f"a part has over {MOST_HEADERS} headers, or one of over {MOST_HEADER:,} bytes")

    def _header_ended(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_ended(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == "file"
        if self._is_file:
            if self.filename is not None:
                raise _malformed("it has two files")
            self.filename = _plain(options.get(b"filename", b"").decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.bytes += end - start
            self._sink.write(memoryview(data)[start:end])
            return
        self._content += data[start:end]
        if len(self._content) > MAX_FIELD:
            raise _malformed(f"the field {self._name[:60]!r} is longer than {MAX_FIELD:,} bytes")

    def _part_ends(self) -> None:
        if not self._is_file:
            value = self.fields[self._name] = self._content.decode("utf-8", "replace")
            self.values.setdefault(self._name, []).append(value)

    def _ended(self) -> None:
        self.whole = True


async def read_form(
    content_type: bytes,
    pieces: AsyncIterator[bytes],
    sink: BinaryIO,
    came: Callable[[int], None] = lambda _: None,
    *,
    apart: Apart | None = None,
    most: int = MAX_PARTS,
) -> UploadForm:
    """Read a whole form; 400 for one that is malformed or ends early, or has more than `most` parts.

    `came` is called with each count of bytes before they are written. `apart` runs what reads and writes them, some
    at a time; None: here, at once.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        message = "the body is not a form; send multipart/form-data with a file"
        raise Refused(400, message, code="invalid_form")
    try:
        form = UploadForm(boundary, sink, most)
    except FormParserError as e:
        raise _malformed(str(e)) from None
    waiting: list[bytes] = []
    async for data in pieces:
        came(len(data))
        if apart is None:
            form.write(data)
            continue
        waiting.append(data)
        if sum(map(len, waiting)) >= TOGETHER:
            await apart(form.write, b"".join(waiting))
            waiting.clear()
    if waiting and apart is not None:
        await apart(form.write, b"".join(waiting))
    if not form.whole:
        raise _malformed("it ends before its last boundary")
    return form


def _plain(name: str) -> str:
    """Return a name that is only shown: no folders, nothing a terminal would obey."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:MAX_NAME] or "unnamed"


def _malformed(why: str) -> Refused:
    return Refused(400, f"the form is malformed: {why[:200]}", code="invalid_form")


# --- bytes on the disk, of each caller -------------------------------------------------------------

AGAIN_S = 30  # after which a caller may ask again


@dataclass(slots=True)
class Spools:
    """Those of all requests in progress."""

    counts: Counter[str] = field(default_factory=Counter)  # caller -> bytes

    @contextmanager
    def of(self, caller: str, stated: int, limits: ServerLimits) -> Iterator[Spool]:
        """Count a recording of `stated` bytes or more until the end. Raises Refused (429)."""
        spool = Spool(self, caller, limits)
        try:
            spool.take(stated)
            yield spool
        finally:
            self.counts[caller] -= spool.bytes
            self.counts += Counter()  # drops those at zero


@dataclass(slots=True)
class Spool:
    """One recording. `bytes`: that count for it."""

    _all: Spools
    _caller: str
    _limits: ServerLimits
    bytes: int = 0
    _came: int = 0

    def came(self, more: int) -> None:
        """Count bytes that are written next. Raises Refused (429)."""
        self._came += more
        if self._came > self.bytes:
            self.take(self._came)

    def take(self, size: int) -> None:
        """Count `size` bytes in place of those before. Raises Refused (429); one alone is never refused."""
        counts, more = self._all.counts, size - self.bytes
        own, total = counts[self._caller] - self.bytes, counts.total() - self.bytes
        if own and own + size > self._limits.caller_sounds_bytes:
            raise _too_many("your recordings in progress have", own, size, self._limits.caller_sounds_bytes)
        if total and total + size > self._limits.sounds_bytes:
            raise _too_many(
                "recordings in progress, of all clients, have", total, size, self._limits.sounds_bytes
            )
        counts[self._caller] += more
        self.bytes = size


def _too_many(whose: str, others: int, size: int, most: int) -> Refused:
    return Refused(
        429,
        f"{whose} {human(others)}, and this one {human(size)}; the limit is {human(most)}: try again "
        "when one has ended, or send it as Opus or MP3",
        code="too_many_recordings",
        headers=((b"retry-after", b"%d" % AGAIN_S), (b"connection", b"close")),
    )
