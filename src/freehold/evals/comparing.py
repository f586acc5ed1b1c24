"""Compares two results item by item: exact McNemar for right or wrong, a paired bootstrap for the difference.

Reads folders of ours or of lm-eval's. Items are paired by their hash; where the two did not answer the same items
nothing is compared. Knows files and numbers; knows no model.
Path: cli/eval -> compare -> ResultComparison
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from freehold.errors import UsageError
from freehold.evals.paired import mcnemar
from freehold.evals.results import LEVEL, main_metrics
from freehold.regular import read_bounded

RESAMPLES = 10_000
SEED = 0
MOST_BYTES = 1 << 30  # of one file


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task. `wins`: items that the first has higher, `losses`: lower. `p`: exact McNemar, None for graded scores.

    `low` to `high`: 95 % of the mean difference (first minus second), items resampled.
    """

    task: str
    metric: str
    items: int
    one: float
    other: float
    wins: int
    losses: int
    p: float | None
    low: float
    high: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResultComparison:
    """Two results, by the names of their models."""

    one: str
    other: str
    tasks: tuple[TaskComparison, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Results:
    path: Path
    found: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.found.get("model_name") or self.path.parent.name)

    def samples(self, task: str) -> dict[str, dict[str, Any]]:
        """Return the samples of a task by their items' hashes, equal items numbered. Raises UsageError."""
        stamp = self.path.name.removeprefix("results_").removesuffix(".json")
        name = f"samples_{task}_{stamp}.jsonl"
        if Path(name).name != name:
            raise UsageError(
                f"{self.path}: {task!r} is not the name of a task", "name a folder that eval -o wrote"
            )
        path = self.path.with_name(name)
        rows = [_object(line, path) for line in _text(path).split("\n") if line.strip()]
        numbered_rows: dict[str, dict[str, Any]] = {}
        times: Counter[str] = Counter()
        for row in rows:
            item = str(row.get("doc_hash"))
            times[item] += 1  # a data set that is drawn at random has some items twice
            numbered_rows[f"{item} {times[item]}"] = row
        if not numbered_rows:
            raise UsageError(f"{path} has no item", "run the evaluation again")
        return numbered_rows


def compare(one: Path, other: Path) -> ResultComparison:
    """Compare two results. Raises UsageError where a task, a metric or an item is in one of them alone."""
    a, b = _results(one), _results(other)
    mains = [main_metrics(each.found) for each in (a, b)]
    tasks = [task for task in mains[0] if task in mains[1]]
    if not tasks:
        named = [", ".join(each) or "none" for each in mains]
        raise UsageError(f"no task is in both: {named[0]}; {named[1]}", "run both on the same --data")
    notes = [f"only one of them has {task}" for task in sorted(set(mains[0]) ^ set(mains[1]))]
    templates = {str(sha) for each in (a, b) if (sha := each.found.get("chat_template_sha")) is not None}
    if len(templates) > 1:
        notes.append("their chat templates differ")
    return ResultComparison(
        a.name, b.name, tuple(_task(task, a, b, mains[0][task]) for task in tasks), tuple(notes)
    )


def _task(task: str, a: _Results, b: _Results, metric: str) -> TaskComparison:
    ours, theirs = a.samples(task), b.samples(task)
    apart = [h for h in [*ours, *theirs] if h not in ours or h not in theirs]
    if apart:
        row = ours.get(apart[0]) or theirs[apart[0]]
        where = a.name if apart[0] in ours else b.name
        raise UsageError(
            f"{task}: {len(apart)} items are in one result alone; the first is doc {row.get('doc_id')} of {where}",
            "run both on the same items: the same --data and --limit",
        )
    pairs = [(_number(row, metric, a), _number(theirs[key], metric, b)) for key, row in ours.items()]
    differing = [key for key, row in ours.items() if row.get("prompt_hash") != theirs[key].get("prompt_hash")]
    notes = [f"the prompts of {len(differing)} items differ"] if differing else []
    steps = [x - y for x, y in pairs]
    wins, losses = sum(s > 0 for s in steps), sum(s < 0 for s in steps)
    graded = any(value not in (0.0, 1.0) for pair in pairs for value in pair)
    low, high = _resampled(steps)
    return TaskComparison(
        task=task,
        metric=metric,
        items=len(pairs),
        one=sum(x for x, _ in pairs) / len(pairs),
        other=sum(y for _, y in pairs) / len(pairs),
        wins=wins,
        losses=losses,
        p=None if graded else mcnemar(wins, losses),
        low=low,
        high=high,
        notes=tuple(notes),
    )


def _resampled(steps: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the mean of `steps`, drawn with replacement; the same steps give the same bounds."""
    draw, n = random.Random(SEED), len(steps)
    means = sorted(sum(draw.choices(steps, k=n)) / n for _ in range(RESAMPLES))
    edge, mean = round((1 - LEVEL) / 2 * RESAMPLES), sum(steps) / n
    return min(means[edge], mean), max(means[-edge - 1], mean)


def _number(row: dict[str, Any], metric: str, results: _Results) -> float:
    value = row.get(metric)
    values: list[Any] = value if isinstance(value, list) and value else [value]
    with suppress(OverflowError):
        if all(isinstance(each, int | float) for each in values):
            mean = sum(float(each) for each in values) / len(values)
            if isfinite(mean):
                return mean
    raise UsageError(
        f"doc {row.get('doc_id')} of {results.name} has no number for {metric}",
        "compare results of one task",
    )


def _results(place: Path) -> _Results:
    """Find the newest results file at or below a path. Raises UsageError where several folders have one."""
    if place.is_file():
        files = [place]
    else:
        files = sorted(place.rglob("results_*.json"), key=lambda p: p.name)
    if not files:
        raise UsageError(f"{place} has no results_*.json", "name a folder that eval -o wrote, or such a file")
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        raise UsageError(
            f"{place} has results in {len(folders)} folders", f"name one of them, such as {folders[0]}"
        )
    return _Results(files[-1], _object(_text(files[-1]), files[-1]))


def _text(path: Path) -> str:
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8", "surrogatepass")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{path}: {why}", "lm-eval writes samples with --log_samples") from None


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} is not JSON: {e}"[:200]) from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a JSON object")
    return value
