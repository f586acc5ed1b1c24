"""Cuts an answer's text as it streams: at stop strings, and between reasoning and the answer proper.

Knows text in pieces; knows no token, no model, no request.
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.base.errors import UsageError


def held_suffix(text: str, needles: Sequence[str]) -> int:
    """Return the length of the longest suffix of `text` that begins a needle (never a whole one)."""
    longest = max((len(n) for n in needles), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(n.startswith(text[-size:]) for n in needles if len(n) > size):
            return size
    return 0


class StopStrings:
    """Lets text through up to the first stop string; `hit` tells that one came, and `found` which.

    Text that could be the beginning of a stop string is buffered, so no part of one is ever shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not isinstance(s, str) or not s for s in stops):
            raise UsageError("a stop string is empty or no text", "leave it out")
        self._stops, self._held = tuple(stops), ""
        self.hit, self.found = False, ""

    def push(self, text: str) -> str:
        """Add text; return what can no longer be part of a stop string."""
        if self.hit:
            return ""
        text = self._held + text
        hits = [(at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if hits:
            first, self.found = min(hits)
            self.hit, self._held = True, ""
            return text[:first]
        cut = len(text) - held_suffix(text, self._stops)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Return what was buffered: the answer ended before it became a stop string."""
        held, self._held = self._held, ""
        return held


class ThinkingSplitter:
    """Splits an answer into reasoning and text at the family's tags, which never show.

    Reasoning opens at the very beginning of an answer only (or the prompt opened it: `inside`), so that an
    answer about the tags keeps them. Blank space around a tag belongs to it. `tags` None: all is text.
    """

    def __init__(self, tags: tuple[str, str] | None, *, inside: bool = False) -> None:
        self._open, self._close = tags or ("", "")
        self._step = "text" if tags is None else "opened" if inside else "start"
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """Add text; return the (reasoning, text) that became certain."""
        if self._step == "text":
            return "", text
        self._held += text
        thinking = ""
        if self._step == "start":
            self._start()
        if self._step == "opened" and self._held.lstrip():
            self._held, self._step = self._held.lstrip(), "thinking"
        if self._step == "thinking":
            thinking = self._reason()
        return thinking, self._release()

    def finish(self) -> tuple[str, str]:
        """Return the (reasoning, text) that was buffered."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._step in ("opened", "thinking") else ("", held)

    def _start(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._open):
            self._held, self._step = begun[len(self._open) :], "opened"
        elif not self._open.startswith(begun):
            self._step = "text"

    def _reason(self) -> str:
        thinking, tag, rest = self._held.partition(self._close)
        if tag:
            self._held, self._step = rest, "closed"
            return thinking.rstrip()
        cut = len(thinking) - held_suffix(thinking, [self._close])
        cut = len(thinking[:cut].rstrip())
        self._held = thinking[cut:]
        return thinking[:cut]

    def _release(self) -> str:
        if self._step == "closed" and self._held.lstrip():
            self._held, self._step = self._held.lstrip(), "text"
        if self._step != "text":
            return ""
        text, self._held = self._held, ""
        return text
