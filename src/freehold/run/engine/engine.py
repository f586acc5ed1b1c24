"""The engine: token ids in, token ids out.

Knows sequences, steps and the lock around a step; knows no text, no template and no protocol.
A thread that needs a token computes steps for all live sequences; in a served engine one thread computes them all.
The engine starts no thread of its own. An error of one sequence ends that sequence alone.

What a step computed for a sequence becomes its next tokens, or is passed to the request's sink (`Emission`, which
knows logits, drafts, grammars and where an answer ends; no schedule, no block and no lock).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import replace
from pathlib import Path
from typing import Self, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import DeadlineExceeded, FreeholdError, NonFiniteLogits, Overloaded, UsageError
from freehold.base.serving import EngineStats
from freehold.base.stopping import check_stopped
from freehold.base.types import KvType, SamplingParams
from freehold.run.engine.cache.blocks import BlockManager, blocks_for
from freehold.run.engine.cache.capacity import (
    KV_TYPES,
    MEMORY_SHARE,
    CacheBytes,
    bytes_per_block,
    choose_context,
    kinds_beside_full,
)
from freehold.run.engine.cache.disk import DiskCache, KvPages, StateSlots, dependencies
from freehold.run.engine.cache.recurrent import SHORT_DRAFT
from freehold.run.engine.constrain.grammar import NotReady
from freehold.run.engine.counts import Counts, Lifetime, named, traced
from freehold.run.engine.requests import AnswerOptions, Requests
from freehold.run.engine.runner import ModelRunner
from freehold.run.engine.sampler import MAX_SEED, choose, non_finite
from freehold.run.engine.schedule.budget import MAX_NUM_BATCHED_TOKENS
from freehold.run.engine.schedule.scheduler import Scheduler
from freehold.run.engine.schedule.shares import GRAMMAR_S, own_tokens
from freehold.run.engine.sequence import Generation, Request, ScheduledChunk, Sequence, TokenOut
from freehold.run.engine.speculate.draft_model import DraftModel
from freehold.run.engine.speculate.head import HeadDrafts
from freehold.run.engine.speculate.speculation import Speculation
from freehold.run.models.load import LoadedModel

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

WAIT_S = 0.02  # between looks at whether other threads' sequences gave blocks back
YIELD_S = 0.0003  # until a thread that waits for the step lock has woken
# Operations a second of one thread, assumed until a prompt was computed. A core with 8-bit dots reaches 400e9 in
# prefill, one with tiles 600e9, so a wait estimated before that is too long rather than too short.
ASSUMED_OPS = 200e9


class Engine:
    """A loaded model with its cache, safe from many threads. Close it when done.

    One step is `schedule` (which tokens of which sequences), `run` (one native call) and `postprocess` (choose the
    next tokens, end sequences); before a step, sequences that entered are added and cancelled ones removed.
    """

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
        head: bool | None = None,
        target_itl_s: float | None = None,
        max_queued: int | None = None,
        max_queued_tokens: int | None = None,
        disk: Path | None = None,
        span_rows: int = 0,
    ) -> None:
        """Reserve the cache for `context` tokens (None: the model's own, cut to `memory_share` of memory).

        `threads` None: the pool that packed the model. `blocks`: cache blocks, at least what the context
        takes. `kv_type`: what the cache holds: "f16"; "q8", int8 in half the bytes; "f32", which rounds nothing.
        `speculate`: verify draft tokens where that pays, by n-gram lookup and from `draft`, a smaller model with
        the same vocabulary; no answer depends on it. `head`: whether the model's own head drafts where there is no
        `draft` (None: if the file has one; True requires it).
        `target_itl_s`: seconds between two tokens of a running answer beside prefill (None: a multiple of what
        they take without). `max_queued`, `max_queued_tokens`: requests, and tokens of their prompts, that may wait
        to begin; beyond them Generation.start raises Overloaded (None: no limit).
        `span_rows`: rows of a picture that see each other, at most, of a model whose pictures are computed whole.
        `disk`: a folder in which the cache of long prompts outlives the engine, if the model's digest is known.
        Raises UsageError and CapacityExceeded with the numbers.
        """
        if max_num_batched_tokens < 1 or (threads is not None and threads < 1):
            raise UsageError(
                f"max_num_batched_tokens is {max_num_batched_tokens} and threads {threads}; expected 1 or more"
            )
        self._kv_type: KvType = kv_type
        if kv_type not in KV_TYPES:
            raise UsageError(f"kv_type is {kv_type!r}; expected {', '.join(KV_TYPES[:-1])} or {KV_TYPES[-1]}")
        drafter = model.drafter if speculate and draft is None and head is not False else None
        if head and drafter is None:
            raise UsageError(
                f"{model.name} has no head of its own to draft with, or another source drafts",
                "leave the head out of --draft, or choose a file that holds one",
            )
        also = None  # bytes of a block in the drafting source's cache, which has as many
        if drafter is not None:
            also = drafter.new_cache(1, kv_type).bytes_per_block
        elif draft is not None:
            also = bytes_per_block(draft, kv_type)
        if also is not None:
            own = bytes_per_block(model, kv_type)
            memory_share *= own / max(own + also, 1)
        self.context, self.context_note = choose_context(model, context, memory_share, kv_type)
        self.model = model = model.at(self.context)
        self.context_note += model.rope_note
        pool = model.threads if threads in (None, model.threads.size) else native.Threads(threads)
        count = max(blocks or 0, blocks_for(self.context))
        self.threads = pool.size
        rows = max_num_batched_tokens + span_rows
        self._cache_bytes = CacheBytes.of(model, kv_type, rows)
        places = self._cache_bytes.places(count)
        kinds = kinds_beside_full(model.layers, places, count, rows)
        self._blocks = BlockManager(count, kinds)
        self._runner: ModelRunner | None = ModelRunner(model, self._blocks, rows, pool, kv_type)
        if disk is not None and model.digest:
            pages, states = KvPages(self._runner.cache), StateSlots(self._runner.cache)
            key = dependencies(model, kv_type, "window" in places)
            kept = [states] if states.nbytes else []
            self._blocks.attach(DiskCache(disk, key, pages.nbytes, states.nbytes), pages, kept)
        token_s = 2 * model.weights_per_token / (ASSUMED_OPS * pool.size)
        self._scheduler = Scheduler(
            self._blocks,
            max_num_batched_tokens,
            time.monotonic,
            target_itl_s,
            token_s,
            span_rows=span_rows,
        )
        source = None
        if drafter is not None:
            source = self._runner.reader = HeadDrafts(model, drafter, count, pool, kv_type)
            self._runner.touch(1 + SHORT_DRAFT)
        elif draft is not None:
            source = DraftModel(draft.at(self.context), model, self.context, count, pool, kv_type)
        self._speculation = Speculation(self._scheduler.budget.cost, source) if speculate else None
        self.requests = Requests(model, self.context, span_rows)
        self._admission = Admission(self._scheduler, max_queued, max_queued_tokens)
        self._counts = Counts()
        self._emitter = Emitter(model, self._counts)
        self._lifetime = Lifetime(model.name)
        self._step_lock = threading.Condition(threading.Lock())
        # Sequences whose threads, in `advance`, hold the step lock or wait for it.
        self._advancing: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._pumped = False  # one thread computes all steps
        # Set when a sequence enters or is cancelled, cleared before a step that takes it in.
        self._wakeup = threading.Event()
        self._woken = False

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
        """Cache blocks that no live sequence holds."""
        return self._blocks.available

    def close(self) -> None:
        """Free the cache; running answers raise EngineClosed. Safe to call twice, and in a fork."""
        if self._lifetime.is_fork:
            return
        self._lifetime.close()  # before the lock: a thread that computes step after step would not let go of it
        with self._step_lock:
            self._runner = self._speculation = None  # both hold a cache
            self._step_lock.notify_all()
        self._wakeup.set()
        self._blocks.close()

    def stats(self) -> EngineStats:
        """Return counters and the state after the latest step; any thread may call it."""
        return self._counts.stats(
            running=self._scheduler.live.running,
            waiting=self._scheduler.live.waiting + len(self._admission),
            **self._blocks.stats,
            state_bytes=self._cache_bytes.state,
            preemptions=self._scheduler.preemption.count,
            expected_wait_s=self._admission.expected_wait_s,
        )

    # --- answers -----------------------------------------------------------------------------------

    def generate(
        self,
        prompt_ids: Ordered[int],
        sampling: SamplingParams | None = None,
        *,
        resume: Ordered[int] = (),
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Continue `prompt_ids`; iterate over the result for its tokens, the last of which has a reason.

        Without a seed a random one is used (Generation.seed). `resume`: the first tokens of this very answer, made
        by an engine that died; the answer continues after them.
        Raises UsageError, ContextOverflow at once; Overloaded on entering; NonFiniteLogits, DeadlineExceeded,
        StepFailed, EngineClosed while iterating.
        """
        return self.generate_many(prompt_ids, 1, sampling, resume=[resume], **options)[0]

    def generate_many(
        self,
        prompt_ids: Ordered[int],
        n: int,
        sampling: SamplingParams | None = None,
        *,
        resume: Ordered[Ordered[int]] = (),
        **options: Unpack[AnswerOptions],
    ) -> list[Generation]:
        """Continue `prompt_ids` in `n` ways; number i samples with seed + i and continues after `resume[i]`.

        The prompt is computed once. Start them in order: once the first is admitted, the others always are.
        """
        if n < 1 or len(resume) > n:
            raise UsageError(
                f"n is {n} and {len(resume)} answers are resumed; expected 1 or more, and at most n"
            )
        self._lifetime.check()
        request = replace(self.requests.answer(prompt_ids, sampling, **options), answers=n)
        prefixes = [*resume, *([()] * (n - len(resume)))]
        first = self.requests.sequence(request, prefixes[0])
        others = [
            self.requests.sequence(replace(request, seed=(request.seed + i) & MAX_SEED), prefixes[i], first)
            for i in range(1, n)
        ]
        return [Generation(self, seq) for seq in (first, *others)]

    def enter(self, seq: Sequence) -> None:
        """Take a sequence in before the next step; never waits for a step. Raises Overloaded, DeadlineExceeded."""
        self._lifetime.check()
        self._admission.enter(seq)
        self._wakeup.set()

    def cancel(self, seq: Sequence) -> None:
        """Give a sequence's blocks back: at once between steps, else before the next.

        Never waits: this may run in a garbage collection inside a step.
        """
        self._cancelled.append(seq)
        self._wakeup.set()
        if self._step_lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._step_lock.release()

    # --- who computes steps ------------------------------------------------------------------------

    def pump(self, timeout: float) -> bool:
        """Compute one step as `drive` does, in the one thread that computes all of them from now on."""
        self._pumped = True
        return self.drive(timeout)

    def drive(self, timeout: float) -> bool:
        """Compute one step for all live sequences and return True; without any, wait up to `timeout` s for one.

        Any thread may drive. An error of one sequence is not raised here: its generation raises it.
        """
        self._wakeup.clear()
        woken, self._woken = self._woken, False
        with self._step_lock:
            self._lifetime.check()
            stepped = self.step()
            if stepped:
                self._step_lock.notify_all()
        if self._advancing:  # this thread would take the lock again before those that wait for it have woken
            time.sleep(YIELD_S)
        elif not stepped and not woken:
            self._wakeup.wait(timeout)
        return stepped

    def wake(self) -> None:
        """Let the thread that pumps return, soon: something changed outside the engine. Any thread may call it."""
        self._woken = True  # kept until a call of `drive` has seen it
        self._wakeup.set()

    def advance(self, seq: Sequence, arrived: Callable[[], bool]) -> None:
        """Compute steps until something has arrived for `seq`; raise its error if it failed."""
        self._advancing.append(seq)
        try:
            with self._step_lock:
                while not arrived():
                    if seq.error is not None:
                        raise seq.error
                    self._lifetime.check()
                    if not self.step():
                        self._step_lock.wait(WAIT_S)
        finally:
            self._advancing.remove(seq)

    def wait(self, seq: Sequence) -> None:
        """Return when a sequence is done, by this thread's steps or those of the one that pumps; raise its error."""
        if not self._pumped:
            return self.advance(seq, lambda: seq.done and seq.error is None)
        with self._step_lock:
            while not seq.done:
                self._lifetime.check()
                check_stopped()
                self._step_lock.wait(WAIT_S)
        if seq.error is not None:
            raise seq.error
        return None

    # --- the step ----------------------------------------------------------------------------------

    def step(self) -> bool:
        """Compute one step for all sequences that can continue; False if none can. The caller holds the step lock."""
        self._sweep()
        batch = self._scheduler.schedule()
        if not batch or self._runner is None:
            return False
        try:
            self._compute(batch, self._runner)
        except BaseException:  # an interrupt: what is not published yet is computed again
            self._take_back(batch)
            raise
        return True

    def _compute(self, batch: list[ScheduledChunk], runner: ModelRunner) -> None:
        """Run a scheduled step and postprocess it; an error of the whole step ends its sequences."""
        started = time.perf_counter()
        try:
            if self._speculation is not None:
                batch = self._speculation.extend(batch, self._scheduler)
            for chunk in batch:
                self._blocks.prepare(chunk.seq, chunk.first, chunk.count, len(chunk.draft))
            results = runner.run(batch)
        except Exception as e:
            self._fail(batch, e)
            return
        seconds = time.perf_counter() - started
        draft_s = self._speculation.draft_s if self._speculation is not None else 0.0
        prefilled = self._scheduler.learn(batch, seconds - draft_s)
        self._postprocess(batch, results, seconds)
        if self._speculation is not None:
            self._speculation.learn(batch)
        self._counts.stepped(sum(chunk.num_tokens for chunk in batch), prefilled)

    def _take_back(self, batch: list[ScheduledChunk]) -> None:
        """Resume from what was published before an interrupted step; a sequence with a finish reason ends."""
        for chunk in batch:
            if chunk.seq.reason is not None and not chunk.seq.done:
                self._drop(chunk.seq)
            elif not chunk.seq.done:
                self._publish(chunk, chunk.seq.num_computed_tokens)

    def _sweep(self) -> None:
        """Add the sequences that entered; remove those that were cancelled or whose time is over."""
        for seq in self._admission.take():
            self._counts.prompt_tokens += len(seq.request.prompt)
            self._scheduler.add(seq)
        while self._cancelled:
            seq = self._cancelled.popleft()
            if not seq.done:
                self._drop(seq)
        for seq in self._scheduler.expired():
            self._drop(
                seq, DeadlineExceeded(f"the time limit passed after {seq.generated} tokens of the answer")
            )

    def _postprocess(self, batch: list[ScheduledChunk], results: list[F32 | I64], seconds: float) -> None:
        """Emit what the step computed, share full blocks, and end the sequences that are complete or failed."""
        for chunk, rows in zip(batch, results, strict=True):
            seq = chunk.seq
            if seq.matcher is not None and chunk.last and not self._scheduler.has_grammar_time(seq):
                self._compute_again(chunk)
                continue
            began = time.perf_counter()
            try:
                accepted = self._emitter.emit(chunk, rows, seconds)
            except NotReady:
                self._compute_again(chunk)
                continue
            except FreeholdError as e:
                self._end(chunk.seq, e, keep=False)  # its blocks may hold what NaN came from
                continue
            finally:
                grammar_s = seq.matcher.take_seconds() if seq.matcher is not None else 0.0
                if seq.matcher is not None:
                    self._scheduler.charge_grammar(seq, grammar_s)
                self._scheduler.charge_choice(seq, max(time.perf_counter() - began - grammar_s, 0.0))
            # Accepted draft tokens are computed; rows after a rejected one are written again.
            self._publish(chunk, chunk.first + chunk.count + accepted)
            if chunk.seq.reason is not None:
                self._end(chunk.seq)

    def _compute_again(self, chunk: ScheduledChunk) -> None:
        """Leave the row of a sequence's next token to another step."""
        self._publish(chunk, max(chunk.first + chunk.count - 1, chunk.seq.num_computed_tokens))

    def _publish(self, chunk: ScheduledChunk, tokens: int) -> None:
        self._blocks.publish(chunk.seq, tokens, len(chunk.draft))

    def _fail(self, batch: list[ScheduledChunk], error: Exception) -> None:
        """End the sequences of a step that failed; their blocks may be half written, so none is kept."""
        for chunk in batch:
            failure = named(error, f"a step with {len(batch)} requests failed")
            self._drop(chunk.seq, failure, keep=False)

    def _end(self, seq: Sequence, error: FreeholdError | None = None, keep: bool = True) -> None:
        """Remove a sequence; `done` comes last, so that a thread that sees it finds the error and all tokens."""
        seq.error = error
        self._scheduler.remove(seq, keep)
        seq.done = True

    def _drop(self, seq: Sequence, error: FreeholdError | None = None, keep: bool = True) -> None:
        """Remove a sequence outside `postprocess`, where speculation does not see that it ended."""
        if self._speculation is not None:
            self._speculation.forget(seq)
        self._end(seq, error, keep)


# --- which requests an engine takes in --------------------------------------------------------------
# The limits on its queue, and those that entered since the latest step.
# Clients share the queue: one that has no more than its part of it (the limit over the clients that wait) is
# not refused because of what others have there. So the queue may exceed its limit, with n clients at most by
# the factor 1 + ln n.


class Admission:
    """Checks limits at once and never waits for a step. Safe from many threads."""

    def __init__(self, scheduler: Scheduler, max_queued: int | None, max_queued_tokens: int | None) -> None:
        """`max_queued`, `max_queued_tokens`: requests and their prompts' tokens that may wait; None: no limit."""
        self._scheduler = scheduler
        self._max_queued, self._max_queued_tokens = max_queued, max_queued_tokens
        self._lock = threading.Lock()  # requests are checked one at a time, or two could take one place
        self._entered: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self._entered)

    @property
    def expected_wait_s(self) -> float:
        """Seconds until a request that came now would begin."""
        return self._scheduler.wait.seconds(entered=list(self._entered))

    def enter(self, seq: Sequence) -> None:
        """Let a sequence into the next step's schedule. Raises Overloaded, DeadlineExceeded."""
        with self._lock:
            # Answers to one prompt are admitted with the first of them.
            if seq.parent is None and not seq.request.admitted:
                self._check(seq.request)
            self._entered.append(seq)

    def take(self) -> Iterator[Sequence]:
        """Yield the sequences that entered and were not taken yet."""
        while self._entered:
            yield self._entered.popleft()

    def _check(self, request: Request) -> None:
        entered = [s for s in list(self._entered) if s.request.priority in ("interactive", request.priority)]
        waiting = self._scheduler.live.queued(request.priority)
        waiting += [(s.request.client, 1, own_tokens(s)) for s in entered]
        limits = self._exceeded(waiting, request)
        if not limits and request.deadline is None:
            return
        wait = self._scheduler.wait.seconds(request, entered)
        if limits:
            raise Overloaded(
                f"waiting requests: {sum(n for _, n, _ in waiting):,}, with "
                f"{sum(tokens for _, _, tokens in waiting):,} tokens; the limit is {' and '.join(limits)}",
                f"the wait would be about {wait:.1f} s; try again later",
                wait,
            )
        if request.deadline is not None and time.monotonic() + wait > request.deadline:
            raise DeadlineExceeded(
                f"the time limit would pass in the queue, where the wait is about {wait:.1f} s",
                "give it more time, or ask later",
            )

    def _exceeded(self, waiting: list[tuple[str, int, int]], request: Request) -> list[str]:
        """List the limits that a request's answers would exceed, both in all and in its client's part."""
        if not waiting:  # the first to wait exceeds none by its size
            return []
        clients = len({client for client, _, _ in waiting} | {request.client})
        own = [(count, tokens) for client, count, tokens in waiting if client == request.client]
        sizes = (
            (
                self._max_queued,
                "requests",
                request.answers,
                sum(n for _, n, _ in waiting),
                [n for n, _ in own],
            ),
            (
                self._max_queued_tokens,
                "tokens",
                len(request.prompt),
                sum(tokens for _, _, tokens in waiting),
                [tokens for _, tokens in own],
            ),
        )
        limits = []
        for most, unit, more, in_all, mine in sizes:
            if (
                most is not None
                and in_all + more > most
                and (mine or more > most)
                and sum(mine) + more > most // clients
            ):
                limits.append(f"{most:,} {unit}")
        return limits


