"""Routers that are learned from the table itself: ridge and kNN on the gain, logistic regression on "weak is wrong".

Simple on purpose: on published tables many methods reach one plateau (LLMRouterBench, 33 models, 21 sets), so one that
loses here is not saved by a larger one. Scores of a question come from folds that do not hold it. Knows no metric.
Path: admit -> learned -> scores
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from freehold.router.admission.features import SparseRows, TermCounts

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
