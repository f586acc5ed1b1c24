"""Results in lm-eval's shape, written and compared: results_*.json with means, samples_*.jsonl with every item.

Field names and hashes are those of lm-eval 0.4, so that what reads its folders reads ours, and items of both can be
paired. An item without a metric (too long for the context, or without a verdict) counts as wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from statistics import stdev
from typing import Any

from freehold.adapt.evals.evaluate import ItemResult, Metric, TaskResult, digest
from freehold.adapt.evals.paired import mcnemar, resampled, wilson
from freehold.base.errors import StoreError, UsageError
from freehold.base.regular import read_bounded
from freehold.base.version import __version__
from freehold.choose.advisor.interval import Interval

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Report:
    """What one model scored: its tasks, and what it was. `template`: the chat template's text, or None."""

    model: str
    weights: str  # digest of its file
    adapter: str  # digest, or ""
    template: str | None
    tasks: tuple[TaskResult, ...]
    started: datetime
    seconds: float
    cpu_seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return it as results_*.json has it."""
        tasks = {each.task.name: each for each in self.tasks}
        return {
            "results": {name: _means(each) for name, each in tasks.items()},
            "group_subtasks": {name: [] for name in tasks},
            "configs": {name: self._config(each) for name, each in tasks.items()},
            "versions": {name: each.task.version for name, each in tasks.items()},
            "n-shot": dict.fromkeys(tasks, 0),
            "higher_is_better": {n: dict.fromkeys(each.task.metrics, True) for n, each in tasks.items()},
            "n-samples": {
                name: {"original": each.task.original, "effective": len(each.rows)}
                for name, each in tasks.items()
            },
            "config": {
                "model": "freehold",
                "model_args": {"model": self.model, "weights": self.weights, "adapter": self.adapter},
                "gen_kwargs": {"temperature": 0.0},
                "random_seed": 0,
            },
            "git_hash": None,
            "date": self.started.timestamp(),
            "freehold_version": __version__,
            "task_hashes": {name: _task_hash(each) for name, each in tasks.items()},
            "model_source": "freehold",
            "model_name": self.model,
            "model_name_sanitized": _sanitized(self.model),
            "system_instruction": None,
            "chat_template": self.template,
            "chat_template_sha": digest(self.template) if self.template else None,
            "total_evaluation_time_seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "answered": {name: each.answered for name, each in tasks.items()},
            "verifier_faults": {name: dict(faults(each)) for name, each in tasks.items()},
        }

    @staticmethod
    def _config(each: TaskResult) -> dict[str, Any]:
        metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in each.task.metrics]
        return {"task": each.task.name, "metric_list": metrics, **each.task.config}


def values(each: TaskResult, metric: str) -> list[float]:
    """Return the numbers of a metric over a task's items; the main metric has one for every item."""
    numbers: list[float] = []
    for row in each.rows:
        value = metric_of(row, metric, main=metric == each.task.metrics[0])
        numbers += [] if value is None else value if isinstance(value, tuple) else [value]
    return [float(v) for v in numbers]


def metric_of(row: ItemResult, metric: str, *, main: bool) -> Metric | None:
    """Return an item's metric; the main one of an item that has no metric is 0."""
    return row.mark.metrics.get(metric, 0.0 if main or not row.mark.metrics else None)


def interval(numbers: Sequence[float]) -> Interval:
    """Return the mean with its 95 % bounds (Wilson)."""
    return wilson(numbers, LEVEL)


def faults(each: TaskResult) -> Counter[str]:
    """Count the verifier's own failures, by kind."""
    return Counter(row.mark.fault for row in each.rows if row.mark.fault)


