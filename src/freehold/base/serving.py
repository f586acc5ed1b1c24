"""The contract of a served model: what a request holds, and what a handle offers.

    ModelDirectory.use(name) -> ModelHandle.start(Job) -> Stream -> (answer, Chunk)
                                ModelHandle.hear(SpeechJob, recording) -> SpeechStream -> SpeechPart
                                ModelHandle.tokenizer -> TokenizerFace, or None where the model runs elsewhere

The HTTP server asks through these protocols; engine processes (worker/), upstream engines and routes implement
them. A wrapper subclasses DelegatingHandle or DelegatingTokenizer, which pass everything on, and overrides what
differs. Types and limits only: no socket, no process, and no tokenizer is assumed to be on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from freehold.base.errors import UnsupportedModel
from freehold.base.types import (
    CacheTime,
    Chunk,
    Format,
    Message,
    Overflow,
    Priority,
    SamplingParams,
    Segment,
    TokenLogprob,
    Tool,
    ToolChoice,
    Turn,
    Usage,
)

# Limits of one job. The server refuses more in its protocol's words; the engine process checks again.
MAX_STOPS, MAX_STOP_CHARS = 16, 1024
MAX_LOGPROBS = 20  # alternatives of a token
# Tokens times (1 + alternatives) whose log-probabilities one answer may hold: some 500 bytes of memory each until a
# whole one is sent.
MAX_SCORES = 1 << 20
MAX_BIASES = 1000
MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_TEXTS = 2048  # of one EmbedJob
MAX_TEMPLATE_CHARS = 1 << 18  # of a request's own; the largest of a released model has some 20,000
MAX_SPEECH_PROMPT = 16 << 10  # characters; a speech model reads the last 223 tokens of it
# What a second of speech counts for where tokens are counted: a speech model's encoder makes 1,500 rows of 30 seconds.
SPEECH_TOKENS = 50
CHUNK_TOKENS = 224  # of text that a chunk of speech becomes, at most
# Conversations of the whole context that the cache of our engine has room for at most, where its bytes are given: eight
# streams at the context's very end, or far more of ordinary length, and what they leave for the next.
FEATURE_BYTES = 256 << 20  # of pictures' features that a seeing model keeps for later prompts, at most
POOL_CONTEXTS = 8
PACKING_TURN_S = (
    300.0  # that an engine of ours waits, and does nothing else, while another one packs the same model
)
STEP_SIZES = (1, 8, *(2**i for i in range(4, 15)))  # vLLM's buckets of tokens per step


@dataclass(frozen=True, slots=True)
class Job:
    """One request to a served model: a chat (`messages`) or a text to continue (`prompt`), never both.

    Crosses the socket between the server and an engine process; the engine process checks every field.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    suffix: str | None = None  # with a text prompt: fill in the middle, where the model can
    # With a suffix: name and text of other files, least relevant first.
    beside: tuple[tuple[str, str], ...] = ()
    n: int = 1  # answers; number i draws with seed + i
    max_tokens: int | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)  # fields of SamplingParams that were given
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None  # alternatives per prompt token; with max_tokens 0: the prompt alone
    think: bool | None = None
    think_tokens: int | None = None  # most tokens of reasoning; then it is closed and the answer begins
    effort: str | None = None  # low, medium, high: for templates that have such a switch
    template: str = ""  # Jinja that renders this chat, instead of the model's own
    tools: tuple[Tool, ...] = ()
    cache_tools: CacheTime = (
        ""  # a provider that sells its cache keeps the tools for so long; see Message.cache
    )
    tool_choice: ToolChoice = "auto"
    tool_name: str = ""  # with tool_choice "required": this tool and no other
    parallel_tool_calls: bool = True  # False: one call an answer at most
    format: Format | None = None
    adapter: str = ""  # by name, of those the model was opened with
    overflow: Overflow = "error"
    turn: Turn = "new"  # a chat's prompt opens a new answer, leaves its last message open, or does neither
    ignore_eos: bool = False  # continue after the model's own end, to max_tokens: for load generators
    priority: Priority = "interactive"
    tenant: str = ""  # whose cached prefixes it may see
    client: str = ""  # whose share of the engine it uses; "": the tenant's
    whole: bool = False  # the client does not stream: a provider may send the answer in one piece
    timeout_s: float | None = None  # from its arrival to its last token
    resume: tuple[tuple[int, ...], ...] = ()  # per answer, the tokens that a previous engine process sent


