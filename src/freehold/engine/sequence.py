"""A request and the sequence that answers it.

Knows token ids, counts and what is still to be computed; knows no text, no weights, no lock.
Path: Engine.generate -> Request -> Sequence -> Scheduler -> Engine.postprocess -> TokenOut
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freehold.engine.constrain.guide import Constraint, Guide
from freehold.errors import FreeholdError
from freehold.models.lora import Adapter
from freehold.types import FinishReason, Priority, SamplingParams, Usage

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
    """What is asked of the engine; every field has been checked."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    max_tokens: int  # at least 1; the context's end is counted in
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None  # alternatives a token; None: no log-probabilities at all
    # Takes all logits, float32 [rows, V] in order; then nothing is sampled.
    sink: Callable[[F32], None] | None = None
    hidden: bool = False  # the sink takes what the head would read instead, float32 [rows, width]
    priority: Priority = "interactive"
    tenant: str = ""  # whose fair share it uses, and whose cached prefixes it may see
    deadline: float | None = None  # on the engine's clock, to the last token
    admitted: bool = False  # it goes on with what has waited already, and no queue refuses it
    constraint: Constraint | None = None  # what its text must be
    adapter: Adapter | None = None  # computed with all of its tokens

    @property
    def salt(self) -> str:
        """What cached prefixes are shared within: a tenant's, computed with one adapter. A digest holds no bar."""
        return f"{self.adapter.digest if self.adapter else ''}|{self.tenant}"

    @property
    def reads_logits(self) -> bool:
        """Whether every row wants all its logits, of which a step has few."""
        return self.sink is not None and not self.hidden


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. The scheduler owns `block_table` and `num_computed_tokens`, the engine the rest."""

    request: Request
    tokens: list[int]  # the prompt, what an engine now dead had made of the answer, and what was made here
    parent: Sequence | None = None  # whose prompt it shares: it is computed once and forked
    resumed: int = 0  # of `tokens`, what the dead engine had made: read with the prompt
    guide: Guide | None = None  # along the request's constraint, as far as `tokens`
    num_computed_tokens: int = 0  # leading tokens whose keys and values lie in the cache
    block_table: list[int] = field(default_factory=list)  # blocks, in order of position
    loading: bool = False  # it has some of the blocks that the disk holds of it
    num_cached_tokens: int = 0  # tokens of the prompt taken over from other sequences
    pending: deque[TokenOut] = field(default_factory=deque)  # made and not yet taken
    pending_since: float = 0.0  # when the first of `pending` was made
    done: bool = False
    reason: FinishReason | None = None
    error: FreeholdError | None = None
    delivered: int = 0  # rows that the sink received; after a preemption they are computed again
    prefill_s: float = 0.0
    decode_s: float = 0.0
    # The scheduler's notes.
    number: int = 0  # in order of arrival, from 1
    arrived: float = 0.0  # on the engine's clock, as are
    queue_s: float = 0.0  # from its arrival until it first held blocks
    served_at: float = 0.0  # when a step last took it
    begun: bool = False  # its whole prompt was computed once
    preempted: int = 0  # times
    refused: int = -1  # free blocks when it last found no room,
    refused_at: float = 0.0  # and when that was
    leader: Sequence | None = None  # computes what this one begins with, so this one waits
    led: int = 0  # until so many tokens are computed
    wanted: int = 0  # tokens that some other waits for
    drafted: int = 0  # guesses verified, and those that held; speculation counts them
    accepted: int = 0

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
        """Tell whether the next step may compute for it: a token nobody took holds it back."""
        return not self.done and not self.pending

    @property
    def usage(self) -> Usage:
        """Counts and seconds so far; a token counts once it was taken."""
        return Usage(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self.generated - len(self.pending),
            cached_tokens=self.num_cached_tokens,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            queue_s=self.queue_s,
            resumed_tokens=self.resumed,
            preemptions=self.preempted,
        )
