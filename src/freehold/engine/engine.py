"""The engine: token ids in, token ids out.

Knows sequences, steps and the one lock around them; knows no text, no template, no protocol.
Whoever waits for a token drives the steps, for all live sequences at once; where one thread pumps, nobody
else waits. There is no thread of our own. What happens to one sequence ends that sequence alone.
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
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, cast, get_args

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.engine.cache.blocks import BlockManager, blocks_for
from freehold.engine.cache.capacity import (
    KV_TYPES,
    MEMORY_SHARE,
    CacheBytes,
    bytes_per_block,
    choose_context,
    kinds_beside_full,
)
from freehold.engine.cache.disk import DiskCache, dependencies
from freehold.engine.cache.tier import KvPages
from freehold.engine.constrain.guide import Constraint
from freehold.engine.counts import Counts
from freehold.engine.generation import Generation
from freehold.engine.pooling import Pool, Pooling, checked_pooling
from freehold.engine.runner import ModelRunner
from freehold.engine.sampler import (
    MAX_SEED,
    MAX_TOP_LOGPROBS,
    check_sampling,
    choose,
    log_sum_exp,
    non_finite,
)
from freehold.engine.schedule.budget import MAX_NUM_BATCHED_TOKENS
from freehold.engine.schedule.scheduler import ScheduledChunk, Scheduler
from freehold.engine.sequence import Request, Sequence, TokenOut
from freehold.engine.speculate.draft import DraftModel
from freehold.engine.speculate.speculation import Speculation
from freehold.errors import (
    ContextOverflow,
    DamagedPack,
    DeadlineExceeded,
    EngineClosed,
    FreeholdError,
    NonFiniteLogits,
    Overloaded,
    StepFailed,
    UsageError,
)
from freehold.models.load import LoadedModel
from freehold.models.lora import Adapter
from freehold.serving import EngineStats
from freehold.stopping import check_stopped
from freehold.types import KvType, Priority, SamplingParams

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

WAIT_S = 0.02  # between looks at whether others gave blocks back
YIELD_S = 0.0003  # until a thread that waits for the turn has woken
SEED_BITS = 63
# Operations a second of one thread until a prompt was read. A core with 8-bit dots reaches 400e9 in prompts, one with
# tiles 600e9, so that a wait told before that is too long rather than too short.
GUESSED_OPS = 200e9


class Sharing(TypedDict, total=False):
    """How a request shares the engine with others: how urgent it is, whose it is, seconds until it is worthless.

    And whether what it goes on with was let in already, and the adapter it is computed with, packed for the model.
    """

    priority: Priority
    tenant: str
    deadline_s: float | None
    admitted: bool
    adapter: Adapter | None


class Engine:
    """A loaded model with its cache, safe from many threads. Close it when done."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        context: int | None = None,
        threads: int | None = None,
        memory_share: float = MEMORY_SHARE,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        blocks: int | None = None,
        kv_type: KvType = "f16",
        speculate: bool = True,
        draft: LoadedModel | None = None,
        target_itl_s: float | None = None,
        max_queued: int | None = None,
        max_queued_tokens: int | None = None,
        disk: Path | None = None,
    ) -> None:
        """Reserve the cache for `context` tokens (None: the model's own, cut to `memory_share` of memory).

        `threads` None: the pool that packed the model. `blocks`: cache blocks, at least what the context
        takes. `kv_type`: what the cache holds: "f16"; "q8", int8 in half the bytes; "f32", which rounds nothing.
        `speculate`: verify guesses where that pays, from the text itself and from `draft`, a smaller model of
        the same tokens; no answer depends on it.
        `target_itl_s`: seconds between two tokens of a running answer while prompts are read beside it (None:
        a multiple of what it takes alone). `max_queued`, `max_queued_tokens`: requests, and tokens of their
        prompts, that may wait to begin; beyond them Generation.start raises Overloaded (None: no limit).
        `disk`: a folder in which the cache of long prompts outlives the engine, if the model's digest is known.
        Raises UsageError and CapacityExceeded with the numbers.
        """
        if max_num_batched_tokens < 1 or (threads is not None and threads < 1):
            raise UsageError(
                f"max_num_batched_tokens is {max_num_batched_tokens} and threads {threads}; expected 1 or more"
            )
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
        self._cache_bytes = CacheBytes.of(model, kv_type, max_num_batched_tokens)
        windows = self._cache_bytes.window_blocks(count)
        kinds = kinds_beside_full(model.layers, windows, count, max_num_batched_tokens)
        self._blocks = BlockManager(count, kinds)
        self._runner: ModelRunner | None = ModelRunner(
            model, self._blocks, max_num_batched_tokens, pool, kv_type
        )
        if disk is not None and model.digest:
            pages = KvPages(self._runner.cache)
            key = dependencies(model, kv_type, windows > 0)
            self._blocks.attach(DiskCache(disk, key, pages.nbytes), pages)
        row_s = 2 * model.weights_per_token / (GUESSED_OPS * pool.size)
        self._scheduler = Scheduler(self._blocks, max_num_batched_tokens, time.monotonic, target_itl_s, row_s)
        drafter = None
        if draft is not None:
            drafter = DraftModel(draft, model, self.context, count, pool, kv_type)
        self._speculation = Speculation(self._scheduler.budget.cost, drafter) if speculate else None
        self._turn = threading.Condition(threading.Lock())
        self._limits = (max_queued, max_queued_tokens)
        self._door = threading.Lock()  # one request at a time is weighed against the limits
        self._entered: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._closing = False
        self._wanting: deque[Sequence] = deque()  # of threads that want a turn, or have it, in `advance`
        self._pumped = False  # by a thread that does nothing else
        self._news = threading.Event()  # set by whoever brings work, cleared before a step looks for it
        self._counts = Counts()
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
    def cache_bytes(self) -> int:
        """Bytes of the whole cache, those of a draft model's apart."""
        return self._cache_bytes.total(self._blocks.count)

    @property
    def free_blocks(self) -> int:
        """Cache blocks no live sequence holds."""
        return self._blocks.available

    def close(self) -> None:
        """Free the cache; running answers raise EngineClosed. Safe to call twice, and in a fork."""
        if self._pid == os.getpid():
            self._closing = True  # a thread that takes turn after turn would not let this one in
            with self._turn:
                self._runner = self._speculation = None  # both hold a cache
                self._turn.notify_all()
            self._news.set()
            self._blocks.close()

    def stats(self) -> EngineStats:
        """Return counters and the state after the latest step; any thread may ask."""
        blocks = self._blocks
        return self._counts.stats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting + len(self._entered),
            blocks=blocks.count,
            blocks_live=blocks.live,
            blocks_cached=blocks.cached,
            disk_tokens=blocks.disk_tokens,
            preemptions=self._scheduler.preemptions,
            expected_wait_s=self._scheduler.wait(entered=list(self._entered)),
        )

    # --- requests ----------------------------------------------------------------------------------

    def generate(
        self,
        prompt_ids: Ordered[int],
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        stop_ids: Ordered[int] | frozenset[int] = (),
        logprobs: int | None = None,
        *,
        constraint: Constraint | None = None,
        resume: Ordered[int] = (),
        **sharing: Unpack[Sharing],
    ) -> Generation:
        """Continue `prompt_ids`; iterate over the result for its tokens, the last of which has a reason.

        `max_tokens` None: until a stop token or the context's end ("length"). `logprobs` N: with
        log-probabilities and the N likeliest tokens. Without a seed one is drawn here (Generation.seed).
        `deadline_s`: seconds from now to the last token. `resume`: tokens of this very answer that were made
        before, in an engine that died; the answer goes on behind them. `constraint`: what its text must be.
        Raises UsageError, ContextOverflow at once; Overloaded on entering; NonFiniteLogits, DeadlineExceeded,
        StepFailed, EngineClosed while iterating.
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
        request = Request(
            tuple(prompt),
            params,
            seed,
            room if max_tokens is None else min(max_tokens, room),
            frozenset(stop_ids),
            logprobs,
            constraint=constraint,
            **_shared(**sharing),
        )
        return Generation(self, self._resumed(request, self._checked_ids(resume) if resume else []))

    def generate_many(
        self,
        prompt_ids: Ordered[int],
        n: int,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        stop_ids: Ordered[int] | frozenset[int] = (),
        logprobs: int | None = None,
        *,
        constraint: Constraint | None = None,
        resume: Ordered[Ordered[int]] = (),
        **sharing: Unpack[Sharing],
    ) -> list[Generation]:
        """Continue `prompt_ids` in `n` ways, of which number i draws with seed + i, and goes on behind `resume[i]`.

        The prompt is computed once. Start them in order: once the first is in, the others always are.
        """
        if n < 1 or len(resume) > n:
            raise UsageError(
                f"n is {n}, and {len(resume)} answers are to be resumed; expected 1 or more, and n at most"
            )
        logs = [*resume, *([()] * (n - len(resume)))]
        first = self.generate(
            prompt_ids,
            sampling,
            max_tokens,
            stop_ids,
            logprobs,
            constraint=constraint,
            resume=logs[0],
            **sharing,
        )
        parent = first.sequence
        others = [
            self._resumed(
                replace(parent.request, seed=(parent.request.seed + i) & MAX_SEED),
                self._checked_ids(log) if log else [],
                parent,
            )
            for i, log in enumerate(logs[1:], 1)
        ]
        return [first, *(Generation(self, seq) for seq in others)]

    def _resumed(self, request: Request, log: list[int], parent: Sequence | None = None) -> Sequence:
        """Return the sequence of a request whose first tokens are known; it may lack nothing."""
        seq = Sequence(request, [*request.prompt, *log], parent, resumed=len(log))
        if log and log[-1] in request.stop_ids:
            seq.reason = "stop"
        elif len(log) >= request.max_tokens:
            seq.reason = "length"
        seq.done = seq.reason is not None
        if request.constraint is not None and not seq.done:
            seq.guide = request.constraint.guide(request.stop_ids)
            for id in log:
                seq.guide.advance(id)
        return seq

    def read(
        self,
        ids: Ordered[int],
        sink: Callable[[F32], None],
        *,
        hidden: bool = False,
        **sharing: Unpack[Sharing],
    ) -> Generation:
        """Hand the logits after each of `ids` to `sink` in pieces float32 [rows, V], in the steps everybody shares.

        With `hidden` it is what the head would read, float32 [rows, width].

        The result makes no token; it is done when all were handed over. `sink` runs within a step, so be quick.
        """
        self._check_open()
        prompt = self._checked_ids(ids)
        if len(prompt) > self.context:
            raise self._overflow(len(prompt), answer=False)
        request = Request(
            tuple(prompt),
            SamplingParams(),
            0,
            1,
            sink=sink,
            hidden=hidden,
            **_shared(**sharing),
        )
        return Generation(self, Sequence(request, prompt))

    def embed(
        self, texts: Ordered[Ordered[int]], pooling: Pooling = "last", **sharing: Unpack[Sharing]
    ) -> F32:
        """Return a vector of unit length for each of `texts`, of what the head would read: float32 [n, width].

        Where one thread pumps, its steps compute them; else this one drives. Raises as `read` does, and on entering
        as `generate` does.
        """
        pools = [Pool(checked_pooling(pooling)) for _ in texts]
        readings = [
            self.read(ids, pool.add, hidden=True, **sharing) for ids, pool in zip(texts, pools, strict=True)
        ]
        try:
            for reading in readings:
                reading.start()
            for reading in readings:
                self._finish(reading.sequence)
        finally:
            for reading in readings:
                reading.close()
        return np.array([pool.vector for pool in pools], np.float32).reshape(len(pools), -1)

    def _finish(self, seq: Sequence) -> None:
        """Wait until a sequence is done, by others' steps where there is a thread that pumps."""
        if not self._pumped:
            return self.advance(seq, lambda: seq.done and seq.error is None)
        with self._turn:
            while not seq.done:
                self._check_open()
                check_stopped()
                self._turn.wait(WAIT_S)
        if seq.error is not None:
            raise seq.error
        return None

    def logit_chunks(self, ids: Ordered[int], **sharing: Unpack[Sharing]) -> Iterator[F32]:
        """Yield the logits after each of `ids` in pieces float32 [rows, V], so that memory stays bounded."""
        rows: deque[F32] = deque()
        return self._chunks(self.read(ids, rows.append, **sharing), rows)

    def logits(self, ids: Ordered[int], **sharing: Unpack[Sharing]) -> F32:
        """Return the logits after each of `ids`: float32 [T, V]. Raises as `generate` does."""
        return np.concatenate(list(self.logit_chunks(ids, **sharing)))

    def score(self, ids: Ordered[int]) -> F32:
        """Return the log-probability of each of `ids` after the first, given the earlier: float32 [T - 1]."""
        scores: list[float] = []
        targets = list(ids)[1:]
        for rows in self.logit_chunks(ids):
            first = len(scores)
            for row, token in zip(rows, targets[first : first + len(rows)], strict=False):
                scores.append(float(row[token]) - log_sum_exp(row, len(scores) + 1))
        return np.array(scores, np.float32)

    def _chunks(self, reading: Generation, rows: deque[F32]) -> Iterator[F32]:
        try:
            reading.start()
            while rows or not reading.done:
                if not rows:
                    self.advance(reading.sequence, lambda: bool(rows))
                yield rows.popleft()
        finally:
            reading.close()

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

    def pump(self, timeout: float) -> bool:
        """Compute one step as `drive` does, in the one thread that computes all of them from now on."""
        self._pumped = True
        return self.drive(timeout)

    def drive(self, timeout: float) -> bool:
        """Compute one step for all live sequences and return True; without any, wait up to `timeout` s for one.

        Any thread may drive. An error of one sequence is not raised here: its generation raises it.
        """
        self._news.clear()
        with self._turn:
            self._check_open()
            stepped = self.step()
            if stepped:
                self._turn.notify_all()
        if self._wanting:  # a thread that takes the lock again at once would win it from all that wait
            time.sleep(YIELD_S)
        elif not stepped:
            self._news.wait(timeout)
        return stepped

    def step(self) -> bool:
        """Compute one step for all sequences that can go on; False if none can. The caller holds the turn."""
        self._sweep()
        batch = self._scheduler.schedule()
        if not batch or self._runner is None:
            return False
        started = time.perf_counter()
        try:
            if self._speculation is not None:
                batch = self._speculation.extend(batch, self._scheduler)
            for work in batch:
                self._blocks.prepare(work.seq, work.first, work.count, len(work.draft))
            results = self._runner.run(batch)
        except Exception as e:
            self._give_up(batch, e)
            return True
        seconds = time.perf_counter() - started
        read = [work.seq for work in batch if work.last and not work.seq.begun]
        self._scheduler.learn(batch, seconds - (self._speculation.draft_s if self._speculation else 0.0))
        try:
            for work, rows in zip(batch, results, strict=True):
                self._postprocess(work, rows, seconds)
        except BaseException:  # an interrupt: what had ended must not go on
            for work in batch:
                if work.seq.reason is not None and not work.seq.done:
                    self._drop(work.seq)
            raise
        if self._speculation is not None:
            self._speculation.learn(batch)
        self._counts.stepped(sum(work.rows for work in batch), read)
        return True

    def _give_up(self, batch: list[ScheduledChunk], error: Exception) -> None:
        """End the sequences of a step that failed; what they wrote is not to be trusted, so none of it is kept."""
        for work in batch:
            self._drop(work.seq, _named(error, f"a step with {len(batch)} requests failed"), keep=False)

    def _end(self, seq: Sequence, error: FreeholdError | None = None, keep: bool = True) -> None:
        """Take a sequence out; `done` last, so that a reader who sees it finds the error and all tokens."""
        seq.error = error
        self._scheduler.remove(seq, keep)
        seq.done = True

    def _drop(self, seq: Sequence, error: FreeholdError | None = None, keep: bool = True) -> None:
        """Take a sequence out between steps, or when one failed: no step tells speculation that it ended."""
        if self._speculation is not None:
            self._speculation.forget(seq)
        self._end(seq, error, keep)

    def _postprocess(self, work: ScheduledChunk, rows: F32 | I64, seconds: float) -> None:
        """Book what a sequence got, and choose its next token if its newest one was computed."""
        seq, known = work.seq, len(work.seq.tokens)
        if seq.generated > seq.resumed:
            seq.decode_s += seconds
        else:
            seq.prefill_s += seconds
        error: FreeholdError | None = None
        try:
            if seq.request.sink is not None:
                self._deliver(work, cast(F32, rows))  # a sink's draw is never plain
            elif work.last:
                self._verify(seq, rows, work.draft)
        except Exception as e:
            error = self._traced(seq, _named(e, "choosing the next token failed"))
        # A guess that held was computed in its place; rows after one that did not are written again.
        held = max(len(seq.tokens) - known - 1, 0)
        self._counts.generated_tokens += len(seq.tokens) - known
        if work.draft:
            self._counts.guessed(len(work.draft), held)
        if error is not None:
            self._end(seq, error, keep=False)  # what NaN came from is nothing to share
            return
        self._blocks.publish(seq, work.first + work.count + held)
        if seq.reason is not None:
            self._end(seq)

    def _traced(self, seq: Sequence, error: FreeholdError) -> FreeholdError:
        """Say whose fault NaN or infinity is: the packed copy's, the adapter's, or else the model's own."""
        if not isinstance(error, NonFiniteLogits):
            return error
        try:
            if self.model.pack is not None:
                self.model.pack.suspect()
        except DamagedPack as damage:
            return damage
        if seq.request.adapter is None:
            return error
        return NonFiniteLogits(
            f"{self.model.name} with the adapter {seq.request.adapter.name!r} computed NaN or infinity "
            f"for the token at position {len(seq.tokens)}",
            "the adapter is damaged, or was made for another model: ask without it",
        )

    def _deliver(self, work: ScheduledChunk, logits: F32) -> None:
        if not (np.isfinite(logits.min()) and np.isfinite(logits.max())):  # NaN is both; no array of its own
            raise non_finite(work.first)
        seq = work.seq
        assert seq.request.sink is not None
        fresh = logits[max(seq.handed - work.first, 0) :]
        if len(fresh):
            seq.request.sink(fresh)
        seq.handed = max(seq.handed, work.first + work.count)
        if work.last:
            work.seq.reason = "length"

    def _verify(self, seq: Sequence, rows: F32 | I64, draft: tuple[int, ...]) -> None:
        """Choose token by token as plain decoding does, as long as each equals the guess computed next."""
        for row, guess in zip(rows, (*draft, None), strict=True):
            self._emit(seq, row)
            if seq.reason is not None or seq.tokens[-1] != guess:
                return

    def _emit(self, seq: Sequence, row: F32 | np.int64) -> None:
        request, guide = seq.request, seq.guide
        out = choose(
            row,
            seq.tokens,
            request.sampling,
            request.seed,
            self.model.tokens,
            request.logprobs,
            guide.allowed() if guide else None,
        )
        if out.id in request.stop_ids:
            seq.reason = "stop"
        elif seq.generated + 1 == request.max_tokens:
            seq.reason = "length"
        elif guide:
            guide.advance(out.id)
        seq.tokens.append(out.id)
        if not seq.pending:
            seq.paused_at = time.monotonic()
        seq.pending.append(TokenOut(out.id, out.logprob, out.top, seq.reason))

    # --- the turn ----------------------------------------------------------------------------------

    def enter(self, seq: Sequence) -> None:
        """Take a sequence in before the next step, or raise Overloaded or DeadlineExceeded; never waits for a step."""
        self._check_open()
        with self._door:
            if seq.parent is None and not seq.request.admitted:  # the first answer speaks for its siblings
                self._check_limits(seq.request)
            self._entered.append(seq)
        self._news.set()

    def _check_limits(self, request: Request) -> None:
        most, most_tokens = self._limits
        entered = [s for s in list(self._entered) if s.request.priority in ("interactive", request.priority)]
        count, tokens = self._scheduler.queued(request.priority)
        count, tokens = count + len(entered), tokens + sum(len(s.tokens) for s in entered)
        limits = []
        if most is not None and count >= most:
            limits.append(f"{most:,} requests")
        if most_tokens is not None and count and tokens + len(request.prompt) > most_tokens:
            limits.append(f"{most_tokens:,} tokens")
        if not limits and request.deadline is None:
            return
        wait = self._scheduler.wait(request, entered)
        if limits:
            raise Overloaded(
                f"requests that wait already: {count:,}, of {tokens:,} tokens; the limit is {' and '.join(limits)}",
                f"the wait would be about {wait:.1f} s; try again later",
                wait,
            )
        if request.deadline is not None and time.monotonic() + wait > request.deadline:
            raise DeadlineExceeded(
                f"the time limit would pass in the queue, where the wait is about {wait:.1f} s",
                "give it more time, or ask later",
            )

    def advance(self, seq: Sequence, arrived: Callable[[], bool]) -> None:
        """Drive steps until something has arrived for `seq`; raise its error if it failed."""
        self._wanting.append(seq)
        try:
            with self._turn:
                while not arrived():
                    if seq.error is not None:
                        raise seq.error
                    self._check_open()
                    if not self.step():
                        self._turn.wait(WAIT_S)
        finally:
            self._wanting.remove(seq)

    def cancel(self, seq: Sequence) -> None:
        """Give a sequence's blocks back: now if nobody computes, else before the next step.

        Never waits: this may run in a garbage collection inside a step.
        """
        self._cancelled.append(seq)
        self._news.set()
        if self._turn.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._turn.release()

    def _sweep(self) -> None:
        """Take in who came, let go who was given up or is out of time."""
        while self._entered:
            seq = self._entered.popleft()
            self._counts.prompt_tokens += len(seq.request.prompt)
            self._scheduler.add(seq)
        while self._cancelled:
            seq = self._cancelled.popleft()
            if not seq.done:
                self._drop(seq)
        for seq in self._scheduler.late():
            self._drop(
                seq, DeadlineExceeded(f"the time limit passed after {seq.generated} tokens of the answer")
            )

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise EngineClosed(
                f"{self.model.name} was loaded in process {self._pid}; this is a fork of it",
                "load the model in this process, or start it with the spawn method",
            )
        if self._closing:
            raise EngineClosed(f"{self.model.name} is closed", "load it again")


def _named(error: Exception, what: str) -> FreeholdError:
    """Return an error of our own; a stranger becomes one."""
    if isinstance(error, FreeholdError):
        return error
    named = StepFailed(f"{what}: {type(error).__name__}: {error}", "this is a bug; please report it")
    named.__cause__ = error
    return named


def _shared(
    priority: Priority = "interactive",
    tenant: str = "",
    deadline_s: float | None = None,
    admitted: bool = False,
    adapter: Adapter | None = None,
) -> dict[str, Any]:
    """Return the fields of a Request that say how it shares the engine."""
    if priority not in get_args(Priority):
        raise UsageError(f"priority is {priority!r}; expected {' or '.join(get_args(Priority))}")
    if deadline_s is not None and not deadline_s > 0:
        raise UsageError(f"the time limit is {deadline_s} s; expected more than 0")
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    return {
        "priority": priority,
        "tenant": tenant,
        "deadline": deadline,
        "admitted": admitted,
        "adapter": adapter,
    }
