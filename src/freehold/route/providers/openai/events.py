"""Reads chat completions: the events of a stream, whole answers, usage, log-probabilities.

Takes what OpenAI documents and what others add to it: reasoning as `reasoning_content`, `reasoning` or parts of the
content, cached tokens under several names. An answer that is whole in a way of its own (no [DONE], a reason of another
name or none, counts of null) is taken, and `oddities` says what was odd. Knows no request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from math import inf
from secrets import token_hex
from typing import Annotated, Any

import msgspec

from freehold.base.types import Chunk, FinishReason, TokenLogprob, ToolPiece, Usage
from freehold.route.providers.contract import EventReader, Piece, UpstreamFault, WholeAnswer
from freehold.route.providers.faults import check_counts, decoded, invalid, plain

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "model_length": "length",  # Mistral's: the context is full
    **dict.fromkeys(("eos", "eos_token", "end_turn", "stop_sequence"), "stop"),  # TGI's, and other wires'
    "max_tokens": "length",
    "tool_use": "tool_calls",
}
_FAILED = {"error", "abort", "insufficient_system_resource"}  # Mistral's, vLLM's, DeepSeek's
TokenNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
NO_ID = -1  # a token's number in a vocabulary that the provider does not name


class _Part(msgspec.Struct, gc=False):
    type: str = "text"
    text: str | None = None
    thinking: list[_Part] | str | None = None


class _CalledFunction(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallDelta(msgspec.Struct, gc=False):
    """A piece of a tool call, or a whole one."""

    index: int | None = None
    id: str | None = None
    function: _CalledFunction | None = None


class Delta(msgspec.Struct, gc=False):
    """What an event adds to one answer, or the message of a whole one."""

    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallDelta] | None = None


class _Top(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Logged(_Top, gc=False):
    top_logprobs: list[_Top] | None = None


class _ChoiceLogprobs(msgspec.Struct, gc=False):
    content: list[_Logged] | None = None
    tokens: list[str] | None = None  # of a text completion,
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class EventChoice(msgspec.Struct, gc=False):
    """One answer's part of an event."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # vLLM's: the stop string
    logprobs: _ChoiceLogprobs | None = None
    token_ids: list[TokenNumber] | None = None  # of the piece, where an engine was asked for them,
    prompt_token_ids: list[TokenNumber] | None = None  # and of a text completion's prompt


# A count as some servers write it: 2.0.
Count = int | float


