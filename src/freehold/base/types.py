"""Values that cross rooms: messages, sampling parameters, results, and the ChatModel protocol.

Frozen dataclasses; no arithmetic, no defaults of a model, and no I/O but reading the file of a picture. Requests to a
served model: serving.py.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

from freehold.base.errors import UsageError
from freehold.base.options import option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant", "tool"]
# content_filter and refusal come from rented models: a provider's filter ended the answer, or the model declined.
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "content_filter", "refusal"]
Overflow = Literal["error", "drop-oldest"]  # what to do with a chat longer than the context
Priority = Literal["interactive", "batch"]  # whose tokens go first; batch takes what is left
ToolChoice = Literal["auto", "none", "required"]
Turn = Literal["new", "continue", "none"]  # how the prompt of a chat ends; see Job.turn
KvType = Literal["f16", "q8", "f32"]  # of cached keys and values
MAX_FORMAT_CHARS = 1 << 18  # of a schema, a grammar, a regular expression, or of a tool's parameters
MAX_CHOICES = 10_000  # texts of a choice
MAX_SEED = (1 << 63) - 1  # that a caller may give
FormatKind = Literal["json", "json_schema", "regex", "lark", "choice"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call; the caller runs it. `parameters`: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    strict: bool = False  # arguments must follow the schema: our engine's always do


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call in an assistant turn."""

    id: str
    name: str
    arguments: str  # the text of a JSON object
    signature: str = ""  # opaque; Gemini signs the reasoning before a call, and wants it back with it


@dataclass(frozen=True, slots=True)
class ToolPiece:
    """A piece of a streamed tool call: the first has its id and name, all of them some of its arguments."""

    index: int  # of the call within the answer
    id: str = ""
    name: str = ""
    arguments: str = ""
    signature: str = ""  # with the first piece; see ToolCall

    def join(self, calls: list[ToolCall]) -> None:
        """Append it to the calls of its answer so far; a call's first piece adds a call."""
        if self.index == len(calls):
            calls.append(ToolCall(self.id, self.name, "", self.signature))
        call = calls[self.index]
        calls[self.index] = replace(call, arguments=call.arguments + self.arguments)


@dataclass(frozen=True, slots=True)
class Format:
    """The format of an answer's text; thinking is not constrained.

    `source`: a JSON schema as a mapping, a list of texts for a choice, a regular expression, or a Lark grammar; empty
    for "json" (any JSON object). A schema or a choice can also be JSON text. Raises UsageError for text that is not
    JSON.
    """

    kind: FormatKind
    source: Any = ""

    def __post_init__(self) -> None:
        if self.kind in ("json_schema", "choice") and isinstance(self.source, str):
            object.__setattr__(self, "source", self._parsed(self.source))

    def _parsed(self, text: str) -> Any:
        what = "JSON schema" if self.kind == "json_schema" else "choice"
        if len(text) > MAX_FORMAT_CHARS:
            chars = f"{len(text):,} characters; the limit is {MAX_FORMAT_CHARS:,}"
            raise UsageError(f"format: the {what} has {chars}", field="format")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UsageError(f"format: the {what} is not JSON: {e}", field="format") from e
        if isinstance(value, str):  # a copy of this Format would parse it again
            raise UsageError(f"format: the {what} is a JSON string", field="format")
        return value


