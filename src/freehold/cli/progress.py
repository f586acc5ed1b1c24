"""Show a pull: a bar in a terminal, a line every five seconds elsewhere, JSON lines when asked.

Knows events, not where they come from. Path: cli/pull, cli/run -> reporter(...) -> Store.pull(on_event).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from freehold.store.events import Event, Finished, Note, OnEvent, Planned, Progress
from freehold.store.space import human

LINE_EVERY_S = 5.0


class Reporter:
    """Takes events and remembers how far they came, for the line after Ctrl-C."""

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

    def show(self, event: Event) -> None:
        """Print the event."""
        raise NotImplementedError

    def kept(self) -> str:
        """Say what an interruption leaves."""
        of = f" of {human(self.total)}" if self.total else ""
        return f"kept {human(self.done)}{of}; the same command resumes"

    def rate(self) -> float:
        """Return bytes per second fetched by this run."""
        passed = time.monotonic() - self._started
        return max(self.done - (self._base or 0), 0) / passed if passed > 0 else 0.0


class JsonLines(Reporter):
    """One JSON object a line on stdout: {"event": "progress", ...}."""

    def show(self, event: Event) -> None:
        """Print the event as JSON; progress at most ten times a second."""
        fields = {"event": type(event).__name__.lower(), **asdict(event)}
        print(json.dumps(fields), flush=True)


class Lines(Reporter):
    """Plain lines on stderr, progress every five seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._last = time.monotonic()

    def show(self, event: Event) -> None:
        """Print a line if the event is news, or if five seconds passed."""
        if not isinstance(event, Progress):
            for line in described(event):
                print(line, file=sys.stderr, flush=True)
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Return done, total, rate and the time left."""
        rate = self.rate()
        if not self.total:
            return f"{human(self.done)} fetched, {human(rate)}/s"
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
        share = 100 * self.done / self.total
        return f"{human(self.done)} of {human(self.total)} ({share:.0f} %), {human(rate)}/s{left}"


class Bar(Reporter):
    """A progress bar on stderr, with lines above it for what is news."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = RichProgress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
        )
        self._task = None

    def show(self, event: Event) -> None:
        """Move the bar, or print a line above it."""
        if isinstance(event, Progress):
            if self._task is not None:
                self._bar.update(self._task, completed=event.done, total=event.total or None)
            return
        for line in described(event):
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        if isinstance(event, Planned):
            self._task = self._bar.add_task(event.name, total=event.total or None, completed=event.held)
            self._bar.start()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.stop()


def described(event: Event) -> list[str]:
    """Return the lines that tell an event to a person."""
    if isinstance(event, Planned):
        held = f", {human(event.held)} held already" if event.held else ""
        size = human(event.total) if event.total else "size not told"
        lines = [f"{event.name}: {size}{held}", f"  from {event.source}"]
        return [*lines, f"  {event.detail}"] if event.detail else lines
    if isinstance(event, Note):
        return [f"{event.name}: {event.text}"]
    if isinstance(event, Finished) and event.fetched:
        return [f"{event.name}: {human(event.fetched)} in {event.seconds:.1f} s"]
    return []


@contextmanager
def reporter(*, as_json: bool = False) -> Iterator[OnEvent]:
    """Choose how to show a pull here; after Ctrl-C say what was kept, then let it through."""
    dumb = os.environ.get("TERM") in ("dumb", "") or not sys.stderr.isatty()
    shown = JsonLines() if as_json else Lines() if dumb else Bar()
    try:
        yield shown
    except KeyboardInterrupt:
        if isinstance(shown, Bar):
            shown.close()
        if shown.total or shown.done:
            print(shown.kept(), file=sys.stderr)
        raise
    finally:
        if isinstance(shown, Bar):
            shown.close()
