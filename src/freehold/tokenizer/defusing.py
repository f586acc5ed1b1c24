"""Finds what a user wrote in a rendered chat: a second render with control tokens defused, compared with the first.

Control tokens inside messages and tools are defused, one character of each replaced by a private-use one. In-band marks
in the first render would change what `trim`, `in`, slices and `length` see; the second render is only compared:

  - nothing in the messages resembles a control token (nearly always): no second render at all;
  - both renders agree up to the replaced characters: the second one is the twin;
  - they disagree, because the template looks at control tokens in messages: what both share at either end is
    the template's; in between, every control token that occurs in a message counts as the user's.

Knows texts and control tokens; knows no template.
Path: ChatTemplate.render -> Defuser.defused -> Spelled; twin -> Rendered
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from freehold.tokenizer.core import AddedToken, Cutter

DEFUSED = "\ue0f1"  # a private-use character: not whitespace, not a letter, not a control token


class Defuser:
    """Replaces a character of every control token in a structure of strings.

    A file may name a hundred thousand of them: one regular expression of all would take seconds for a long message,
    and nothing could interrupt it.
    """

    def __init__(self, control_tokens: frozenset[str]) -> None:
        self._tokens = sorted(token for token in control_tokens if token)
        self._cutter = Cutter(AddedToken(0, token, control=True) for token in self._tokens)
        self._longest = max(map(len, self._tokens), default=0)

    def defused(self, value: Any, spelled: Spelled) -> Any:
        """Return a copy of `value` with every string in it defused; note in `spelled` what was met."""
        if isinstance(value, str):
            return self._unfinished(self.without(value, spelled), spelled)
        if isinstance(value, dict):
            return {self.defused(key, spelled): self.defused(item, spelled) for key, item in value.items()}
        return [self.defused(item, spelled) for item in value] if isinstance(value, list) else value

    def without(self, text: str, spelled: Spelled, known: Spelled | None = None) -> str:
        """Return `text` with its control tokens defused, or those among them that are `known`."""
        parts: list[str] = []
        last = 0
        for start, _, token in self._cutter.found(text):
            if known is None or known.covers(token.text):
                spelled.tokens.add(token.text)
                parts += (text[last:start], DEFUSED)
                last = start + 1
        return "".join((*parts, text[last:])) if parts else text

    def _unfinished(self, text: str, spelled: Spelled) -> str:
        """Defuse the beginning of a control token at the end: the next message could complete it."""
        end = len(text.rstrip())
        for size in range(min(self._longest - 1, end), 0, -1):
            beginning = text[end - size : end]
            if self._begins_one(beginning):
                spelled.beginnings.add(beginning)
                return text[: end - size] + DEFUSED + text[end - size + 1 :]
        return text

    def _begins_one(self, beginning: str) -> bool:
        at = bisect_right(self._tokens, beginning)  # longer tokens that start with it come right after it
        return at < len(self._tokens) and self._tokens[at].startswith(beginning)


@dataclass(slots=True)
class Spelled:
    """What messages spell of control tokens: whole ones, and the beginnings of some."""

    tokens: set[str] = field(default_factory=set)
    beginnings: set[str] = field(default_factory=set)

    def covers(self, token: str) -> bool:
        """Tell whether messages may have written `token`."""
        begun = any(token.startswith(beginning) for beginning in self.beginnings)
        return begun or token in self.tokens

    def __bool__(self) -> bool:
        return bool(self.tokens or self.beginnings)


def twin(text: str, second: str, spelled: Spelled, defuser: Defuser) -> str:
    """Return the guarded twin of `text`, given the second render and the tokens that messages spell."""
    if len(second) == len(text) and all(a == b or b == DEFUSED for a, b in zip(text, second, strict=True)):
        return second
    head = _common(text, second)
    tail = _common(text[head:][::-1], second[head:][::-1])
    middle = text[head : len(text) - tail]
    return text[:head] + defuser.without(middle, Spelled(), spelled) + text[len(text) - tail :]


def _common(left: str, right: str) -> int:
    """Count the characters that both strings start with."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