def snippets(beside: Sequence[tuple[str, str]]) -> str:
    """Return other files as text before a prompt, as llama.cpp writes them for a model without marks of files."""
    return "".join(f"\n\n--- snippet ---\n\n{text}" for _, text in beside)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, as the door knows it. Routes, labels, budgets and the ledger go by it."""

    request_id: str = ""
    answer_id: str = ""  # without a protocol's prefix; "" where a route makes no answer
    key: str = ""  # name of the key; "" without one
    labels: tuple[str, ...] = ()  # that the request itself asked for, unchecked
    door: str = ""  # openai, anthropic, ollama, batch; freehold where a route belongs to none of them


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Texts to be embedded, at most MAX_TEXTS; the engine process checks every field.

    `first`: the number of the first text, as errors name it: a long request is sent in portions.
    """

    texts: tuple[str | tuple[int, ...], ...]
    pooling: str | None = None  # mean, last, cls; None: the model's own
    truncate: bool = False  # cut what is longer than the context, instead of refusing it
    dimensions: int | None = None  # keep this many numbers, at unit length again
    tenant: str = ""
    priority: Priority = "interactive"
    first: int = 0
    client: str = ""  # as a Job's
    adapter: str = ""  # by name, of those the model was opened with


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings on their way from an engine process: concatenated unit vectors."""

    data: bytes  # float32, little-endian
    width: int
    tokens: tuple[int, ...]  # of each text
    cut: tuple[int, ...] = ()  # numbers of the texts that were shortened, as asked


@dataclass(frozen=True, slots=True)
class SpeechJob:
    """A recording to be transcribed, whose bytes come beside it; the engine process checks every field."""

    language: str = ""  # a code; "": that of the first speech
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: str = ""  # names and spellings to expect
    words: bool = False  # each word's times too
    temperature: float | None = None  # None: 0, and hotter where a text fails
    most_s: float = 4 * 3600.0  # seconds that the recording may have
    soon: bool = False  # the first texts as soon as they are there, rather than many together
    times: bool = False  # its segments' times are sent on: a model that has none cannot answer
    tenant: str = ""
    client: str = ""  # as a Job's


@dataclass(frozen=True, slots=True)
class SpeechFacts:
    """What is known of a recording once it is opened, before anything is transcribed."""

    duration_s: float
    speech_s: float  # of it, what is heard as speech
    chunks: int  # of speech that are transcribed apart


@dataclass(frozen=True, slots=True)
class SpeechPart:
    """The texts of some chunks of a recording, in order."""

    segments: tuple[Segment, ...]
    starts: tuple[float, ...]  # seconds at which its chunks begin
    speech_s: float  # of its chunks
    language: str  # of the recording
    model: str = ""  # which model answers, where that is not the one of the request

    @property
    def tokens(self) -> int:
        """How many tokens its texts have."""
        return sum(len(segment.tokens) for segment in self.segments)


class SpeechSource(Protocol):
    """The bytes of a recording, which may be read again from any place."""

    @property
    def size(self) -> int: ...
    async def read(self, at: int, most: int) -> bytes:
        """Return up to `most` bytes from `at` on."""
        ...


class SpeechStream(Protocol):
    """A transcript while it is made: pulled part by part, so that no part is computed for a reader that is gone.

    Raises FreeholdErrors from `__anext__`.
    """

    @property
    def facts(self) -> SpeechFacts: ...
    def __aiter__(self) -> SpeechStream: ...
    async def __anext__(self) -> SpeechPart: ...
    async def aclose(self) -> None:
        """Stop what is unfinished and forget the recording; harmless after the end."""
        ...


class EstimatedCount(int):
    """A number of tokens that was estimated from characters."""


@dataclass(frozen=True, slots=True)
class Begin:
    """What an engine reports when it has accepted a job, before it computes anything."""

    context: int  # tokens there is room for
    prompt_ids: tuple[int, ...]  # empty from an upstream engine that does not report them
    sampling: SamplingParams  # as it is used, defaults and seed filled in
    max_tokens: int  # most an answer may have, by what was asked, by the context and by a key's budget
    dropped_messages: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None  # the first token has none
    warnings: tuple[str, ...] = ()  # what was asked for and is not honoured
    model: str = ""  # which model answers, where that is not the one that was asked for
    engine: str = ""  # "vllm 0.32.0", where it is an engine beyond ours,
    replica: int = 0  # and which of its replicas
    labels: tuple[
        str, ...
    ] = ()  # that hold for the request, whatever set them; what continues its answer has them
    usage: Usage | None = None  # what a provider counted before its first token; None: nothing yet
    weights: str = ""  # ModelInfo.weights of the engine that answers
    budgeted: bool = False  # a key's budget, not the context, has room for fewer tokens than were asked for


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A LoRA adapter beside a loaded model; it answers as `model+name`."""

    name: str
    rank: int  # the greatest of its modules
    modules: int
    memory_bytes: int
    digest: str  # SHA-256 of its files


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is; `ps` and the server show it."""

    name: str
    quantization: str
    context: int
    trained_context: int
    kv_tokens: int  # positions the cache holds, for all streams together
    threads: int
    load_s: float
    memory_bytes: int  # weights, adapters and cache, as they count against the machine
    vocab: int
    can_chat: bool
    can_fill: bool  # suffix
    default_sampling: SamplingParams
    can_see: bool = False  # pictures in messages,
    can_listen: bool = False  # and sounds; can_hear is of recordings that it transcribes
    can_fetch: bool = False  # and their addresses: a provider fetches them, and no engine here does
    can_call: bool = False  # tools can be offered, and its calls are parsed
    thinking: Literal["none", "switch", "always"] = "none"
    efforts: tuple[str, ...] = ()  # levels of thinking that its template knows
    notes: tuple[str, ...] = ()
    context_note: str = ""  # why the context has this size
    adapters: tuple[AdapterInfo, ...] = ()
    width: int = 0  # of an embedding
    embeds_only: bool = False  # an encoder: it makes no text
    can_hear: bool = False  # recordings, which it transcribes; it makes no other text
    languages: tuple[str, ...] = ()  # of speech that it knows, by their codes
    cache_bytes: int = 0  # of memory_bytes: blocks and states; 0: the engine does not say
    weights: str = (
        ""  # digest of its files, or of their sizes and times where none is recorded; empty: not known
    )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine's state after a step; counters only grow."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    blocks: int = 0
    blocks_live: int = 0  # of running sequences,
    blocks_shared: int = 0  # and of those by several of them
    blocks_cached: int = 0  # free to be taken, and worth something while they are not
    states: int = 0  # slots for what recurrent layers keep of a sequence; 0: there are no such layers
    states_live: int = 0  # of running sequences
    states_cached: int = 0  # snapshots for prefixes of later prompts
    state_bytes: int = 0  # of a slot
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of fully prefilled prompts: found in memory or on the disk,
    computed_tokens: int = 0  # and all others
    disk_tokens: int = 0  # loaded from the disk
    generated_tokens: int = 0
    batched_tokens: int = 0  # computed in steps: of prompts, newest tokens and drafts
    step_sizes: tuple[int, ...] = ()  # steps by their tokens: up to each of STEP_SIZES, and beyond
    drafts: int = 0  # drafts that were verified,
    drafted_tokens: int = 0  # their tokens,
    accepted_tokens: int = 0  # those that were accepted,
    accepted_at: tuple[int, ...] = ()  # and how many of these were first in their draft, second, and so on
    preemptions: int = 0
    images_encoded: int = 0  # pictures that a tower turned into features,
    image_hits: int = 0  # those whose features were in memory,
    image_disk_hits: int = 0  # and on the disk
    image_bytes: int = 0  # of features in memory
    sounds_encoded: int = 0  # sounds that a tower turned into features,
    sound_hits: int = 0  # and those whose features were in memory
    expected_wait_s: float = 0.0  # until a request that came now would get its first token
    progress_at: float = 0.0  # time.monotonic() of the engine at its latest step


# --- one model ---------------------------------------------------------------------------------------


class Stream(Protocol):
    """The answers of one job while they are made; it ends after the last answer's chunk with `finish_reason`.

    Raises FreeholdErrors from `__anext__`. The buffer is bounded: a reader that falls too far behind
    loses its stream, with an error.
    """

    @property
    def begin(self) -> Begin: ...
    @property
    def more(self) -> bool:
        """Return whether the next chunk has arrived, so that `__anext__` does not wait."""
        ...

    def __aiter__(self) -> Stream: ...
    async def __anext__(self) -> tuple[int, Chunk]:
        """Return (number of the answer, its next chunk)."""
        ...

    async def aclose(self) -> None:
        """Cancel what is unfinished; harmless after the end."""
        ...


def prefill_of(stream: Stream | None) -> tuple[int, int] | None:
    """Return how many tokens of a stream's prompt are read, and how many there are.

    None once an answer has begun, and of streams that do not report it: those of upstream engines and providers.
    """
    return getattr(stream, "prefill", None)


class TokenizerFace(Protocol):
    """A served model's tokenizer and chat template. `client`: as a Job's."""

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]: ...
    async def detokenize(self, ids: Sequence[int], client: str = "") -> str: ...
    async def token_texts(self, ids: Sequence[int]) -> list[bytes]: ...
    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        """Return the prompt's ids of a chat."""
        ...

    async def template(self) -> dict[str, Any]:
        """Return what /tokenizer_info shows: chat_template, bos_token, eos_token and so on."""
        ...


