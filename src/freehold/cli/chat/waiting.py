"""What a person sees while no text comes: how much of the prompt is read, or how many tokens of a tool call are made.

One line of stderr, renewed in place. Knows counts, a clock and a terminal; knows no model. Without a terminal it shows
nothing.
Path: run or Conversation -> Waiting(...) as on_prefill of ChatModel.stream -> stderr
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from itertools import cycle
from typing import Self

from freehold.types import Chunk

FIRST_S = 0.5  # of silence before anything is shown: a short prompt shows nothing
EVERY_S = 0.25
WHEEL = "-\\|/"  # turns while a count stands still: a step of prefill may take a second


class Waiting:
    """Use in `with`; call it with the tokens read and all of them as they are computed, and `chunk` for each chunk.

    Text takes the line away until the next silence: the result of a tool is a prompt of its own. `silent`: the text
    is not shown either.
    """

    def __init__(self, *, silent: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._silent = clock, silent
        self._lock = threading.Lock()
        self._live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._ended = threading.Event()
        self._shown = self._quiet = False
        self._begin()

    def _begin(self) -> None:
        self._since = self._clock()
        self._hidden_tokens = 0  # tokens of which nothing is shown
        self._read: tuple[int, int] | None = None
        self._first: tuple[float, int] | None = (
            None  # when the first count came, and how much was there already
        )

    def __enter__(self) -> Self:
        if self._live:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self.over()

    def __call__(self, done: int, total: int) -> None:
        """Take the number of prompt tokens that are read, and of all."""
        with self._lock:
            if self._quiet:
                self._quiet = False
                self._begin()
            self._first = self._first or (self._clock(), done)
            self._read = done, total

    def chunk(self, chunk: Chunk) -> None:
        """Take the line away for a text, and at the end; count the tokens of anything else."""
        if chunk.usage is not None or ((chunk.text or chunk.thinking) and not self._silent):
            return self.over()
        with self._lock:
            if self._quiet:
                self._quiet = False
                self._begin()
            self._hidden_tokens += len(chunk.token_ids)
        return None

    def over(self) -> None:
        """Take the line away: something else is shown now."""
        with self._lock:
            if self._shown:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._shown, self._quiet = False, True

    def line(self) -> str:
        """Return what is shown now: tokens, and the seconds left by the speed so far."""
        now = self._clock()
        if self._hidden_tokens:
            return f"answering: {self._hidden_tokens:,} tokens, {now - self._since:.1f} s"
        if self._read is None or self._first is None:
            return f"waiting for the model, {now - self._since:.1f} s"
        done, total = self._read
        begun, cached = self._first
        told = f"reading the prompt: {done:,} of {total:,} tokens"
        if done <= cached or now <= begun:
            return f"{told}, {now - self._since:.1f} s"
        return f"{told}, {(total - done) * (now - begun) / (done - cached):.0f} s left"

    def _tick(self) -> None:
        for turn in cycle(WHEEL):
            if self._ended.wait(EVERY_S):
                return
            with self._lock:
                if not self._quiet and self._clock() - self._since >= FIRST_S and not self._ended.is_set():
                    sys.stderr.write(f"\r\x1b[K{turn} {self.line()}")
                    sys.stderr.flush()
                    self._shown = True
