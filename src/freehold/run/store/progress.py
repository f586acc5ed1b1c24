"""Show a pull: a bar in a terminal, a line under a notebook's cell, plain lines elsewhere.

Knows events and where a person looks at them; knows no source and no command line.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from freehold.base.terminal import Ticking, is_live
from freehold.run.store.contract import Event, Finished, Note, OnEvent, Planned, Progress, ignore
from freehold.run.store.space import human

# How a pull from Python is shown: None shows it where a person looks (a terminal, a notebook), True anywhere,
# False nowhere; a function gets the events.
ProgressLike = bool | Callable[[Event], None] | None

LINE_EVERY_S = 5.0


class Reporter(ABC):
    """Takes events and remembers the bytes they counted, for rates and for the line after an interrupt."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self._started = time.monotonic()
        self._base: int | None = None

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Planned):
            self.done, self.total, self._base = event.held, event.total, event.held
            self._started = time.monotonic()
        elif isinstance(event, Progress):
            self.done, self.total = event.done, event.total
        self.show(event)

    @abstractmethod
    def show(self, event: Event) -> None:
        """Show the event."""

    def close(self) -> None:
        """Take away what moves on the screen."""
        return

    def line(self) -> str:
        """Return bytes, total, rate and the time left."""
        rate = self.rate()
        if not self.total:
            return f"{human(self.done)} fetched, {human(rate)}/s"
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        share = 100 * self.done / self.total
        return f"{human(self.done)} of {human(self.total)} ({share:.0f} %), {human(rate)}/s{left}"

    def kept(self) -> str:
        """Say what an interruption leaves."""
        of = f" of {human(self.total)}" if self.total else ""
        return f"kept {human(self.done)}{of}; the same command resumes"

    def rate(self) -> float:
        """Return bytes per second fetched by this run."""
        passed = time.monotonic() - self._started
        return max(self.done - (self._base or 0), 0) / passed if passed > 0 else 0.0


class Lines(Reporter):
    """Plain lines on stderr, progress every five seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.monotonic()

    def show(self, event: Event) -> None:
        """Print a line if the event is news, or if five seconds passed."""
        if not isinstance(event, Progress):
            for line in described(event):
                self._write(line)
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            self._write(self.line())

    def _write(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class _BarLine(Ticking):
    """A bar's line, which says how long no bytes have come: the next package of a model is looked up, or joined."""

    STALLED_S = 0.6

    def renew(self) -> None:
        """Bytes have come."""
        self._since = time.monotonic()

    def seconds(self, passed: float) -> str:
        """Return the seconds of the first look-up, and later those without bytes."""
        if self.timed:
            return super().seconds(passed)
        return f", waiting {passed:.1f} s" if passed >= self.STALLED_S else ""


class ProgressBar(Reporter):
    """A line on stderr that moves: a bar, bytes, rate and the time left; lines above it for what is news."""

    WIDTH, EVERY_S = 20, 0.1  # characters of the bar, and how often it moves

    def __init__(self) -> None:
        super().__init__()
        self._line = _BarLine("looking it up")
        self._line.start()
        self._moved, self._drawn = 0.0, -1

    def show(self, event: Event) -> None:
        """Move the bar, or print a line above it."""
        if not isinstance(event, Progress):
            for line in described(event):
                self._line.say(line)
            if isinstance(event, Planned):
                self._line.timed = False  # the time left is in it
                self._line.renew()
                self._line.show(self.line())
        elif time.monotonic() - self._moved >= self.EVERY_S:
            self._moved = time.monotonic()
            if self.done != self._drawn:
                self._drawn = self.done
                self._line.renew()
            self._line.show(self.line())
            self._line.draw()

    def line(self) -> str:
        """Return the bar, while the size is known, and the numbers behind it."""
        done = self.WIDTH * self.done // self.total if self.total else 0
        bar = f"[{'#' * done}{'.' * (self.WIDTH - done)}] " if self.total else ""
        return bar + super().line()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._line.close()


class NotebookLine(Reporter):
    """One line under a notebook's cell, replaced as bytes arrive: the kernel needs no widgets for it."""

    EVERY_S = 0.2  # a notebook keeps up with five changes a second

    def __init__(self) -> None:
        super().__init__()
        self._text: list[str] = []
        self._moved = 0.0
        self._handle: Any = None  # the output, from the first event on

    def show(self, event: Event) -> None:
        """Replace the line."""
        if isinstance(event, Progress):
            if time.monotonic() - self._moved < self.EVERY_S:
                return
            self._moved = time.monotonic()
        self._text += described(event)
        moving = [self.line()] if isinstance(event, Progress) else []
        self._put({"text/plain": "\n".join([*self._text, *moving])})

    def _put(self, data: dict[str, str]) -> None:
        if self._handle is not None:
            self._handle.update(data, raw=True)
        elif any(data.values()):
            display = import_module("IPython.display").display  # a kernel is running, so it is installed
            self._handle = display(data, raw=True, display_id=True)


def described(event: Event) -> list[str]:
    """Return the lines that tell an event to a person."""
    if isinstance(event, Planned):
        held = f", {human(event.held)} already downloaded" if event.held else ""
        size = human(event.total) if event.total else "size unknown"
        # A packed copy, which the first run writes, takes about as much as the file.
        disk = f"; about {human(2 * event.total)} on disk with its packed copy" if event.total else ""
        lines = [f"{event.name}: {size}{held}{disk}", f"  from {event.source}"]
        return [*lines, f"  {event.detail}"] if event.detail else lines
    if isinstance(event, Note):
        return [f"{event.name}: {event.text}"]
    if isinstance(event, Finished) and event.fetched:
        return [f"{event.name}: {human(event.fetched)} in {event.seconds:.1f} s"]
    return []


def screen() -> Reporter:
    """Choose what fits here: a notebook's line, a terminal's bar, or plain lines on stderr."""
    if _in_notebook():
        return NotebookLine()
    return ProgressBar() if is_live() else Lines()


@contextmanager
def watching(progress: ProgressLike = None) -> Iterator[OnEvent]:
    """Yield what takes the events of a pull, and take it off the screen afterwards."""
    if callable(progress):
        yield progress
        return
    if progress is False or (progress is None and not (_in_notebook() or is_live())):
        yield ignore
        return
    shown = screen()
    try:
        yield shown
    finally:
        shown.close()


def _in_notebook() -> bool:
    """Tell whether an IPython kernel runs this code; IPython in a terminal has no kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
