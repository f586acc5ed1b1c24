"""Values that cross rooms: messages, sampling parameters, results, and the ChatModel protocol.

Frozen dataclasses, and the limits of what strangers send in them; no I/O, no arithmetic, no defaults of a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from freehold.errors import UsageError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
Overflow = Literal["error", "drop-oldest"]  # what to do with a chat longer than the context
Priority = Literal["interactive", "batch"]  # whose tokens go first; batch takes what is left
ToolChoice = Literal["auto", "none", "required"]
Turn = Literal["new", "continue", "none"]  # how the prompt of a chat ends; see Job.turn
FormatKind = Literal["json", "json_schema", "regex", "lark", "choice"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask its caller to run. `parameters`: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One use of a tool that an assistant turn asked for."""

    id: str
    name: str
    arguments: str  # the text of a JSON object


@dataclass(frozen=True, slots=True)
class ToolPiece:
    """What a streamed tool call gained: the first piece of a call has id and name, all of them some arguments."""

    index: int  # of the call within the answer
    id: str = ""
    name: str = ""
    arguments: str = ""

    def join(self, calls: list[ToolCall]) -> None:
        """Add it to the calls of its answer, as far as they have come; a call's first piece begins one."""
        if self.index == len(calls):
            calls.append(ToolCall(self.id, self.name, ""))
        call = calls[self.index]
        calls[self.index] = replace(call, arguments=call.arguments + self.arguments)


@dataclass(frozen=True, slots=True)
class Format:
    """What an answer's text must be. Thinking is free of it.

    `source`: a JSON schema as a mapping, a list of texts for a choice, a regular expression, or a Lark grammar; nothing
    for "json", which is any JSON object. The JSON text of a schema or a choice is parsed here, once: UsageError for
    text that is not JSON.
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
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UsageError(f"format: the {what} is not JSON: {e}", field="format") from e


@runtime_checkable
class SchemaClass(Protocol):
    """A class that states its own JSON schema, as pydantic's models do."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """Return the JSON schema of an instance."""
        ...


# What a caller may give for a format: a JSON schema, a pydantic model, "json" for any object, or a Format.
FormatLike = Format | Mapping[str, object] | type[SchemaClass] | Literal["json"] | None


def as_format(given: FormatLike) -> Format | None:
    """Return the format a caller gave. Raises UsageError for a value that is none of the kinds above."""
    if given is None or isinstance(given, Format):
        return given
    if given == "json":
        return Format("json")
    if isinstance(given, type) and callable(getattr(given, "model_json_schema", None)):
        given = _stated_schema(given)
    if not isinstance(given, Mapping):
        raise UsageError(
            f"format is {given!r}",
            'give a JSON schema as a dict, a pydantic model, "json", or a freehold.Format',
        )
    return Format("json_schema", dict(given))


