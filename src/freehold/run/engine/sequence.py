"""A request, the sequence that answers it, the pictures in its prompt, and the chunk of it that a step computes.

Knows token ids, counts and what is still to be computed; knows no text, no weights, no lock, no step.

Of pictures it knows features, rows and places; no pixels and no tower. Rows of pictures are tokens beyond the
vocabulary: ids from PICTURE_IDS on are handed out once, the same for equal pictures, so the prefix tree compares
pictures as it compares words.

A Generation is the running answer as its caller has it. Iterated over, it drives the engine; in a served engine, where
one thread pumps, it is started and its tokens are taken.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import CapacityExceeded, FreeholdError
from freehold.base.types import FinishReason, OnPrefill, Priority, SamplingParams, Usage
from freehold.run.engine.constrain.constraint import TokenMatcher, TokenRules
from freehold.run.models.lora import Adapter

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

# --- pictures in a prompt --------------------------------------------------------------------------

PICTURE_IDS = 1 << 31  # the first; a vocabulary ends far below, and four bytes of a key hold as many again
LAST_ID = (1 << 32) - 1
# Pictures whose ids are known: an older one that comes back gets new ids, and matches nothing.
REMEMBERED = 1 << 16


class PictureIds:
    """Hands out ids, from any thread: equal digests get equal ids while they are remembered."""

    def __init__(self) -> None:
        self._next = PICTURE_IDS
        self._known: OrderedDict[bytes, range] = OrderedDict()
        self._lock = Lock()

    def of(self, digest: bytes, rows: int) -> range:
        """Return the ids of a picture's rows. `digest` tells pictures apart that a model computes differently.

        Raises CapacityExceeded after two thousand million rows.
        """
        with self._lock:
            ids = self._known.pop(digest, None)
            if ids is None:
                if self._next + rows > LAST_ID:
                    raise CapacityExceeded(
                        f"this engine has numbered {self._next - PICTURE_IDS:,} rows of pictures, which is the limit",
                        "restart it",
                    )
                ids = range(self._next, self._next + rows)
                self._next = ids.stop
            self._known[digest] = ids
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return ids


@dataclass(frozen=True, slots=True, eq=False)
class PromptPictures:
    """The pictures of one prompt. `places`: of a model that turns by time, row and column; None: by position alone."""

    features: F32  # [rows of all pictures, width]
    rows: I32  # [prompt], which row of `features` a token is, -1 for a word
    placeholder: int  # a word of the vocabulary, whose embedding is replaced
    places: I32 | None = None  # [prompt, 3]
    after: int = 0  # the place of the first token after the prompt, in all three numbers
    spans: tuple[tuple[int, int], ...] = ()  # [first, end) of tokens that see each other, in order
    apart: int = 0  # rows that the prompt begins with and another plan computes: Family.prefix
    # SHA-256 of all that each picture's features depend on, and its rows, in order; (): nothing outlives the process.
    digests: tuple[tuple[bytes, int], ...] = ()

    @property
    def portable(self) -> int:
        """How many tokens another process can know again: all, or without digests those before the first picture."""
        return sys.maxsize if self.digests else int(np.argmax(self.rows >= 0))

    def key(self, tokens: Ordered[int], first: int, count: int) -> bytes:
        """Spell `count` of a sequence's tokens from `first` on, so that no two pictures are spelled alike.

        Four bytes a token, the highest first: a word as itself, a picture's row as PICTURE_IDS and its number in the
        picture. Then the digest of each picture among them, in order: what comes before says how many there are.
        """
        rows = self.rows[first : first + count]
        spelled = np.array(tokens[first : first + count], ">u4")
        shown = np.flatnonzero(rows >= 0)
        if not len(shown) or not self.digests:
            return spelled.tobytes()
        starts = np.cumsum([0, *(n for _, n in self.digests[:-1])])
        pictures = np.searchsorted(starts, rows[shown], side="right") - 1
        spelled[shown] = rows[shown] - starts[pictures] + PICTURE_IDS
        return spelled.tobytes() + b"".join(self.digests[i][0] for i in np.unique(pictures))

    def marked(self, ids: Ordered[int]) -> tuple[int, ...]:
        """Return a prompt with the placeholder for rows of pictures: the same in every process."""
        return tuple(self.placeholder if id >= PICTURE_IDS else id for id in ids)

    def uncut(self, first: int, count: int) -> int:
        """Return how many tokens from `first` on a step computes instead of `count`, so that it cuts no span.

        The step ends before a span that it would cut; where it begins with one, it takes all of it. Rows that are
        computed apart may be cut anywhere, and nothing follows them in their chunk.
        """
        if first < self.apart:
            return min(count, self.apart - first)
        end = first + count
        begin, whole = next(((b, e) for b, e in self.spans if b < end < e), (end, end))
        return begin - first if begin > first else whole - first

    def ends_at(self, first: int, count: int) -> I32:
        """Return before which position each of `count` tokens from `first` on stops looking: int32 [count]."""
        ends = np.arange(first + 1, first + count + 1, dtype=np.int32)
        for begin, end in self.spans:
            ends[max(begin - first, 0) : max(end - first, 0)] = end
        return ends

    def places_at(self, first: int, count: int) -> I32:
        """Return where `count` tokens from `first` on lie: int32 [count, 3]. Tokens of the answer count on."""
        positions = np.arange(first, first + count)
        if self.places is None:
            return same_places(positions)
        places = same_places(positions - len(self.rows) + self.after)
        inside = self.places[first : first + count]
        places[: len(inside)] = inside
        return places


def same_places(positions: NDArray[np.integer]) -> I32:
    """Return positions of words as places: int32 [n, 3], the three numbers alike."""
    return np.repeat(np.asarray(positions, np.int32)[:, None], 3, axis=1)


def joined_rows(
    pictures: Ordered[PromptPictures | None], chunks: Ordered[tuple[int, int]]
) -> tuple[F32 | None, I32]:
    """Return the features that a step reads, float32 [n, width] or None, and each row's place in them, -1 for a word.

    `chunks`: of each sequence of the step, in order, its first token and how many.
    """
    features: list[F32] = []
    rows: list[I32] = []
    count = 0
    for each, (first, tokens) in zip(pictures, chunks, strict=True):
        moved = np.full(tokens, -1, np.int32)
        inside = each.rows[first : first + tokens] if each is not None else moved[:0]
        shown = np.flatnonzero(inside >= 0)
        if each is not None and len(shown):
            moved[shown] = np.arange(count, count + len(shown), dtype=np.int32)
            features.append(each.features[inside[shown]])
            count += len(shown)
        rows.append(moved)
    return (np.concatenate(features) if features else None), np.concatenate(rows)


# --- requests and sequences ------------------------------------------------------------------------


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


# --- a running answer ------------------------------------------------------------------------------


class SequenceEngine(Protocol):
    """What a generation calls on its engine."""

    def enter(self, seq: Sequence) -> None:
        """Take a sequence in before the next step."""

    def advance(self, seq: Sequence, arrived: Callable[[], bool]) -> None:
        """Compute steps until something has arrived."""

    def cancel(self, seq: Sequence) -> None:
        """Give a sequence's blocks back."""


