"""Messages of `serve`: on stderr until the log is open, then as records of the log.

Knows lines of text; knows no server. Path: serve, serving/* -> tell -> stderr or logging
"""

from __future__ import annotations

import logging
import sys

from freehold.cli.serving.logs import is_logging
from freehold.terminal import Ticking

_talk = logging.getLogger("freehold.serve")


def tell(text: str) -> None:
    """Print a message on stderr, through the log once it is open."""
    if not is_logging():
        Ticking.make_way()
        return print(text, file=sys.stderr, flush=True)
    level, _, rest = text.partition(": ")
    known = {"error": logging.ERROR, "warning": logging.WARNING}
    return _talk.log(known.get(level, logging.INFO), "%s", rest if level in known else text)