def _stated_schema(given: type[SchemaClass]) -> Mapping[str, object]:
    try:
        return given.model_json_schema()
    except Exception as e:  # the caller's own class: whatever it raises, the format is what failed
        raise UsageError(f"{given.__name__} cannot state its JSON schema: {e}") from e


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `thinking` is the reasoning an assistant turn carried, without its tags."""

    role: Role
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str = ""  # of a tool's result: the call it answers,
    name: str = ""  # and the tool that was called


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. A neutral value (0, 1.0 or empty, as given) switches a step off.

    Order: penalties, logit bias, temperature, top-k, typical, top-p, min-p, then one draw.
    `temperature` 0 is greedy. `seed` None: drawn once at the edge and reported in Completion.seed.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64  # last tokens the penalties look at; 0: the whole sequence
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability under the model's own softmax (before temperature and filters)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the requested number of alternatives, best first
    token: bytes = b""  # what the token writes; a part of a character may stand alone
    top_tokens: tuple[bytes, ...] = ()  # the same for each of `top`


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and seconds of one request; the engine fills it."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    drafted_tokens: int = 0  # guesses that were verified beside ordinary steps
    accepted_tokens: int = 0  # and those that became tokens, each saving a step
    queue_s: float = 0.0  # until a step first took it
    resumed_tokens: int = 0  # of the answer, made by an engine that died: here they were read with the prompt
    preemptions: int = 0  # times it was set aside, and computed again

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens computed per second (cached ones excluded)."""
        read = self.prompt_tokens - self.cached_tokens + self.resumed_tokens
        return read / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Generated tokens after the first per step that made them: 1.0 without speculation."""
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
    """A piece of a streamed answer. `text` and `thinking` hold whole characters, never half of one.

    A tool call's own text is never part of `text`.

    The last chunk carries `finish_reason` and `usage` and may be empty otherwise; the first one says
    how many messages an overflow policy removed.
    """

    text: str = ""
    thinking: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    dropped_messages: int = 0
    tool_calls: tuple[ToolPiece, ...] = ()
    stop: str = ""  # with finish_reason "stop": the stop string that came, if it was one


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


# What one job may hold. The server refuses more in its protocol's words, the engine's side whoever sent it.
MAX_STOPS, MAX_STOP_CHARS = 16, 1024
MAX_LOGPROBS = 20  # alternatives of a token
# Tokens times (1 + alternatives) whose log-probabilities one answer may hold: some 500 bytes of memory each until a
# whole one is sent.
MAX_SCORES = 1 << 20
MAX_BIASES = 1000
MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_TEXTS = 2048  # to be embedded
MAX_FORMAT_CHARS = 1 << 18  # of a schema, a grammar, a regular expression, or of a tool's parameters
MAX_TEMPLATE_CHARS = 1 << 18  # of a request's own; the largest of a released model has some 20,000


@dataclass(frozen=True, slots=True)
class Job:
    """One request to a served model: a chat (`messages`) or a text to continue (`prompt`), never both.

    Crosses the socket between the server and an engine process; the engine's side checks every field.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    suffix: str | None = None  # with a text prompt: fill in the middle, where the model can
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
    tool_choice: ToolChoice = "auto"
    tool_name: str = ""  # with tool_choice "required": this tool and no other
    parallel_tool_calls: bool = True  # False: one call an answer at most
    format: Format | None = None
    adapter: str = ""  # by name, of those the model was opened with
    overflow: Overflow = "error"
    turn: Turn = "new"  # a chat's prompt opens a new answer, leaves its last message open, or does neither
    ignore_eos: bool = False  # go on after the model's own end, to max_tokens: for load generators
    priority: Priority = "interactive"
    tenant: str = ""  # whose fair share it uses, and whose cached prefixes it may see
    timeout_s: float | None = None  # from its arrival to its last token
    resume: tuple[tuple[int, ...], ...] = ()  # per answer, tokens that an engine now dead had sent


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Texts to be embedded, at most MAX_TEXTS; the engine's side checks every field.

    `first`: the number of the first text, as errors name it: a long request is asked for in portions.
    """

    texts: tuple[str | tuple[int, ...], ...]
    pooling: str | None = None  # mean, last, cls; None: the model's own
    truncate: bool = False  # cut what is longer than the context, instead of refusing it
    dimensions: int | None = None  # keep so many numbers, at unit length again
    tenant: str = ""
    priority: Priority = "interactive"
    first: int = 0
    adapter: str = ""  # by name, of those the model was opened with


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings on their way from an engine process: unit vectors, one behind the other."""

    data: bytes  # float32, little-endian
    width: int
    tokens: tuple[int, ...]  # of each text
    cut: tuple[int, ...] = ()  # numbers of the texts that were shortened, as asked


@dataclass(frozen=True, slots=True)
class Begin:
    """What an engine says when it has taken a job in, before anything is computed."""

    context: int  # tokens there is room for
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams  # as it is used, defaults and seed filled in
    max_tokens: int  # most an answer may have, by what was asked and by the context
    dropped_messages: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None  # the first token has none
    warnings: tuple[str, ...] = ()  # what was asked for and is not honoured, and misleads nobody


MAX_ADAPTERS = 64  # beside one model
STEP_ROWS = (1, 8, *(2**i for i in range(4, 15)))  # vLLM's bounds, by which steps are counted
# A name in `base+adapter`: so that nothing else than the plus stands between the two.
ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


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
    can_call: bool = False  # tools can be offered, and its calls are read
    thinking: Literal["none", "switch", "always"] = "none"
    efforts: tuple[str, ...] = ()  # levels of thinking that its template knows
    notes: tuple[str, ...] = ()
    context_note: str = ""  # why the context has this size
    adapters: tuple[AdapterInfo, ...] = ()
    width: int = 0  # of an embedding
    embeds_only: bool = False  # an encoder: it makes no text


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine's state after a step; counters only grow."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    blocks: int = 0
    blocks_live: int = 0  # held by running sequences
    blocks_cached: int = 0  # free for the taking, and worth something while they are not taken
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts that were read to their ends: found in memory or on the disk,
    computed_tokens: int = 0  # and all others
    disk_tokens: int = 0  # taken from the disk
    generated_tokens: int = 0
    rows: int = 0  # computed: of prompts, newest tokens and guesses
    sizes: tuple[int, ...] = ()  # steps by their rows: up to each of STEP_ROWS, and beyond
    drafts: int = 0  # guesses that were verified,
    drafted_tokens: int = 0  # their tokens,
    accepted_tokens: int = 0  # those that held,
    accepted_at: tuple[int, ...] = ()  # and how many held as their guess's first token, second, and so on
    preemptions: int = 0
    expected_wait_s: float = 0.0  # until a request that came now would get its first token
    progress_at: float = 0.0  # time.monotonic() of the engine at its latest step


@runtime_checkable
class ChatModel(Protocol):
    """What can answer a chat: our engine (local), somebody's HTTP API (remote.py), a script (fake.py)."""

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
    ) -> Iterator[Chunk]:
        """Answer `messages` piece by piece. `sampling` None: the model's own defaults.

        `think` None leaves reasoning to the model's template; True or False raises UsageError where the
        model has no such switch. `format`: what the text must be. Raises ContextOverflow when
        the chat is too long and `overflow` is "error".
        """
        ...

    def close(self) -> None:
        """Free what the model holds; later calls raise EngineClosed."""
        ...