class ModelHandle(Protocol):
    """One model that answers jobs."""

    @property
    def name(self) -> str: ...
    @property
    def info(self) -> ModelInfo: ...
    @property
    def stats(self) -> EngineStats: ...
    @property
    def tokenizer(self) -> TokenizerFace | None:
        """Return the model's tokenizer, or None where the engine offers none."""
        ...

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        """Submit a job; return once the engine has accepted it. Cancelled while it waits, it drops the job.

        `keep_alive`: seconds the model stays in memory after its last job; negative: for ever; None: as set.
        """
        ...

    async def count(self, job: Job) -> int:
        """Return how many tokens a job's prompt has, also where there is no room for them.

        An EstimatedCount where neither this machine nor a provider counts them.
        """
        ...

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        """Return unit vectors of texts; errors name a text by its number from 0.

        `computed` is called with numbers of tokens as they are computed, so that a cancelled call can be billed.
        """
        ...

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> SpeechStream:
        """Open a recording; return once it is known how long it is. `recording` is read until the stream is closed.

        Raises UnsupportedModel where the model reads text, UsageError for a recording that is not read or too long.
        """
        ...


def tokenizer_of(handle: ModelHandle) -> TokenizerFace:
    """Return a handle's tokenizer. Raises UnsupportedModel where it offers none."""
    if handle.tokenizer is None:
        raise UnsupportedModel(
            f"the engine of {handle.name} offers no tokenizer", "ask a model that this machine runs"
        )
    return handle.tokenizer


