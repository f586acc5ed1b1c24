"""Estimates a model's quality for a task from published results: a range on one benchmark's scale.

A result in the task's own benchmark counts as published, no narrower than a repeat of it would be. Else results in
neighbouring benchmarks are carried over along lines through the models that have both (Theil and Sen's, on the
logits), within bounds: nothing beyond the values and sizes that a line was laid through, nothing above what models
up to twice as large or a larger sibling reach, and never from a skill that a model was made for to another skill.
Else there is no evidence, and nothing is said. Published results are their makers' claims about full-precision
weights; nothing is measured here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from statistics import fmean, median

from freehold.base.catalog.benchmarks import BENCHMARKS, Task
from freehold.base.catalog.model import Model, Score
from freehold.base.catalog.quants import loss, mix
from freehold.base.catalog.questions import language_name, results_in
from freehold.choose.advisor.interval import Interval

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
        self._points = [
            _Point(m.params_b, m.family, logit(self.benchmark, self._results[m.id][self.benchmark].value))
            for m in self._models
            if self.benchmark in self._results[m.id] and m.params_b
        ]
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


# --- published results of each model: one mean a measure, and how far a repeat by others would differ
# A measure is a benchmark in one mode: a base model's, with thinking aloud ("/thinking") or without; and of
# one version where versions ask other questions ("@"). Two sources that report the same figure count once:
# one has it of the other.

WIDTH = 1.2816  # standard deviations that hold 80 % of a normal distribution
FEW = 8  # pairs of sources that weigh as much as what all benchmarks together say
# Where one party runs all models alike, its own repeats are what differs: the same models' Arena ratings of 2025-12 and
# 2026-10 are 12 points apart, 0.07 on the logits.
ONE_RUNNER = 0.06
_FLOOR = 0.005  # a share closer to guessing or to all than this says no more
_PLAIN = re.compile(r"non-think|no thinking|thinking off|reasoning off")
_ALOUD = re.compile(r"think|reasoning|effort")
# What a model is made for, by parts of its name: its results in that skill say nothing of others.
_MADE_FOR = {
    "code": ("coder", "code", "codestral", "devstral", "starcoder", "laguna"),
    "maths": ("math", "leanstral", "prover"),
}
# From then on, makers count LiveCodeBench in its version 6 and think aloud where they can
_RECENT = "2025-08"


@dataclass(frozen=True, slots=True)
class Result:
    """What sources say of one measure: the mean in per cent, and a deviation on the logits that a repeat has.

    `aloud`: with thinking aloud first.
    """

    value: float
    deviation: float
    sources: int
    aloud: bool = False

    @property
    def spread(self) -> float:
        """How far four of five repeats lie from the mean at most, on the logits."""
        return WIDTH * self.deviation


def made_for(model: Model) -> frozenset[str]:
    """Return the skills that a model was made for alone: code, maths or nothing."""
    name = model.id.rpartition("/")[2].lower()
    return frozenset(skill for skill, parts in _MADE_FOR.items() if any(part in name for part in parts))


def measure(score: Score, model: Model) -> str:
    """Return what a result is a result of: livecodebench@old/thinking, mmlu/base, gpqa_diamond."""
    return _measure(score.benchmark, score.setting, model.instructed, model.thinking, model.released)


@cache
def _measure(name: str, setting_text: str, instructed: bool | None, thinking: str, released: str) -> str:
    setting = setting_text.lower()
    return _version(name, setting, released) + _mode(name, setting, instructed, thinking, released)


def _mode(name: str, setting: str, instructed: bool | None, thinking: str, released: str) -> str:
    if instructed is False or ("base" in setting and "instruct" not in setting):
        return "/base"
    aloud = bool(_ALOUD.search(_PLAIN.sub("", setting)))
    if _PLAIN.search(setting) or (BENCHMARKS[name].skill == "documents" and not aloud):
        return ""  # what a text says is found as well without
    if aloud or thinking in ("only", "switchable"):
        return "/thinking"  # a maker who does not say publishes the better of the two
    return "/thinking" if not thinking and released >= _RECENT else ""


def _version(name: str, setting: str, released: str) -> str:
    if name == "livecodebench":
        version = re.search(r"\bv\d\b", setting)
        new = version[0] == "v6" if version else released >= _RECENT
        return name if new else f"{name}@old"
    if name == "bfcl":
        return name if "v3" in setting else f"{name}@v4" if "v4" in setting else f"{name}@old"
    if name == "bigcodebench":
        return f"{name}@complete" if "complete" in setting else name
    if name == "ruler":
        return name if "128k" in setting else f"{name}@short"
    return name


@cache
def benchmark(measured: str) -> str:
    """Return the benchmark that a measure is of."""
    return re.split("[@/]", measured, maxsplit=1)[0]


def logit(measured: str, per_cent: float) -> float:
    """Return a result where differences compare: the logit of what it is above guessing."""
    chance = BENCHMARKS[benchmark(measured)].chance
    share = min(max((per_cent - chance) / (100 - chance), _FLOOR), 1 - _FLOOR)
    return math.log(share / (1 - share))


def per_cent(measured: str, at: float) -> float:
    """Return the result that a logit stands for."""
    chance = BENCHMARKS[benchmark(measured)].chance
    return chance + (100 - chance) / (1 + math.exp(-at))


def sampling(measured: str, value: float) -> float:
    """Return the deviation on the logits that another draw of as many items has (binomial)."""
    known = BENCHMARKS[benchmark(measured)]
    share = (value / 100 * known.items + 0.5) / (known.items + 1)
    above = min(max((value - known.chance) / (100 - known.chance), _FLOOR), 1 - _FLOOR)
    slope = (1 - known.chance / 100) * above * (1 - above)
    return math.sqrt(share * (1 - share) / known.items) / slope


def says_something(measured: str, value: float) -> bool:
    """Say whether a result is one that guessing would not give."""
    known = BENCHMARKS[benchmark(measured)]
    return value > known.chance + 200 * math.sqrt(known.chance / 100 * (1 - known.chance / 100) / known.items)


def figures(model: Model) -> dict[str, tuple[float, ...]]:
    """Return a model's published figures per measure, each once."""
    values_by_measure: dict[str, set[float]] = {}
    for score in model.scores:
        values_by_measure.setdefault(measure(score, model), set()).add(score.value)
    return {key: tuple(sorted(values)) for key, values in values_by_measure.items()}


