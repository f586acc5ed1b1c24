"""Several token rows as one batch without padding: concatenated, each with positions of its own.

Knows rows, positions and which target tokens are wanted; knows no model. Rows never see each other, because
attention runs over each alone.
Path: trainee.Trainee.log_probs -> RowBatch -> graph.TorchOps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Sequence[int]]
Wanted = Sequence[
    Sequence[bool]
]  # of each row, for ids[1:]: whether that token's log-probability is computed

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Inputs ids[:-1] of every row, laid one after another."""

    tokens: I64
    positions: I64
    spans: tuple[tuple[int, int], ...]  # where each row's inputs lie
    chosen: I64  # inputs whose next token is wanted
    targets: I64  # those next tokens
    counts: tuple[int, ...]  # wanted tokens of each row

    @classmethod
    def of(cls, rows: Rows, wanted: Wanted | None = None) -> RowBatch:
        """Lay rows of two or more tokens."""
        lengths = [len(row) - 1 for row in rows]
        assert min(lengths, default=1) >= 1, "a row has a first token and one that follows it"
        ends = list(accumulate(lengths))
        spans = tuple((end - n, end) for end, n in zip(ends, lengths, strict=True))
        masks = [np.ones(n, bool) for n in lengths] if wanted is None else [np.array(m, bool) for m in wanted]
        assert [len(m) for m in masks] == lengths, "a mask has one entry for each token after the first"
        mask = np.concatenate(masks) if masks else np.zeros(0, bool)
        chosen = np.flatnonzero(mask)
        following = _joined([row[1:] for row in rows])
        return cls(
            tokens=_joined([row[:-1] for row in rows]),
            positions=_joined([range(n) for n in lengths]),
            spans=spans,
            chosen=chosen,
            targets=following[chosen],
            counts=tuple(int(m.sum()) for m in masks),
        )


def _joined(parts: Sequence[Sequence[int]]) -> I64:
    return np.concatenate([np.asarray(part, np.int64) for part in parts] or [np.zeros(0, np.int64)])
