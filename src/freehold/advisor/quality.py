"""How good a model is at a kind of work, out of published results alone: a range on one benchmark's scale.

A result in the task's own benchmark counts as it stands. Else one in a neighbouring benchmark is carried over
along a line through the models that have both (Theil and Sen's, on the logits). Else the models nearest in
size, age and purpose speak for it. Each way's range is what would have held four of five known results.
Published results are their makers' claims about full-precision weights; nothing is measured here.
Path: advice, cli/why -> Scale(task, models) -> Scale.of(model) -> Quality.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import median

from freehold.advisor.interval import Interval
from freehold.catalog.model import Model, Score
from freehold.catalog.tasks import Task

LEVEL = 0.8  # share of known results that a range would have held
MIN_KNOWN = 12  # models with a result, before a benchmark can be the scale
MIN_PAIRS = 8  # models with results in both, before a line is drawn
NEIGHBOURS = 7
# Two reports of one model in one benchmark seldom agree: prompts, shots and sampling move a result by some three
# points at 60, which is 0.13 on the logits; four of five within 0.16. An assumption, not a measurement.
_HARNESS = 0.16
# Per cent that guessing gets where answers are chosen from a list: nothing is foreseen below it.
_CHANCE = {
    "mmlu": 25.0,
    "mmlu_redux": 25.0,
    "mmmlu": 25.0,
    "gpqa": 25.0,
    "gpqa_diamond": 25.0,
    "mmlu_pro": 10.0,
}
_FLOOR, _CEILING = 0.5, 99.5  # per cent: a logit needs room


@dataclass(frozen=True, slots=True)
class Quality:
    """Per cent in `benchmark`: the likely result and its range.

    `basis`: published, converted (another benchmark's result carried over) or similar (models like it).
    `evidence` says from what, in words.
    """

    benchmark: str
    range: Interval
    basis: str
    evidence: str


@dataclass(frozen=True, slots=True)
class _Line:
    """From logits of one benchmark to logits of another; `spread` is how far four of five stood from it."""

    slope: float
    offset: float
    spread: float
    pairs: int


def measure(score: Score) -> str:
    """Return the benchmark of a result; that of a base model is another measure than that of a tuned one."""
    return score.benchmark + ("/base" if "base" in score.setting and "instruct" not in score.setting else "")


def results(model: Model, quick: bool = False) -> dict[str, float]:
    """Return the best published result of a model per measure; `quick`: of those without thinking aloud first."""
    found: dict[str, float] = {}
    for score in model.scores:
        if not (quick and _thought(score)):
            key = measure(score)
            found[key] = max(score.value, found.get(key, 0.0))
    return found


def _thought(score: Score) -> bool:
    said = score.setting.replace("non-thinking", "").replace("no thinking", "")
    return "thinking" in said or "reasoning on" in said


class Scale:
    """One task's ruler: its closest benchmark that enough models have a result in."""

    def __init__(self, task: Task, models: Iterable[Model], *, quick: bool | None = None) -> None:
        """Read the results of all `models` once; an empty `benchmark` says that nothing tells of this task.

        `quick`: count no result that took thinking aloud; None: as the task says.
        """
        self.task = task
        self._quick = task.quick if quick is None else quick
        self._models = [m for m in models if m.scores]
        self._results = {m.id: results(m, self._quick) for m in self._models}
        counts = {b: sum(b in r for r in self._results.values()) for b in task.benchmarks}
        self.benchmark = next((b for b in task.benchmarks if counts[b] >= MIN_KNOWN), "")
        self._lines = {b: self._line(b) for b in task.benchmarks if b != self.benchmark and self.benchmark}
        self._known = {m.id: q for m in self._models if (q := self._told(m)) is not None}
        self._near_spread = self._similar_spread()

    def of(self, model: Model) -> Quality | None:
        """Return how good a model is likely to be; None if the task has no scale or the model no size."""
        if not self.benchmark:
            return None
        return self._told(model) or self._similar(model)

    def _told(self, model: Model) -> Quality | None:
        """Judge by results of the model itself."""
        found = self._results.get(model.id) or results(model, self._quick)
        if self.benchmark in found:
            value = found[self.benchmark]
            return self._quality(_logit(value), _HARNESS, "published", f"{self.benchmark} {value:g}")
        carried = [(line, b) for b, line in self._lines.items() if b in found and line is not None]
        if not carried:
            return None
        line, by = min(carried, key=lambda pair: pair[0].spread)
        at = line.offset + line.slope * _logit(found[by])
        said = f"{by} {found[by]:g}, as {line.pairs} models with both compare"
        return self._quality(at, line.spread, "converted", said)

    def _similar(self, model: Model) -> Quality | None:
        """Judge by the nearest models."""
        near = self._nearest(model)
        if not near:
            return None
        names = ", ".join(m.id.rpartition("/")[2] for m in near[:3])
        return self._quality(self._of_near(near), self._near_spread, "similar", f"models like it: {names}")

    def _quality(self, logit: float, spread: float, basis: str, evidence: str) -> Quality:
        least = 0.0 if basis == "published" else _CHANCE.get(self.benchmark, 0.0)
        low, mid, high = (max(_per_cent(logit + step * spread), least) for step in (-1, 0, 1))
        return Quality(self.benchmark, Interval(low, mid, high, LEVEL), basis, evidence)

    def _line(self, other: str) -> _Line | None:
        both = [r for r in self._results.values() if other in r and self.benchmark in r]
        if len(both) < MIN_PAIRS:
            return None
        return line([(_logit(r[other]), _logit(r[self.benchmark])) for r in both])

    def _nearest(self, model: Model) -> list[Model]:
        """Return the models most like this one among those with a result of their own, nearest first."""
        if not model.params_b:
            return []
        others = [m for m in self._models if m.id in self._known and m.id != model.id and m.params_b]
        return sorted(others, key=lambda m: self._distance(m, model))[:NEIGHBOURS]

    def _of_near(self, near: Sequence[Model]) -> float:
        return median(_logit(self._known[m.id].range.mid) for m in near)

    def _distance(self, one: Model, other: Model) -> float:
        """Return how unlike two models are: doublings of size, years of age, and what they are made for."""
        size = abs(math.log2(one.params_b / other.params_b))
        active = abs(math.log2((one.active_b or one.params_b) / (other.active_b or other.params_b)))
        age = abs(_year(one) - _year(other))
        purpose = self._made_for(one) != self._made_for(other)
        thinks = ("only" in one.thinking) != ("only" in other.thinking)
        based = (one.instructed is False) != (other.instructed is False)
        return size + active / 2 + 1.5 * age + 2 * purpose + thinks + based

    def _made_for(self, model: Model) -> bool:
        name = f"{model.id} {model.family}".lower()
        return any(part in name for part in self.task.specialist)

    def _similar_spread(self) -> float:
        """Return how far the nearest models' word stood from what is known, for four of five."""
        misses = []
        for m in self._models:
            if m.id in self._known and (near := self._nearest(m)):
                misses.append(abs(_logit(self._known[m.id].range.mid) - self._of_near(near)))
        return quantile(misses, LEVEL) if misses else 0.0


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
    return _Line(slope, offset, math.hypot(spread, _HARNESS / 2), n)


def quantile(values: Sequence[float], level: float) -> float:
    """Return what `level` of new values of this kind would not exceed: the rank of split conformal ranges."""
    ranked = sorted(values)
    rank = math.ceil(level * (len(ranked) + 1))
    return ranked[min(rank, len(ranked)) - 1]


def _logit(per_cent: float) -> float:
    share = min(max(per_cent, _FLOOR), _CEILING) / 100
    return math.log(share / (1 - share))


def _per_cent(logit: float) -> float:
    return 100 / (1 + math.exp(-logit))


@cache
def _released_year(released: str) -> float:
    year, _, rest = released.partition("-")
    return int(year) + (int(rest[:2]) - 1) / 12 if rest else float(year)


def _year(model: Model) -> float:
    """Return the year of release with its months; the middle of what is known where nobody told."""
    return _released_year(model.released) if model.released else 2024.5