class _CountDetails(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class UsageCounts(msgspec.Struct, gc=False):
    """Token counts as they are sent."""

    prompt_tokens: Count | None = 0
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: _CountDetails | None = None
    completion_tokens_details: _CountDetails | None = None
    prompt_cache_hit_tokens: Count | None = None  # DeepSeek's
    num_cached_tokens: Count | None = None  # Mistral's

    def usage(self) -> Usage | None:
        """Return the counts as ours, where a prompt's tokens hold the cached and a completion's the thoughts.

        The total tells who counts otherwise: what it has beyond the sum is either the cached tokens, left out of the
        prompt's, or thoughts, left out of the completion's and billed as output (Gemini behind OpenAI's wire).
        None where the prompt's count is null.
        """
        if self.prompt_tokens is None:
            return None
        prompt, completion = _whole(self.prompt_tokens), _whole(self.completion_tokens)
        details = self.prompt_tokens_details
        hits = (self.prompt_cache_hit_tokens, details and details.cached_tokens, self.num_cached_tokens)
        cached = next((_whole(n) for n in hits if n), 0)
        of_made = self.completion_tokens_details
        thought = _whole(of_made.reasoning_tokens if of_made else None)
        written = _whole(details and details.cache_write_tokens)
        total = _whole(self.total_tokens)
        check_counts(prompt, completion, cached, thought, written, max(total, 0))
        beyond = total - prompt - completion
        if cached > prompt or (cached and beyond == cached):
            prompt += cached
        elif beyond > 0 and self.completion_tokens is not None:
            completion += beyond
            thought = thought or beyond
        return Usage(
            prompt,
            completion,
            cached_tokens=cached,
            written_tokens=min(written, prompt - cached),
            thought_tokens=min(thought, completion),
        )


def _whole(count: Count | None) -> int:
    """Return a count as an integer. Raises UpstreamFault for one with a part of a token."""
    if count is None:
        return 0
    if count != count or count in (inf, -inf) or int(count) != count:
        raise invalid("a token count that is not a whole number")
    return int(count)


class WireError(msgspec.Struct, gc=False):
    """An error's object."""

    message: str | dict[str, Any] | list[Any] | None = None
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class Event(msgspec.Struct, gc=False):
    """An event of a stream, or a whole answer."""

    choices: list[EventChoice] | None = None
    id: str | None = None
    usage: UsageCounts | None = None
    error: WireError | str | None = None
    prompt_token_ids: list[TokenNumber] | None = None  # of a chat


_EVENT = msgspec.json.Decoder(Event)


class CompletionReader(EventReader):
    """Reads the events of one stream; an answer's last chunk comes after [DONE].

    `ids`: the engine was asked for token ids; those of a provider's own vocabulary mean nothing here. A chunk may then
    have ids and no text: half of a character, or what may turn out to be a stop string.
    """

    def __init__(self, answers: int = 1, *, ids: bool = False) -> None:
        super().__init__()
        self.prompt_ids: tuple[int, ...] = ()
        self._expected, self._ids = answers, ids
        self._answers: dict[int, _AnswerSoFar] = {}
        self._usage: Usage | None = None
        self._counted = False  # the counts of all answers have come, which are the last that is sent

    def _counts(self) -> Usage | None:
        return self._usage

    def push(self, event: str, data: bytes) -> Sequence[Piece]:
        """Return what one event adds. Raises UpstreamFault."""
        if data == b"[DONE]":
            self.ended = True
            return self._endings()
        try:
            read = _EVENT.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise invalid("an event that cannot be read") from None
        return self.add(read)

    def closed(self) -> Sequence[Piece]:
        """Return the last chunks where the stream ended without [DONE], after every answer's reason or the counts."""
        if not self._are_whole():
            return super().closed()
        self.ended = True
        self.oddities.append("its stream has no [DONE]")
        return self._endings()

    def add(self, read: Event) -> Sequence[Piece]:
        """Return what a decoded event adds."""
        if read.error is not None:
            raise _told(read.error)
        if read.usage is not None:
            self._usage = read.usage.usage()
            self._counted = self._counted or (self._usage is not None and not read.choices)
        if not self.answer_id and read.id:
            self.answer_id = read.id
        if read.prompt_token_ids and self._ids:
            self.prompt_ids = tuple(read.prompt_token_ids)
        pieces: list[Piece] = []
        for choice in read.choices or ():
            if choice.prompt_token_ids and self._ids:
                self.prompt_ids = tuple(choice.prompt_token_ids)
            answer = self._answers.get(choice.index)
            if answer is None:
                if not 0 <= choice.index < self._expected:
                    raise invalid(f"answer {choice.index} of {self._expected}")
                answer = self._answers[choice.index] = _AnswerSoFar()
            chunk = answer.add(choice)
            if choice.finish_reason and choice.finish_reason not in _REASONS:
                self.oddities.append(
                    f"the unknown finish_reason {plain(choice.finish_reason)[:40]!r} is taken as stop"
                )
            if choice.token_ids and self._ids:
                chunk = replace(chunk or Chunk(), token_ids=tuple(choice.token_ids))
            if chunk is not None:
                pieces.append((choice.index, chunk))
        return pieces

    def whole(self, body: bytes) -> WholeAnswer:
        """Read an answer that came as one."""
        read = decoded(_EVENT, body, "an answer that cannot be read")
        pieces = [*self.add(read)]
        self._counted = True
        pieces += self._endings()
        joined = [(i, _joined([c for _, c in of])) for i, of in groupby(sorted(pieces, key=_index), _index)]
        # The last one's usage counts the completions of all.
        return WholeAnswer(self.answer_id, tuple(joined), tuple(self.oddities))

    def cut(self) -> FinishReason | None:
        """Return the first answer's reason, where it came before the stream was cut: its text is whole."""
        answer = self._answers.get(0)
        return answer.reason if answer is not None else None

    def _endings(self) -> list[Piece]:
        """Return the last chunk of each answer; of several, the last has the usage of all."""
        if not self._are_whole():
            raise UpstreamFault("broken", "an answer ended without its reason", status=200)
        for answer in self._answers.values():
            if answer.reason is None:
                answer.end("stop", None)
                self.oddities.append("its answers have no finish_reason")
        usage = self._usage
        parts = usage and replace(usage, completion_tokens=0, thought_tokens=0)
        last = self._expected - 1
        return [(i, a.ending(usage if i == last else parts)) for i, a in sorted(self._answers.items())]

    def _are_whole(self) -> bool:
        """Return whether each answer has its reason, or content and the counts that come after all content."""
        answers = self._answers.values()
        return len(answers) == self._expected and all(
            a.reason is not None or (self._counted and a.has_content) for a in answers
        )


class _AnswerSoFar:
    """One of a stream's answers."""

    def __init__(self) -> None:
        self.reason: FinishReason | None = None
        self.has_content = False
        self._stop = ""
        self._refused = False
        self._calls: list[str] = []  # ids, by our numbers
        self._numbers: dict[int, int] = {}  # theirs -> ours

    def add(self, choice: EventChoice) -> Chunk | None:
        """Return what a choice adds; None where it adds nothing yet."""
        delta = choice.delta or choice.message
        content = delta.content if delta is not None else choice.text
        chunk: Chunk | None = None
        if type(content) is str and content and choice.logprobs is None and not _more(delta):
            chunk = Chunk(content)  # nearly every event
        elif content or choice.logprobs is not None or _more(delta):
            chunk = self._rich(delta, content, choice.logprobs)
        if choice.finish_reason:
            self.end(choice.finish_reason, choice.stop_reason)
        self.has_content = self.has_content or chunk is not None
        return chunk

    def _rich(self, delta: Delta | None, content: Any, logprobs: _ChoiceLogprobs | None) -> Chunk | None:
        delta = delta or Delta()
        text, thinking = (content or "", "") if not isinstance(content, list) else _split(content)
        thinking += delta.reasoning_content or delta.reasoning or ""
        self._refused = self._refused or bool(delta.refusal)
        chunk = Chunk(
            text,
            thinking,
            logprobs=tuple(_logged(logprobs)) if logprobs is not None else (),
            tool_calls=tuple(self._pieces(delta.tool_calls or ())),
            refusal=delta.refusal or "",
        )
        return None if chunk == Chunk() else chunk

    def _pieces(self, calls: Sequence[CallDelta]) -> Iterator[ToolPiece]:
        for place, call in enumerate(calls):
            function = call.function or _CalledFunction()
            arguments = function.arguments
            if isinstance(arguments, dict):
                arguments = msgspec.json.encode(arguments).decode()
            theirs = place if call.index is None else call.index
            number = self._numbers.get(theirs)
            if number is None or (call.id and function.name and call.id != self._calls[number]):
                # Some give every call of an answer the same number.
                if not function.name:
                    raise invalid("a tool call without a name")
                number = self._numbers[theirs] = len(self._calls)
                self._calls.append(call.id or f"call_{token_hex(12)}")
                yield ToolPiece(number, self._calls[number], function.name, arguments or "")
            elif arguments:
                yield ToolPiece(number, arguments=arguments)

    def end(self, finish_reason: str, stop: str | int | None) -> None:
        if finish_reason in _FAILED:
            raise UpstreamFault("server", f"the provider ended its answer by {finish_reason}", status=200)
        reason = _REASONS.get(finish_reason, "stop")
        if reason == "stop":
            reason = "refusal" if self._refused else "tool_calls" if self._calls else reason
        self.reason = reason
        self._stop = stop if isinstance(stop, str) and reason == "stop" else ""

    def ending(self, usage: Usage | None) -> Chunk:
        return Chunk(finish_reason=self.reason, usage=usage, stop=self._stop)


def _more(delta: Delta | None) -> bool:
    """Whether a delta has more than text."""
    return delta is not None and bool(
        delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls
    )


def _split(parts: Sequence[_Part]) -> tuple[str, str]:
    text = thinking = ""
    for part in parts:
        if part.type == "thinking":
            inner = part.thinking
            thinking += inner if isinstance(inner, str) else "".join(p.text or "" for p in inner or ())
        else:
            text += part.text or ""
    return text, thinking


def _logged(logprobs: _ChoiceLogprobs) -> Iterator[TokenLogprob]:
    for one in logprobs.content or ():
        top = one.top_logprobs or ()
        yield TokenLogprob(
            NO_ID,
            one.logprob,
            tuple((NO_ID, t.logprob) for t in top),
            _bytes(one),
            tuple(_bytes(t) for t in top),
        )
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens or ())
    for token, logprob, top in zip(logprobs.tokens or (), logprobs.token_logprobs or (), tops, strict=False):
        if logprob is not None:
            best = sorted(((n, t) for t, n in (top or {}).items() if n is not None), reverse=True)
            yield TokenLogprob(
                NO_ID,
                logprob,
                tuple((NO_ID, n) for n, _ in best),
                token.encode(),
                tuple(t.encode() for _, t in best),
            )


def _bytes(token: _Top) -> bytes:
    try:
        return bytes(token.bytes) if token.bytes is not None else token.token.encode()
    except ValueError:
        raise invalid("a token whose bytes are none") from None


def _index(piece: Piece) -> int:
    return piece[0]


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    content, end = chunks
    return replace(content, finish_reason=end.finish_reason, usage=end.usage, stop=end.stop)


def _told(error: WireError | str) -> UpstreamFault:
    message = error if isinstance(error, str) else error.message if isinstance(error.message, str) else ""
    kind = "" if isinstance(error, str) else str(error.type or error.code or "")
    cause = "rate" if "rate" in kind else "server"
    return UpstreamFault(cause, f"the provider's stream failed: {plain(message)}", status=200)