def reads_text(name: str) -> UnsupportedModel:
    """Return the refusal of a recording by a model that does not hear."""
    return UnsupportedModel(
        f"{name} cannot transcribe recordings",
        "use a speech model, such as Whisper: GET /v1/models lists those in memory with the capability transcription",
    )


def hears_alone(name: str) -> UnsupportedModel:
    """Return the refusal of text by a model that only transcribes."""
    return UnsupportedModel(
        f"{name} only transcribes recordings",
        "POST /v1/audio/transcriptions takes a recording; GET /v1/models lists other models",
    )


# --- all models of a server --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that can be asked for by name, loaded or not."""

    name: str
    bytes: int
    modified: float = 0.0  # seconds since 1970, when it came into the store; 0: unknown
    digest: str = ""  # sha256 of its file, of its files' digests, or of its record; "": not computed
    parent: str = ""  # of an adapter's name `base+adapter`: the base; "" for a model
    places: tuple[str, ...] = ()  # where a gateway's name may be answered; empty: on this machine


@dataclass(frozen=True, slots=True)
class PastDeath:
    """An engine process that ended by itself."""

    at: float  # time.time()
    cause: str


@dataclass(frozen=True, slots=True)
class LoadedInfo:
    """A model that an engine holds, or will hold again once it is restarted."""

    name: str
    info: ModelInfo
    stats: EngineStats
    expires_at: float | None  # time.time() of its unloading when idle; None: never, or not while it is busy
    in_flight: int
    restarts: int = 0
    slow_readers: int = 0
    pid: int = 0  # of the engine process; 0: none on this machine
    deaths: tuple[PastDeath, ...] = ()  # the latest ones of this model's engines


