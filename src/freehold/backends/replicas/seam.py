"""Where one engine's part of an answer ends and the next one's begins, so that the client sees one text.

An engine sends tokens before all of their text: half of a character waits for its other half, and text that may begin
a stop string waits until it does not. So the ids that were sent are cut back to where the client has all of their text
(`kept`), the next engine computes the few tokens after them again, and what the client has of these is left out
(`Rejoined`). Cutting back costs nothing in exactness: a greedy engine makes the same tokens again. Where ids cannot be
given, the whole answer is computed again, and all that the client has is left out.
Knows chunks; knows no engine and no replica. Path: answer.py -> SentLog, kept, Rejoined.chunk
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from freehold.errors import UpstreamFailed
from freehold.serving import Job
from freehold.types import Chunk, ToolPiece

CONTEXT_IDS = 8  # of the prompt, decoded before the answer: a text's first token is written otherwise
Detokenize = Callable[[list[int]], Awaitable[str]]


class Deviated(UpstreamFailed):
    """The next engine computed another text than the client has: the answer cannot be continued."""


class SentLog:
    """What a client has of one answer."""

    __slots__ = ("_parts", "_thoughts", "calls", "complete", "ids", "prompt_ids")

    def __init__(self) -> None:
        self.prompt_ids: tuple[int, ...] = ()
        self.ids: list[int] = []
        self.complete = True  # the text of all ids was sent, as far as one chunk can tell
        self.calls: list[str] = []  # arguments of each call of a tool
        self._parts: list[str] = []
        self._thoughts: list[str] = []

    def add(self, chunk: Chunk) -> None:
        """Note a chunk that is sent."""
        if chunk.text:
            self._parts.append(chunk.text)
        if chunk.thinking:
            self._thoughts.append(chunk.thinking)
        if chunk.token_ids:
            self.ids += chunk.token_ids
            # One token with text: it is whole. Of several, the last may be half of a character.
            self.complete = len(chunk.token_ids) == 1 and bool(chunk.text or chunk.thinking)
        for piece in chunk.tool_calls:
            if piece.index == len(self.calls):
                self.calls.append("")
            self.calls[piece.index] += piece.arguments

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def thinking(self) -> str:
        return "".join(self._thoughts)

    @property
    def empty(self) -> bool:
        """Whether the client has nothing yet."""
        return not (self._parts or self._thoughts or self.calls or self.ids)


def takes_prefix(job: Job, sent: SentLog) -> bool:
    """Whether an answer can be continued from its ids: nothing about it depends on where it began.

    A grammar and a parser of calls begin at the answer's start; so do penalties on what it has said. A thought that is
    not over is taken out of the text by the engine's parser, which the rest of it would not pass again.
    """
    sampling = job.sampling
    counted = sampling.get("presence_penalty") or sampling.get("frequency_penalty")
    thinks = bool(sent.thinking) and not sent.text
    constrained = job.tools or job.format is not None or job.suffix is not None or job.template
    return bool(sent.ids and sent.prompt_ids) and not (counted or thinks or constrained)


async def kept(job: Job, sent: SentLog, detokenize: Detokenize | None) -> tuple[int, int] | None:
    """Return how many of the ids the next engine is given, and how many characters it will send again.

    None where that is not known: the answer is then computed again. So it is where tokens would be drawn again: vLLM's
    draws are of the request and begin anew with it, so a seed gives other tokens than those that the client has.
    """
    if sent.complete and not job.stop:
        return len(sent.ids), 0
    draws = job.sampling.get("temperature") != 0
    if detokenize is None or sent.thinking or draws:
        return None
    before = list(sent.prompt_ids[-CONTEXT_IDS:])
    lead = await detokenize(before)
    text, n, back = sent.text, len(sent.ids), 0
    while True:
        ids = sent.ids[: max(n - back, 0)]
        text_of_ids = await detokenize(before + ids)
        if text_of_ids.startswith(lead) and text.startswith(text_of_ids[len(lead) :]):
            return len(ids), len(text) - (len(text_of_ids) - len(lead))
        if not ids:
            return None
        back = 2 * back or 1


def job_from_ids(job: Job, sent: SentLog, keep: int) -> Job:
    """Return the job that continues an answer after `keep` of its ids."""
    return replace(
        job,
        messages=None,
        prompt=(*sent.prompt_ids, *sent.ids[:keep]),
        max_tokens=None if job.max_tokens is None else job.max_tokens - keep,
        turn="new",
        think=None,
        think_tokens=None,
        effort=None,
        overflow="error",
    )


class Rejoined:
    """Leaves out of an engine's chunks what the client has already, and checks that it is the same.

    `ids`, `text`, `thinking`, `calls`: what the engine will send again.
    """

    def __init__(self, ids: int, text: str, thinking: str = "", calls: tuple[str, ...] = ()) -> None:
        self._ids, self._text, self._thinking = ids, text, thinking
        self._calls = list(calls)
        self._known = len(calls)  # calls whose id and name the client has

    @classmethod
    def from_ids(cls, sent: SentLog, keep: int, chars: int) -> Rejoined:
        """Return one for an engine that continues after `keep` ids and sends `chars` characters again."""
        return cls(len(sent.ids) - keep, sent.text[len(sent.text) - chars :])

    @classmethod
    def from_start(cls, sent: SentLog) -> Rejoined:
        """Return one for an engine that computes the whole answer again."""
        return cls(len(sent.ids), sent.text, sent.thinking, tuple(sent.calls))

    @property
    def over(self) -> bool:
        """Whether all that the client has was sent again."""
        return not (self._ids or self._text or self._thinking or any(self._calls))

    def chunk(self, chunk: Chunk) -> Chunk | None:
        """Return what is new of a chunk; None where nothing is. Raises Deviated."""
        again = min(self._ids, len(chunk.token_ids))
        self._ids -= again
        self._text, text = _left_out(self._text, chunk.text)
        self._thinking, thinking = _left_out(self._thinking, chunk.thinking)
        calls = tuple(p for p in map(self._piece, chunk.tool_calls) if p is not None)
        new = replace(
            chunk,
            text=text,
            thinking=thinking,
            tool_calls=calls,
            token_ids=chunk.token_ids[again:],
            logprobs=chunk.logprobs[again:] if chunk.token_ids else chunk.logprobs,
        )
        if chunk.finish_reason is not None and (self._text or self._thinking or any(self._calls)):
            raise _deviated()
        return None if new == Chunk() else new

    def _piece(self, piece: ToolPiece) -> ToolPiece | None:
        if piece.index >= self._known:
            return piece
        self._calls[piece.index], arguments = _left_out(self._calls[piece.index], piece.arguments)
        return ToolPiece(piece.index, arguments=arguments) if arguments else None


def _left_out(has: str, comes: str) -> tuple[str, str]:
    """Return what the client has beyond `comes`, and what `comes` has beyond it. Raises Deviated."""
    if not has:
        return "", comes
    if comes.startswith(has):
        return "", comes[len(has) :]
    if has.startswith(comes):
        return has[len(comes) :], ""
    raise _deviated()


def _deviated() -> Deviated:
    return Deviated(
        "the engine that answered died, and the one that was asked in its place made another text",
        "ask again; greedy answers are equal only as far as an engine is deterministic",
    )
