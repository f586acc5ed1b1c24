"""What crosses the socket between a server and an engine process: msgpack frames with a length before them.

Knows the messages, their numbers and their limits; knows no process, no model and no protocol of the web.
A frame is four bytes of length (little endian) and a message; both ends refuse a length beyond MAX_FRAME
before they hold any of it, and any message that is not one of those below. Nothing is ever pickled.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from freehold.base import errors
from freehold.base.errors import FreeholdError, Overloaded, UsageError
from freehold.base.serving import (
    Begin,
    EmbedJob,
    EngineStats,
    Job,
    ModelInfo,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
)
from freehold.base.types import Audio, Chunk, Image, Message, Part
from freehold.run.store import ModelRef

PROTOCOL = 8  # raise it when a message changes; both ends must name the same
HEAD = 4  # bytes of length before a message
# A prompt of a million tokens takes 5 MB, the log-probabilities of one that local.jobs allows 30 MB, a job's pictures
# 56 MB, which are base64 here too.
MAX_FRAME = 64 << 20
MAX_PICTURES_BYTES = 40 << 20  # of all pictures and sounds of a job; one has at most types.MAX_PICTURE_BYTES


class WireMessage(msgspec.Struct, array_like=True, tag=True, gc=False):
    """Written as an array: the class's name, then its fields in order."""


# --- from the server ---------------------------------------------------------------------------------


class Script(msgspec.Struct, frozen=True):
    """An engine that computes nothing (scripted.py): `words` a reply, a step of `step_s` for each word.

    A job whose prompt is `poison` ends the process at word `poison_at`. `sees`: a picture is a token of its prompt.
    `hears`: it transcribes instead, a chunk for every 1,000 bytes of a recording.
    """

    words: int = 16
    step_s: float = 0.0
    load_s: float = 0.0
    context: int = 8192
    poison: str = ""
    poison_at: int = 0
    sees: bool = False
    hears: bool = False


class Open(WireMessage):
    """The first message: what to load, and how. `options` are ServedModelOptions; `script`: nothing to load."""

    protocol: int
    version: str
    model: ModelRef | None
    options: dict[str, Any] = {}
    script: Script | None = None
    draft: ModelRef | None = None
    packs: Path | None = None
    disk: Path | None = None


class Submit(WireMessage):
    """Answer a job. It is decoded separately, so that one with a wrong field is refused alone."""

    id: int
    job: msgspec.Raw


class Cancel(WireMessage):
    """Stop a job or a call; no event of it follows."""

    id: int


class ModelCall(WireMessage):
    """Call a method with one reply.

    tokenize, detokenize, token_texts, render, count, template, embed; add_adapter, remove_adapter; and of a recording
    hear_begin, hear_bytes, hear_next, hear_end (below).
    """

    id: int
    method: str
    args: list[Any]
    client: str = ""  # whose share of the threads it uses


# --- a recording: begun, sent piece by piece, pulled part by part, ended; each call has one reply -----
# A reply of None: the process has no such recording. It took the place of one that had, and is sent all again.

MAX_RECORDING_BYTES = 1 << 30  # of a recording on the wire; a server has a limit of its own
SOUND_PIECE = 256 << 10  # bytes of it in a message: copied in a tenth of a millisecond


class HearBegin(msgspec.Struct, frozen=True):
    """hear_begin: a recording of `size` bytes will come. `skip`: chunks whose texts are there already. Reply: 0."""

    recording: int
    size: int
    job: SpeechJob
    skip: int = 0


class HearBytes(msgspec.Struct, frozen=True):
    """hear_bytes: the bytes from `at` on, in order. Reply: how many are there now."""

    recording: int
    at: int
    data: bytes


class HearReply(msgspec.Struct, frozen=True):
    """Answers hear_next, whose argument is the recording's number: `facts` the first time, then a `part` each time.

    Neither: all parts were sent.
    """

    facts: SpeechFacts | None = None
    part: SpeechPart | None = None


# --- from the engine ---------------------------------------------------------------------------------


class Hello(WireMessage):
    """The first message: versions and process."""

    protocol: int
    version: str
    pid: int


class Loading(WireMessage):
    """Bytes loaded so far."""

    done: int
    total: int


