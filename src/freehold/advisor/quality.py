"""Estimates a model's quality for a task from published results: a range on one benchmark's scale.

A result in the task's own benchmark counts as published, no narrower than a repeat of it would be. Else results in
neighbouring benchmarks are carried over along lines through the models that have both (Theil and Sen's, on the
logits), within bounds: nothing beyond the values and sizes that a line was laid through, nothing above what models
up to twice as large or a larger sibling reach, and never from a skill that a model was made for to another skill.
Else there is no evidence, and nothing is said. Published results are their makers' claims about full-precision
weights; nothing is measured here.
Path: advice, cli/why -> Scale(task, models) -> Scale.of(model) -> Quality; rounded(quality, quant) for a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

from freehold.advisor.evidence import (
    WIDTH,
    Evidence,
    Result,
    benchmark,
    logit,
    made_for,
    per_cent,
    says_something,
)
from freehold.advisor.interval import Interval
from freehold.catalog.benchmarks import BENCHMARKS
from freehold.catalog.model import Model
from freehold.catalog.quants import loss, mix
from freehold.catalog.tasks import Task

LEVEL = 0.8  # share of known results that a range would have contained
MIN_KNOWN = 12  # models with a result, before a benchmark can be the scale
MIN_PAIRS = 8  # models with results in both, before a line is drawn
MOST_SPREAD = 1.0  # on the logits: 27 to 73 at 50 %; a line with a wider spread than this is not evidence
LARGER = 2.0  # times a model's size, up to which others' results bound what is carried over to it
# Models of other families and later months stray further from a line than those that it was drawn through: times the
# spread, with which benches/choose/published_quality.py finds four of five of the models since 2025-12 inside.
FORESIGHT = 1.3


@dataclass(frozen=True, slots=True)
class Quality:
    """Per cent in `benchmark`: the likely result and its range.

    `basis`: published, or converted (other benchmarks' results carried over). `evidence` says from what, in words.
    """

    benchmark: str
    range: Interval
    basis: str
    evidence: str

    @property
    def standing(self) -> float:
        """The figure that a ranking goes by: a published one as it is, one carried over by its low end."""
        return self.range.mid if self.basis == "published" else self.range.low


@dataclass(frozen=True, slots=True)
class _Line:
    """From logits of one measure to logits of another; `spread` is the distance from it that contains four of five.

    It holds between `low` and `high` on the logits, and `small` and `large` billions of parameters.
    """

    slope: float
    offset: float
    spread: float
    pairs: int
    low: float = -math.inf
    high: float = math.inf
    small: float = 0.0
    large: float = math.inf

    def reaches(self, at: float, params: float) -> bool:
        """Return whether a result and a size are in the ranges for which the line was drawn."""
        return self.low <= at <= self.high and self.small <= params <= self.large


@dataclass(frozen=True, slots=True)
class _Point:
    """A model with a published result on the scale."""

    params: float
    family: str
    at: float


class Scale:
    """One task's ruler: its first benchmark that enough models have a result in."""

    def __init__(
        self,
        task: Task,
        models: Iterable[Model],
        *,
        quick: bool | None = None,
        ruler: str = "",
        evidence: Evidence | None = None,
    ) -> None:
        """Read the results of all `models` once; an empty `benchmark` says that nothing tells of this task.

        `quick`: count no result on the scale that took thinking aloud; None: as the task says. `ruler`: the scale;
        empty: the task's first benchmark that enough models have a result in. `evidence`: that of the same models
        with results, where another scale has read it.
        """
        self.task = task
        self._quick = task.quick if quick is None else quick
        self._models = [m for m in models if m.scores]
        self._evidence = evidence or Evidence(self._models)
        self._results = {m.id: self._collapsed(m) for m in self._models}
        counts = {b: sum(b in r for r in self._results.values()) for b in task.benchmarks}
        self.benchmark = ruler or next((b for b in task.benchmarks if counts[b] >= MIN_KNOWN), "")
        self._points = self._published() if self.benchmark else []
        sources = {(key, r[key].aloud) for r in self._results.values() for key in r if self._tells(key)}
        self._lines = {s: line for s in sorted(sources) if (line := self._line(*s)) is not None}

    def without_thinking(self) -> Scale:
        """Return the same ruler for who has no time for thinking aloud."""
        return Scale(self.task, self._models, quick=True, ruler=self.benchmark, evidence=self._evidence)

    def of(self, model: Model) -> Quality | None:
        """Return how good a model is; None if no published result says so."""
        if not self.benchmark:
            return None
        results = self._collapsed(model)
        if self.benchmark in results:
            result = results[self.benchmark]
            evidence = f"{self.benchmark} {result.value:.3g}"
            evidence += f", the mean of {result.sources} sources" if result.sources > 1 else ""
            published = self._quality(
                logit(self.benchmark, result.value), result.spread, "published", evidence
            )
            low, high = min(published.range.low, result.value), max(published.range.high, result.value)
            return replace(
                published, range=Interval(low, result.value, high, LEVEL)
            )  # below guessing, or 100 %, too
        return self._carried(model, results)

    def _collapsed(self, model: Model) -> Mapping[str, Result]:
        """Return a model's results, those with thinking aloud as the model's own where there is time for it."""
        results = self._evidence.of(model)
        if self._quick:
            return results
        plain = {key: result for key, result in results.items() if not key.endswith("/thinking")}
        return plain | {
            key.removesuffix("/thinking"): r for key, r in results.items() if key.endswith("/thinking")
        }

    def _tells(self, key: str) -> bool:
        """Say whether a measure is one of the task's, other than its scale."""
        return key != self.benchmark and key.removesuffix("/thinking") in self.task.benchmarks

    def _carried(self, model: Model, results: Mapping[str, Result]) -> Quality | None:
        """Carry a model's other results over; the best line's spread stands for all of them."""
        carried = []
        for (key, aloud), line in self._lines.items():
            if key in results and results[key].aloud is aloud and self._may(model, key):
                at = logit(key, results[key].value)
                if says_something(key, results[key].value) and line.reaches(at, model.params_b):
                    carried.append((line.spread, line.offset + line.slope * at, key, line.pairs))
        if not carried:
            return None
        carried.sort()
        weights = [1 / spread**2 for spread, *_ in carried]
        mid = sum(w * at for w, (_, at, *_) in zip(weights, carried, strict=True)) / sum(weights)
        sources = ", ".join(f"{key} {results[key].value:.3g}" for _, _, key, _ in carried[:3])
        evidence = f"{sources}, as {carried[0][3]} models with both compare"
        least = WIDTH * self._evidence.between(benchmark(self.benchmark))
        return self._quality(mid, max(carried[0][0], least), "converted", evidence, self._bound(model))

    def _may(self, model: Model, key: str) -> bool:
        """Say whether a result may be carried over: a specialist's only within one skill."""
        source, target = BENCHMARKS[benchmark(key)].skill, BENCHMARKS[benchmark(self.benchmark)].skill
        return source == target or not made_for(model)

    def _bound(self, model: Model) -> float:
        """Return what is carried over to a model at most, on the logits: the best of its siblings and of its size."""
        near = [p.at for p in self._points if p.params <= LARGER * model.params_b]
        kin = [p.at for p in self._points if p.family == model.family and p.params > model.params_b]
        return min(max(near, default=math.inf), max(kin, default=math.inf))

    def _quality(
        self, at: float, spread: float, basis: str, evidence: str, bound: float = math.inf
    ) -> Quality:
        mid = min(at, bound)
        low, mid, high = (per_cent(self.benchmark, x) for x in (mid - spread, mid, at + spread))
        return Quality(self.benchmark, Interval(low, mid, high, LEVEL), basis, evidence)

    def _published(self) -> list[_Point]:
        return [
            _Point(m.params_b, m.family, logit(self.benchmark, self._results[m.id][self.benchmark].value))
            for m in self._models
            if self.benchmark in self._results[m.id] and m.params_b
        ]

    def _line(self, key: str, aloud: bool) -> _Line | None:
        """Draw the line from a measure to the scale, through models that guessing does not explain.

        Results with thinking aloud compare otherwise than those without: a line is drawn through one of the two.
        """
        both = []
        for m in self._models:
            x, y = self._results[m.id].get(key), self._results[m.id].get(self.benchmark)
            if x and y and x.aloud is aloud and y.aloud is (aloud and not self._quick):
                informative = says_something(key, x.value) and says_something(self.benchmark, y.value)
                if informative and m.params_b and self._may(m, key):
                    both.append((m.params_b, logit(key, x.value), logit(self.benchmark, y.value)))
        if len(both) < MIN_PAIRS:
            return None
        drawn = line([(x, y) for _, x, y in both])
        if drawn.spread > MOST_SPREAD:
            return None
        sizes, at = [size for size, *_ in both], [x for _, x, _ in both]
        return replace(drawn, low=min(at), high=max(at), small=min(sizes), large=max(sizes))


def rounded(quality: Quality, quant: str, model: Model) -> Quality:
    """Return the quality of a model in a quantisation, which costs some of it; the evidence says how much.

    What a lab publishes in a coarse format costs nothing in that format: its results were had with it.
    """
    native = mix(model.native).bits if model.native else 16.0
    cost = loss(quant, model.params_b)
    if not cost or mix(quant).bits >= native:
        return quality
    scale, was = quality.benchmark, quality.range
    low, mid, high = (min(x, per_cent(scale, logit(scale, x) - cost)) for x in (was.low, was.mid, was.high))
    evidence = f"{quality.evidence}; less {was.mid - mid:.1f} for {quant}"
    return replace(quality, range=Interval(low, mid, high, LEVEL), evidence=evidence)


def line(points: Sequence[tuple[float, float]]) -> _Line:
    """Return the line with the median slope and the median offset, and the spread around it.

    Theil 1950, Sen 1968: a third of the points may be wrong. The two fitted numbers and the finite sample
    widen the spread: a new point is farther off than those that the line was laid through.
    """
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if a[0] != b[0]]
    slope = median(slopes) if slopes else 0.0
    offset = median(y - slope * x for x, y in points)
    misses = [abs(y - offset - slope * x) for x, y in points]
    n = len(points)
    spread = quantile(misses, LEVEL) * math.sqrt((n + 2) / (n - 2))
    return _Line(slope, offset, FORESIGHT * spread, n)


def quantile(values: Sequence[float], level: float) -> float:
    """Return what `level` of new values of this kind would not exceed: the rank of split conformal ranges."""
    ranked = sorted(values)
    rank = math.ceil(level * (len(ranked) + 1))
    return ranked[min(rank, len(ranked)) - 1]