@runtime_checkable
class SchemaClass(Protocol):
    """A class that states its own JSON schema, as pydantic's models do."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """Return the JSON schema of an instance."""
        ...


# What a caller may give for a format: a JSON schema, a pydantic model, "json" for any object, or a Format.
FormatLike = Format | Mapping[str, object] | type[SchemaClass] | Literal["json"] | None


def as_format(value: FormatLike) -> Format | None:
    """Return the format a caller gave. Raises UsageError for any other value."""
    if value is None or isinstance(value, Format):
        return value
    if value == "json":
        return Format("json")
    if isinstance(value, type) and callable(getattr(value, "model_json_schema", None)):
        value = _stated_schema(value)
    if not isinstance(value, Mapping):
        raise UsageError(
            f"format is {value!r}",
            'give a JSON schema as a dict, a pydantic model, "json", or a freehold.Format',
        )
    return Format("json_schema", dict(value))


def _stated_schema(model_class: type[SchemaClass]) -> Mapping[str, object]:
    try:
        return model_class.model_json_schema()
    except Exception as e:  # the caller's own class: whatever it raises, the format is what failed
        raise UsageError(f"{model_class.__name__} cannot state its JSON schema: {e}") from e


CacheTime = Literal["", "5m", "1h"]
_MISSPELT = {"image/jpg": "image/jpeg"}  # what many clients write
MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif")  # of pictures
MAX_PICTURE_BYTES = 10 << 20  # of one picture
MAX_PICTURES = 100  # of one request, as providers take
MAX_SOUND_BYTES = 10 << 20  # of one sound: 30 s of WAV at 48 kHz in stereo have 5.8 million
MAX_SOUNDS = 32  # of one request
MAX_ADDRESS = 8192  # characters of a picture's URL
DETAILS = ("low", "high", "auto")
EYES = ("lazy", "eager", "off")  # when a tower of pictures is loaded; anything else is a file's path
ImageBudget = tuple[int, int]
_MAX_HEAD = 128  # characters of a data: URL before its data
_MAX_FORMAT = 32  # characters of what a sender calls a sound's form
_MAX_MAGIC = 32  # bytes of a file that tell its format
# Characters of base64 that are read or written by one call, in half a millisecond: 14 MB take 40, and other threads,
# such as a server's loop, would wait for all of it.
_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a transcript, with its times in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a transcript, with its times in seconds and the decoder's figures for its chunk."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    mean_logprob: float = 0.0
    compression_ratio: float = 0.0  # of the chunk's text: how many times zlib shortens it
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] = ()  # where they were requested


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of a recording."""

    text: str
    segments: tuple[Segment, ...]
    language: str  # a code of two or three letters; "" where nothing was said
    duration_s: float
    speech_s: float  # of it, what was heard as speech


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message: its bytes in base64 with their media type, or a URL that a local model never downloads.

    `Image.open` reads a file, `Image.of` takes the bytes of one, `Image.at` a data: URL. All raise UsageError.
    """

    media_type: str = ""
    data: str = field(default="", repr=False)
    url: str = ""
    detail: str = ""  # OpenAI's: low, high, auto
    place: str = field(default="", repr=False, compare=False)  # for errors: its file, or in a request

    @classmethod
    def open(cls, path: str | Path, detail: str = "") -> Image:
        """Read a PNG, JPEG, GIF, WebP or AVIF, as its first bytes say, of at most MAX_PICTURE_BYTES."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_PICTURE_BYTES + 1)
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else e
            raise UsageError(f"{path} cannot be read: {why}", "check the path") from e
        return cls._of(data, detail, str(path))

    @classmethod
    def of(cls, data: bytes, detail: str = "") -> Image:
        """Return the picture whose file has these bytes, as `open` does."""
        return cls._of(data, detail, "")

    @classmethod
    def at(cls, url: str, detail: str = "", place: str = "") -> Image:
        """Return the picture of a data: URL, or one at an http address, which rented models take and no other does."""
        called = place or "the picture"
        if url.startswith("data:"):
            comma = url.find(",", 0, _MAX_HEAD)
            media_type, _, coding = url[len("data:") : max(comma, 0)].partition(";")
            if coding != "base64":
                raise UsageError(f"{called} has a data: URL; expected one of {_types()} in base64")
            return cls.in_base64(url[comma + 1 :], media_type, detail, place)
        if not url.startswith(("https://", "http://")):
            raise UsageError(f"{called} has the URL {url[:40]!r}; expected data:, https: or http:")
        if len(url) > MAX_ADDRESS:
            raise UsageError(f"{called} has a URL of {len(url):,} characters; expected {MAX_ADDRESS:,}")
        return cls(url=url, detail=_detail(detail, called), place=place)

    @classmethod
    def in_base64(cls, data: str, media_type: str = "", detail: str = "", place: str = "") -> Image:
        """Return the picture in base64; without a `media_type` its first bytes tell."""
        called = place or "the picture"
        size = _size(data)
        if size > MAX_PICTURE_BYTES:
            raise UsageError(f"{called} has {size:,} bytes; expected at most {MAX_PICTURE_BYTES:,}")
        head = b""
        try:
            for piece in _decoded(data):
                head = head or piece[:_MAX_MAGIC]
        except ValueError:
            raise UsageError(f"{called} is not base64") from None
        media_type = _MISSPELT.get(media_type, media_type) or media_type_of(head)
        if media_type not in MEDIA_TYPES:
            kind = f"of media type {media_type[:40]!r}" if media_type else "of an unknown format"
            pdf = head.startswith(_PDF) or media_type == "application/pdf"
            raise UsageError(f"{called} is {kind}; expected {_types()}", PDF_HINT if pdf else "")
        if not data:
            raise UsageError(f"{called} has no bytes")
        return cls(media_type, data, detail=_detail(detail, called), place=place)

    @classmethod
    def _of(cls, data: bytes, detail: str, place: str) -> Image:
        called = place or "the picture"
        if len(data) > MAX_PICTURE_BYTES:
            raise UsageError(
                f"{called} has more than {MAX_PICTURE_BYTES:,} bytes, the limit of a picture",
                "save it smaller, or as a JPEG",
            )
        if not (media_type := media_type_of(data)):
            raise UsageError(f"{called} is not a PNG, JPEG, GIF, WebP or AVIF picture", _instead(data))
        return cls(media_type, _encoded(data), detail=_detail(detail, called), place=place)

    @property
    def size(self) -> int:
        """The bytes of the picture's file; 0 of an address."""
        return _size(self.data)

    @property
    def as_url(self) -> str:
        """The picture as a data: URL, or its address."""
        return self.url or f"data:{self.media_type};base64,{self.data}"

    def decoded(self) -> bytes:
        """Return the bytes of the picture's file. Raises UsageError for an address, and for text that is not base64."""
        if self.url:
            why = "the picture is an address, and addresses are not fetched"
            raise UsageError(why, "send the picture itself", self.place)
        try:
            return b"".join(_decoded(self.data))
        except ValueError:
            raise UsageError("the picture is not base64", "encode its bytes again", self.place) from None


