"""Takes the tool calls out of an answer's text as it streams.

Knows openings and readers; knows no token and no model. A call comes out whole, once it is certain to be one:
what only looked like a call becomes text again, so nothing is lost, and nothing is taken back.
Path: Answer -> ToolParser.push -> Dialect.read -> Call
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from freehold.tokenizer.dialects.contract import Call, Calls, Dialect
from freehold.tokenizer.dialects.source import Reading, TextSource
from freehold.types import Tool


class ToolParser:
    """Splits an answer into text and calls, in order. Blank space between the two belongs to neither."""

    def __init__(self, dialect: Dialect, tools: Sequence[Tool]) -> None:
        self._dialect = dialect
        self._offer = {tool.name: tool for tool in tools}
        self._source = TextSource()
        self._openings = sorted((o.mark for o in dialect.openings), key=len, reverse=True)
        self._at_line = {o.mark for o in dialect.openings if o.at_line}
        self._mark = re.compile("|".join(map(re.escape, self._openings)))
        self._reading: Reading[Calls] | None = None
        self._opening = ""  # that is being read; the source's text begins with it
        self._blank_line = True  # nothing of the present line was given out yet
        self._space, self._called = "", False  # blanks that wait; whether a call was the last thing given out

    def push(self, text: str) -> list[str | Call]:
        """Add text; return what became certain."""
        self._source.text += text
        return self._advance()

    def finish(self) -> list[str | Call]:
        """Return what was buffered, as text or calls."""
        self._source.ended = True
        out = self._advance()
        space, self._space = self._space, ""
        return [*out, space] if space else out

    def _advance(self) -> list[str | Call]:
        out: list[str | Call] = []
        while self._reading is not None or self._open(out):
            assert self._reading is not None
            try:
                next(self._reading)
                break  # it needs more text
            except StopIteration as end:
                self._close(end.value, out)
        return out

    def _open(self, out: list[str | Call]) -> bool:
        """Give out text up to the next opening; tell whether there is one."""
        source = self._source
        while match := self._mark.search(source.text):
            mark = match.group()
            self._say(source.text[: match.start()], out)
            source.text, source.at = source.text[match.start() :], len(mark)
            if mark not in self._at_line or self._blank_line:
                self._opening, self._reading = mark, self._dialect.read(source, mark, self._offer)
                return True
            self._close(None, out, mark)
        end = len(source.text) - self._unfinished()
        self._say(source.text[:end], out)
        source.text, source.at = source.text[end:], 0
        return False

    def _close(self, calls: Calls, out: list[str | Call], mark: str = "") -> None:
        """Give out calls that were read; without any, the opening is text and the search continues after it."""
        source, self._reading = self._source, None
        if not calls:
            mark = mark or self._opening
            source.at = len(mark)
            self._say(mark, out)
        else:
            self._space, self._called, self._blank_line = "", True, True
            out.extend(calls)
        source.text, source.at = source.text[source.at :], 0

    def _unfinished(self) -> int:
        """Count the characters at the end that may become an opening."""
        text = self._source.text
        for size in range(min(len(self._openings[0]) - 1, len(text)), 0, -1):
            if not self._source.ended and any(mark.startswith(text[-size:]) for mark in self._openings):
                return size
        return 0

    def _say(self, text: str, out: list[str | Call]) -> None:
        """Give out text; blanks at its end wait, because a call would swallow them."""
        line = text.rpartition("\n")
        self._blank_line = (self._blank_line or bool(line[1])) and not line[2].strip()
        text = self._space + text
        text = text.lstrip() if self._called else text
        visible = text.rstrip()
        self._space = text[len(visible) :]
        if visible:
            self._called = False
            out.append(visible)
