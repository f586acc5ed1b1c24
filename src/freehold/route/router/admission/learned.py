"""Routers that are learned from the table itself: ridge and kNN on the gain, logistic regression on "weak is wrong".

Simple on purpose: on published tables many methods reach one plateau (LLMRouterBench, 33 models, 21 sets), so one that
loses here is not saved by a larger one. Scores of a question come from folds that do not hold it. Knows no metric.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

# --- TF-IDF of words and pairs of words, as sparse rows: what the routers see of a prompt -----------
# Words of two letters or more in lower case, terms of at least two training prompts, 1 + ln(count) times a
# smoothed inverse document frequency, rows of unit length: what text classifiers usually begin with. Counts
# are made once; a fold weighs them by its training prompts alone.

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
        # reduceat would give an empty row its successor's first value.
        filled = self.starts[1:] > self.starts[:-1]
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


# --- the routers ------------------------------------------------------------------------------------

WIDTH = 256  # numbers a prompt is projected to, for ridge and kNN
NEIGHBOURS = 100
RIDGE = 1.0
_BLOCK = 1024  # rows of similarities at a time
_BANK = 8000  # neighbours are looked for among as many training rows, so that a large table takes no minutes
_STEPS, _MEMORY = 60, 8  # of L-BFGS


def learned(terms: TermCounts, gain: np.ndarray, weak: np.ndarray, fold: np.ndarray) -> dict[str, np.ndarray]:
    """Return each candidate's scores, every fold by a router trained on the others."""
    n = len(gain)
    scores = {name: np.zeros(n) for name in ("ridge on the gain", "kNN on the gain", "TF-IDF + logistic")}
    for train in _trains(fold):
        rows = terms.weighed(train)
        dense = rows.dense(WIDTH, seed=0)
        ask = ~train
        scores["ridge on the gain"][ask] = _ridge(dense, gain, train)
        scores["kNN on the gain"][ask] = _nearest(dense, gain, train)
        weights = _logistic(rows.rows(train), 1.0 - weak[train])
        scores["TF-IDF + logistic"][ask] = rows.rows(ask).times(weights[:-1]) + weights[-1]
    return scores


def task_means(gain: np.ndarray, task: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the mean gain of each question's task in the other folds; no prompt is read."""
    size = int(task.max()) + 1
    score = np.zeros(len(gain))
    for train in _trains(fold):
        sums = np.bincount(task[train], gain[train], size)
        means = sums / np.maximum(np.bincount(task[train], minlength=size), 1)
        score[~train] = means[task[~train]]
    return score


def few_labels(gain: np.ndarray, task: np.ndarray, labels: int, rng: np.random.Generator) -> np.ndarray:
    """Return the mean gain of at most `labels` answers of each task, by halves: no question scores itself."""
    score = np.zeros(len(gain))
    for number in range(int(task.max()) + 1):
        of_task = rng.permutation(np.flatnonzero(task == number))
        halves = of_task[: len(of_task) // 2], of_task[len(of_task) // 2 :]
        for half, known in (halves, halves[::-1]):
            score[half] = gain[known[:labels]].mean() if len(known) else 0.0
    return score


def _trains(fold: np.ndarray) -> Iterator[np.ndarray]:
    for number in range(int(fold.max()) + 1):
        train = fold != number
        if train.any() and not train.all():
            yield train


def _ridge(dense: np.ndarray, gain: np.ndarray, train: np.ndarray) -> np.ndarray:
    x, y = dense[train], gain[train]
    middle, mean = x.mean(axis=0), y.mean()
    x = x - middle
    gram = x.T @ x + RIDGE * np.eye(x.shape[1], dtype=x.dtype)
    weights = np.linalg.solve(gram, x.T @ (y - mean).astype(x.dtype))
    return (dense[~train] - middle) @ weights + mean


def _nearest(dense: np.ndarray, gain: np.ndarray, train: np.ndarray) -> np.ndarray:
    at = np.flatnonzero(train)
    if len(at) > _BANK:
        at = np.random.default_rng(0).choice(at, _BANK, replace=False)
    bank, known, queries = dense[at], gain[at], dense[~train]
    k = min(NEIGHBOURS, len(at))
    means = np.empty(len(queries))
    for begin in range(0, len(queries), _BLOCK):
        like = queries[begin : begin + _BLOCK] @ bank.T
        nearest = np.argpartition(like, len(at) - k, axis=1)[:, -k:]
        means[begin : begin + _BLOCK] = known[nearest].mean(axis=1)
    return means


def _logistic(x: SparseRows, y: np.ndarray) -> np.ndarray:
    """Return weights and intercept of P(y), with an L2 penalty of one half of the weights' squares.

    It begins at zero: at another fold's fit, which saw this one's labels, a few steps would keep some of them.
    """

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x.times(w[:-1]) + w[-1]
        off = 1 / (1 + np.exp(-np.clip(z, -35, 35))) - y
        value = np.logaddexp(0, z).sum() - y @ z + 0.5 * (w[:-1] @ w[:-1])
        return float(value), np.concatenate([x.transposed_times(off) + w[:-1], [off.sum()]])

    return _minimum(loss, np.zeros(x.width + 1))


def _minimum(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], w: np.ndarray) -> np.ndarray:
    """Minimise a smooth convex function by L-BFGS with halved steps (Nocedal and Wright, algorithm 7.4)."""
    value, slope = loss(w)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    enough = 1e-3 * np.linalg.norm(slope)
    for _ in range(_STEPS):
        if np.linalg.norm(slope) < enough:
            break
        way = -_curved(slope, steps)
        size = 1.0 if steps else 1.0 / max(float(np.linalg.norm(slope)), 1.0)
        while True:
            there = w + size * way
            new_value, new_slope = loss(there)
            if new_value <= value + 1e-4 * size * float(slope @ way) or size < 1e-10:
                break
            size /= 2
        s, y = there - w, new_slope - slope
        if s @ y > 1e-12:
            steps = [*steps[-_MEMORY + 1 :], (s, y)]
        w, value, slope = there, new_value, new_slope
    return w


def _curved(slope: np.ndarray, steps: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the inverse Hessian's estimate times the slope, from the latest steps."""
    q, parts = slope.copy(), []
    for s, y in reversed(steps):
        part = (s @ q) / (s @ y)
        parts.append(part)
        q -= part * y
    if steps:
        s, y = steps[-1]
        q *= (s @ y) / (y @ y)
    for (s, y), part in zip(steps, reversed(parts), strict=True):
        q += (part - (y @ q) / (s @ y)) * s
    return q