class Audio(NamedTuple):
    """Audio in a message: the bytes of its file in base64. The format is detected when the file is opened.

    `Audio.open` reads a file, `Audio.of` takes the bytes of one. Both raise UsageError. It is encoded as a tuple, so
    that msgspec can distinguish it from Image.
    """

    data: str = ""
    format: str = ""  # what the sender calls its form: only shown
    place: str = ""  # for errors: its file, or in a request

    def __repr__(self) -> str:
        return f"Audio({self.size:,} bytes)"

    @classmethod
    def open(cls, path: str | Path) -> Audio:
        """Read a file of at most MAX_SOUND_BYTES."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_SOUND_BYTES + 1)
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else e
            raise UsageError(f"{path} cannot be read: {why}", "check the path") from e
        return cls._of(data, str(path))

    @classmethod
    def of(cls, data: bytes) -> Audio:
        """Return the sound whose file has these bytes."""
        return cls._of(data, "")

    @classmethod
    def in_base64(cls, data: str, format: str = "", place: str = "") -> Audio:
        """Return the sound in base64. Raises UsageError for what is not base64, or has too many bytes or none."""
        called = place or "the audio"
        _check_sound(_size(data), called)
        try:
            for _ in _decoded(data):
                pass
        except ValueError:
            raise UsageError(
                f"{called} is not base64", "send the bytes of the file in base64, not a URL"
            ) from None
        return cls(data, format[:_MAX_FORMAT], place)

    @classmethod
    def _of(cls, data: bytes, place: str) -> Audio:
        _check_sound(len(data), place or "the audio")
        return cls(_encoded(data), place=place)

    @property
    def size(self) -> int:
        """The bytes of the sound's file."""
        return _size(self.data)

    def decoded(self) -> bytes:
        """Return the bytes of the sound's file. Raises UsageError for text that is not base64."""
        try:
            return b"".join(_decoded(self.data))
        except ValueError:
            raise UsageError("the audio is not base64", "encode its bytes again", self.place) from None


