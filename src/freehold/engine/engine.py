"""The engine: token ids in, token ids out.

Knows sequences, steps and the one lock around them; knows no text, no template, no protocol.
Whoever waits for a token drives the steps, for all live sequences at once; there is no thread of our own.
Path: local.LLM.stream -> Engine.generate -> Engine.step = schedule -> run -> postprocess -> TokenOut
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.engine.blocks import BlockManager, blocks_for
from freehold.engine.capacity import KV_TYPES, MEMORY_SHARE, KvType, bytes_per_block, choose_context
from freehold.engine.draft import DraftModel
from freehold.engine.runner import ModelRunner
from freehold.engine.sampler import MAX_TOP_LOGPROBS, check_sampling, choose, log_sum_exp, non_finite
from freehold.engine.scheduler import MAX_ROWS, Scheduler, Work
from freehold.engine.sequence import Request, Sequence, TokenOut
from freehold.engine.speculation import Speculation
from freehold.errors import ContextOverflow, EngineClosed, FreeholdError, UsageError
from freehold.models.loader import LoadedModel
from freehold.types import FinishReason, SamplingParams, Usage

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

WAIT_S = 0.02  # between looks at whether others gave blocks back
SEED_BITS = 63


class Engine:
    """A loaded model with its cache, safe from many threads. Close it when done."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        context: int | None = None,
        threads: int | None = None,
        memory_share: float = MEMORY_SHARE,
        step_rows: int = MAX_ROWS,
        blocks: int | None = None,
        kv_type: KvType = "f16",
        speculate: bool = True,
        draft: LoadedModel | None = None,
    ) -> None:
        """Reserve the cache for `context` tokens (None: the model's own, cut to `memory_share` of memory).

        `threads` None: the pool that packed the model. `blocks`: cache blocks, at least what the context
        takes. `kv_type`: what the cache holds: "f16"; "q8", int8 in half the bytes; "f32", which rounds nothing.
        `speculate`: verify guesses where that pays, from the text itself and from `draft`, a smaller model of
        the same tokens; no answer depends on it.
        Raises UsageError and CapacityExceeded with the numbers.
        """
        if step_rows < 1 or (threads is not None and threads < 1):
            raise UsageError(f"step_rows is {step_rows} and threads {threads}; expected 1 or more")
        self.model = model
        self._kv_type: KvType = kv_type
        if kv_type not in KV_TYPES:
            raise UsageError(f"kv_type is {kv_type!r}; expected {', '.join(KV_TYPES[:-1])} or {KV_TYPES[-1]}")
        if draft is not None:  # one context, two caches
            own, also = (bytes_per_block(each, kv_type) for each in (model, draft))
            memory_share *= own / (own + also)
        self.context, self.context_note = choose_context(model, context, memory_share, kv_type)
        pool = model.threads if threads in (None, model.threads.size) else native.Threads(threads)
        count = max(blocks or 0, blocks_for(self.context))
        self.threads = pool.size
        self._blocks = BlockManager(count)
        self._runner: ModelRunner | None = ModelRunner(model, self._blocks, step_rows, pool, kv_type)
        self._scheduler = Scheduler(self._blocks, step_rows, time.monotonic)
        drafter = None
        if draft is not None:
            drafter = DraftModel(draft, model, self.context, count, pool, kv_type)
        self._speculation = Speculation(drafter) if speculate else None
        self._turn = threading.Condition(threading.Lock())
        self._cancelled: deque[Sequence] = deque()
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position, over all layers."""
        return bytes_per_block(self.model, self._kv_type) // native.BLOCK_TOKENS

    @property
    def free_blocks(self) -> int:
        """Cache blocks no live sequence holds."""
        return self._blocks.available

    def close(self) -> None:
        """Free the cache; running answers raise EngineClosed. Safe to call twice, and in a fork."""
        if self._pid == os.getpid():
            with self._turn:
                self._runner = self._speculation = None  # both hold a cache
                self._turn.notify_all()

    # --- requests ----------------------------------------------------------------------------------

    def generate(
        self,
        prompt_ids: Ordered[int],
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        stop_ids: Ordered[int] | frozenset[int] = (),
        logprobs: int | None = None,
    ) -> Generation:
        """Continue `prompt_ids`; iterate over the result for its tokens, the last of which has a reason.

        `max_tokens` None: until a stop token or the context's end ("length"). `logprobs` N: with
        log-probabilities and the N likeliest tokens. Without a seed one is drawn here (Generation.seed).
        Raises UsageError, ContextOverflow at once; NonFiniteLogits, EngineClosed while iterating.
        """
        self._check_open()
        prompt = self._checked_ids(prompt_ids)
        if len(prompt) >= self.context:
            raise self._overflow(len(prompt))
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
        if logprobs is not None and not 0 <= logprobs <= MAX_TOP_LOGPROBS:
            raise UsageError(f"logprobs is {logprobs}; expected 0 to {MAX_TOP_LOGPROBS}")
        params = check_sampling(sampling or SamplingParams(), self.model.tokens)
        seed = secrets.randbits(SEED_BITS) if params.seed is None else params.seed
        room = self.context - len(prompt)
        limit = room if max_tokens is None else min(max_tokens, room)
        request = Request(tuple(prompt), params, seed, limit, frozenset(stop_ids), logprobs)
        return Generation(self, Sequence(request, prompt))

    def logit_chunks(self, ids: Ordered[int]) -> Iterator[F32]:
        """Yield the logits after each of `ids` in pieces float32 [rows, V], so that memory stays bounded."""
        self._check_open()
        prompt = self._checked_ids(ids)
        if len(prompt) > self.context:
            raise self._overflow(len(prompt), answer=False)
        return self._chunks(prompt)

    def logits(self, ids: Ordered[int]) -> F32:
        """Return the logits after each of `ids`: float32 [T, V]. Raises as `generate` does."""
        return np.concatenate(list(self.logit_chunks(ids)))

    def score(self, ids: Ordered[int]) -> F32:
        """Return the log-probability of each of `ids` after the first, given the earlier: float32 [T - 1]."""
        scores: list[float] = []
        targets = list(ids)[1:]
        for rows in self.logit_chunks(ids):
            first = len(scores)
            for row, token in zip(rows, targets[first : first + len(rows)], strict=False):
                scores.append(float(row[token]) - log_sum_exp(row, len(scores) + 1))
        return np.array(scores, np.float32)

    def _chunks(self, prompt: list[int]) -> Iterator[F32]:
        rows: deque[F32] = deque()
        seq = Sequence(Request(tuple(prompt), SamplingParams(), 0, 1, sink=rows.append), prompt)
        try:
            self._enter(seq)
            while rows or not seq.done:
                if not rows:
                    self._advance(seq, lambda: bool(rows))
                yield rows.popleft()
        finally:
            self._cancel(seq)

    def _checked_ids(self, ids: Ordered[int]) -> list[int]:
        checked = [int(i) for i in ids]
        if not checked:
            raise UsageError("the prompt is empty", "give at least one token")
        wrong = next((i for i in checked if not 0 <= i < self.model.vocab), None)
        if wrong is not None:
            raise UsageError(
                f"token {wrong} is no id of {self.model.name}; ids are 0 to {self.model.vocab - 1}"
            )
        return checked

    def _overflow(self, count: int, answer: bool = True) -> ContextOverflow:
        wanted = count + 1 if answer else count
        hint = "shorten the prompt"
        if wanted <= self.model.context:
            hint = f"load it with --context {blocks_for(wanted) * native.BLOCK_TOKENS}, or {hint}"
        also = ", the answer included" if count == self.context and answer else ""
        return ContextOverflow(
            f"prompt has {count:,} tokens; {self.model.name} is loaded with room for {self.context:,}{also}",
            hint,
        )

    # --- steps -------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Compute one step for all sequences that can go on; False if none can. The caller holds the turn."""
        self._sweep()
        batch = self._scheduler.schedule()
        if not batch or self._runner is None:
            return False
        started = time.perf_counter()
        if self._speculation is not None:
            batch = self._speculation.extend(batch, self._scheduler)
        results = self._runner.run(batch)
        seconds = time.perf_counter() - started
        self._scheduler.pace(sum(work.rows for work in batch), seconds)
        for work, rows in zip(batch, results, strict=True):
            self._postprocess(work, rows, seconds)
        if self._speculation is not None:
            self._speculation.learn(batch, seconds)
        return True

    def _postprocess(self, work: Work, rows: F32 | I64, seconds: float) -> None:
        """Book what a sequence got, and choose its next token if its newest one was computed."""
        seq, known = work.seq, len(work.seq.tokens)
        if seq.generated:
            seq.decode_s += seconds
        else:
            seq.prefill_s += seconds
        try:
            if seq.request.sink is not None:
                self._deliver(work, cast(F32, rows))  # a sink's draw is never plain
            elif work.last:
                self._verify(seq, rows, work.draft)
        except FreeholdError as e:
            seq.error, seq.done = e, True
        # A guess that held was computed in its place; rows after one that did not are written again.
        seq.computed = work.first + work.count + max(len(seq.tokens) - known - 1, 0)
        self._blocks.publish(seq)
        if seq.done:
            self._scheduler.remove(seq)

    def _deliver(self, work: Work, logits: F32) -> None:
        if not np.isfinite(logits).all():
            raise non_finite(work.first)
        assert work.seq.request.sink is not None
        work.seq.request.sink(logits)
        work.seq.done = work.last

    def _verify(self, seq: Sequence, rows: F32 | I64, draft: tuple[int, ...]) -> None:
        """Choose token by token as plain decoding does, as long as each equals the guess computed next."""
        for row, guess in zip(rows, (*draft, None), strict=True):
            self._emit(seq, row)
            if seq.done or seq.tokens[-1] != guess:
                return

    def _emit(self, seq: Sequence, row: F32 | np.int64) -> None:
        request = seq.request
        out = choose(row, seq.tokens, request.sampling, request.seed, self.model.tokens, request.logprobs)
        reason: FinishReason | None = None
        if out.id in request.stop_ids:
            reason = "stop"
        elif seq.generated + 1 == request.max_tokens:
            reason = "length"
        seq.tokens.append(out.id)
        if not seq.pending:
            seq.paused_at = time.monotonic()
        seq.pending.append(TokenOut(out.id, out.logprob, out.top, reason))
        seq.done = reason is not None  # last: a reader who sees it must find the token

    # --- the turn ----------------------------------------------------------------------------------

    def _enter(self, seq: Sequence) -> None:
        with self._turn:
            self._check_open()
            self._scheduler.add(seq)

    def _advance(self, seq: Sequence, arrived: Callable[[], bool]) -> None:
        """Drive steps until something has arrived for `seq`; raise its error if it failed."""
        with self._turn:
            while not arrived():
                if seq.error is not None:
                    raise seq.error
                self._check_open()
                if not self.step():
                    self._turn.wait(WAIT_S)

    def _cancel(self, seq: Sequence) -> None:
        """Give a sequence's blocks back: now if nobody computes, else before the next step.

        Never waits: this may run in a garbage collection inside a step.
        """
        self._cancelled.append(seq)
        if self._turn.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._turn.release()

    def _sweep(self) -> None:
        while self._cancelled:
            seq = self._cancelled.popleft()
            seq.done = True
            self._scheduler.remove(seq)
            if self._speculation is not None:
                self._speculation.forget(seq)

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise EngineClosed(
                f"{self.model.name} was loaded in process {self._pid}; this is a fork of it",
                "load the model in this process, or start it with the spawn method",
            )
        if self._runner is None:
            raise EngineClosed(f"{self.model.name} is closed", "load it again")


class Generation:
    """An answer under way: iterate over it, or close it to stop within one step."""

    def __init__(self, engine: Engine, seq: Sequence) -> None:
        self._engine = engine
        self._seq = seq
        self._entered = False
        self._closed = False

    def __iter__(self) -> Iterator[TokenOut]:
        return self

    def __next__(self) -> TokenOut:
        """Return the next token, computing it if need be. An error or an interrupt ends the answer."""
        seq = self._seq
        if self._closed or (seq.done and not seq.pending and seq.error is None):
            raise StopIteration
        try:
            if not seq.pending:  # else a step made several, and this one waits for nobody's turn
                self._go_on(seq)
            return seq.pending.popleft()
        except BaseException:
            self.close()
            raise

    def _go_on(self, seq: Sequence) -> None:
        if not self._entered:
            self._engine._enter(seq)
            self._entered = True
        self._engine._advance(seq, lambda: bool(seq.pending))

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def close(self) -> None:
        """Stop: free the blocks and make no more tokens. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._engine._cancel(self._seq)

    @property
    def seed(self) -> int:
        """The seed in use, drawn at the start if none was given."""
        return self._seq.request.seed

    @property
    def usage(self) -> Usage:
        """Counts and seconds so far."""
        return self._seq.usage
