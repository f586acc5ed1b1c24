"""Calls that a model wrote so that they cannot be read: known from the text of an answer, never shown as the answer.

The model is asked for such a call again, MISREAD times at most, and then answers without tools. Knows texts and names
of tools; knows no model, no terminal and no chat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from freehold.base.types import Message

MISREAD = 2  # calls of an answer that may be unreadable before it gets no tools
MOST_CHARS = 1 << 16  # of a text that may be a call; a longer one is text
# What begins a call in the dialects of families, and at an answer's start also JSON, fenced or not.
_MARKS = ("<tool_call", "<function", "[TOOL_CALLS]", "<|python_tag|>", "<|tool", "functools[")
_STARTS = ("{", "[{", "```")
_LANGUAGES, _LANGUAGE_CHARS = ("", "json", "tool_call"), 20  # of a fence around a call
_KEY = re.compile(r'"(name|function|tool)"\s*:')
_KEY_WITHIN = 200  # characters of JSON in which a call names its tool
_AGAIN = (
    "That was not a readable tool call. Write one complete call in the form that you were given, with valid JSON, "
    "or answer in words."
)


class CallText:
    """The text of an answer as it comes: text that may be a call is buffered until it is known not to be one."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: of the tools that may be called; without any, every text is shown at once."""
        named = "|".join(map(re.escape, names))
        self._call = re.compile(rf'"(name|function|tool)"\s*:\s*"({named})"') if named else None
        self._passed = False  # whether text of the answer was shown
        self._held = ""
        self.is_call = False  # once the answer has ended: the buffered text was meant as a call

    def shown(self, text: str, *, ended: bool) -> str:
        """Return what may be shown now. `ended`: nothing comes after `text`."""
        if self._call is None:
            return text
        self._held += text
        at = self._begins() if len(self._held) <= MOST_CHARS else len(self._held)
        if ended:
            held, self.is_call = self._held[at:], self._meant(self._held[at:])
            at = at if self.is_call else at + len(held)
        shown, self._held = self._held[:at], self._held[at:]
        self._passed = self._passed or bool(shown.strip())
        return shown

    def rest(self) -> str:
        """Return what is buffered of an answer that was stopped; "" once it has ended."""
        left, self._held = "" if self.is_call else self._held, ""
        return left

    def _begins(self) -> int:
        """Return where a call may begin in the buffered text; its length where none may."""
        text = self._held
        if not self._passed:
            start = text.lstrip()
            if any(s.startswith(start) for s in _STARTS) or (start.startswith(_STARTS) and _may_call(start)):
                return 0
        places = [i for mark in _MARKS if (i := text.find(mark)) >= 0]
        ends = (n for mark in _MARKS for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n]))
        return min([*places, len(text) - max(ends, default=0)])

    def _meant(self, text: str) -> bool:
        assert self._call is not None
        return any(mark in text for mark in _MARKS) or self._call.search(text) is not None


def _may_call(text: str) -> bool:
    """Return whether a text that begins with a brace or a fence may become a call; code and other JSON do not wait."""
    if text.startswith("```"):
        language, newline, text = text[3:].partition("\n")
        if not newline:
            return len(language) <= _LANGUAGE_CHARS
        if language.strip() not in _LANGUAGES or text.lstrip()[:1] not in ("", "{", "["):
            return False
    return len(text) < _KEY_WITHIN or _KEY.search(text[:_KEY_WITHIN]) is not None


def asked_again(content: str) -> tuple[Message, Message]:
    """Return the turns by which a model is asked for a readable call; `content`: what it wrote. No chat keeps them."""
    return Message("assistant", content), Message("user", _AGAIN)