def written(report: Report, out: Path) -> Path:
    """Write the results and samples below `out`/MODEL; return the results' file. Raises StoreError."""
    folder = out / _sanitized(report.model)
    stamp = report.started.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    results = folder / f"results_{stamp}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in report.tasks:
            lines = [json.dumps(_sample(i, row, each), ensure_ascii=False) for i, row in enumerate(each.rows)]
            _write(folder / f"samples_{each.task.name}_{stamp}.jsonl", "\n".join(lines) + "\n")
        _write(results, json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n")
    except OSError as e:
        raise StoreError(
            f"{e.filename or folder} cannot be written: {e.strerror}",
            "name another -o OUT; the answers are kept",
        ) from None
    return results


def _write(path: Path, text: str) -> None:
    """Write a file beside and rename it, so that no half of one is read."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8", errors="surrogatepass")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _means(each: TaskResult) -> dict[str, Any]:
    means: dict[str, Any] = {"name": each.task.name, "alias": each.task.name, "sample_len": len(each.rows)}
    for metric in each.task.metrics:
        numbers = values(each, metric)
        if numbers:
            error = stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else "N/A"
            means[f"{metric},{each.task.filter}"] = sum(numbers) / len(numbers)
            means[f"{metric}_stderr,{each.task.filter}"] = error
    return means


def _sample(index: int, row: ItemResult, each: TaskResult) -> dict[str, Any]:
    item, question = row.item, row.item.question
    if question.choices:
        requests = {
            f"gen_args_{i}": {"arg_0": question.prompt, "arg_1": c} for i, c in enumerate(question.choices)
        }
        replies: list[Any] = [[[s, None]] for s in row.reply.sums]
    else:
        settings = {"until": list(question.stop), "max_gen_toks": question.max_tokens, "temperature": 0.0}
        requests = {"gen_args_0": {"arg_0": question.prompt, "arg_1": settings}}
        replies = [[row.reply.text]]
    metrics: dict[str, Any] = {}
    for name in each.task.metrics:
        value = metric_of(row, name, main=name == each.task.metrics[0])
        if value is not None:
            metrics[name] = list(value) if isinstance(value, tuple) else value
    return {
        "doc_id": index,
        "doc": item.doc,
        "target": item.target,
        "arguments": requests,
        "resps": replies,
        "filtered_resps": [r[0] for r in replies],
        "calls": [{"name": name, "arguments": arguments} for name, arguments in row.reply.calls],
        "filter": each.task.filter,
        "metrics": list(metrics),
        "doc_hash": item.doc_hash,
        "prompt_hash": digest(question.prompt),
        "target_hash": digest(item.target),
        "why": row.mark.why or row.mark.fault,
        **metrics,
    }


def _task_hash(each: TaskResult) -> str:
    """Name a task's items as they were asked: other items, prompts or targets give another hash."""
    identity = [(r.item.doc_hash, digest(r.item.question.prompt), digest(r.item.target)) for r in each.rows]
    return digest(json.dumps(identity))


def _sanitized(name: str) -> str:
    """Return a folder's name: lm-eval's, less the leading "./" of a path, which would hide the folder."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name.lstrip("./") or name)


def main_metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """Return each task's main metric, of a results file of ours or lm-eval's: the first that is listed."""
    metrics: dict[str, str] = {}
    configs = results.get("configs")
    for task, config in configs.items() if isinstance(configs, dict) else ():
        listed = config.get("metric_list") if isinstance(config, dict) else None
        first = listed[0] if isinstance(listed, list) and listed else None
        if isinstance(first, dict) and isinstance(first.get("metric"), str):
            metrics[task] = first["metric"]
    return metrics


# --- compares two results item by item --------------------------------------------------------------
# Exact McNemar for right or wrong, a paired bootstrap for the difference.
# Reads folders of ours or of lm-eval's. Items are paired by their hash; where the two did not answer the same
# items nothing is compared.

RESAMPLES = 10_000
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
            f"{task}: {len(apart)} items are in only one result; the first is doc {row.get('doc_id')} of {where}",
            "run both on the same items: the same --data and --limit",
        )
    pairs = [(_number(row, metric, a), _number(theirs[key], metric, b)) for key, row in ours.items()]
    differing = [key for key, row in ours.items() if row.get("prompt_hash") != theirs[key].get("prompt_hash")]
    notes = [f"the prompts of {len(differing)} items differ"] if differing else []
    steps = [x - y for x, y in pairs]
    wins, losses = sum(s > 0 for s in steps), sum(s < 0 for s in steps)
    graded = any(value not in (0.0, 1.0) for pair in pairs for value in pair)
    low, _, high = resampled(steps, LEVEL, RESAMPLES)
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


def _number(row: dict[str, Any], metric: str, results: _Results) -> float:
    value = row.get(metric)
    values: list[Any] = value if isinstance(value, list) and value else [value]
    with suppress(OverflowError):
        if all(isinstance(each, int | float) for each in values):
            mean = sum(float(each) for each in values) / len(values)
            if isfinite(mean):
                return mean
    raise UsageError(
        f"doc {row.get('doc_id')} of {results.name} has no number for {metric}", "compare results of one task"
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
