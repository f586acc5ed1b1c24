"""The engine of an encoder: whole texts as ids in, one vector a text out. It makes no token and keeps no cache.

Knows ids, steps and pooling; knows no text and no protocol. A caller puts its texts into a queue and computes steps
until they are done, so texts of many callers share a step; they are concatenated without padding. A text's
vector is the same bits, whatever shares its step. Clients take equal parts of the tokens computed. Batch texts are
computed in steps of their own, and only while no interactive one waits: in an interactive step they would lengthen it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import ContextOverflow, FreeholdError, StepFailed
from freehold.base.serving import EngineStats
from freehold.base.stopping import check_stopped
from freehold.base.types import Priority
from freehold.run.engine.counts import Counts, Lifetime, named, traced
from freehold.run.engine.requests import check_vocabulary
from freehold.run.engine.schedule.budget import MAX_NUM_BATCHED_TOKENS
from freehold.run.engine.schedule.shares import Shares
from freehold.run.engine.scoring import Pool, Pooling, checked_pooling
from freehold.run.models.load import LoadedModel

F32 = NDArray[np.float32]


class TextQueue:
    """Texts of one priority, by client: the next one is of the client with the fewest tokens computed."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[QueuedText]] = {}
        self._shares = Shares()  # in tokens
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, [*self._queues.values()]))

    def extend(self, client: str, texts: Iterable[QueuedText]) -> None:
        """Append a client's texts."""
        with self._lock:
            if client not in self._queues:
                self._queues[client] = deque()
                self._shares.enter(client)
            self._queues[client].extend(texts)

    def take(self, most: int) -> list[QueuedText]:
        """Remove and return the texts of a step of at most this many tokens; those cancelled are dropped."""
        taken: list[QueuedText] = []
        with self._lock:
            while self._queues:
                client = min(self._queues, key=self._shares.used)
                queue = self._queues[client]
                tokens = 0 if queue[0].cancelled else len(queue[0].ids)
                if tokens > most:
                    break
                text = queue.popleft()
                most -= tokens
                self._shares.charge(client, tokens)
                if not text.cancelled:
                    taken.append(text)
                if not queue:
                    del self._queues[client]
                    self._shares.leave(client)
        return taken


@dataclass(slots=True)
class QueuedText:
    """A text that waits for its step, which fills in the vector or the error."""

    ids: Ordered[int]
    pooling: Pooling
    cancelled: bool = False  # set by its caller
    vector: F32 | None = None
    error: FreeholdError | None = None

    @property
    def done(self) -> bool:
        return self.vector is not None or self.error is not None

    def finish(self, rows: F32) -> None:
        """Pool the text's last hidden states."""
        pool = Pool(self.pooling)
        pool.add(rows)
        try:
            self.vector = pool.vector
        except StepFailed as e:
            self.error = e


