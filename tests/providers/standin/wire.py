"""What a wire of the stand-in gives: how a request is read, and the bytes of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tests.providers.standin.script import Answer, Tokens


@dataclass(frozen=True)
class Asked:
    """A request, read."""

    kind: str  # chat, embed, count
    model: str
    stream: bool
    text: str  # all of its texts, joined
    last: str  # of the last user turn
    body: Any
    texts: tuple[str, ...] = ()  # to be embedded
    usage_in_stream: bool = True


@dataclass(frozen=True)
class Frame:
    """One event of a stream; `made` output tokens were made when it has been sent."""

    data: bytes
    made: int


class StandInWire(Protocol):
    """One provider's wire. A module-level instance is registered in server.py's WIRES."""

    def matches(self, path: str) -> bool:
        """Whether a request to `path` (without its query) is of this wire."""
        ...

    def check(self, path: str, headers: dict[str, str], body: bytes) -> str:
        """Return what is wrong with a request's headers or fields, as the provider would refuse it; "" for nothing."""
        ...

    def read(self, path: str, body: bytes) -> Asked: ...
    def whole(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> bytes: ...
    def events(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> list[Frame]:
        """All events of a stream, the end event last, each with its blank line."""
        ...

    def error(self, status: int, message: str, code: str) -> bytes:
        """The JSON of an error."""
        ...

    def error_event(self, message: str) -> bytes: ...
    def vectors(self, asked: Asked, tokens: Tokens) -> bytes: ...
    def count(self, asked: Asked, tokens: Tokens) -> bytes: ...