def _check_sound(size: int, called: str) -> None:
    if not 0 < size <= MAX_SOUND_BYTES:
        bytes_ = f"{size:,} bytes" if size <= MAX_SOUND_BYTES else f"more than {MAX_SOUND_BYTES:,} bytes"
        raise UsageError(
            f"{called} has {bytes_}; expected 1 to {MAX_SOUND_BYTES:,}, the limit for audio",
            "split it, or save it as FLAC or MP3",
        )


def _encoded(data: bytes) -> str:
    """Return bytes in base64, encoded piece by piece."""
    step = _PIECE // 4 * 3
    pieces = (data[at : at + step] for at in range(0, len(data), step))
    return b"".join(binascii.b2a_base64(piece, newline=False) for piece in pieces).decode("ascii")


Part = str | Image | Audio  # of a message


def image_budget(text: str) -> ImageBudget:
    """Read MIN:MAX, how many tokens a picture becomes. Raises UsageError; a tower has limits of its own."""
    least, colon, most = text.partition(":")
    if not colon or not all(part.isascii() and part.isdigit() and len(part) < 8 for part in (least, most)):
        raise UsageError(f"image_tokens is {text[:40]!r}; expected MIN:MAX", "for example 64:1024")
    if not 1 <= int(least) <= int(most):
        raise UsageError(f"image_tokens is {text!r}; expected 1 or more, the smaller count first")
    return int(least), int(most)


_PDF = b"%PDF"
PDF_HINT = "convert its pages to pictures first: pdftoppm -r 144 -png FILE.pdf page"


def _instead(head: bytes) -> str:
    """Return what to do with a file that is not a picture."""
    return PDF_HINT if head.startswith(_PDF) else "save it as PNG or JPEG"


