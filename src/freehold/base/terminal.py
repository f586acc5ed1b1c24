"""A terminal's moving line, and text that a terminal shows and does not obey.

Knows a stream and a clock; knows no verb and no model. If stderr is not a terminal, nothing moves.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from typing import ClassVar, Self


def printable(text: str) -> str:
    """Return a text that shows what would control the terminal: names and errors may come out of strangers' files."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def is_live() -> bool:
    """Tell whether stderr is a terminal whose last line can be renewed."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Ticking:
    """One line on a terminal's stderr that changes twice a second while work is silent; nothing elsewhere.

    Use in `with`: the text and its seconds, from the third tenth of a second on; `show` changes the text. Within
    another one, that one waits. Where `timed` is false, the text stands without its seconds.
    """

    FIRST_S, EVERY_S = 0.3, 0.5
    _open: ClassVar[list[Ticking]] = []  # the last one draws

    def __init__(self, text: str = "") -> None:
        self.text, self._since = printable(text), time.monotonic()
        self._ended, self._lock = threading.Event(), threading.RLock()
        self._live, self._shown, self.timed = is_live(), False, True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to show the line; another one waits meanwhile."""
        if self._live:
            if self._open:
                self._open[-1].clear()
            self._open.append(self)
            threading.Thread(target=self._tick, daemon=True).start()

    def close(self) -> None:
        """Take the line away for good."""
        with self._lock:
            self._ended.set()
            self.clear()
        with suppress(ValueError):
            self._open.remove(self)

    def show(self, text: str) -> None:
        """Show another text from the next tick on."""
        self.text = printable(text)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self.clear()
            sys.stderr.write(f"{printable(text)}\n")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away until the next tick."""
        with self._lock:
            if self._shown:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
                self._shown = False

    @classmethod
    def make_way(cls) -> None:
        """Take whichever line is drawn away until its next tick, so that another may be printed."""
        for line in cls._open[-1:]:
            line.clear()

    def draw(self) -> None:
        """Write the line now, cut to the terminal's width."""
        with self._lock:
            if self.text and not self._ended.is_set() and self._open[-1:] == [self]:
                seconds = self.seconds(time.monotonic() - self._since)
                sys.stderr.write(f"\r\x1b[K{self.text[: _columns() - len(seconds) - 1]}{seconds}")
                sys.stderr.flush()
                self._shown = True

    def seconds(self, passed: float) -> str:
        """Return what follows the text, `passed` seconds after its work began."""
        return f" ({passed:.1f} s)" if self.timed else ""

    def _tick(self) -> None:
        while not self._ended.wait(self.FIRST_S if not self._shown else self.EVERY_S):
            self.draw()


def _columns() -> int:
    try:
        return max(os.get_terminal_size(sys.stderr.fileno()).columns, 20)
    except (OSError, ValueError):
        return 80