class Encoder:
    """A loaded encoder, safe from many threads. Close it when done."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        context: int | None = None,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
    ) -> None:
        """Trace the plan. `context`: tokens of a text (default: the model's positions). Raises ContextOverflow."""
        if context is not None and not 1 <= context <= model.context:
            raise ContextOverflow(
                f"context is {context:,} tokens; {model.name} encodes texts of 1 to {model.context:,}",
                f"load it with --context {model.context} or less",
            )
        self.model = model
        self.context = context or model.context
        self.context_note = "the model's own" if context is None else "as asked"
        self.threads = model.threads.size
        self._max_tokens = max(max_num_batched_tokens, self.context)
        self._plan = model.build(None, self._max_tokens)
        self._queues: dict[Priority, TextQueue] = {each: TextQueue() for each in get_args(Priority)}
        # Not locked during a step, so that the callers whose texts it finished return at once: a thread that computes
        # one step after another would win a plain lock each time.
        self._idle = threading.Condition()
        self._stepping = False
        self._lifetime = Lifetime(model.name)
        self._stepped = threading.Event()  # set by steps and by `close`
        self._counts, self._stats = Counts(), EngineStats()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def cache_bytes(self) -> int:
        """Always 0: an encoder keeps no cache."""
        return 0

    @property
    def cache_bytes_per_token(self) -> int:
        """Always 0: an encoder keeps no cache."""
        return 0

    def close(self) -> None:
        """Refuse further texts; safe to call twice, and in a fork."""
        self._lifetime.close()
        self._stepped.set()

    def stats(self) -> EngineStats:
        """Return the counters after the latest step; any thread may call it."""
        return self._stats

    def pump(self, timeout: float) -> bool:
        """Tell whether a caller of `embed` computed a step; wait for one up to `timeout` seconds."""
        self._lifetime.check()
        stepped = self._stepped.wait(timeout)
        self._stepped.clear()
        self._lifetime.check()
        return stepped

    def embed(
        self,
        texts: Ordered[Ordered[int]],
        pooling: Pooling = "mean",
        priority: Priority = "interactive",
        client: str = "",
    ) -> F32:
        """Return a vector of unit length for each of `texts`: float32 [n, width].

        Each text is 1 to `context` ids. `client`: whose part of the steps they use.
        Raises UsageError, ContextOverflow naming the text, EngineClosed.
        """
        self._lifetime.check()
        pooling = checked_pooling(pooling)
        for i, ids in enumerate(texts):
            self._check(i, ids)
        mine = [QueuedText(ids, pooling) for ids in texts]
        self._queues[priority].extend(client, mine)
        try:
            for text in mine:
                check_stopped()
                self._advance(text)
                if text.error is not None:
                    raise text.error
        finally:
            for text in mine:
                text.cancelled = (
                    True  # matters for those not computed yet, where one failed or the caller left
                )
        return np.array([text.vector for text in mine], np.float32).reshape(
            len(mine), self._plan.hidden_width
        )

    def _check(self, index: int, ids: Ordered[int]) -> None:
        if not 1 <= len(ids) <= self.context:
            raise ContextOverflow(
                f"text {index} has {len(ids):,} tokens; {self.model.name} encodes 1 to {self.context:,}",
                "split it",
            )
        check_vocabulary(ids, self.model)

    # --- steps ---------------------------------------------------------------------------------------

    def _advance(self, text: QueuedText) -> None:
        """Compute steps, or wait for those of other threads, until a text is done."""
        with self._idle:
            while not text.done:
                if self._stepping:
                    self._idle.wait()
                    continue
                self._stepping = True
                self._idle.release()
                try:
                    self._step()
                finally:
                    self._idle.acquire()
                    self._stepping = False
                    self._idle.notify_all()

    def _step(self) -> None:
        """Compute as many texts of one priority as a step holds."""
        queue = self._queues["interactive"] or self._queues["batch"]
        batch = queue.take(self._max_tokens)
        if not batch:
            return
        rows = sum(len(text.ids) for text in batch)
        try:
            hidden = self._computed(batch, rows)
        except Exception as e:
            error = named(e, f"a step with {len(batch)} texts failed")
            for text in batch:
                text.error = error
            return
        self._count(rows)
        end = 0
        for text in batch:
            end += len(text.ids)
            text.finish(hidden[end - len(text.ids) : end])
            if text.error is not None:
                text.error = traced(text.error, self.model)

    def _computed(self, batch: list[QueuedText], rows: int) -> F32:
        self._lifetime.check()
        counts = np.array([len(text.ids) for text in batch])
        starts = np.cumsum(counts) - counts
        hidden = np.empty((rows, self._plan.hidden_width), np.float32)
        self._plan.run(
            np.array([id for text in batch for id in text.ids], np.int32),
            (np.arange(rows) - np.repeat(starts, counts)).astype(np.int32),
            np.repeat(np.arange(len(batch)), counts).astype(np.int32),
            np.zeros((len(batch), 0), np.int32),
            np.zeros(0, np.int32),
            hidden_rows=np.arange(rows, dtype=np.int32),
            hidden=hidden,
        )
        self.model.check()
        return hidden

    def _count(self, rows: int) -> None:
        self._counts.prompt_tokens += rows
        self._counts.computed_tokens += rows
        self._counts.stepped(rows, ())
        self._stats = self._counts.stats(waiting=sum(map(len, self._queues.values())))
        self._stepped.set()
