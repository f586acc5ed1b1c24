"""Shows progress: of a pull as store/progress.py does, or as JSON lines; of other long work, a line on stderr.

After Ctrl-C, what was kept. Knows events and lines; knows no source and no work.
Path: cli/pull, cli/run -> reporter(...) -> Store.pull(on_event); cli/quantize -> StatusLine.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

from freehold.cli.report.terminal import printable
from freehold.store.events import Event, OnEvent
from freehold.store.progress import Reporter, screen


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
            return f"the same command continues; {out} is not there yet"
        return f"nothing was kept yet; the same command begins {out} anew"

    return left


class Ticking:
    """One line on a terminal's stderr with the seconds that work takes, from half a second on; nothing elsewhere.

    Use in `with`, for work that reports nothing by itself; `show` changes the text.
    """

    EVERY_S = 0.5

    def __init__(self, text: str) -> None:
        self._text, self._begun = printable(text), time.monotonic()
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._shown = False

    def __enter__(self) -> Self:
        if self._live:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._ended.set()
            self._clear()

    def show(self, text: str) -> None:
        """Show another text from the next tick on."""
        self._text = printable(text)

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False

    def _tick(self) -> None:
        while not self._ended.wait(self.EVERY_S):
            with self._lock:
                if not self._ended.is_set():
                    sys.stderr.write(f"\r\x1b[K{self._text}, {time.monotonic() - self._begun:.0f} s")
                    sys.stderr.flush()
                    self._shown = True


class StatusLine:
    """What a long verb does now, on stderr: renewed in place in a terminal, elsewhere a line every five seconds.

    `kept`: what is printed after Ctrl-C, before the interrupt continues; a function says it as things then are.
    """

    EVERY_S = 5.0

    def __init__(self, kept: str | Callable[[], str]) -> None:
        self._kept, self._shown = kept, time.monotonic()
        self._live = sys.stderr.isatty()
        self._wide = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.clear()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            kept = self._kept if isinstance(self._kept, str) else self._kept()
            print(f"stopped; {kept}", file=sys.stderr)

    def show(self, text: str) -> None:
        """Show what is being done: in place on a terminal, elsewhere as a line at most every EVERY_S seconds."""
        now, text = time.monotonic(), printable(text)
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text}")
            self._wide = True
        elif now - self._shown >= self.EVERY_S:
            self._shown = now
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def begin(self, text: str) -> None:
        """Show at once what is being done first: work that is silent for long begins with it."""
        self._shown = float("-inf")
        self.show(text)

    def note(self, text: str) -> None:
        """Print a remark that stays."""
        self.say(f"note: {text}")

    def say(self, text: str) -> None:
        """Print a line that stays, however soon after another."""
        self.clear()
        print(printable(text), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the renewed line away, so that another may be printed."""
        if self._wide:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._wide = False
