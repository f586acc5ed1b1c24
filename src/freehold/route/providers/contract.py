"""What a provider is, what its wire has to translate, and a request together with the places where it may be.

A wire is pure: jobs to requests, answers to chunks, failures to causes. It sees no connection, and is tested by
recordings; hop.py sends what it makes. Knows no route, no label's meaning and no price.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Generic, Literal, Protocol, TypeVar

from msgspec import Meta

from freehold.base.errors import PolicyRefused, UpstreamFailed
from freehold.base.serving import EmbedJob, Job, SpeechPart, Vectors
from freehold.base.types import Chunk, Usage

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
