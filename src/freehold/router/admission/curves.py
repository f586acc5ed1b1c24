"""Metrics of a router between two models, with bootstrap intervals: APGR, CPT and AIQ.

Questions are sorted by score, and the first share x goes to the strong model: quality q(x). PGR(x) is the part of the
way from q(0) to q(1) that is reached, APGR the area below it (0.5 by chance), CPT(p) the least x with PGR >= p
(RouteLLM, arXiv 2406.18665), AIQ the area below the non-decreasing concave hull of quality over cost, by the range of
cost (RouterBench, arXiv 2403.12031). Ties are broken at random, by the same draw for all routers. A resample counts
each question (or all of a task) so often; the order stays, so that all resamples are one cumulative sum.
Path: admit -> Curve, resamples -> areas -> intervals
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
