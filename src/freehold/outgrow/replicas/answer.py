"""One answer of a deployment, whichever replicas make it: what a client reads never ends without its end.

Before the first token a dead replica's request is asked of another. After it, an answer that is the same each time
(greedy, or with a seed) is continued by another from its ids, or computed again without what the client has; any other
ends with an error. A torn answer is known by its wire: an error event, the finish reason "abort", or no end at all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from freehold.base.errors import DeadlineExceeded, EngineLost, Overloaded, UpstreamFailed
from freehold.base.serving import Begin, Job
from freehold.base.types import Chunk, FinishReason, ToolPiece, Usage
from freehold.outgrow.engines.wire import is_repeatable
from freehold.outgrow.replicas.calls import EngineCalls
from freehold.outgrow.replicas.replica import Replica
from freehold.route.providers.contract import Cause, UpstreamFault
from freehold.route.providers.upstream import UpstreamStream, WholeStream

# Attempts at a cluster, which may ask a dead replica of its own until it notices.
MOST_OF_MANY, MOST_REFUSED = 6, 3
AGAIN_S, MOST_AGAIN_S = 0.25, 4.0  # before the second one; doubled for each further one, up to
MAX_LOST = 3  # engines that one request may lose: one that ends whatever computes it must not end them all
LIMIT_TOKENS = 1 << 30  # of an answer where nothing else limits it
SPARE_CHUNKS = 1000  # beyond two for each token that was asked for: an engine that sends more does not stop
MOST_HELD = 1024  # ids whose text has not come; stop strings are shorter
LIMIT_S = 86_400.0  # of a request without a limit of its own
CORPSE_S = 5.0  # between the death of vLLM's core, which its answers tell of, and the end of its server
# Faults of an engine, not of the request; another one is asked.
ITS_OWN: frozenset[Cause] = frozenset({"connect", "broken", "server", "invalid", "rate"})


class Replicas(Protocol):
    """Where an answer finds the replica that makes it, and what is counted of it."""

    retried: int
    resumed: int
    cut: int

    async def take(self, key: int | None, lost: set[EngineCalls], until: float) -> Replica:
        """Return a ready replica, waiting for one if need be, with the request counted as its own."""
        ...

    def other(self, lost: set[EngineCalls]) -> bool:
        """Return whether a replica is ready whose engine is not among the `lost`."""
        ...

    async def gone(self, calls: EngineCalls, most_s: float) -> bool:
        """Return whether an engine has ended, or does so within `most_s`."""
        ...


class DeployedStream:
    """Implements serving.Stream."""

    def __init__(self, replicas: Replicas, job: Job, key: int | None) -> None:
        self._replicas, self._job, self._key = replicas, job, key
        self._until = time.monotonic() + (LIMIT_S if job.timeout_s is None else job.timeout_s)
        self._replica: Replica | None = None
        self._calls: EngineCalls | None = None
        self._inner: UpstreamStream | WholeStream | None = None
        self._begin: Begin | None = None
        self._lost: set[EngineCalls] = set()
        self._failed = 0  # attempts at clusters
        self._stumbled: set[EngineCalls] = set()  # that refused one connection
        self._sent = SentLog() if is_repeatable(job) and not job.whole else None
        self._rejoined: Rejoined | None = None
        self._prefix_len = 0  # ids that the engine was given of the answer
        self._resumed = 0  # tokens that others had made
        self._resumed_on: list[int] = []
        self._held: Chunk | None = None  # ids whose text has not come
        self._ready: deque[tuple[int, Chunk]] = deque()
        self._most_chunks = self._chunks_left = 0  # of one engine
        self._over = False

    # --- before the first token -------------------------------------------------------------------

    async def open(self) -> None:
        """Ask a replica; return once its first token has come. Raises what the request deserves."""
        job = self._job
        while True:
            replica = await self._taken()
            try:
                self._inner = await self._started(job)
                break
            except UpstreamFault as e:
                self._leave(e)
                await self._lose(e)
                self._replicas.retried += 1
        plan, begin = replica.plan, self._inner.begin
        ids = _prompt_ids(self._inner)
        if self._sent is not None:
            self._sent.prompt_ids = ids
        room = max(plan.context - len(ids), 0) if plan.context else 0
        most = min(n for n in (job.max_tokens, room or None, LIMIT_TOKENS) if n is not None)
        self._most_chunks = self._chunks_left = job.n * (2 * most + SPARE_CHUNKS)
        engine = f"{plan.engine} {plan.version}".strip()
        self._begin = replace(begin, prompt_ids=ids, max_tokens=most, engine=engine, replica=replica.number)

    async def _taken(self) -> Replica:
        if self._failed:
            await asyncio.sleep(min(AGAIN_S * 2 ** (self._failed - 1), MOST_AGAIN_S))
        replica = self._replica = await self._replicas.take(self._key, self._lost, self._until)
        self._calls = replica.calls
        return replica

    async def _started(self, job: Job) -> UpstreamStream | WholeStream:
        assert self._calls is not None, "a replica that was taken is ready"
        try:
            return await self._calls.start(job, limit_s=max(self._until - time.monotonic(), 0.001))
        except UpstreamFault:
            raise
        except BaseException:
            self._leave()
            raise

    async def _lose(self, e: UpstreamFault) -> None:
        """Count a replica that failed the request; raise where no other is to be asked."""
        if e.cause == "timeout":
            raise DeadlineExceeded("the answer was not whole in its time", "give it more time") from None
        if e.cause not in ITS_OWN or self._calls is None:
            raise e
        if self._calls.many:
            self._failed += 1
            # A request that never began may be to blame.
            most = MOST_OF_MANY if self._begin is not None or e.cause != "server" else MOST_REFUSED
            if self._failed >= most:
                raise EngineLost(
                    f"the cluster failed this request {self._failed} times: {e.message}",
                    "the deployment's log tells why: freehold deploy logs",
                ) from None
            return
        if e.cause == "connect" and self._calls not in self._stumbled:
            self._stumbled.add(self._calls)  # it may have closed an idle connection just then
            return
        self._lost.add(self._calls)
        if len(self._lost) >= MAX_LOST:
            raise EngineLost(
                f"{len(self._lost)} engines failed this request one after the other: {e.message}",
                "the deployment's log says why: freehold deploy logs",
            ) from None
        died = e.cause in ("connect", "broken")
        if not died and not self._replicas.other(self._lost):
            if e.status == 503:
                raise Overloaded(e.message, "try again", e.retry_after_s or 1.0) from None
            if not await self._replicas.gone(self._calls, CORPSE_S):
                raise e

    def _leave(self, fault: UpstreamFault | None = None, *, whole: bool = False) -> None:
        """Give the replica's place back; harmless when that is done. `fault`: how it failed the request."""
        replica, self._replica = self._replica, None
        if replica is not None:
            alone = self._calls is None or not self._calls.many
            if alone and fault is not None and fault.cause in ITS_OWN and fault.status != 503:
                replica.faulted()
            replica.ended(whole=whole)

    # --- its chunks -------------------------------------------------------------------------------

    @property
    def begin(self) -> Begin:
        assert self._begin is not None, "begin was used before open() returned"
        return self._begin

    @property
    def more(self) -> bool:
        """Return whether the next chunk has arrived; of a part that is left out, it may not be one for the reader."""
        return self._inner is not None and self._inner.more and self._rejoined is None

    def __aiter__(self) -> DeployedStream:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        while not self._ready:
            if self._over or self._inner is None:
                raise StopAsyncIteration
            try:
                index, chunk = await self._inner.__anext__()
            except UpstreamFault as e:
                await self._torn(e)
                continue
            except StopAsyncIteration:
                self._leave(whole=True)
                raise
            if self._replica is not None:
                self._replica.moved()
            self._chunks_left -= 1
            if self._chunks_left < 0:
                await self._endless()
            if self._sent is None:
                return index, self._ended(chunk) if chunk.finish_reason is not None else chunk
            if (new := self._new(chunk, self._sent)) is not None:
                return index, new
        return self._ready.popleft()

    def _new(self, chunk: Chunk, sent: SentLog) -> Chunk | None:
        """Return what a client has not had of a chunk; None where there is nothing to show yet."""
        if self._rejoined is not None:
            try:
                left = self._rejoined.chunk(chunk)
            except Deviated:
                self._replicas.cut += 1
                self._leave(whole=True)  # the engine is not to blame
                raise
            if self._rejoined.over:
                self._rejoined = None
            if left is None:
                return None
            chunk = left
        sent.add(chunk)
        if self._held is not None:
            held, self._held = self._held, None
            chunk = replace(
                chunk, token_ids=held.token_ids + chunk.token_ids, logprobs=held.logprobs + chunk.logprobs
            )
        if chunk.finish_reason is not None:
            return self._ended(chunk)
        shows = chunk.text or chunk.thinking or chunk.tool_calls or chunk.refusal
        if shows or len(chunk.token_ids) >= MOST_HELD:
            return chunk
        self._held = chunk
        return None

    async def _endless(self) -> None:
        """End an answer whose engine does not end it. Raises EngineLost."""
        self._replicas.cut += 1
        fault = UpstreamFault("invalid", "the engine sent more than was requested")
        self._leave(fault)
        await self.aclose()
        raise EngineLost(fault.message, "the deployment's log says more: freehold deploy logs")

    def _ended(self, chunk: Chunk) -> Chunk:
        """Return an answer's last chunk with the counts of all its parts."""
        if self._job.n == 1:
            self._over = True
            self._leave(whole=True)
        usage = chunk.usage
        if usage is None and self._sent is not None and self._sent.ids:
            prompt, answer = len(self._sent.prompt_ids), len(self._sent.ids)
            usage = Usage(prompt + self._prefix_len, answer - self._prefix_len)
        if usage is None or not self._resumed_on:
            return chunk if usage is chunk.usage else replace(chunk, usage=usage)
        prompt = max(usage.prompt_tokens - self._prefix_len, 0)  # an engine may count otherwise
        usage = replace(
            usage,
            prompt_tokens=prompt,
            completion_tokens=usage.completion_tokens + self._prefix_len,
            cached_tokens=min(usage.cached_tokens, prompt),
            resumed_tokens=self._resumed,
            resumed_on=tuple(self._resumed_on),
        )
        return replace(chunk, usage=usage)

    async def aclose(self) -> None:
        """Close the connection, so that the engine stops; harmless after the end."""
        self._over = True
        self._ready.clear()
        if self._inner is not None:
            await self._inner.aclose()
        self._leave()

    # --- after a death ----------------------------------------------------------------------------

    async def _torn(self, e: UpstreamFault) -> None:
        """Continue an answer whose engine failed, or raise why that cannot be done."""
        self._leave(e)
        if (reason := _reason(self._inner)) is not None and self._sent is not None:
            self._ready.append((0, self._ended(Chunk(finish_reason=reason))))
            return
        try:
            while True:
                await self._lose(e)
                if self._sent is None:
                    why = "it has several answers" if self._job.n > 1 else "it is not greedy and has no seed"
                    raise EngineLost(
                        f"the engine that made this answer failed, and another cannot continue it: {why} ({e.message})",
                        "try again; with temperature 0 or a seed, an interrupted answer continues",
                    )
                try:
                    await self._continued(self._sent)
                    self._replicas.resumed += 1
                    return
                except UpstreamFault as again:
                    self._leave(again)
                    e = again
        except BaseException:
            self._over = True
            self._replicas.cut += 1
            raise

    async def _continued(self, sent: SentLog) -> None:
        """Ask another replica for the rest. Raises UpstreamFault where that one fails too."""
        replica, job = await self._taken(), self._job
        calls = self._calls
        assert calls is not None
        split = None
        if calls.wire.takes_ids and takes_prefix(job, sent):
            with suppress(UpstreamFault, TimeoutError):
                split = await kept(job, sent, calls.detokenize if calls.wire.tokens is not None else None)
        if split is None:
            self._prefix_len, self._rejoined = 0, Rejoined.from_start(sent)
        else:
            keep, chars = split
            self._prefix_len, self._rejoined = keep, Rejoined.from_ids(sent, keep, chars)
            job = job_from_ids(job, sent, keep)
        self._resumed_on.append(replica.number)
        self._resumed = len(sent.ids)
        if job.max_tokens == 0:  # the last token had come, and its end had not
            self._rejoined = None
            self._ready.append((0, self._ended(Chunk(finish_reason="length"))))
            return
        if self._rejoined is not None and self._rejoined.over:
            self._rejoined = None
        self._inner, self._chunks_left = await self._started(job), self._most_chunks


def _prompt_ids(inner: UpstreamStream | WholeStream) -> tuple[int, ...]:
    return getattr(inner.reader, "prompt_ids", ()) if isinstance(inner, UpstreamStream) else ()


def _reason(inner: UpstreamStream | WholeStream | None) -> FinishReason | None:
    """Return the finish reason that came before the end did, if one came."""
    cut = getattr(inner.reader, "cut", None) if isinstance(inner, UpstreamStream) else None
    return cut() if cut is not None else None


# --- where one engine's part of an answer ends and the next one's begins ----------------------------
# An engine sends tokens before all of their text: half of a character waits for its other half, and text that may
# begin a stop string waits until it does not. So the ids that were sent are cut back to where the client has all of
# their text (`kept`), the next engine computes the few tokens after them again, and what the client has of these is
# left out (`Rejoined`). Cutting back costs nothing in exactness: a greedy engine makes the same tokens again. Where ids
# cannot be given, the whole answer is computed again, and all that the client has is left out.

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
        "the engine that answered died, and its replacement generated a different text",
        "try again; greedy answers are equal only if the engine is deterministic",
    )
