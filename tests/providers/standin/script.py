"""What the stand-in says to one request: an answer in no wire's words, or a fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["stop", "length", "tool_calls", "content_filter", "refusal"]


@dataclass(frozen=True)
class Tokens:
    """What is billed. `prompt` is all of the prompt, with what was cached and written; `output` all that was made."""

    prompt: int
    output: int
    cached: int = 0
    written: int = 0
    written_hour: int = 0
    thought: int = 0


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: str
    signature: str = ""


@dataclass(frozen=True)
class LoggedToken:
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer; each of `pieces` and `thinking` is an event of its own in a stream."""

    pieces: tuple[str, ...] = ("Hello", " there", ".")
    thinking: tuple[str, ...] = ()
    signature: str = ""
    redacted: str = ""
    calls: tuple[Call, ...] = ()
    refusal: str = ""
    finish: Finish = "stop"
    stop: str = ""  # the stop sequence that ended it
    tokens: Tokens | None = None  # None: a token for 4 characters of the prompt, one for each event
    logprobs: tuple[LoggedToken, ...] = ()
    sends_usage: bool = True
    event_s: float = 0.0  # before each event
    answers: int = 1  # choices

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def thoughts(self) -> str:
        return "".join(self.thinking)


FaultKind = Literal[
    "status",  # answers `status` with `message`
    "hang",  # reads the request and says nothing
    "reset",  # resets the connection before an answer
    "cut",  # closes the connection after `at` bytes of the body
    "cut_reset",  # resets it there
    "bad_utf8",  # a byte that breaks UTF-8 after `at` bytes of the body
    "html",  # 200 with a page
    "redirect",  # 307 to `to`
    "wrong_length",  # states 10 bytes more than it sends, and closes
    "endless",  # a stream ends cleanly without its end event, and before its reason where that is another event
    "short",  # a stream ends cleanly without its last `at` bytes
    "stall",  # sends `at` bytes of the body, then nothing
    "error_event",  # a stream's error after `at` events
    "garbage",  # 200 with bytes that are not HTTP
    "stray",  # a whole answer, and a moment later the same once more, which no request asked for
]


@dataclass(frozen=True)
class Fault:
    kind: FaultKind
    status: int = 500
    message: str = "the server had an error"
    code: str = ""
    at: int = 0
    retry_after: str = ""
    to: str = "/elsewhere"
    answer: Answer = field(default_factory=Answer)  # what is broken off