class EngineReady(WireMessage):
    """The model is loaded."""

    info: ModelInfo


class Failed(WireMessage):
    """An error by its class's name, of a job or of loading (id 0)."""

    id: int
    kind: str
    message: str
    hint: str = ""
    wait_s: float = 0.0
    field: str = ""

    @classmethod
    def of(cls, id: int, error: BaseException) -> Failed:
        """Return an error's message. An internal error keeps its details on the engine's stderr."""
        if not isinstance(error, FreeholdError):
            traceback.print_exception(error)
            return cls(id, "FreeholdError", f"internal error: {type(error).__name__}", "see the server's log")
        wait_s = error.wait_s if isinstance(error, Overloaded) else 0.0
        field = error.field if isinstance(error, UsageError) else ""
        return cls(id, type(error).__name__, error.message, error.hint, wait_s, field)

    @property
    def error(self) -> FreeholdError:
        """The error as it was raised."""
        kind = getattr(errors, self.kind, None)
        if kind is Overloaded:
            return Overloaded(self.message, self.hint, self.wait_s)
        if kind is UsageError:
            return UsageError(self.message, self.hint, self.field)
        if not (isinstance(kind, type) and issubclass(kind, FreeholdError)):
            kind = FreeholdError
        return kind(self.message, self.hint)


class Began(WireMessage):
    """A job was accepted."""

    id: int
    begin: Begin


class Piece(WireMessage):
    """A chunk of an answer; the last one carries finish_reason."""

    id: int
    index: int
    chunk: Chunk


class Prefilled(WireMessage):
    """Tokens of a job's prompt that are read, and all of them; sent after steps that made no token of its answer."""

    id: int
    done: int
    total: int


class CallReply(WireMessage):
    """The value of a call."""

    id: int
    value: Any


Event = Began | Piece | Prefilled | Failed | CallReply


class Frame(WireMessage):
    """The events of one step, for all streams."""

    events: list[Event]
    stats: EngineStats | None = None


FromServer = Open | Submit | Cancel | ModelCall
FromEngine = Hello | Loading | EngineReady | Failed | Frame


class BadFrame(Exception):
    """The other end sent an invalid message; the connection ends."""


class Writer:
    """Turns messages into frames. One thread at a time."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
        self._buffer = bytearray()

    def frame(self, message: WireMessage) -> bytes:
        """Return the bytes to send. Raises UsageError for a value that msgpack cannot encode, or a frame too large."""
        try:
            self._encoder.encode_into(message, self._buffer, HEAD)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as e:
            raise UsageError(f"a value cannot be sent to an engine: {e}") from e
        size = len(self._buffer) - HEAD
        if size > MAX_FRAME:
            self._buffer = bytearray()
            _check_frame(size)
        self._buffer[:HEAD] = size.to_bytes(HEAD, "little")
        return bytes(self._buffer)

    def pieces(self, message: WireMessage) -> list[bytes | memoryview]:
        """Return a frame as parts to send in turn, so that a long job is not copied. Raises UsageError as `frame`."""
        if type(message) is Submit and len(memoryview(message.job)) < _PIECE:
            return [self.frame(message)]
        light, long = _lightened(message)
        if not long:
            return [self.frame(message)]
        parts = self.frame(light)[HEAD:].split(_STAND_IN)
        pieces: list[bytes | memoryview] = [parts[0]]
        for value, part in zip(long, parts[1:], strict=True):
            pieces += [value, part]
        size = sum(map(len, pieces))
        _check_frame(size)
        return [size.to_bytes(HEAD, "little"), *pieces]

    def raw(self, value: object) -> msgspec.Raw:
        """Encode a value that the other end decodes separately. Raises UsageError as `frame` does."""
        try:
            return msgspec.Raw(self._encoder.encode(value))
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as e:
            raise UsageError(f"a value cannot be sent to an engine: {e}") from e


class Reader:
    """Turns received bytes into messages of the types `expected`."""

    def __init__(self, expected: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(expected, dec_hook=_rich)
        self._held = bytearray()

    def push(self, data: bytes) -> list[Any]:
        """Return the messages completed by `data`. Raises BadFrame."""
        whole: bytes | bytearray = data
        if self._held:
            self._held += data
            if not self._whole():
                return []
            whole = self._held  # read where it lies: a job with pictures has many megabytes
        messages, at, view = [], 0, memoryview(whole)
        while len(whole) - at >= HEAD:
            end = at + HEAD + self._size(whole, at)
            if end > len(whole):
                break
            messages.append(self._read(view[at + HEAD : end]))
            at = end
        self._held = bytearray(view[at:])
        return messages

    def _whole(self) -> bool:
        return len(self._held) >= HEAD and len(self._held) >= HEAD + self._size(self._held, 0)

    def _size(self, data: bytes | bytearray, at: int) -> int:
        size = int.from_bytes(data[at : at + HEAD], "little")
        if size > MAX_FRAME:
            raise BadFrame(f"a frame of {size:,} bytes; the limit is {MAX_FRAME:,}")
        return size

    def _read(self, payload: memoryview) -> Any:
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as e:
            raise BadFrame(f"a frame that is not a message: {e}") from e


def decode(raw: msgspec.Raw, kind: Any) -> Any:
    """Decode a value that was encoded separately; UsageError names the field that is wrong."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise UsageError(f"not a request: {e}") from e