def media_type_of(head: bytes) -> str:
    """Return which of MEDIA_TYPES a file's first 32 bytes begin; "" for none."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    brands = head[8:_MAX_MAGIC] if head[4:8] == b"ftyp" else b""
    return "image/avif" if b"avif" in brands or b"avis" in brands else ""


def _decoded(data: str) -> Iterator[bytes]:
    """Decode base64 piece by piece. Raises ValueError."""
    for at in range(0, len(data), _PIECE):
        text = data[at : at + _PIECE]
        piece = binascii.a2b_base64(text, strict_mode=True)
        whole = _size(text) if at + _PIECE >= len(data) else len(text) // 4 * 3
        if len(text) % 4 or len(piece) != whole:
            raise ValueError("padding that is missing, or not at the end")
        yield piece


def _size(data: str) -> int:
    """Return how many bytes base64 holds, by its length and its padding."""
    return len(data) * 3 // 4 - data[-2:].count("=")


def _detail(detail: str, called: str) -> str:
    if detail and detail not in DETAILS:
        raise UsageError(f"{called} has the detail {detail[:40]!r}; expected {', '.join(DETAILS)}")
    return detail


def _types() -> str:
    return ", ".join(MEDIA_TYPES)


@dataclass(frozen=True, slots=True)
class SignedThinking:
    """A block of an assistant's reasoning as its provider signed it; it goes back unchanged, or not at all."""

    text: str = ""
    signature: str = ""
    redacted: str = ""  # opaque, instead of the other two
    # Its place in its answer, whose text and calls are kept apart from it:
    text_before: int = 0  # characters,
    calls_before: int = 0  # and calls of tools


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `thinking`: the reasoning of an assistant turn, without its tags.

    `parts`: pictures, audio and texts in their order; `content` is then the joined texts. If you set only `parts`,
    `content` is set from them. If `parts` has no text, `content` is appended.
    """

    role: Role
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str = ""  # of a tool's result: the call it answers,
    name: str = ""  # and the tool that was called
    parts: tuple[Part, ...] = ()
    signed: tuple[SignedThinking, ...] = ()  # of an assistant, in order
    cache: CacheTime = ""  # a provider that sells its cache keeps the prompt up to here for so long
    failed: bool = False  # of a tool's result: the tool reports an error

    def __post_init__(self) -> None:
        if not self.parts:
            return
        text = "".join(part for part in self.parts if isinstance(part, str))
        if not self.content:
            object.__setattr__(self, "content", text)
        elif not text:
            object.__setattr__(self, "parts", (*self.parts, self.content))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. A step is off at its neutral value (the default: 0, 1.0 or empty).

    Order: penalties, logit bias, temperature, top-k, typical, top-p, min-p, then one draw.
    `temperature` 0 is greedy. `seed` None: a random seed, which Completion.seed returns.
    """

    temperature: float = option(1.0, "Randomness; 0 always takes the most probable token.", least=0, most=100)
    top_k: int = option(0, "Sample from the K most probable tokens; 0: from all.", least=0)
    top_p: float = option(1.0, "Sample from the most probable tokens whose sum reaches P.", above=0, most=1)
    min_p: float = option(0.0, "Drop tokens below P times the highest probability.", least=0, most=1)
    typical_p: float = option(1.0, "Locally typical sampling with mass P.", name="typical", above=0, most=1)
    repetition_penalty: float = option(1.0, "Divide the logits of repeated tokens.", above=0, most=100)
    presence_penalty: float = option(
        0.0, "Subtract from the logits of repeated tokens.", least=-100, most=100
    )
    frequency_penalty: float = option(0.0, "Subtract from a logit per occurrence.", least=-100, most=100)
    penalty_window: int = 64  # last tokens the penalties look at; 0: the whole sequence
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = option(
        None, "Seed of the sampler; the same seed gives the same answer.", least=0, most=MAX_SEED
    )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability under the model's own softmax (before temperature and filters)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the requested number of alternatives, best first
    token: bytes = b""  # what the token writes; it may be a part of a character
    top_tokens: tuple[bytes, ...] = ()  # the same for each of `top`


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and times (in seconds) of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    drafted_tokens: int = 0  # tokens of drafts that were verified
    accepted_tokens: int = 0  # and those that were accepted, each saving a step
    queue_s: float = 0.0  # until a step first computed a token of it
    resumed_tokens: int = 0  # of the answer, made by a previous engine; prefilled here with the prompt
    preemptions: int = 0  # times it was preempted, and recomputed
    written_tokens: int = 0  # of the prompt: put into a provider's cache for minutes,
    written_hour_tokens: int = 0  # and for an hour, at prices of their own
    thought_tokens: int = 0  # of the completion: reasoning, where the provider counts it
    opening_s: float = 0.0  # that the prompt's pictures took to be opened; 0 where they were remembered
    encoding_s: float = 0.0  # and to be turned into features by the tower
    resumed_on: tuple[int, ...] = ()  # replicas that took the answer over from one that died, in their order

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens computed per second (cached ones excluded)."""
        computed = self.prompt_tokens - self.cached_tokens + self.resumed_tokens
        return computed / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Generated tokens after the first per step: 1.0 without speculation."""
        return self._decoded / max(self._decoded - self.accepted_tokens, 1)

    @property
    def decode_tok_s(self) -> float:
        """Generated tokens per second after the first, which prefill pays for."""
        return self._decoded / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def _decoded(self) -> int:
        return max(self.completion_tokens - self.resumed_tokens - 1, 0)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. `text` and `thinking` contain only complete characters.

    The text of a tool call is never part of `text`.

    The last chunk has `finish_reason` and `usage`, and may have no text. The first one has the number of messages that
    the overflow policy dropped; one of the two has further notes on the prompt.
    """

    text: str = ""
    thinking: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    dropped_messages: int = 0
    tool_calls: tuple[ToolPiece, ...] = ()
    stop: str = ""  # with finish_reason "stop": the stop string that ended the answer, if it was one
    refusal: str = ""  # text with which the model declines, where its provider tells it apart
    warnings: tuple[
        str, ...
    ] = ()  # pictures that are seen smaller than they are, fields that are not honoured
    signed: tuple[SignedThinking, ...] = ()  # blocks of reasoning that this chunk ends


# Receives how many tokens of a prompt are read, and how many there are, before an answer's first token. It is called
# within a step and returns at once.
OnPrefill = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of unit length, and the tokens computed for them."""

    vectors: NDArray[np.float32]  # [texts, width]
    tokens: tuple[int, ...]  # of each text
    cut: tuple[int, ...] = ()  # indices of the texts that were truncated


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int
    thinking: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    dropped_messages: int = 0  # messages an overflow policy removed; never silent
    tool_calls: tuple[ToolCall, ...] = ()
    warnings: tuple[str, ...] = ()  # as of a Chunk