# --- what a step computed becomes tokens -----------------------------------------------------------


class Emitter:
    """Advances sequences by the rows that steps computed for them."""

    def __init__(self, model: LoadedModel, counts: Counts) -> None:
        self._model, self._counts = model, counts

    def emit(self, chunk: ScheduledChunk, rows: F32 | I64, seconds: float) -> int:
        """Take in a sequence's rows of a step of `seconds`; return how many tokens of its draft were accepted.

        Whatever fails is raised as a FreeholdError, which ends this sequence alone. Raises NotReady where the grammar's
        next mask is still being computed, and no token was chosen.
        """
        seq, known = chunk.seq, len(chunk.seq.tokens)
        if seq.generated > seq.resumed:
            seq.decode_s += seconds
        else:
            seq.prefill_s += seconds
        try:
            if seq.request.sink is not None:
                self._deliver(chunk, cast(F32, rows))  # the plan chooses no token for a sink
            elif chunk.last:
                self._verify(seq, rows, chunk.draft)
        except NotReady:
            raise
        except Exception as e:
            error = self._explained(seq, named(e, "choosing the next token failed"))
            raise error  # noqa: B904
        finally:
            accepted = max(len(seq.tokens) - known - 1, 0)
            self._counts.generated_tokens += len(seq.tokens) - known
            if chunk.draft:
                self._counts.verified(len(chunk.draft), accepted)
        return accepted

    def _explained(self, seq: Sequence, error: FreeholdError) -> FreeholdError:
        """Return the cause of NaN or infinity: the packed copy, the adapter, or else the model's own weights."""
        if not isinstance(error, NonFiniteLogits):
            return error
        cause = traced(error, self._model)
        if cause is not error or seq.request.adapter is None:
            return cause
        return NonFiniteLogits(
            f"{self._model.name} with the adapter {seq.request.adapter.name!r} computed NaN or infinity "
            f"for the token at position {len(seq.tokens)}",
            "the adapter is damaged, or was made for another model: send the request without it",
        )

    def _deliver(self, chunk: ScheduledChunk, rows: F32) -> None:
        """Pass on the rows that the sink has not received yet."""
        if not (np.isfinite(rows.min()) and np.isfinite(rows.max())):  # NaN is both; no array of its own
            raise non_finite(chunk.first)
        seq = chunk.seq
        assert seq.request.sink is not None
        fresh = rows[max(seq.delivered - chunk.first, 0) :]
        if len(fresh):
            seq.request.sink(fresh)
        seq.delivered = max(seq.delivered, chunk.first + chunk.count)
        if chunk.last:
            seq.reason = "length"

    def _verify(self, seq: Sequence, rows: F32 | I64, draft: tuple[int, ...]) -> None:
        """Choose token by token as plain decoding does, as long as each equals the draft token computed next."""
        for number, (row, token) in enumerate(zip(rows, (*draft, None), strict=True)):
            try:
                self._append(seq, row)
            except NotReady:
                if not number:
                    raise
                return
            if seq.reason is not None or seq.tokens[-1] != token:
                return
            if seq.matcher is not None and seq.matcher.untaken_s > GRAMMAR_S:  # the next step has the others
                return

    def _append(self, seq: Sequence, row: F32 | np.int64) -> None:
        """Choose the next token of a sequence and make it pending."""
        request, matcher = seq.request, seq.matcher
        out = choose(
            row,
            seq.tokens,
            request.sampling,
            request.seed,
            self._model.tokens,
            request.logprobs,
            matcher.mask_of(row) if matcher else None,
        )
        if out.id in request.stop_ids:
            seq.reason = "stop"
        elif seq.generated + 1 == request.max_tokens:
            seq.reason = "length"
        elif matcher:
            matcher.advance(out.id)
        seq.tokens.append(out.id)
        if not seq.pending:
            seq.pending_since = time.monotonic()
        seq.pending.append(TokenOut(out.id, out.logprob, out.top, seq.reason))
