"""A request, the sequence that answers it, and the chunk of it that a step computes.

Knows token ids, counts and what is still to be computed; knows no text, no weights, no lock.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import FreeholdError
from freehold.base.types import FinishReason, Priority, SamplingParams, Usage
from freehold.run.engine.constrain.rules import TokenMatcher, TokenRules
from freehold.run.engine.pictures import PromptPictures
from freehold.run.models.lora import Adapter

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenOut:
    """One generated token. The last of an answer carries `finish_reason`; a stop token is a token too."""

    id: int
    logprob: float | None = None  # under the model's own softmax; None when not asked for
    top: tuple[tuple[int, float], ...] = ()  # the likeliest alternatives, best first
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the engine; every field has been checked (requests.py)."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    max_tokens: int  # at least 1; never beyond the context's end
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None  # alternatives a token; None: no log-probabilities at all
    # Receives all logits, float32 [rows, V] in order; then nothing is sampled. Runs within a step.
    sink: Callable[[F32], None] | None = None
    hidden: bool = False  # the sink receives the last hidden states instead, float32 [rows, width]
    priority: Priority = "interactive"
    tenant: str = ""  # whose cached prefixes it may see
    client: str = ""  # whose share of queue, slots, steps and blocks it uses
    answers: int = 1  # to its prompt, which enter together and take a place in the queue each
    deadline: float | None = None  # on the engine's clock, to the last token
    admitted: bool = (
        False  # it continues a request that was admitted before, so no limit of the queue applies
    )
    constraint: TokenRules | None = None  # what its text must be
    adapter: Adapter | None = None  # computed with all of its tokens
    pictures: PromptPictures | None = None  # of the prompt

    @property
    def salt(self) -> str:
        """What cached prefixes are shared within: a tenant's, computed with one adapter. A digest has no bar in it."""
        return f"{self.adapter.digest if self.adapter else ''}|{self.tenant}"

    @property
    def portable(self) -> int:
        """How many tokens another engine can know again."""
        return sys.maxsize if self.pictures is None else self.pictures.portable

    @property
    def all_logits(self) -> bool:
        """Whether the logits of every token are requested, of which a step returns few."""
        return self.sink is not None and not self.hidden


@dataclass(slots=True, eq=False)
class Sequence:
    """A running request: its tokens, and the state that parts of the engine keep for it."""

    # Set when it is made (requests.py).
    request: Request
    tokens: list[int]  # the prompt, what an engine that died had made of the answer, and what was made here
    parent: Sequence | None = None  # whose prompt it shares: it is computed once and forked
    resumed: int = 0  # of `tokens`, what the dead engine had made: computed with the prompt
    matcher: TokenMatcher | None = None  # of the request's constraint, at the end of `tokens`

    # Written by the cache (BlockManager); of a draft model's shadows also by DraftModel.
    block_table: list[int] = field(default_factory=list)  # blocks, in order of position
    num_computed_tokens: int = 0  # leading tokens whose keys and values are in the cache
    num_cached_tokens: int = 0  # of the prompt, taken over from other sequences (of a fork: by the scheduler)

    # Written by the emitter; `pending` is emptied by the reader (Generation).
    pending: deque[TokenOut] = field(default_factory=deque)  # made and not yet taken
    pending_since: float = 0.0  # when the first of `pending` was made
    reason: FinishReason | None = None
    delivered: int = 0  # rows that the sink received; after a preemption they are computed again
    prefill_s: float = 0.0
    decode_s: float = 0.0

    # Written by the engine, `done` last.
    error: FreeholdError | None = None
    done: bool = False

    # Written by the scheduler and its parts (schedule/); times are on the engine's clock.
    number: int = 0  # in order of arrival, from 1
    turn: float = 0.0  # its client's service when it is due: the order where blocks are scarce
    expected_s: float = 0.0  # what it would take by itself
    arrived_at: float = 0.0
    queue_s: float = 0.0  # from its arrival until it first had blocks
    scheduled_at: float = 0.0  # when a step last computed for it
    choice_s: float = 0.0  # what choosing its latest token took, without its grammar
    prefilled: bool = False  # its whole prompt was computed once
    preempted: int = 0  # times
    loading: bool = False  # it holds some of the blocks that the disk has of it
    retry_above: int = -1  # after it found no room: admission is tried again once more blocks are free,
    retry_at: float = 0.0  # or from this time on
    known_tokens: int = 0  # of its beginning, in the cache when it came: an estimate until it has blocks
    prefix_provider: Sequence | None = None  # computes what this one begins with, so this one waits
    shared_until: int = 0  # until the provider has computed this many tokens
    awaited_until: int = 0  # tokens that another sequence waits for

    # Written by speculation.
    num_draft_tokens: int = 0  # verified
    num_accepted_tokens: int = 0  # of those

    @property
    def generated(self) -> int:
        """Tokens made so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def left(self) -> int:
        """Tokens it may still make."""
        return self.request.max_tokens - self.generated

    @property
    def ready(self) -> bool:
        """Tell whether the next step may compute for it: a token that its reader did not take yet holds it back."""
        return not self.done and not self.pending

    @property
    def usage(self) -> Usage:
        """Counts and seconds so far; a token counts once its reader took it."""
        return Usage(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self.generated - len(self.pending),
            cached_tokens=self.num_cached_tokens,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            drafted_tokens=self.num_draft_tokens,
            accepted_tokens=self.num_accepted_tokens,
            queue_s=self.queue_s,
            resumed_tokens=self.resumed,
            preemptions=self.preempted,
        )


# --- what a step computes for one sequence ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens first .. first + count - 1 of a sequence, and draft tokens after them."""

    seq: Sequence
    first: int
    count: int
    draft: tuple[int, ...] = ()  # for the places after the sequence's newest token, to be verified

    @property
    def num_tokens(self) -> int:
        """Tokens computed, the draft included."""
        return self.count + len(self.draft)

    @property
    def tokens(self) -> list[int]:
        """The ids of those tokens."""
        return [*self.seq.tokens[self.first : self.first + self.count], *self.draft]

    @property
    def decodes(self) -> bool:
        """Tell whether this is a running answer's newest token alone."""
        return self.count == 1 and self.last and self.seq.request.sink is None

    @property
    def last(self) -> bool:
        """Tell whether the chunk ends at the newest token, so that the next can be chosen."""
        return self.first + self.count == len(self.seq.tokens)

    @property
    def logit_rows(self) -> range:
        """Rows of the chunk whose logits are requested, counted from its first."""
        if self.seq.request.sink is not None:
            return range(self.count)
        return range(self.count - 1, self.num_tokens) if self.last else range(0)
