"""Asks a rented model: sends a cleared request on its provider's wire and gives the answer as a Stream.

An answer is given out once its first token has come; whatever fails before is an UpstreamFault that the next target
can follow, and after it a fault of the stream. Knows no route, no retry, no price.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from freehold.base.serving import Begin, EmbedJob, Job, SpeechJob, SpeechSource, Vectors
from freehold.base.types import SamplingParams, Usage
from freehold.route.providers.contract import (
    KINDS,
    Cleared,
    EventReader,
    Kind,
    Outgoing,
    Piece,
    Provider,
    RemoteModel,
    RentedTranscript,
    UpstreamFault,
    WholeAnswer,
    Wire,
)
from freehold.route.providers.faults import check_counts, cleaned, quotes, said_in
from freehold.route.providers.hop import Hop, HopReply
from freehold.route.providers.openai import speech
from freehold.route.providers.signatures import carried
from freehold.run.sounds.opening import MeasuredSound

EVENTS = "text/event-stream"
MOST_ODD = 256  # oddities that are logged
_ODD: set[tuple[str, str]] = set()
_log = logging.getLogger("freehold.route.providers")
IN_LOOP = 200  # messages and tools that are translated on the event loop, in some 2 ms


async def start(
    hop: Hop,
    cleared: Cleared[Job],
    remote: RemoteModel,
    *,
    first_token_s: float,
    timeout_s: float,
    stream: bool = True,
    wire: Wire | None = None,
) -> UpstreamStream | WholeStream:
    """Ask `remote`, and return its answer's stream once the first token has come.

    `stream` False asks for the answer in one piece, which costs less for both; only `timeout_s` limits it then.
    `wire`: an engine's own; None: that of the provider's kind.
    Raises PolicyRefused before anything is sent, UsageError or UnsupportedModel for what the provider cannot do, and
    UpstreamFault with its cause for everything else.
    """
    job = carried(cleared.work, remote)
    wire = wire or wire_of(remote.provider.kind)
    if len(job.messages or ()) + len(job.tools) > IN_LOOP:
        sent = await asyncio.to_thread(wire.request, remote, job, stream=stream)
    else:
        sent = wire.request(remote, job, stream=stream)
    begin = Begin(
        context=remote.context,
        prompt_ids=(),
        sampling=SamplingParams(**job.sampling),  # type: ignore[arg-type]  # its fields, checked by the door
        max_tokens=job.max_tokens or remote.max_output,
        warnings=sent.warnings,
    )
    first_s = min(first_token_s, timeout_s) if stream else timeout_s
    clock = asyncio.get_running_loop().time
    until = clock() + timeout_s
    request = _Request(hop, wire, remote.provider, cleared)
    try:
        async with asyncio.timeout(first_s):
            if not stream:
                answer = wire.whole(await request.whole(sent), job)
                request.warn_of(answer.oddities)
                return WholeStream(begin, answer)
            reply = await request.opened(sent)
            try:
                if reply.media_type not in (EVENTS, ""):
                    raise UpstreamFault("invalid", f"{remote.provider.name} sent no stream", status=200)
                coming = UpstreamStream(begin, reply, wire.reader(job), request)
                await _first(coming)
            except BaseException:
                reply.close()
                raise
    except TimeoutError:
        raise UpstreamFault("timeout", f"{remote.provider.name} sent nothing in {first_s:.3g} s") from None
    except UpstreamFault as e:
        raise request.shown(e) from None
    reply.limit(until - clock())
    return coming


async def _first(coming: UpstreamStream) -> None:
    """Wait for the first piece. A fault in its place carries what was counted by then."""
    try:
        await coming.first()
    except UpstreamFault as e:
        e.reported = coming.reported
        raise
    coming.begin = replace(coming.begin, usage=coming.reported)


async def embed(
    hop: Hop, cleared: Cleared[EmbedJob], remote: RemoteModel, *, timeout_s: float, wire: Wire | None = None
) -> Vectors:
    """Return unit vectors of texts. Raises as `start` does."""
    wire = wire or wire_of(remote.provider.kind)
    request = _Request(hop, wire, remote.provider, cleared)
    body = await request.within(timeout_s, wire.embed(remote, cleared.work))
    try:
        return wire.vectors(body, cleared.work)
    except UpstreamFault as e:
        raise request.shown(e) from None


async def count(
    hop: Hop, cleared: Cleared[Job], remote: RemoteModel, *, timeout_s: float, wire: Wire | None = None
) -> int | None:
    """Return how many tokens a prompt has, from the provider; None where it has no door for that."""
    wire = wire or wire_of(remote.provider.kind)
    sent = wire.count(remote, carried(cleared.work, remote))
    if sent is None:
        return None
    request = _Request(hop, wire, remote.provider, cleared)
    body = await request.within(timeout_s, sent)
    try:
        counted = wire.counted(body)
        check_counts(counted)
        return counted
    except UpstreamFault as e:
        raise request.shown(e) from None


async def hear(
    hop: Hop,
    cleared: Cleared[SpeechJob],
    remote: RemoteModel,
    recording: SpeechSource,
    sound: MeasuredSound,
    *,
    timeout_s: float,
) -> RentedTranscript:
    """Send a recording and return its transcript. Raises as `start` does."""
    sent = speech.transcription(remote, cleared.work, recording, sound.form)
    request = _Request(hop, wire_of(remote.provider.kind), remote.provider, cleared)
    body = await request.within(timeout_s, sent)
    try:
        return speech.transcript(body, cleared.work, sound.seconds)
    except UpstreamFault as e:
        raise request.shown(e) from None


class _Request:
    """One request to one provider."""

    def __init__(self, hop: Hop, wire: Wire, provider: Provider, cleared: Cleared[Any]) -> None:
        self._hop, self._wire, self._provider, self._cleared = hop, wire, provider, cleared

    async def opened(self, sent: Outgoing) -> HopReply:
        """Return a 200's reply, body unread."""
        key = self._wire.authorized(self._provider.key) if self._provider.key is not None else {}
        reply = await self._hop.post(self._cleared, self._provider, key, sent)
        try:
            packed = reply.headers.get("Content-Encoding", "identity").lower()
            if reply.status == 200 and packed in ("identity", ""):
                return reply
            raise await self._refused(reply)
        finally:
            if reply.status != 200:
                reply.close()

    async def _refused(self, reply: HopReply) -> UpstreamFault:
        name, status = self._provider.name, reply.status
        if 300 <= status < 400:
            return UpstreamFault("redirect", f"{name} sent a redirect, which is not followed", status=status)
        if status < 300:
            reply.close()
            return UpstreamFault("invalid", f"{name} sent an answer that cannot be read", status=status)
        return self._wire.fault(status, reply.headers, await reply.start_of_body())

    async def whole(self, sent: Outgoing) -> bytes:
        """Return a 200's whole body."""
        reply = await self.opened(sent)
        try:
            body = await reply.body()
            reply.finished()
            if not body.isascii():
                body.decode()
            return body
        except UnicodeDecodeError:
            raise UpstreamFault("invalid", "an answer that is not UTF-8", status=200) from None
        finally:
            reply.close()

    async def within(self, seconds: float, sent: Outgoing) -> bytes:
        """Return a 200's whole body. Raises UpstreamFault once `seconds` have passed."""
        try:
            async with asyncio.timeout(seconds):
                return await self.whole(sent)
        except TimeoutError:
            raise UpstreamFault("timeout", f"{self._provider.name} sent nothing in {seconds:.3g} s") from None
        except UpstreamFault as e:
            raise self.shown(e) from None

    def warn_of(self, oddities: Iterable[str]) -> None:
        """Log what a provider's answers do not have as its wire says, each once."""
        for odd in oddities:
            if (what := (self._provider.name, odd)) not in _ODD and len(_ODD) < MOST_ODD:
                _ODD.add(what)
                _log.warning("%s: %s; its answers are taken as whole", *what)

    def shown(self, e: UpstreamFault) -> UpstreamFault:
        """Return a fault as it may be shown: without keys, and without the request's own text."""
        name = self._provider.name
        message = cleaned(e.message.replace("the provider", name), [self._provider.key])
        if quotes(message, said_in(self._cleared.work)):
            message = (
                f"{name} failed ({e.status or e.cause}); its message is left out, as it quotes the request"
            )
        elif not message.startswith(name):
            message = f"{name}: {message}"
        shown = UpstreamFault(e.cause, message, e.hint, status=e.status, retry_after_s=e.retry_after_s)
        shown.reported = e.reported
        return shown


