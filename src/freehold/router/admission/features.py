"""TF-IDF of words and pairs of words, as sparse rows: what the learned routers see of a prompt.

Words of two letters or more in lower case, terms of at least two training prompts, 1 + ln(count) times a smoothed
inverse document frequency, rows of unit length: what text classifiers usually begin with. Counts are made once; a fold
weighs them by its training prompts alone. Knows no label.
Path: admit -> TermCounts.of(prompts) -> TermCounts.weighed(train) -> SparseRows
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

MOST_CHARS = 2000  # of a prompt that are read: a router's time grows with it, and the task shows early
_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True, slots=True)
class SparseRows:
    """A matrix (n, columns) by rows: values and columns of row i lie from starts[i] to starts[i + 1]."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int

    def times(self, vector: np.ndarray) -> np.ndarray:
        """Return the product with a vector of `width`."""
        filled = (
            self.starts[1:] > self.starts[:-1]
        )  # reduceat would give an empty row its successor's first value
        sums = np.zeros(len(filled))
        if filled.any():
            products = self.values * vector[self.columns]
            sums[filled] = np.add.reduceat(products, self.starts[:-1][filled])
        return sums

    def transposed_times(self, vector: np.ndarray) -> np.ndarray:
        """Return the product of the transpose with a vector of one number a row."""
        spread = np.repeat(vector, np.diff(self.starts))
        return np.bincount(self.columns, self.values * spread, self.width)

    def rows(self, keep: np.ndarray) -> SparseRows:
        """Return the rows of a mask."""
        lengths = np.diff(self.starts)
        entries = np.repeat(keep, lengths)
        starts = np.concatenate([[0], np.cumsum(lengths[keep])])
        return SparseRows(starts, self.columns[entries], self.values[entries], self.width)

    def dense(self, width: int, seed: int) -> np.ndarray:
        """Return the rows projected to `width` numbers by random signs (feature hashing), of unit length."""
        rng = np.random.default_rng(seed)
        bucket = rng.integers(0, width, self.width)
        signed = self.values * rng.choice([-1.0, 1.0], self.width)[self.columns]
        n = len(self.starts) - 1
        flat = np.repeat(np.arange(n) * width, np.diff(self.starts)) + bucket[self.columns]
        matrix = np.bincount(flat, signed, n * width).reshape(n, width).astype(np.float32)
        return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True, slots=True)
class TermCounts:
    """How often each term occurs in each prompt: a SparseRows of counts."""

    counts: SparseRows

    @classmethod
    def of(cls, prompts: Sequence[str]) -> TermCounts:
        """Count words and pairs of neighbouring words."""
        ids: defaultdict[str, int] = defaultdict(count().__next__)
        words = [[*map(ids.__getitem__, _WORD.findall(p[:MOST_CHARS].lower()))] for p in prompts]
        lengths = np.array([len(w) for w in words])
        one = np.array([i for each in words for i in each], dtype=np.int64)
        row = np.repeat(np.arange(len(prompts)), lengths)
        same = row[1:] == row[:-1]
        pairs = (one[:-1] + 1) * len(ids) + one[1:]  # above all single words
        return cls(
            _counted(np.concatenate([row, row[1:][same]]), np.concatenate([one, pairs[same]]), len(prompts))
        )

    def weighed(self, train: np.ndarray) -> SparseRows:
        """Return TF-IDF rows of all prompts, by the document frequencies of those in the mask `train`."""
        c = self.counts
        in_train = np.repeat(train, np.diff(c.starts))
        documents = np.bincount(c.columns[in_train], minlength=c.width)
        idf = np.log((1 + train.sum()) / (1 + documents)) + 1
        idf[documents < 2] = 0.0
        values = (1 + np.log(c.values)) * idf[c.columns]
        length = np.sqrt(
            np.bincount(np.repeat(np.arange(len(train)), np.diff(c.starts)), values**2, len(train))
        )
        values /= np.repeat(np.maximum(length, 1e-12), np.diff(c.starts))
        kept = values > 0
        starts = np.concatenate([[0], np.cumsum(kept)])[c.starts]
        return SparseRows(starts, c.columns[kept], values[kept], c.width)


def _counted(row: np.ndarray, term: np.ndarray, n: int) -> SparseRows:
    """Count the terms of each row; those of one row alone are left out, as no fold would weigh them."""
    _, column = np.unique(term, return_inverse=True)
    width = int(column.max(initial=0)) + 1
    cells, counts = np.unique(row * width + column, return_counts=True)
    column = cells % width
    often = np.bincount(column, minlength=width) > 1
    kept = often[column]
    renumbered = np.cumsum(often) - 1
    starts = np.concatenate([[0], np.cumsum(kept)])[np.searchsorted(cells, np.arange(n + 1) * width)]
    return SparseRows(
        starts, renumbered[column[kept]], counts[kept].astype(np.float64), int(often.sum()) or 1
    )