@dataclass(frozen=True, slots=True)
class CounterTable:
    """A count by labels, for the metrics. Labels hold names of the configuration, never one that a client gave."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    gauge: bool = False  # it may shrink


class ModelDirectory(Protocol):
    """Models by name: all of a server, those in a key's scope, or those as one request sees them."""

    async def names(self) -> Sequence[StoredModel]: ...
    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        """Return a model, loading it if need be; ModelNotFound, CapacityExceeded and others say why not."""
        ...

    async def name_of(self, name: str) -> str:
        """Return the name under which a model is loaded when `name` is asked for; raise ModelNotFound."""
        ...

    async def stamp_of(self, name: str) -> str:
        """Return what is the same for as long as a model's files are; "" where they are not on this machine."""
        ...

    def loaded(self) -> Sequence[LoadedInfo]: ...


class ModelManager(ModelDirectory, Protocol):
    """Every model of a server, and what only its owner may do with them."""

    def asked_by(self, origin: Origin) -> ModelDirectory:
        """Return the models as one request sees them. The server's own use, such as preloading, has no origin."""
        ...

    def counters(self) -> Sequence[CounterTable]:
        """Return what is counted besides the engines' own numbers."""
        ...

    def loading(self) -> Mapping[str, tuple[int, int]]:
        """Return (bytes done, bytes in all) of each model that is being loaded."""
        ...

    async def unload(self, name: str) -> None: ...
    async def retire(self, name: str) -> None:
        """Unload the engine of this very name, which its record no longer describes: once its requests have ended."""
        ...

    async def add_adapter(self, name: str, adapter: str, path: Path) -> None:
        """Put an adapter beside a model, loaded or not."""
        ...

    async def remove_adapter(self, name: str, adapter: str) -> None: ...
    async def close(self, drain_s: float) -> None: ...


# --- wrappers that pass everything on --------------------------------------------------------------


class DelegatingHandle:
    """A ModelHandle that passes everything on to another."""

    def __init__(self, handle: ModelHandle) -> None:
        self.handle = handle

    @property
    def name(self) -> str:
        return self.handle.name

    @property
    def info(self) -> ModelInfo:
        return self.handle.info

    @property
    def stats(self) -> EngineStats:
        return self.handle.stats

    @property
    def tokenizer(self) -> TokenizerFace | None:
        return self.handle.tokenizer

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        return await self.handle.start(job, keep_alive)

    async def count(self, job: Job) -> int:
        return await self.handle.count(job)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        return await self.handle.embed(job, keep_alive, computed)

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> SpeechStream:
        return await self.handle.hear(job, recording, keep_alive)


class DelegatingTokenizer:
    """A TokenizerFace that passes everything on to another."""

    def __init__(self, tokenizer: TokenizerFace) -> None:
        self.inner = tokenizer

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        return await self.inner.tokenize(text, special, client)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        return await self.inner.detokenize(ids, client)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        return await self.inner.token_texts(ids)

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        return await self.inner.render(messages, think, turn, client)

    async def template(self) -> dict[str, Any]:
        return await self.inner.template()
