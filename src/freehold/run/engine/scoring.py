"""What a model computes for a given text: logits, log-probabilities and vectors, in steps shared with answers.

A vector is of the text's last hidden states: their mean, the last token's or the first's, at unit length. They may
come in any chunks: a sum's order is of positions. Knows token ids and rows; knows no sampling and no schedule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ordered
from contextlib import closing
from typing import Literal, Unpack, cast, get_args

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import StepFailed, UsageError
from freehold.run.engine.engine import Engine
from freehold.run.engine.requests import Sharing
from freehold.run.engine.sampler import log_sum_exp
from freehold.run.engine.sequence import Generation

F32 = NDArray[np.float32]
Pooling = Literal["mean", "last", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def checked_pooling(pooling: str) -> Pooling:
    """Return `pooling` if it is a known name; raise UsageError."""
    if pooling not in POOLINGS:
        raise UsageError(f"pooling is {pooling!r}; expected {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}")
    return cast(Pooling, pooling)


class Pool:
    """Receives one text's rows as steps compute them."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling: Pooling = pooling
        self._kept: NDArray[np.float64] | None = None  # the sum so far, or the chosen row

    def add(self, rows: F32) -> None:
        """Add the next rows, float32 [T, width]."""
        if self._pooling == "mean":
            # In order of position: NumPy adds along this axis row by row.
            kept = [] if self._kept is None else [self._kept[None]]
            self._kept = np.concatenate([*kept, rows.astype(np.float64)]).sum(axis=0)
        elif self._pooling == "last" or self._kept is None:
            self._kept = rows[-1 if self._pooling == "last" else 0].astype(np.float64)

    @property
    def vector(self) -> F32:
        """The vector, float32 [width]. Raises StepFailed where it is zero or not finite."""
        assert self._kept is not None, "a text has at least one token"
        length = np.sqrt(self._kept @ self._kept)
        if not (np.isfinite(length) and length > 0):
            raise StepFailed(
                "the embedding is zero or not finite",
                "the weights may be damaged: freehold pull downloads them again",
            )
        return (self._kept / length).astype(np.float32)


def prefill(
    engine: Engine,
    ids: Ordered[int],
    sink: Callable[[F32], None],
    *,
    hidden: bool = False,
    **sharing: Unpack[Sharing],
) -> Generation:
    """Pass the logits after each of `ids` to `sink`, in order and in pieces float32 [rows, V].

    With `hidden`, the last hidden states instead, float32 [rows, width]. The result makes no token and is done when
    all rows were delivered. `sink` runs within a step, so it must be quick. Raises UsageError, ContextOverflow.
    """
    request = engine.requests.prefill(ids, sink, hidden, **sharing)
    return Generation(engine, engine.requests.sequence(request))


def logit_chunks(engine: Engine, ids: Ordered[int], **sharing: Unpack[Sharing]) -> Iterator[F32]:
    """Yield the logits after each of `ids` in pieces float32 [rows, V], so that memory stays bounded."""
    rows: deque[F32] = deque()
    with closing(prefill(engine, ids, rows.append, **sharing)) as prompt:
        prompt.start()
        while rows or not prompt.done:
            if not rows:
                engine.advance(prompt.sequence, lambda: bool(rows))
            yield rows.popleft()


def logits(engine: Engine, ids: Ordered[int], **sharing: Unpack[Sharing]) -> F32:
    """Return the logits after each of `ids`: float32 [T, V]. Raises as Engine.generate does."""
    return np.concatenate(list(logit_chunks(engine, ids, **sharing)))


def score(engine: Engine, ids: Ordered[int], **sharing: Unpack[Sharing]) -> F32:
    """Return the log-probability of each of `ids` after the first, given the earlier: float32 [T - 1]."""
    return score_many(engine, [ids], **sharing)[0]


def score_many(engine: Engine, rows: Ordered[Ordered[int]], **sharing: Unpack[Sharing]) -> list[F32]:
    """Score texts in steps that they share: for each of `rows` what `score` returns. Raises as Engine.generate does."""
    scores = [_Scored(ids) for ids in rows]
    prompts = [prefill(engine, ids, each.add, **sharing) for ids, each in zip(rows, scores, strict=True)]
    try:
        for prompt in prompts:
            prompt.start()
        for seq in [prompt.sequence for prompt in prompts]:
            engine.advance(seq, lambda seq=seq: seq.done and seq.error is None)
    finally:
        for prompt in prompts:
            prompt.close()
    return [np.array(each.scores, np.float32) for each in scores]


class _Scored:
    """Takes the logits of one text and keeps the log-probability of each token that follows."""

    def __init__(self, ids: Ordered[int]) -> None:
        self._targets = list(ids)[1:]
        self.scores: list[float] = []

    def add(self, rows: F32) -> None:
        first = len(self.scores)
        for row, token in zip(rows, self._targets[first : first + len(rows)], strict=False):
            self.scores.append(float(row[token]) - log_sum_exp(row, len(self.scores) + 1))


def embed(
    engine: Engine, texts: Ordered[Ordered[int]], pooling: Pooling = "last", **sharing: Unpack[Sharing]
) -> F32:
    """Return a vector of unit length for each of `texts`, pooled from the last hidden states: float32 [n, width].

    Raises as Engine.generate does.
    """
    pools = [Pool(checked_pooling(pooling)) for _ in texts]
    prompts = [
        prefill(engine, ids, pool.add, hidden=True, **sharing) for ids, pool in zip(texts, pools, strict=True)
    ]
    try:
        for prompt in prompts:
            prompt.start()
        for prompt in prompts:
            engine.wait(prompt.sequence)
    finally:
        for prompt in prompts:
            prompt.close()
    return np.array([pool.vector for pool in pools], np.float32).reshape(len(pools), -1)
