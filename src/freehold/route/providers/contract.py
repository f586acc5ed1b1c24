"""What a provider is, what its wire has to translate, and a request together with the places where it may be.

A wire is pure: jobs to requests, answers to chunks, failures to causes. It sees no connection, and is tested by
recordings; hop.py sends what it makes. Knows no route, no label's meaning, no price and no wire's field.

What a job asks for and a provider's API may lack is refused before anything is sent, or named in a warning. Refused is
what would make another answer than the one asked for; a warning stands for what only shapes how tokens are drawn, which
no provider promises. Nothing is left out in silence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NoReturn, Protocol, TypeVar

import msgspec
from msgspec import Meta

from freehold.base.errors import PolicyRefused, UnsupportedModel, UpstreamFailed, UsageError
from freehold.base.serving import EmbedJob, Job, SpeechPart, Vectors
from freehold.base.types import Audio, Chunk, Image, Message, SamplingParams, ToolCall, Usage

Kind = Literal["openai", "anthropic", "gemini", "mistral", "deepseek", "openai-compatible"]
# Why an attempt failed, which decides what is tried next: `request` is the caller's own fault and is never sent
# elsewhere; `context` goes to a larger window; the others go to the next target.
Cause = Literal[
    "request",  # 400, 404, 413, 422: the same anywhere
    "context",  # the prompt is too long for this model
    "auth",  # 401, 403: our key, which the caller cannot mend
    "rate",  # 429, 529
    "server",  # 5xx
    "redirect",  # 3xx: never followed
    "connect",  # no connection, or it was reset before an answer
    "timeout",  # the first token, or the whole answer, took too long
    "broken",  # the stream ended without its end event, or was cut
    "invalid",  # not what the wire says: HTML, bad UTF-8, wrong JSON
    "resting",  # nothing was sent: the target failed before, and is left alone for a while
]


ModelTokens = Annotated[int, Meta(ge=1, le=100_000_000)]  # what gateway.toml may say of a model


@dataclass(frozen=True, slots=True)
class Secret:
    """A provider's key. It is shown nowhere: repr, str and every error print three asterisks."""

    value: str = field(repr=False)

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True, slots=True)
class Provider:
    """Where rented or distant models answer. `name` is the place that labels speak of."""

    name: str
    kind: Kind
    url: str  # of its API, without a trailing slash, such as https://host/v1
    key: Secret | None = None
    owned: bool = False  # a machine of the house: private requests may go there
    proxy: str = ""  # no other proxy is used, whatever the environment says
    connections: Annotated[int, Meta(ge=1, le=10_000)] = 256  # open at a time
    socket: Path | None = None  # it listens here, not at the url's host, which is then only a name
    connect_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a remote model can do; a job that needs more is refused before it is sent, or warned of."""

    images: bool = True
    tools: bool = True
    json_schema: bool = True
    thinking: bool = True
    logprobs: bool = False
    several: bool = False  # n > 1
    seed: bool = False
    embeddings: bool = True
    transcription: bool = False  # it transcribes recordings, and answers no text


@dataclass(frozen=True, slots=True)
class KindFacts:
    """What is known of every provider of a kind; "" for what differs from one to another."""

    wire: str  # its module in providers/, and its class
    url: str = ""  # of its API
    seller: str = ""  # its name in the table of prices
    terms: str = ""  # of its services, by their id in the catalogue of licences
    abilities: Abilities = Abilities()  # of its usual models; a model's own table changes them


NO_KIND = KindFacts("")
KINDS: Mapping[str, KindFacts] = {
    "openai": KindFacts(
        "openai.wire.OpenAIWire",
        "https://api.openai.com/v1",
        "openai",
        "LicenseRef-openai-services",
        Abilities(logprobs=True, several=True, seed=True),
    ),
    "anthropic": KindFacts(
        "anthropic.wire.AnthropicWire",
        "https://api.anthropic.com/v1",
        "anthropic",
        "LicenseRef-anthropic-commercial",
        Abilities(embeddings=False),
    ),
    "gemini": KindFacts(
        "gemini.wire.GeminiWire",
        "https://generativelanguage.googleapis.com/v1beta",
        "google",
        "LicenseRef-google-gemini-api",
        Abilities(several=True, seed=True),
    ),
    "mistral": KindFacts(
        "mistral.MistralWire",
        "https://api.mistral.ai/v1",
        "mistral",
        "LicenseRef-mistral-services",
        Abilities(several=True, seed=True),
    ),
    "deepseek": KindFacts(
        "deepseek.DeepSeekWire",
        "https://api.deepseek.com",
        "deepseek",
        "LicenseRef-deepseek-open-platform",
        Abilities(images=False, json_schema=False, logprobs=True, embeddings=False),
    ),
    "openai-compatible": KindFacts(
        "compatible.CompatibleWire", abilities=Abilities(logprobs=True, several=True, seed=True)
    ),
}


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model at a provider."""

    provider: Provider
    model: str  # as the provider calls it
    context: ModelTokens = 0  # 0: unknown
    max_output: ModelTokens = 0  # 0: unknown
    abilities: Abilities = Abilities()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request on a provider's wire; the key is added by hop.py, as `Wire.authorized` says."""

    path: str  # after the provider's url
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what was asked for and this provider cannot do
    upload: SpeechUpload | None = field(default=None, repr=False)  # in the place of `body`


