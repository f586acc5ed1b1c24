"""Shows progress: of a pull as store/progress.py does, or as JSON lines; of other long work, a line on stderr.

After Ctrl-C, what was kept. Knows events and lines; knows no source and no work.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from freehold.base.terminal import Ticking
from freehold.run.store.contract import Event, OnEvent
from freehold.run.store.progress import Reporter, screen


class JsonLines(Reporter):
    """One JSON object a line on stdout: {"event": "progress", ...}."""

    def show(self, event: Event) -> None:
        """Print the event as JSON; progress at most ten times a second."""
        fields = {"event": type(event).__name__.lower(), **asdict(event)}
        print(json.dumps(fields), flush=True)


@contextmanager
def reporter(*, as_json: bool = False) -> Iterator[OnEvent]:
    """Give the reporter that fits the output; after Ctrl-C print what was kept, then raise."""
    shown = JsonLines() if as_json else screen()
    try:
        yield shown
    except KeyboardInterrupt:
        shown.close()
        if shown.total or shown.done:
            print(shown.kept(), file=sys.stderr)
        raise
    finally:
        shown.close()


def result_of(out: Path) -> Callable[[], str]:
    """Return what Ctrl-C leaves of a run whose folder gets its name last.

    That is a result, what the next call continues, or nothing where it came before the first state was kept.
    """
    from freehold.adapt.run import part_of

    def left() -> str:
        if os.path.lexists(out):
            return f"{out} is whole"
        if os.path.lexists(part_of(out)):
            return f"the same command continues; {out} does not exist yet"
        return f"nothing was saved yet; the same command starts {out} again"

    return left


class StatusLine(Ticking):
    """What a long verb does now, on stderr: renewed in place in a terminal, elsewhere a line every five seconds.

    `kept`: what is printed after Ctrl-C, before the interrupt continues; a function says it as things then are.
    """

    LINE_EVERY_S = 5.0

    def __init__(self, kept: str | Callable[[], str]) -> None:
        super().__init__()
        self._kept, self._printed = kept, time.monotonic()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if any(isinstance(each, KeyboardInterrupt) for each in exc):
            kept = self._kept if isinstance(self._kept, str) else self._kept()
            print(f"stopped; {kept}", file=sys.stderr)

    def show(self, text: str) -> None:
        """Show what is being done: in place on a terminal, elsewhere as a line at most every LINE_EVERY_S seconds."""
        now = time.monotonic()
        with self._lock:
            super().show(text)
            self._since = now
        if self._live:
            self.draw()
        elif now - self._printed >= self.LINE_EVERY_S:
            self._printed = now
            self.say(text)

    def begin(self, text: str) -> None:
        """Show at once what is being done first: work that is silent for long begins with it."""
        self._printed = float("-inf")
        self.show(text)

    def blank(self) -> None:
        """Take the line away until the next `show`, so that another may be printed."""
        super().show("")
        self.clear()

    def note(self, text: str) -> None:
        """Print a remark that stays."""
        self.say(f"note: {text}")
