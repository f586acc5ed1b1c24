"""Values that cross rooms: messages, sampling parameters, results, and the ChatModel protocol.

Frozen dataclasses only; no I/O, no arithmetic, no defaults that belong to a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "cancelled"]
Overflow = Literal["error", "drop-oldest"]  # what to do with a chat longer than the context


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `thinking` is the reasoning an assistant turn carried, without its tags."""

    role: Role
    content: str
    thinking: str = ""


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

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens computed per second (cached ones excluded)."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Generated tokens after the first per step that made them: 1.0 without speculation."""
        after = max(self.completion_tokens - 1, 0)
        return after / max(after - self.accepted_tokens, 1)

    @property
    def decode_tok_s(self) -> float:
        """Generated tokens per second after the first, which prefill pays for."""
        return max(self.completion_tokens - 1, 0) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. `text` and `thinking` hold whole characters, never half of one.

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


@runtime_checkable
class ChatModel(Protocol):
    """What can answer a chat: our engine (local.py), somebody's HTTP API (remote.py), a script (fake.py)."""

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
    ) -> Iterator[Chunk]:
        """Answer `messages` piece by piece. `sampling` None: the model's own defaults.

        `think` None leaves reasoning to the model's template; True or False raises UsageError where the
        model has no such switch. Raises ContextOverflow when the chat is too long and `overflow` is "error".
        """
        ...

    def close(self) -> None:
        """Free what the model holds; later calls raise EngineClosed."""
        ...
