"""Shows the progress of a pull: as store/progress.py does, or as JSON lines; after Ctrl-C, what was kept.

Knows events; knows no source. Path: cli/pull, cli/run -> reporter(...) -> Store.pull(on_event).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

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