class UpstreamStream:
    """An answer while its provider makes it.

    The last chunk of each answer comes after the wire's own end event; its usage is None where the provider sent
    none. Of several answers, the last one's usage counts the completions of all.
    """

    def __init__(self, begin: Begin, reply: HopReply, reader: EventReader, request: _Request) -> None:
        self.begin = begin
        self._reply, self._reader, self._request = reply, reader, request
        self._events = EventSplitter()
        self._ready: deque[Piece] = deque()
        self._fault: UpstreamFault | None = None
        self._over = False

    @property
    def answer_id(self) -> str:
        """The provider's id of the answer; "" before it has come."""
        return self._reader.answer_id

    @property
    def reported(self) -> Usage | None:
        """Return what the provider has counted so far."""
        return self._reader.reported

    @property
    def reader(self) -> EventReader:
        """What reads its events: an engine's may know more than pieces tell."""
        return self._reader

    @property
    def more(self) -> bool:
        """Return whether the next chunk has arrived."""
        return bool(self._ready)

    def __aiter__(self) -> UpstreamStream:
        return self

    async def __anext__(self) -> Piece:
        ready = self._ready
        while not ready:
            if self._fault is not None:
                raise self._fault
            if self._over:
                raise StopAsyncIteration
            await self._fill()
        return ready.popleft()

    async def first(self) -> None:
        """Wait for the first piece, or raise what came in its place."""
        while not self._ready:
            if self._fault is not None:
                raise self._fault
            if self._over:
                raise UpstreamFault("invalid", "an answer of no choice", status=200)
            await self._fill()

    async def aclose(self) -> None:
        """Close the connection, so that the provider stops; harmless after the end."""
        self._over = True
        self._ready.clear()
        self._reply.close()

    async def _fill(self) -> None:
        """Read what has come. A fault waits until the pieces before it are given out."""
        try:
            data = await self._reply.some()
            push, ready = self._reader.push, self._ready
            if not data:
                self._take_rest()
                ready.extend(() if self._reader.ended else self._reader.closed())
                self._end()
                return
            for event, payload in self._events.feed(data):
                ready.extend(push(event, payload))
                if self._reader.ended:
                    self._end()
                    return
            if self._events.fault is not None:
                raise self._events.fault
        except UpstreamFault as e:
            self._fault = self._request.shown(e)
            self._reply.close()

    def _take_rest(self) -> None:
        """Take an event that is whole but for the blank line after it; a torn one counts as none."""
        for event, payload in self._events.rest():
            try:
                self._ready.extend(self._reader.push(event, payload))
            except UpstreamFault as e:
                if e.cause != "invalid":
                    raise

    def _end(self) -> None:
        self._over = True
        self._reply.finished()
        self._request.warn_of(self._reader.oddities)