OWN_DRAFTS: dict[str, bool | None] = {"auto": None, "head": True, "none": False}


def draft_source(draft: str | None) -> tuple[str | None, bool | None]:
    """Return the draft model that --draft names, if any, and ModelOptions.head."""
    if draft is None or draft in OWN_DRAFTS:
        return None, OWN_DRAFTS[draft or "auto"]
    return draft, None


class ModelOptions(TypedDict, total=False):
    """How a model is loaded: by `freehold.load`, and by the engine processes of a server."""

    context: int | None  # tokens there is room for; None: the model's own, cut to fit half of the free memory
    threads: int | None  # None: the physical cores this process may use
    kv_type: KvType  # "f16"; "q8": int8 codes in half the memory; "f32": twice the size, rounds nothing
    speculate: bool  # verify drafts where that is faster; the answers are the same
    head: bool | None  # whether the model's own head drafts; None: if it has one and no draft model was named
    allow_paging: bool  # run a model that memory does not hold from its packed file, at the disk's speed
    adapters: Mapping[str, str | Path] | None  # LoRA adapters by name: PEFT folders or GGUF files
    eyes: str | Path  # "lazy": a tower is loaded with the first picture; "eager", "off"; or a tower's file
    image_tokens: ImageBudget | None  # that a picture becomes, least and most; None: the model's own limits


class ServedModelOptions(ModelOptions, total=False):
    """The same for a model that answers many streams: a cache of its own size, and a queue."""

    cache_bytes: int | None  # None: a cache of one context, and no limit to the queue
    disk: Path | None  # folder for cached prefixes that survive a restart
    target_itl_s: float  # seconds between two tokens of a stream that steps aim at
    max_queued: int  # requests that may wait
    max_queued_tokens: int  # and tokens of their prompts


@runtime_checkable
class ChatModel(Protocol):
    """Something that answers chats: the local engine (local), an HTTP API (remote/) or a test script (fake.py)."""

    @property
    def name(self) -> str:
        """The model's name as a user would type it."""
        ...

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        think: bool | None = None,
        overflow: Overflow = "error",
        format: FormatLike = None,
        on_prefill: OnPrefill | None = None,
    ) -> Iterator[Chunk]:
        """Answer `messages` piece by piece. `sampling` None: the model's own defaults.

        `think` None leaves reasoning to the model's template; True or False raises UsageError where the
        model has no such switch. `format`: what the text must be. Raises ContextOverflow when
        the chat is too long and `overflow` is "error".
        """
        ...

    def check_think(self, think: bool | None) -> None:
        """Raise UsageError where the model is known to have no such switch; `stream` raises it otherwise."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the number of prompt tokens of a chat, even if it exceeds the context."""
        ...

    def close(self) -> None:
        """Free what the model holds; later calls raise EngineClosed."""
        ...
