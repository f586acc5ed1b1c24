"""Judges routers on a table: in domain by five folds, and on whole tasks that were held out, which decide.

A router is admitted where, on tasks that it was not trained on, its APGR beats chance, prompt length and the mean gain
of fifty labelled answers a task, each with the lower end of a 95 % interval (resampled by whole tasks, paired). Where
one of the two models is both better and cheaper there is nothing to route.

Routers that are learned from the table itself: ridge and kNN on the gain, logistic regression on "weak is wrong".
Simple on purpose: on published tables many methods reach one plateau (LLMRouterBench, 33 models, 21 sets), so one that
loses here is not saved by a larger one. Scores of a question come from folds that do not hold it. Knows no file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from freehold.route.router.admission import AnsweredTable

# --- learned routers -------------------------------------------------------------------------------

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


# --- the verdict -----------------------------------------------------------------------------------

# --- metrics of a router between two models, with bootstrap intervals: APGR, CPT and AIQ ------------
# Questions are sorted by score, and the first share x goes to the strong model: quality q(x). PGR(x) is the
# part of the way from q(0) to q(1) that is reached, APGR the area below it (0.5 by chance), CPT(p) the least
# x with PGR >= p (RouteLLM, arXiv 2406.18665), AIQ the area below the non-decreasing concave hull of quality
# over cost, by the range of cost (RouterBench, arXiv 2403.12031). Ties are broken at random, by the same draw
# for all routers. A resample counts each question (or all of a task) so often; the order stays, so that all
# resamples are one cumulative sum.

RESAMPLES = 1000
_ROWS = 64  # resamples at a time: 64 x 200,000 counts are 100 MB


@dataclass(frozen=True, slots=True)
class SampledFigure:
    """A figure with its 95 % bounds."""

    mid: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return plain values."""
        return {"mid": round(self.mid, 5), "low": round(self.low, 5), "high": round(self.high, 5)}

    def __str__(self) -> str:
        return f"{self.mid:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, slots=True)
class Curve:
    """A router's quality over the share x, or over cost, of the strong model."""

    x: np.ndarray  # share of questions, 0 to 1
    cost: np.ndarray  # 0 (all weak) to 1 (all strong); x where no costs are known
    q: np.ndarray

    @property
    def pgr(self) -> np.ndarray:
        """The part of the gain that is reached."""
        return (self.q - self.q[0]) / (self.q[-1] - self.q[0])

    @property
    def apgr(self) -> float:
        """Area below pgr."""
        return float(np.trapezoid(self.pgr, self.x))

    def cpt(self, part: float) -> float:
        """Return the least share of strong answers, in per cent, with which `part` of the gain is reached."""
        return float(100 * self.x[np.argmax(self.pgr >= part)])

    @property
    def aiq(self) -> float:
        """Area below the non-decreasing concave hull of quality over cost."""
        x, q = _hull(self.cost, np.maximum.accumulate(self.q))
        return float(np.trapezoid(q, x) / (x[-1] - x[0]))


