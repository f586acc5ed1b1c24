"""From an answer's tokens to its thinking, text and tool calls.

Knows tokens, tags, a dialect and stop strings; knows no engine and no chunk. Everything follows from the tokens, so
an answer that is resumed comes to the same state by pushing those it had.
Path: Answer -> AnswerText.push -> Detokenizer -> ThinkingSplitter -> ToolParser -> StopStrings
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from freehold.local.prompt import Prompt
from freehold.tokenizer import Detokenizer, Tokenizer
from freehold.tokenizer.dialects import Call, HarmonyParser, Thought, ToolParser
from freehold.tokenizer.splitters import StopStrings, ThinkingSplitter
from freehold.types import FinishReason, ToolPiece

Piece = str | Call | Thought


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """What a token added for certain."""

    thinking: str = ""
    text: str = ""
    calls: tuple[ToolPiece, ...] = ()


class AnswerText:
    """Token ids in, pieces of thinking, text and calls out; `over` is the reason for which the answer ended."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Prompt,
        stop: tuple[str, ...],
        *,
        name_call: Callable[[int], str],
        many_calls: bool = True,
    ) -> None:
        """`name_call` gives the id of call number i; `many_calls` False: the answer ends with its first."""
        self._detokenizer = Detokenizer(tokenizer, at_start=prompt.at_start, shown=prompt.shown)
        self._stops = StopStrings(stop)
        dialect = prompt.dialect
        channels = dialect is not None and dialect.channels
        self._splitter = ThinkingSplitter(None if channels else prompt.tags, inside=prompt.inside)
        self._parser: HarmonyParser | ToolParser | None = None
        if dialect is not None:
            self._parser = HarmonyParser() if channels else ToolParser(dialect, prompt.tools)
        self._name_call, self._many = name_call, many_calls
        self.calls = 0
        self.over: FinishReason | None = None

    @property
    def stop(self) -> str:
        """The stop string that ended the answer, or nothing."""
        return self._stops.found

    def push(self, id: int) -> AnswerDelta:
        """Add a token."""
        thinking, text = self._splitter.push(self._detokenizer.push(id))
        return self._delta(thinking, self._parsed(text))

    def finish(self) -> AnswerDelta:
        """Return the text buffered for a stop string or a call; nothing after a stop string."""
        last = self._splitter.push(self._detokenizer.finish())
        rest = self._splitter.finish()
        pieces = self._parsed(last[1] + rest[1])
        if self._parser is not None:
            pieces = [*pieces, *self._parser.finish()]
        delta = self._delta(last[0] + rest[0], pieces)
        return AnswerDelta(delta.thinking, delta.text + self._stops.finish(), delta.calls)

    def _parsed(self, text: str) -> Iterable[Piece]:
        if self._parser is None:
            return (text,)
        return self._parser.push(text) if text else ()

    def _delta(self, thinking: str, pieces: Iterable[Piece]) -> AnswerDelta:
        text, calls = "", []
        for piece in pieces:
            if self.over is not None:
                break
            if isinstance(piece, Thought):
                thinking += piece.text
            elif isinstance(piece, Call):
                calls.append(ToolPiece(self.calls, self._name_call(self.calls), piece.name, piece.arguments))
                self.calls += 1
                self.over = None if self._many else "tool_calls"
            else:
                text += self._stops.push(piece)
                self.over = "stop" if self._stops.hit else None
        return AnswerDelta(thinking, text, tuple(calls))
