"""Several token rows as one batch without padding: what neighbours begin with once, each with positions of its own.

Knows rows, positions and which target tokens are wanted; knows no model. Neighbours that begin alike, as answers to
one prompt do, are one tree: their common tokens are computed once. Rows see nothing of each other else.
Path: trainee.Trainee.log_probs -> RowBatch -> graph.TorchOps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Sequence[int]]
# Of each row, for ids[1:]: whether that token's log-probability is computed.
Wanted = Sequence[Sequence[bool]]

I64 = NDArray[np.int64]


# What a pair of tokens in one tree's attention costs beside a token in all linears: 4 operations a value of the hidden
# size for a mask's whole square, against 24 hidden sizes squared; small models have 576 to 1,536.
PAIR_COST = 1 / 4096


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Neighbouring rows' inputs from `first` on: `shared` tokens that all of them begin with, then each row's rest."""

    first: int
    shared: int
    rests: tuple[int, ...]  # lengths, one a row; a lone row has all in `shared`

    @property
    def span(self) -> slice:
        """Where the inputs lie."""
        return slice(self.first, self.first + self.shared + sum(self.rests))

    @property
    def positions(self) -> I64:
        """The place of each input in its own row."""
        return _joined([range(self.shared), *(range(self.shared, self.shared + n) for n in self.rests)])

    @property
    def branches(self) -> I64:
        """The row of each input, counted within the tree; -1 for shared ones."""
        return np.repeat(np.arange(-1, len(self.rests)), (self.shared, *self.rests))


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Inputs ids[:-1] of every row, laid tree after tree."""

    tokens: I64
    positions: I64
    trees: tuple[TokenTree, ...]
    chosen: I64  # inputs whose next token is wanted, of all rows in turn; shared ones once for each row
    targets: I64  # those next tokens
    counts: tuple[int, ...]  # wanted tokens of each row

    @classmethod
    def of(cls, rows: Rows, wanted: Wanted | None = None) -> RowBatch:
        """Lay rows of two or more tokens."""
        arrays = [np.asarray(row, np.int64) for row in rows]
        assert min(map(len, arrays), default=2) >= 2, "a row has a first token and one that follows it"
        masks = (
            [np.ones(len(a) - 1, bool) for a in arrays]
            if wanted is None
            else [np.array(m, bool) for m in wanted]
        )
        assert [len(m) + 1 for m in masks] == [len(a) for a in arrays], (
            "a mask has one entry for each later token"
        )
        inputs = [array[:-1] for array in arrays]
        tokens: list[I64] = []
        places: list[I64] = []
        trees: list[TokenTree] = []
        first = 0
        for start, end, shared in _parted(inputs):
            rests = tuple(len(each) - shared for each in inputs[start:end]) if end - start > 1 else ()
            trees.append(TokenTree(first, shared, rests))
            tokens += [inputs[start][:shared], *(each[shared:] for each in inputs[start:end] if rests)]
            begin = first + shared
            for rest in rests or (0,):
                places.append(_joined([range(first, first + shared), range(begin, begin + rest)]))
                begin += rest
            first = begin
        return cls(
            tokens=_joined(tokens),
            positions=_joined([tree.positions for tree in trees]),
            trees=tuple(trees),
            chosen=_joined([place[mask] for place, mask in zip(places, masks, strict=True)]),
            targets=_joined([array[1:][mask] for array, mask in zip(arrays, masks, strict=True)]),
            counts=tuple(int(m.sum()) for m in masks),
        )

    @property
    def longest(self) -> int:
        """Inputs of the longest row."""
        return int(self.positions.max(initial=0)) + 1


def _parted(inputs: Sequence[I64]) -> list[tuple[int, int, int]]:
    """Cut rows into trees of neighbours, (first row, row after the last, shared tokens), at the least cost."""
    alike = [_common(a, b) for a, b in pairwise(inputs)]
    # Up to each row: cost, where its tree begins, what it shares.
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)]
    for end in range(1, len(inputs) + 1):
        choices = []
        shared, total = len(inputs[end - 1]), 0
        for start in range(end - 1, -1, -1):
            shared = min(shared, alike[start]) if start < end - 1 else shared
            total += len(inputs[start])
            tokens = total - (end - 1 - start) * shared
            choices.append((best[start][0] + tokens + PAIR_COST * tokens**2, start, shared))
            if not shared:
                break
        best.append(min(choices))
    spans: list[tuple[int, int, int]] = []
    end = len(inputs)
    while end:
        _, start, shared = best[end]
        spans.append((start, end, shared))
        end = start
    return spans[::-1]


def _common(a: I64, b: I64) -> int:
    """Count the tokens that two rows begin with alike."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _joined(parts: Sequence[Sequence[int] | I64]) -> I64:
    return np.concatenate([np.asarray(part, np.int64) for part in parts] or [np.zeros(0, np.int64)])