@dataclass(frozen=True, slots=True)
class SpeechUpload:
    """A body that is read while it is sent: a recording is never whole in memory."""

    size: int  # bytes
    pieces: Callable[[], AsyncIterator[bytes]]  # from the beginning, each time it is called


@dataclass(frozen=True, slots=True)
class SoundUsage:
    """What a provider counted of a recording. Seconds where it bills by them, tokens where it bills by those."""

    seconds: float = 0.0
    audio: int = 0  # tokens of the sound,
    text: int = 0  # of the prompt,
    output: int = 0  # and of the text that it wrote


@dataclass(frozen=True, slots=True)
class RentedTranscript:
    """A recording's text as a provider sent it. `used` None: it counted nothing."""

    part: SpeechPart
    used: SoundUsage | None


class UpstreamFault(UpstreamFailed):
    """An attempt at a provider that failed. `retry_after_s`: what the provider asked for; None: nothing.

    The message never holds a key: Wire.fault and hop.py pass it through `cleaned`. `reported`: what the provider
    counted before it failed; None: nothing.
    """

    def __init__(
        self,
        cause: Cause,
        message: str,
        hint: str = "",
        *,
        status: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.cause: Cause = cause
        self.status, self.retry_after_s = status, retry_after_s
        self.reported: Usage | None = None


Piece = tuple[int, Chunk]  # number of the answer, its next chunk


class EventReader(ABC):
    """Reads one stream's events."""

    def __init__(self) -> None:
        self.answer_id = ""  # the provider's, once it has come
        self.ended = False  # the wire's own end event has come: a stream without it was broken off
        # What was not as the wire says, in an answer that is whole all the same.
        self.oddities: list[str] = []

    @abstractmethod
    def push(self, event: str, data: bytes) -> Sequence[Piece]:
        """Return what one server-sent event adds. Raises UpstreamFault for an error event or for nonsense."""

    @abstractmethod
    def _counts(self) -> Usage | None:
        """Return the counts so far. Raises UpstreamFault for numbers that cannot be counts."""

    @property
    def reported(self) -> Usage | None:
        """Return what the provider has counted so far; None: nothing yet, or nothing that can be a count."""
        with suppress(UpstreamFault):  # the answer's end raises it
            return self._counts()
        return None

    def closed(self) -> Sequence[Piece]:
        """Return what the end of the body adds, where the wire's own end event is missing and the answer is whole.

        Raises UpstreamFault where it was broken off: on most wires the end event alone says that it is whole.
        """
        raise UpstreamFault("broken", "the stream ended before its answer did", status=200)


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """A whole answer: for each of `n` its chunk or chunks, the last with finish_reason and usage."""

    answer_id: str
    pieces: tuple[Piece, ...]
    oddities: tuple[str, ...] = ()  # as a reader's


class Wire(Protocol):
    """One provider's wire."""

    def authorized(self, key: Secret) -> Mapping[str, str]:
        """Return the headers that carry the key."""
        ...

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        """Translate a job. Raises UsageError or UnsupportedModel for what the provider cannot do and must not drop."""
        ...

    def reader(self, job: Job) -> EventReader:
        """Return a reader of one stream."""
        ...

    def whole(self, body: bytes, job: Job) -> WholeAnswer:
        """Read an answer that did not stream. Raises UpstreamFault for anything else than an answer of this wire."""
        ...

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamFault:
        """Describe an answer that is not 200."""
        ...

    def embed(self, model: RemoteModel, job: EmbedJob) -> Outgoing:
        """Translate texts to be embedded. Raises UsageError or UnsupportedModel."""
        ...

    def vectors(self, body: bytes, job: EmbedJob) -> Vectors:
        """Read one vector a text, at unit length. Raises UpstreamFault for anything else."""
        ...

    def count(self, model: RemoteModel, job: Job) -> Outgoing | None:
        """Return the request that counts a prompt's tokens; None where the provider has no such door."""
        ...

    def counted(self, body: bytes) -> int: ...


# --- a request together with the places where it may be: what a connection is opened for ------------
# The set is computed once (router/labels.py) and can only shrink. hop.py, the one file that opens a
# connection to a provider, takes nothing else and checks it again, so that fallback, retry, escalation,
# shadow, embeddings and counts cannot send a request where its labels do not let it.

HOUSE = "this machine"  # the place of our own engines; every request may be there
W = TypeVar("W")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class SetLabel:
    """A label of a request and what set it: `key alice`, `header`, `route chat`, `pii: card number`, `classifier`."""

    name: str
    by: str


@dataclass(frozen=True, slots=True)
class Cleared(Generic[W]):
    """`work` (a Job, an EmbedJob, texts) and the names of the places where it may be."""

    work: W
    places: frozenset[str]
    labels: tuple[SetLabel, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels' names, each once, sorted."""
        return tuple(sorted({label.name for label in self.labels}))

    def check(self, place: str) -> None:
        """Raise PolicyRefused unless the request may be at `place`."""
        if place not in self.places:
            names = ", ".join(self.label_names) or "its route"
            raise PolicyRefused(f"a request labelled {names} may not go to {place}")

    def only(self, places: Iterable[str]) -> Cleared[W]:
        """Return the same request, allowed in those of its places that are among `places`."""
        return replace(self, places=self.places & frozenset(places))

    def with_work(self, work: V) -> Cleared[V]:
        """Return other work made from the same text, allowed in the same places."""
        return Cleared(work, self.places, self.labels)


# --- what an API may lack --------------------------------------------------------------------------

# All of it asks for nothing but the temperature, whose default each model has by itself.
_NEUTRAL = SamplingParams()
NEVER_DROPS = "overflow: a chat longer than the context is refused; only our own engine drops messages"


class Demands:
    """The demands of one job on one remote model, and the warnings that its answer will carry."""

    def __init__(self, model: RemoteModel, job: Job) -> None:
        self.model, self.job = model, job
        self._warnings: dict[str, None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings, each once."""
        return tuple(self._warnings)

    def warn(self, text: str) -> None:
        """Add a warning."""
        self._warnings[text] = None

    def lacks(self, what: str, hint: str = "") -> NoReturn:
        """Refuse the job: this model cannot do `what`."""
        raise cannot(self.model, what, hint)

    def chat(self, formats: Collection[str]) -> tuple[Message, ...]:
        """Return the chat of a job that this model can take; `formats`: kinds of Format that its API knows."""
        job, can = self.job, self.model.abilities
        if job.messages is None:
            self.lacks("supports neither text completion nor fill-in-the-middle", "send a chat")
        for wanted, why in (*self.beyond_abilities(), *self.beyond_dialect()):
            if wanted:
                self.lacks(why)
        self._check_format(formats)
        if not can.images and any(isinstance(part, Image) for m in job.messages for part in m.parts):
            self.lacks("cannot read pictures")
        if any(isinstance(part, Audio) for m in job.messages for part in m.parts):
            self.lacks(
                "cannot receive audio: Freehold sends audio in chats only to local models",
                "use a local model that accepts audio, or transcribe it first: POST /v1/audio/transcriptions",
            )
        if job.overflow == "drop-oldest":
            self.warn(NEVER_DROPS)
        return job.messages

    def beyond_abilities(self) -> Sequence[tuple[bool, str]]:
        """Return what the model's abilities leave out of chats: (whether it is asked for, why it cannot be)."""
        job, can = self.job, self.model.abilities
        return (
            (job.logprobs is not None and not can.logprobs, "returns no log-probabilities"),
            (job.n > 1 and not can.several, f"returns one answer per request, not {job.n}"),
            (bool(job.tools) and not can.tools, "does not support tools"),
        )

    def beyond_dialect(self) -> Sequence[tuple[bool, str]]:
        """Return the same of what providers' APIs have no field for."""
        job = self.job
        biased = bool(job.sampling.get("logit_bias"))
        return (
            (bool(job.template), "uses its own chat template"),
            (bool(job.adapter), "has no adapters"),
            (job.ignore_eos, "decides itself when an answer ends: ignore_eos is not possible"),
            (job.prompt_logprobs is not None, "returns no log-probabilities for prompts"),
            (biased, "has its own vocabulary: logit_bias cannot be translated"),
            (job.turn == "none", "always adds an answer: a prompt without an assistant turn is not possible"),
        )

    def _check_format(self, formats: Collection[str]) -> None:
        format = self.job.format
        if format is None:
            return
        schema_unknown = format.kind == "json_schema" and not self.model.abilities.json_schema
        if format.kind not in formats or schema_unknown:
            known = ", ".join(sorted(formats)) or "none"
            self.lacks(f"cannot constrain an answer to a format of kind {format.kind}", f"it knows: {known}")

    def sampling(self, known: Mapping[str, str]) -> dict[str, Any]:
        """Return the sampling parameters that were given, under the wire's names; warn of those it does not know."""
        sampling: dict[str, Any] = {}
        for name, value in self.job.sampling.items():
            if value is None or name in ("logit_bias", "penalty_window"):
                continue
            if name != "temperature" and value == getattr(_NEUTRAL, name):
                continue
            if name in known:
                sampling[known[name]] = value
            else:
                self.unused(name)
        return sampling

    @property
    def thinks(self) -> bool:
        """Whether thinking is asked for: by itself, by a budget, or by an effort."""
        job = self.job
        return bool(job.think or job.think_tokens or (job.effort and job.think is None))

    def no_pictures(self, message: Message, where: str) -> None:
        """Refuse a message with a picture."""
        if any(isinstance(part, Image) for part in message.parts):
            self.lacks(f"does not accept pictures in {where}")

    def check_media(self, image: Image, known: Sequence[str]) -> None:
        """Refuse bytes of a picture that the API cannot read."""
        if image.media_type not in known:
            self.lacks("cannot read pictures of this type", f"it reads: {', '.join(known)}")

    def loose(self, keywords: Collection[str]) -> None:
        """Warn of keywords of the format's schema that the API does not enforce."""
        if keywords:
            names = ", ".join(sorted(keywords))
            name = self.model.model
            self.warn(f"{name} does not enforce {names} of the schema; the model reads them as text")

    def unused(self, name: str, why: str = "") -> None:
        """Warn that a parameter was left out."""
        self.warn(f"{name} was left out: {why or f'{self.model.model} does not take it'}")

    def sells_no_cache(self) -> None:
        """Warn of breakpoints of a cache, where the API has no field for them."""
        if self.job.cache_tools or any(message.cache for message in self.job.messages or ()):
            self.unused("cache", f"what {self.model.model} caches is the provider's choice")

    def max_tokens(self, unknown: int) -> int:
        """Return how many tokens an answer may have, where the API insists on a number."""
        max_tokens, most = self.job.max_tokens, self.model.max_output
        if max_tokens is None:
            filled = most or unknown
            self.warn(f"max_tokens was not given; {self.model.model} was asked for at most {filled:,} tokens")
            return filled
        if most and max_tokens > most:
            self.warn(f"max_tokens is {max_tokens:,}; {self.model.model} makes at most {most:,} tokens")
            return most
        return max_tokens


def cannot(model: RemoteModel, what: str, hint: str = "") -> UnsupportedModel:
    """Return the error of a job that asks a model for what it cannot do."""
    return UnsupportedModel(f"{model.model} at {model.provider.name} {what}", hint)


def reminder(text: str) -> str:
    """Return a system message from within a chat as a part of the user's turn."""
    return f"<system-reminder>\n{text}\n</system-reminder>"


def described(schema: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    """Return a schema's description with keywords that the API does not know: the model may follow them there."""
    limits = ", ".join(f"{name}: {value}" for name, value in left.items())
    return "\n".join(filter(None, (str(schema.get("description") or ""), f"({limits})")))


def object_text(call: ToolCall) -> msgspec.Raw:
    """Return a call's arguments as they are, for a field that must be an object.

    Raises UsageError, whose message the ledger keeps as a reason: it has nothing of the request.
    """
    text = (call.arguments or "{}").encode()
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        raise UsageError("the arguments of a tool call are not a JSON object", field="messages") from None
    return msgspec.Raw(text)


def texts_of(job: EmbedJob) -> Sequence[str]:
    """Return the texts of an embedding job; token ids are another vocabulary's. Raises UsageError."""
    texts = [text for text in job.texts if isinstance(text, str)]
    if len(texts) < len(job.texts):
        raise UsageError(
            "texts given as token ids cannot be sent to a provider", "give them as text", field="input"
        )
    return texts