def order(score: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Return the questions by falling score; `ties` orders equal ones."""
    return np.lexsort((ties, -score))


def curve(by: np.ndarray, weak: np.ndarray, strong: np.ndarray, extra: np.ndarray | None = None) -> Curve:
    """Return the curve of questions in the order `by`; `extra`: what each costs more at the strong model."""
    n = len(by)
    gained = np.concatenate([[0.0], np.cumsum((strong - weak)[by])])
    x = np.arange(n + 1) / n
    cost = x
    if extra is not None and extra.sum() > 0:
        cost = np.concatenate([[0.0], np.cumsum(extra[by])]) / extra.sum()
    return Curve(x, cost, weak.mean() + gained / n)


def areas(by: np.ndarray, gain: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the APGR of every resample; nan where the strong model is not better in it.

    counts: (resamples, n), how often each question is in. With c and g in the router's order and G the cumulative sum
    of c g, the trapezoids add up to sum c (G - c g / 2) / (sum c x sum c g).
    """
    ordered_gain = gain[by].astype(np.float32)
    area_under = np.empty(len(counts))
    for at in range(0, len(counts), _ROWS):
        c = counts[at : at + _ROWS, by].astype(np.float32)
        cg = c * ordered_gain
        reached = np.cumsum(cg, axis=1, dtype=np.float32)
        total = cg.sum(axis=1, dtype=np.float64)
        area = np.einsum("ij,ij->i", c, reached - cg / 2, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            area_under[at : at + _ROWS] = np.where(total > 0, area / (c.sum(axis=1) * total), np.nan)
    return area_under


def resamples(task: np.ndarray, whole_tasks: bool, rng: np.random.Generator) -> np.ndarray:
    """Return counts (RESAMPLES, n) of questions, or of whole tasks, drawn with replacement."""
    n = len(task)
    size = int(task.max()) + 1 if whole_tasks else n
    drawn = rng.integers(0, size, (RESAMPLES, size))
    drawn += size * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=RESAMPLES * size).reshape(RESAMPLES, size)
    counts = counts.astype(np.uint16)
    return counts[:, task] if whole_tasks else counts


def spread(mid: float, samples: np.ndarray) -> SampledFigure:
    """Return a figure with the 2.5th and 97.5th percentiles of its resamples."""
    sound = samples[np.isfinite(samples)]
    if not len(sound):
        return SampledFigure(mid, -np.inf, np.inf)
    low, high = np.percentile(sound, [2.5, 97.5])
    return SampledFigure(mid, min(float(low), mid), max(float(high), mid))


def _hull(x: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the upper concave hull (Andrew's monotone chain) of points by rising x."""
    kept: list[tuple[float, float]] = []
    for px, pq in zip(x.tolist(), q.tolist(), strict=True):
        while len(kept) > 1:
            (ax, aq), (bx, bq) = kept[-2], kept[-1]
            if (bx - ax) * (pq - aq) < (bq - aq) * (px - ax):
                break
            kept.pop()
        kept.append((px, pq))
    corners = np.array(kept)
    return corners[:, 0], corners[:, 1]


# --- the verdict ------------------------------------------------------------------------------------

FOLDS = 5
LABELS = 50  # answers of a new task, which a bar's run has anyway
FEWEST_TASKS = 5  # fewer say nothing of a task to come
OWN = "score column"
RANDOM, LENGTH, TASK, ORACLE = "random", "prompt length", "mean gain of the task", "oracle"
FEW = f"mean gain of {LABELS} labelled answers of the task"
# Seeds of the draws. With them the folds and the random order are those of the published figures that
# tests/router/test_admission.py compares with.
_FOLD_SEED, _RANDOM_SEED = 3, 5
# No small number: a table that was made with the same one would be ordered by its own draws where scores are equal.
_TIE_SEED, _SAMPLE_SEED = 7_361_098_245, 7_361_098_246


@dataclass(frozen=True, slots=True)
class RouterFigures:
    """One router's figures on one set of questions. `over`: APGR less a baseline's, by the baseline."""

    name: str
    apgr: SampledFigure
    cpt50: float
    cpt80: float
    aiq: float
    over: Mapping[str, SampledFigure]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "router": self.name,
            "apgr": self.apgr.as_json(),
            "cpt50": round(self.cpt50, 3),
            "cpt80": round(self.cpt80, 3),
            "aiq": round(self.aiq, 5),
            "over": {name: intervals.as_json() for name, intervals in self.over.items()},
        }


@dataclass(frozen=True, slots=True)
class RouterVerdict:
    """The answer. `no_router`: why there is nothing to route; `refused`: each candidate's reason, "" if admitted."""

    table: str
    questions: int
    tasks: int
    weak: float
    strong: float
    gain: SampledFigure
    no_router: str = ""
    in_domain: tuple[RouterFigures, ...] = ()
    held_out: tuple[RouterFigures, ...] = ()
    held_out_tasks: int = 0
    refused: Mapping[str, str] | None = None

    @property
    def admitted(self) -> tuple[str, ...]:
        """The routers that may be switched on."""
        return tuple(name for name, why in (self.refused or {}).items() if not why)

    @property
    def wanted(self) -> bool:
        """Whether the user's own router is admitted; without one, whether any candidate is."""
        return OWN in self.admitted if OWN in (self.refused or {}) else bool(self.admitted)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "table": self.table,
            "questions": self.questions,
            "tasks": self.tasks,
            "weak": round(self.weak, 5),
            "strong": round(self.strong, 5),
            "gain": self.gain.as_json(),
            "no_router": self.no_router,
            "in_domain": [f.as_json() for f in self.in_domain],
            "held_out": [f.as_json() for f in self.held_out],
            "held_out_tasks": self.held_out_tasks,
            "verdicts": [
                {"router": name, "admitted": not why, "reason": why}
                for name, why in (self.refused or {}).items()
            ],
        }


def admit(table: AnsweredTable) -> RouterVerdict:
    """Judge the routers of a table: the user's, if it has a score column, and the learned ones."""
    gain, rng = table.gain, np.random.default_rng(_SAMPLE_SEED)
    by_question = resamples(table.task, False, rng)
    means = (by_question @ gain) / table.rows
    shown = table.name, table.rows, len(table.tasks), table.weak.mean(), table.strong.mean()
    about = RouterVerdict(*shown, spread(float(gain.mean()), means))
    if why := _nothing_to_route(table, about.gain):
        return RouterVerdict(*shown, about.gain, why)
    terms = TermCounts.of(table.prompts)
    draws = _Draws(table)
    everything = np.ones(table.rows, dtype=bool)
    means_of = {TASK: task_means(gain, table.task, draws.fold)}
    scores = _scores(table, terms, draws, draws.fold, means_of) | {ORACLE: gain}
    in_domain = _figures(table, everything, by_question, scores, (LENGTH, TASK))
    unseen, held_out = _unseen(table), ()
    tasks = len(np.unique(table.task[unseen]))
    if tasks >= FEWEST_TASKS:
        _, task = np.unique(table.task[unseen], return_inverse=True)
        counts = resamples(task, True, rng)
        few = {FEW: few_labels(gain, table.task, LABELS, np.random.default_rng(_SAMPLE_SEED))}
        scores = _scores(table, terms, draws, draws.task_fold, few)
        held_out = _figures(table, unseen, counts, scores, (LENGTH, FEW))
    names = [f.name for f in in_domain if f.name not in (RANDOM, LENGTH, TASK, ORACLE)]
    by_name = {f.name: f for f in held_out}
    refused = {name: _why_not(by_name.get(name), tasks) for name in names}
    return RouterVerdict(*shown, about.gain, "", in_domain, held_out, tasks, refused)


class _Draws:
    """The draws that all routers of a table share."""

    def __init__(self, table: AnsweredTable) -> None:
        self.fold = np.random.default_rng(_FOLD_SEED).integers(0, FOLDS, table.rows)
        shuffled = np.random.default_rng(_FOLD_SEED).permutation(len(table.tasks))
        self.task_fold = (shuffled % min(FOLDS, len(shuffled)))[table.task]
        self.random = np.random.default_rng(_RANDOM_SEED).random(table.rows)
        self.length = np.array([len(prompt) for prompt in table.prompts], dtype=np.float64)


def _scores(
    table: AnsweredTable, terms: TermCounts, draws: _Draws, fold: np.ndarray, baseline: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return each router's scores, the learned ones by a fold that does not hold the question."""
    own = {OWN: table.score} if table.score is not None else {}
    known = {RANDOM: draws.random, LENGTH: draws.length, **baseline, **own}
    return {**known, **learned(terms, table.gain, table.weak, fold)}


def _figures(
    table: AnsweredTable,
    keep: np.ndarray,
    counts: np.ndarray,
    scores: Mapping[str, np.ndarray],
    baselines: tuple[str, str],
) -> tuple[RouterFigures, ...]:
    """Return every router's figures on the questions of a mask, paired with the baselines by the same resamples."""
    weak, strong = table.weak[keep], table.strong[keep]
    extra = None
    if table.weak_cost is not None and table.strong_cost is not None:
        extra = (table.strong_cost - table.weak_cost)[keep]
    ties = np.random.default_rng(_TIE_SEED).random(table.rows)[keep]
    orders = {name: order(score[keep], ties) for name, score in scores.items()}
    curves = {name: curve(by, weak, strong, extra) for name, by in orders.items()}
    sampled = {name: areas(by, strong - weak, counts) for name, by in orders.items()}
    return tuple(
        RouterFigures(
            name,
            spread(c.apgr, sampled[name]),
            c.cpt(0.5),
            c.cpt(0.8),
            c.aiq,
            {
                base: spread(c.apgr - curves[base].apgr, sampled[name] - sampled[base])
                for base in baselines
                if name not in (base, RANDOM, ORACLE)
            },
        )
        for name, c in curves.items()
    )


def _unseen(table: AnsweredTable) -> np.ndarray:
    """Return the questions of tasks that the user's router was not trained on; all where the table does not say."""
    if table.seen is None:
        return np.ones(table.rows, dtype=bool)
    trained = np.unique(table.task[table.seen])
    return ~np.isin(table.task, trained)


def _nothing_to_route(table: AnsweredTable, gain: SampledFigure) -> str:
    """Say why one model alone is right; empty: it is not."""
    weak, strong = table.weak.mean(), table.strong.mean()
    pair = f"{weak:.3f} weak, {strong:.3f} strong"
    if table.weak_cost is not None and table.strong_cost is not None:
        weak_cost, strong_cost = table.weak_cost.mean(), table.strong_cost.mean()
        cost = f"cost {weak_cost:.4g} and {strong_cost:.4g}"
        if strong >= weak and strong_cost <= weak_cost:
            return f"the strong model is better and no dearer ({pair}; {cost}): always use it"
        if weak >= strong and weak_cost <= strong_cost:
            return f"the weak model is as good and no dearer ({pair}; {cost}): always use it"
    if weak >= strong:
        return f"the strong model is not better ({pair}): always use the weak one, if it is the cheaper"
    if gain.low <= 0:
        return f"the difference of the two models is within chance ({pair}, {gain}): use the cheaper one"
    return ""


def _why_not(figures: RouterFigures | None, tasks: int) -> str:
    """Say why a router stays off; empty: it is admitted."""
    if figures is None:
        return f"{tasks} tasks that it has not seen decide nothing; at least {FEWEST_TASKS} are needed"
    lost = [f"{base} (by {by})" for base, by in figures.over.items() if by.low <= 0]
    if figures.apgr.low <= 0.5:
        lost.insert(
            0, f"chance (APGR {figures.apgr.mid:.3f} [{figures.apgr.low:.3f}, {figures.apgr.high:.3f}])"
        )
    if not lost:
        return ""
    return f"on {tasks} tasks that it has not seen it does not beat {', '.join(lost)}"
