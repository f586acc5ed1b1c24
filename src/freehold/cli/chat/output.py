"""Where answers and notes are written: answers on stdout, through the renderer that fits it, notes on stderr.

Knows the terminal and the options for it; knows no model.
Path: run, chat.Chat -> renderer, write -> stdout; tell -> stderr
"""

from __future__ import annotations

import os
import shutil
import sys

from freehold.cli.chat.markdown import DataRenderer, PlainRenderer, Renderer, StreamRenderer
from freehold.cli.chat.request import RunRequest
from freehold.terminal import Ticking
from freehold.types import Message


def show(message: Message, request: RunRequest) -> None:
    """Show a message of a session that is continued, as it was shown at first."""
    if message.role == "user":
        tell(f">>> {message.content}")
        return
    shown = renderer(request)
    shown.feed(message.content)
    shown.finish()


def renderer(request: RunRequest, *, data: bool = False) -> Renderer:
    """Return what writes the answer; `data`: it is JSON or of another format, and not Markdown."""
    if request.as_json:
        return DataRenderer(lambda text: None)
    if data or not sys.stdout.isatty():
        return DataRenderer(write)
    colour = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
    if request.plain or not colour:
        return PlainRenderer(write, colour=colour)
    return StreamRenderer(write, shutil.get_terminal_size().columns)


def write(text: str) -> None:
    """Write a part of the answer on stdout."""
    sys.stdout.write(text)
    sys.stdout.flush()


def tell(text: str) -> None:
    """Print a line on stderr."""
    Ticking.make_way()
    print(text, file=sys.stderr, flush=True)