class Evidence:
    """What the disagreement of many published figures says of a single one."""

    def __init__(self, models: Iterable[Model]) -> None:
        """Read all figures once."""
        gaps: dict[str, list[float]] = {}
        for model in models:
            for key, values in figures(model).items():
                at = [logit(key, v) for v in values]
                gaps.setdefault(benchmark(key), []).extend(abs(a - b) for a, b in combinations(at, 2))
        every = [gap for gaps_of_one in gaps.values() for gap in gaps_of_one]
        self._pooled = _deviation(every)
        self._between = {name: self._shrunk(gaps_of_one) for name, gaps_of_one in gaps.items()}
        self._known: dict[
            str, tuple[Model, Mapping[str, Result]]
        ] = {}  # of each model, as scales ask it again

    def between(self, name: str) -> float:
        """Return by how much two sources of one result differ, as a deviation of one on the logits."""
        return ONE_RUNNER if BENCHMARKS[name].one_runner else self._between.get(name, self._pooled)

    def of(self, model: Model) -> Mapping[str, Result]:
        """Return what is published of a model, per measure."""
        same, results = self._known.get(model.id, (None, {}))
        if same is not model:
            results = {key: self._result(key, values) for key, values in figures(model).items()}
            self._known[model.id] = model, results
        return results

    def _result(self, key: str, values: tuple[float, ...]) -> Result:
        at = fmean(logit(key, v) for v in values)
        mean = values[0] if len(values) == 1 else per_cent(key, at)
        between = self.between(benchmark(key)) / math.sqrt(len(values))
        deviation = math.hypot(sampling(key, mean), between)
        return Result(mean, deviation, len(values), key.endswith("/thinking"))

    def _shrunk(self, gaps: list[float]) -> float:
        """Return a benchmark's own deviation, drawn to that of all as far as few sources speak of it."""
        own, n = _deviation(gaps), len(gaps)
        return math.sqrt((n * own**2 + FEW * self._pooled**2) / (n + FEW))


def _deviation(gaps: list[float]) -> float:
    """Return the deviation of one source, out of gaps between two: robust against a wrong third of them."""
    return median(gaps) / 0.6745 / math.sqrt(2) if gaps else 0.0


# --- evidence for a model in a language: published results, the card's statement, or nothing --------
# A result in a benchmark of several languages counts for each of them. Nothing is carried over from English.

RESULT, STATED, UNKNOWN, DENIED = "result", "stated", "unknown", "denied"


@dataclass(frozen=True, slots=True)
class LanguageEvidence:
    """Evidence for one language: a result, stated, unknown, or denied (the card states other languages)."""

    code: str
    level: str
    says: str


def language_evidence(model: Model, codes: Iterable[str]) -> tuple[LanguageEvidence, ...]:
    """Return what is known of a model in each language."""
    return tuple(_one(model, code) for code in codes)


def languages_known(languages: Iterable[LanguageEvidence]) -> bool:
    """Say whether something is known in every language."""
    return all(t.level in (RESULT, STATED) for t in languages)


def _one(model: Model, code: str) -> LanguageEvidence:
    name = language_name(code)
    scores = [s for s in model.scores if s.benchmark in results_in(code)]
    if scores:
        order = results_in(code)
        first = min(scores, key=lambda s: (order.index(s.benchmark), -s.value))
        return LanguageEvidence(code, RESULT, f"{name}: {first.benchmark} {first.value:g}")
    speaks = model.speaks(code)
    if speaks:
        return LanguageEvidence(code, STATED, f"{name}: stated, no result")
    if speaks is None:
        return LanguageEvidence(code, UNKNOWN, f"no evidence for {name}")
    return LanguageEvidence(
        code, DENIED, f"its lab states {len(model.languages)} languages, and {name} is not one of them"
    )
