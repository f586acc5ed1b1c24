"""Published results of each model: one mean a measure, and how far a repeat by others would differ.

A measure is a benchmark in one mode: a base model's, with thinking aloud ("/thinking") or without; and of one version
where versions ask other questions ("@"). Two sources that report the same figure count once: one has it of the other.
Knows benchmarks and results; ranks and predicts nothing.
Path: quality.Scale -> Evidence(models) -> of(model) -> Result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import fmean, median

from freehold.catalog.benchmarks import BENCHMARKS
from freehold.catalog.model import Model, Score

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
_RECENT = (
    "2025-08"  # from then on, makers count LiveCodeBench in its version 6 and think aloud where they can
)


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
