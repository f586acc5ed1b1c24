"""What a detector is: a shape that the sieve looks for, and the check that decides.

Checks are counted: a text may hold a candidate every seven bytes, and each costs some 10 us, one of a telephone
number up to 1 ms. An `Effort` bounds their sum.
Path: personal.py, phones.py, credentials.py -> Detector -> sieve.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

DetectKind = Literal["pii", "secrets", "pattern"]


class TooManyHits(Exception):
    """A text has more candidates than its Effort allows to check."""


class Effort:
    """What the checks of one request may cost: 1 for a candidate (8 to 11 us), PARSE for a number that is parsed."""

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most

    def spend(self, units: int) -> None:
        """Count units. Raises TooManyHits beyond the limit."""
        self.left -= units
        if self.left < 0:
            raise TooManyHits


PARSE = 4  # units of a number that phonenumbers parses for one country: 25 to 45 us


class Hit(NamedTuple):
    """A place in a text that has a shape. `text` is UTF-8; `effort`: of the whole request."""

    text: bytes
    start: int
    end: int
    effort: Effort

    @property
    def value(self) -> bytes:
        """The candidate itself."""
        return self.text[self.start : self.end]

    @property
    def before(self) -> bytes:
        """The byte in front of it, or nothing."""
        return self.text[max(self.start - 1, 0) : self.start]

    @property
    def after(self) -> bytes:
        """The byte that follows, or nothing."""
        return self.text[self.end : self.end + 1]


def always(hit: Hit) -> bool:
    """Accept every candidate: the shape alone decides."""
    return True


@dataclass(frozen=True, slots=True)
class Detector:
    """`pattern`: an expression for RE2 over bytes, without groups that capture."""

    kind: DetectKind
    name: str
    pattern: bytes
    check: Callable[[Hit], bool] = always


class Finding(NamedTuple):
    """What was found, never its value."""

    kind: DetectKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"