class Generation:
    """A running answer: iterate over it, or `start` it and `take` its tokens; close it to stop within one step."""

    _closed = True  # until it is made: a failed constructor leaves nothing to close

    def __init__(self, engine: SequenceEngine, seq: Sequence) -> None:
        self._engine = engine
        self.on_prefill: OnPrefill | None = None
        self._seq = seq
        self._entered = seq.done  # a resumed answer may be complete
        self._closed = False

    def __iter__(self) -> Iterator[TokenOut]:
        return self

    def __next__(self) -> TokenOut:
        """Return the next token, computing it if need be. An error or an interrupt ends the answer."""
        seq = self._seq
        if self.done:
            raise StopIteration
        try:
            if not seq.pending:  # else an earlier step made several, and none has to be computed
                self.start()
                self._engine.advance(seq, self._arrived)
            return seq.pending.popleft()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def _arrived(self) -> bool:
        self.report()
        return bool(self._seq.pending)

    def report(self) -> None:
        """Call `on_prefill` while no token was made."""
        if self.on_prefill is not None and (read := self.prefill) is not None:
            self.on_prefill(*read)

    @property
    def prefill(self) -> tuple[int, int] | None:
        """How many tokens of the prompt are computed or cached, and how many there are; None once a token was made."""
        seq = self._seq
        total = len(seq.request.prompt) + seq.resumed
        return None if len(seq.tokens) > total or seq.done else (min(seq.num_computed_tokens, total), total)

    def start(self) -> None:
        """Enter the engine now; the first `__next__` does otherwise. Never waits for a step.

        Raises Overloaded where the engine's queue is full, DeadlineExceeded where the wait alone is too long.
        """
        if not self._entered:
            self._engine.enter(self._seq)
            self._entered = True

    def take(self) -> list[TokenOut]:
        """Return what was made and not yet taken; never waits. Raises the answer's own error after its last token."""
        pending = self._seq.pending
        out = [pending.popleft() for _ in range(len(pending))]
        if not out and self._seq.error is not None and not self._closed:
            self.close()
            raise self._seq.error
        return out

    def close(self) -> None:
        """Stop: free the blocks and make no more tokens. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._engine.cancel(self._seq)

    @property
    def done(self) -> bool:
        """Tell whether nothing is left to take, not even an error."""
        seq = self._seq
        return self._closed or (seq.done and not seq.pending and seq.error is None)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, once it did by itself; a resumed answer may have ended before it began."""
        return self._seq.reason

    @property
    def sequence(self) -> Sequence:
        """The sequence it stands for."""
        return self._seq

    @property
    def seed(self) -> int:
        """The seed in use, drawn at the start if none was given."""
        return self._seq.request.seed

    @property
    def usage(self) -> Usage:
        """Counts and seconds so far."""
        return self._seq.usage
