"""What a detector is: a shape that the sieve looks for, and the check that decides. Values only.

Path: personal.py, phones.py, credentials.py -> Detector -> sieve.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

DetectKind = Literal["pii", "secrets", "pattern"]


class Hit(NamedTuple):
    """A place in a text that has a shape. `text` is UTF-8."""

    text: bytes
    start: int
    end: int

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