def read(value: object, kind: Any) -> Any:
    """Convert an argument of a call; UsageError names the field that is wrong."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise UsageError(f"not a request: {e}") from e


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form on the wire")


_MEASURE = msgspec.msgpack.Encoder(enc_hook=_plain)
SHORT_CHAT, SHORT_TEXT = (
    64,
    64 << 10,
)  # messages, and characters of a text, that are packed in a tenth of a millisecond
_ARRAY = b"\xdd"  # msgpack's name for a list with four bytes of length


async def packed(job: Job | EmbedJob) -> msgspec.Raw:
    """Encode a job for Submit or ModelCall; a long one beside the loop. Raises UsageError as `encoded`."""
    if isinstance(job, EmbedJob):
        is_short = sum(map(len, job.texts)) <= SHORT_TEXT
        return _with_texts(job) if is_short else await asyncio.to_thread(_with_texts, job)
    return await asyncio.to_thread(encoded, job) if is_long(job) else encoded(job)


def is_long(job: Job) -> bool:
    """Return whether encoding a job takes longer than the loop should wait for."""
    messages = job.messages or ()
    text = len(job.prompt or ()) + len(job.suffix or "")
    if len(messages) > SHORT_CHAT or text > SHORT_TEXT or len(job.tools) > SHORT_CHAT:
        return True
    parts = chars = 0
    for message in messages:
        parts += 1 + len(message.tool_calls) + len(message.parts) + len(message.signed)
        chars += len(message.content)
        if message.parts:
            chars += sum(file.size for file in _files((message,)))
    return parts > SHORT_CHAT or chars > SHORT_TEXT


def encoded(job: Job) -> msgspec.Raw:
    """Encode a job; what is long in pieces, between which other threads run.

    Raises UsageError for a value that msgpack cannot encode, and for pictures of more than MAX_PICTURES_BYTES.
    """
    messages = job.messages or ()
    sizes = [file.size for file in _files(messages)]
    if (total := sum(sizes)) <= SHORT_TEXT:
        return _without_files(job)
    if total > MAX_PICTURES_BYTES:
        heard = any(isinstance(file, Audio) for file in _files(messages))
        what = "pictures and recordings" if heard else "pictures"
        raise UsageError(
            f"the {len(sizes)} {what} of the chat have {total:,} bytes; the limit of a request is "
            f"{MAX_PICTURES_BYTES:,}",
            "leave earlier ones out, or send them smaller",
            "messages",
        )
    # Encoded without their data, which is put in after: neither the encoder nor a copy of all holds the interpreter.
    data: list[str] = []
    light = replace(job, messages=tuple(_without_data(message, data) for message in messages))
    try:
        return _filled(bytes(_without_files(light)), data, "ascii")
    except UnicodeEncodeError as e:
        why = "a picture or a recording in the chat is not base64"
        raise UsageError(why, "encode its bytes again", "messages") from e


def _filled(light: bytes, texts: Sequence[str], encoding: str) -> msgspec.Raw:
    """Put long texts where their stand-ins are, in pieces, between which other threads run."""
    parts = light.split(_STAND_IN)
    pieces = [parts[0]]
    for text, part in zip(texts, parts[1:], strict=True):
        encoded_text = [text[at : at + _PIECE].encode(encoding) for at in range(0, len(text), _PIECE)]
        pieces.append(_TEXT + sum(map(len, encoded_text)).to_bytes(4, "big"))
        pieces += [*encoded_text, part]
    return msgspec.Raw(b"".join(pieces))  # which lets other threads run, as a join of a megabyte does


def _with_texts(job: EmbedJob) -> msgspec.Raw:
    """Encode texts to be embedded; a long one in pieces, between which other threads run."""
    long: list[str] = []
    stand_in: Any = msgspec.Raw(_STAND_IN)
    texts: list[Any] = []
    for text in job.texts:
        if isinstance(text, str) and len(text) > _PIECE:
            long.append(text)
            text = stand_in
        texts.append(text)
    try:
        return _filled(_MEASURE.encode(replace(job, texts=tuple(texts))), long, "utf-8")
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as e:
        raise UsageError(f"a value cannot be sent to an engine: {e}") from e


def _without_files(job: Job) -> msgspec.Raw:
    encode = _MEASURE.encode
    messages = job.messages or ()
    try:
        if len(messages) <= SHORT_CHAT:
            return msgspec.Raw(encode(job))
        # A call of the encoder holds the interpreter until it is done: 15 ms for 10,000 calls and their results.
        pieces = [encode(message) for message in messages]
        whole = _ARRAY + len(pieces).to_bytes(4, "big") + b"".join(pieces)
        return msgspec.Raw(encode(replace(job, messages=msgspec.Raw(whole))))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as e:
        raise UsageError(f"a value cannot be sent to an engine: {e}") from e


# Stands for a long value while what is around it is encoded: a msgpack extension, which begins as no text may, and that
# no client can guess.
_STAND_IN = b"\xd8\x7f" + os.urandom(16)
_TEXT = b"\xdb"  # msgpack's name for a text with four bytes of length
_PIECE = 256 << 10  # bytes that are copied by one call; a longer encoded value is sent as it is


def _files(messages: Sequence[Message]) -> Iterator[Image | Audio]:
    return (part for message in messages for part in message.parts if not isinstance(part, str))


def _without_data(message: Message, data: list[str]) -> Message:
    """Return a message with a stand-in for the data of each picture and sound, which are added to `data`."""
    if not message.parts:
        return message
    parts: list[Part] = []
    stand_in: Any = msgspec.Raw(_STAND_IN)
    for part in message.parts:
        if not isinstance(part, str):
            data.append(part.data)
            part = replace(part, data=stand_in) if isinstance(part, Image) else part._replace(data=stand_in)
        parts.append(part)
    return replace(message, parts=tuple(parts))


def _lightened(message: WireMessage) -> tuple[WireMessage, list[memoryview]]:
    """Return a message with a stand-in for each long encoded value, and those values."""
    long: list[memoryview] = []

    def light(value: Any) -> Any:
        if not isinstance(value, msgspec.Raw) or len(view := memoryview(value)) < _PIECE:
            return value
        long.append(view)
        return msgspec.Raw(_STAND_IN)

    if isinstance(message, Submit):
        return Submit(message.id, light(message.job)), long
    if isinstance(message, ModelCall):
        return ModelCall(message.id, message.method, [*map(light, message.args)], message.client), long
    return message, long


def _check_frame(size: int) -> None:
    if size > MAX_FRAME:
        raise UsageError(f"a message of {size:,} bytes is too large; the limit is {MAX_FRAME:,}")


def size(value: object) -> int:
    """Return how much text and how many ids a call's arguments hold, in characters, bytes and ids together.

    A job counts as what it takes on the wire: to visit ten thousand messages takes 50 times as long.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, msgspec.Raw):
        return len(memoryview(value))
    if isinstance(value, Mapping):
        return sum(map(size, value.values()))
    if isinstance(value, list | tuple):
        return len(value) if value and isinstance(value[0], int) else sum(map(size, value))
    return len(_MEASURE.encode(value)) if is_dataclass(value) else 0


def _rich(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"{kind.__name__} has no form on the wire")