class WholeStream:
    """An answer that came as one."""

    def __init__(self, begin: Begin, answer: WholeAnswer) -> None:
        self.begin = begin
        self.answer_id = answer.answer_id
        self._ready = deque(answer.pieces)

    @property
    def more(self) -> bool:
        return bool(self._ready)

    def __aiter__(self) -> WholeStream:
        return self

    async def __anext__(self) -> Piece:
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    async def aclose(self) -> None:
        self._ready.clear()


@cache
def wire_of(kind: Kind) -> Wire:
    """Return the wire of a kind of provider: imported when it is first asked for, and shared."""
    module, _, name = KINDS[kind].wire.rpartition(".")
    return getattr(import_module(f"freehold.route.providers.{module}"), name)()


# --- splits a stream of bytes into server-sent events, wherever the network cut it ------------------
# Follows the WHATWG's event streams: LF, CRLF or CR, comments, `data` of several lines, one leading byte
# order mark. An event that the stream's end cuts off is left out.

MAX_EVENT = 16 << 20  # bytes: the largest event of a wire is a whole answer's item, or a picture
_BOM = b"\xef\xbb\xbf"
Event = tuple[str, bytes]  # its name, "" for none; its data


class EventSplitter:
    """Splits one stream."""

    def __init__(self) -> None:
        self._rest = bytearray()  # an event that is not whole
        self._seen = 0  # bytes of the rest that hold no end of an event
        self._first = True
        self.fault: UpstreamFault | None = None  # what comes after the events that were returned last

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes, up to the first that is not UTF-8: `fault` is then set.

        Raises UpstreamFault for an event beyond MAX_EVENT.
        """
        rest = self._rest
        if not rest and data.endswith(b"\r\n\r\n"):  # Google's lines; what is before them is whole too
            data = data.replace(b"\r\n", b"\n")
        if rest or self._first or len(data) > MAX_EVENT or b"\r" in data or not data.endswith(b"\n\n"):
            blocks = self._blocks(data)
        else:
            blocks = data.split(b"\n\n")  # nothing is cut: what nearly every read gives
        events: list[Event] = []
        for block in blocks:
            if not block.isascii() and (fault := _no_text(block)) is not None:
                self.fault = fault
                break
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(("", block[6:]))
            elif block and (event := _event(block)) is not None:
                events.append(event)
        return events

    def rest(self) -> list[Event]:
        """Return the event that the body's end left without its blank line, where it has data; it may be torn."""
        return self.feed(b"\n\n") if self._rest else []

    def _blocks(self, data: bytes) -> list[bytes]:
        rest = self._rest
        rest += data
        if self._first:
            if len(rest) < len(_BOM) and _BOM.startswith(rest):
                return []
            self._first = False
            if rest.startswith(_BOM):
                del rest[: len(_BOM)]
        if b"\r" in rest:
            held = rest.endswith(b"\r")  # the LF of a CRLF may come next
            plain = bytes(rest[:-1] if held else rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            rest[:] = plain + b"\r" if held else plain
            self._seen = 0
        end = rest.rfind(b"\n\n", max(self._seen - 1, 0))
        if end < 0:
            self._seen = len(rest)
            _check(len(rest))
            return []
        whole = bytes(rest[:end])
        del rest[: end + 2]
        self._seen = 0
        blocks = whole.split(b"\n\n")
        _check(max(map(len, blocks)))
        return blocks


def _check(size: int) -> None:
    if size > MAX_EVENT:
        raise UpstreamFault("invalid", f"an event has more than {MAX_EVENT:,} bytes")


def _no_text(block: bytes) -> UpstreamFault | None:
    """Return the fault of bytes that are no UTF-8.

    A decoder that skips members it does not know skips a damaged name with them, and an event with a damaged field
    counts as none: text would be missing from an answer that looks whole.
    """
    try:
        block.decode()
    except UnicodeDecodeError:
        return UpstreamFault("invalid", "the stream has bytes that are no UTF-8", status=200)
    return None


def _event(block: bytes) -> Event | None:
    """Read the lines of one event; None where it has no data."""
    name = ""
    lines: list[bytes] = []
    for line in block.split(b"\n"):
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            lines.append(value)
        elif key == b"event":
            name = value.decode("utf-8", "replace")
    return (name, b"\n".join(lines)) if lines else None
