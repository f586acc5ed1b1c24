"""The newest lines of an engine's output: bounded in lines and in their length, without secrets and requests.

Engines print what they like, for months: a line of megabytes, a bar that is drawn again and again, their environment
in a traceback. Knows bytes and lines; knows no engine.
Path: the supervisor's stderr -> LogRing.data_received -> OwnProcess.log, causes
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

LINES = 2000
CHARACTERS = 500  # of a line
_UNFINISHED = 1 << 16  # bytes of a line whose end has not come: what follows is dropped
_SEEN = 1024  # different lines remembered, to tell news from repetition
_COLOUR = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
# What is left would be obeyed by the terminal that shows the log: titles, the clipboard, lines written over.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# An engine that dies prints the requests it computed: stop strings, schemas, expressions are the client's words.
_REQUESTS = re.compile(rb"Dumping |[Ss]ampling_?[Pp]arams|prompt_token_ids=|scheduled_new_reqs")
_FIGURES = re.compile(r"[\d.:,/%-]+")


class LogRing(asyncio.Protocol, Sequence[str]):
    """A pipe's reader that keeps the newest lines. `lines` counts all, `news` those that say something new."""

    def __init__(self, secrets: Iterable[str] = (), told: Callable[[str], object] | None = None) -> None:
        """`secrets` are replaced wherever they occur; `told` is called with each line."""
        self.lines = self.news = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._secrets = [s.encode() for s in secrets if s]
        self._told = told
        self._kept: deque[str] = deque(maxlen=LINES)
        self._held = b""
        self._dropping = False
        self._seen: dict[str, None] = {}

    def data_received(self, data: bytes) -> None:
        """Take lines; a carriage return ends one too, as bars use it."""
        *whole, self._held = (self._held + data.replace(b"\r", b"\n")).split(b"\n")
        if len(whole) > LINES:  # a flood: what would be pushed out at once is counted alone
            self._dropping, self.lines = False, self.lines + len(whole) - LINES
            whole = whole[-LINES:]
        for line in whole:
            if not self._dropping:
                self._add(line)
            self._dropping = False
        if len(self._held) > _UNFINISHED:
            if not self._dropping:
                self._add(self._held)
            self._held, self._dropping = b"", True

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep what had no line end."""
        if self._held and not self._dropping:
            self._add(self._held)
        self._held = b""
        if not self.closed.done():
            self.closed.set_result(None)

    def _add(self, raw: bytes) -> None:
        if match := _REQUESTS.search(raw):
            raw = raw[: match.start()] + b"[text of requests is left out]"
        for secret in self._secrets:
            raw = raw.replace(secret, b"[secret]")
        line = _CONTROL.sub("", _COLOUR.sub(b"", raw).decode("utf-8", "replace")).rstrip()
        if not line:
            return
        self.lines += 1
        if len(line) > CHARACTERS:
            line = line[: CHARACTERS - 1] + "…"
        self._kept.append(line)
        self._note_news(line)
        if self._told is not None:
            self._told(line)

    def _note_news(self, line: str) -> None:
        """Count a line unless it was said before with other figures: "still waiting, 60 s", "still waiting, 120 s"."""
        shape = _FIGURES.sub("0", line)
        if shape not in self._seen:
            self.news += 1
            self._seen[shape] = None
            if len(self._seen) > _SEEN:
                del self._seen[next(iter(self._seen))]

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return list(self._kept)[index] if isinstance(index, slice) else self._kept[index]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._kept))
