"""The log of `serve`: lines of text or JSON on stderr, written by a thread; its messages, in the log once it is open.

Knows levels and formats; knows no request. A blocked reader of stderr never blocks the server: lines wait in a queue,
and those beyond its limit are counted and reported.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Literal

from freehold.base.terminal import Ticking

if TYPE_CHECKING:
    from freehold.serve.http.core.gate import RequestLine

LogForm = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
ROOM = 10_000  # lines that wait for their reader
TOGETHER_S = 0.05  # between two writes: waking the thread for each line would cost each request 30 us
LEAVE_S = 2.0  # at the end, for a reader to take the rest


class _TextFormat(logging.Formatter):
    """Requests and messages unchanged; warnings and errors with their level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return (
            text
            if record.levelno < logging.WARNING or _line(record)
            else f"{record.levelname.lower()}: {text}"
        )


class _JsonFormat(logging.Formatter):
    """One object per line: time, level, and a request's fields or a message."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {"time": at.replace("+00:00", "Z"), "level": record.levelname.lower()}
        line = _line(record)
        return json.dumps({**fields, **(line.fields if line else {"message": super().format(record)})})


def _line(record: logging.LogRecord) -> RequestLine | None:
    # With the web framework, which --help does without.
    from freehold.serve.http.core.gate import RequestLine

    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return first if isinstance(first, RequestLine) else None


class LogWriter(logging.Handler):
    """Passes records to a thread that writes them in batches."""

    def __init__(self, out: IO[str], form: LogForm) -> None:
        super().__init__()
        self.setFormatter(_JsonFormat() if form == "json" else _TextFormat())
        self._out, self._lost = out, 0
        self._waiting: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="freehold-log", daemon=True)
        self._thread.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue a record, without the lock of handlers; one beyond the limit is counted."""
        if self._waiting.qsize() < ROOM:
            self._waiting.put(record)
        else:
            self._lost += 1
        return True

    def _write(self) -> None:
        records: list[logging.LogRecord | None] = []
        while None not in records:
            records = [self._waiting.get()]
            while not self._waiting.empty():
                records.append(self._waiting.get())
            if self._lost:
                lost, self._lost = self._lost, 0
                dropped = f"{lost:,} lines of the log were dropped: stderr is blocked"
                records.insert(
                    -1, logging.LogRecord("freehold.log", logging.WARNING, "", 0, dropped, (), None)
                )
            lines = [self.format(record) + "\n" for record in records if record is not None]
            Ticking.make_way()
            try:
                self._out.write("".join(lines))
                self._out.flush()
            except (OSError, ValueError):  # a closed pipe or file
                return
            self._closing.wait(TOGETHER_S)

    def close(self) -> None:
        """Write the rest, for at most LEAVE_S."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join(LEAVE_S)
        super().close()


def is_logging() -> bool:
    """Return whether `logging_to` is active."""
    return any(isinstance(handler, LogWriter) for handler in logging.getLogger().handlers)


@contextmanager
def logging_to(out: IO[str] | None, level: str, form: LogForm) -> Iterator[None]:
    """Log to `out` (None: stderr) within; other libraries from level warning."""
    lines = LogWriter(out or sys.stderr, form)
    root, ours = logging.getLogger(), logging.getLogger("freehold")
    before = root.level, ours.level
    chosen = logging.getLevelName(level.upper())
    root.addHandler(lines)
    root.setLevel(max(chosen, logging.WARNING))
    ours.setLevel(chosen)
    try:
        yield
    finally:
        root.removeHandler(lines)
        root.setLevel(before[0])
        ours.setLevel(before[1])
        lines.close()


def tell(text: str) -> None:
    """Print a message on stderr, through the log once it is open."""
    if not is_logging():
        Ticking.make_way()
        return print(text, file=sys.stderr, flush=True)
    level, _, rest = text.partition(": ")
    known = {"error": logging.ERROR, "warning": logging.WARNING}
    message = rest if level in known else text
    return logging.getLogger("freehold.serve").log(known.get(level, logging.INFO), "%s", message)
