"""`freehold eval MODEL[+ADAPTER] --data TASK`: score a model on tasks, or compare two results item by item.

Knows options and names; evals answers, marks and compares. The model is loaded in this process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.options import option
from freehold.base.terminal import Ticking, printable
from freehold.cli.options import setting_options
from freehold.cli.report.trying import TrialProgress
from freehold.cli.shared import held_or_fetched, json_option, offline_option, table, with_offline
from freehold.run.store import ModelRef, Store
from freehold.run.store.naming import adapters_of
from freehold.run.store.records import digest

if TYPE_CHECKING:
    from freehold.adapt.evals.evaluate import EvalSubject, EvalTask, TaskResult
    from freehold.adapt.evals.results import Report, ResultComparison


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What MODEL is scored on, and how."""

    tasks: tuple[str, ...] = option(
        (),
        "FILE.jsonl, humaneval, ifeval, bfcl:CATEGORY or rg:DATASET[:k=v,...]; repeatable.",
        name="data",
        metavar="TASK",
    )
    limit: int | None = option(None, "Only the first N items of each task.", least=1, metavar="N")
    style: str = option("", "Form of the prompts: chat, completion, tools or text.", metavar="NAME")
    judge: str = option("", "Model that judges rubrics of a FILE.jsonl.", metavar="MODEL")
    fresh: bool = option(False, "Ignore the answers of earlier runs, and answer again.")
    context: int | None = option(None, "Context in tokens; default: the model's, if it fits.", least=1)
    threads: int | None = option(None, "Number of compute threads.", least=1, most=1024)


@click.command("eval")
@click.argument("model", required=False, metavar="MODEL[+ADAPTER]")
@setting_options(EvalRequest, "tasks", "limit", "style", "judge", "fresh")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write results and samples to this folder.",
)
@click.option(
    "--compare", nargs=2, type=click.Path(path_type=Path), metavar="A B", help="Compare two results, paired."
)
@setting_options(EvalRequest, "context", "threads")
@json_option
@offline_option
@click.pass_obj
def command(
    settings: Settings,
    model: str | None,
    out: Path | None,
    compare: tuple[Path, Path] | None,
    as_json: bool,
    offline: bool,
    **options: Any,
) -> None:
    """Score MODEL on tasks: greedy decoding, 95% confidence intervals, results in lm-eval's format.

    ADAPTER is a PEFT folder or a GGUF adapter, so smollm2:135m+./mine is the model with the adapter in ./mine.

    A FILE.jsonl has one object per line with `prompt` or `messages`, and one of exact, contains, regex, json,
    json_schema, tests, judge, or choices with answer. `images` lists pictures that come before a prompt: files in
    the folder of FILE.jsonl, or data: URLs; messages have them as image_url parts. Answers are kept: an interrupted
    run continues, and after a change, only the affected answers are computed again.

    --compare takes two folders with results, written by -o or by lm-eval, and pairs their items.
    """
    settings, request = with_offline(settings, offline), EvalRequest(**options)
    if compare:
        if model or out or request != EvalRequest():
            raise UsageError(
                "--compare reads two results and runs no model", "leave out MODEL and its options"
            )
        return _compare(*compare, as_json=as_json)
    if not model or not request.tasks:
        raise UsageError("name a MODEL and what to score it on", "freehold eval smollm2:135m --data ifeval")
    with TrialProgress(model) as shown:
        report = _evaluated(settings, model, request, shown)
    _show(report, settings.home, out, as_json)
    return None


def _show(report: Report, home: Path, out: Path | None, as_json: bool) -> None:
    from freehold.adapt.evals.results import written
    from freehold.adapt.registry import note

    path = written(report, out) if out else None
    if out:
        note(home, "eval", out)
    if as_json:
        click.echo(
            json.dumps(report.as_json() | {"written": str(path) if path else None}, ensure_ascii=False)
        )
        return
    show(report)
    if path:
        click.echo(f"written: {path}", err=True)


@dataclass(frozen=True, slots=True)
class _Named:
    """A model of the store, with an adapter's path or None."""

    ref: ModelRef
    adapter: Path | None
    name: str


def _evaluated(settings: Settings, model: str, request: EvalRequest, shown: TrialProgress) -> Report:
    from freehold.adapt.evals.evaluate import evaluate, opened_subject
    from freehold.adapt.evals.results import Report
    from freehold.adapt.evals.tasks import TaskOptions, open_task
    from freehold.cli.progress import reporter

    started, clock, used = datetime.now(UTC), time.monotonic(), _cpu_seconds()
    store = Store(settings)
    grader = held_or_fetched(store, request.judge) if request.judge else None
    judged_by = f"{request.judge}@{digest(grader)}" if grader else ""
    with reporter() as on_event:
        options = TaskOptions(
            settings.home, settings.offline, request.limit, request.style, judged_by, on_event
        )
        makers = [open_task(task, options) for task in request.tasks]
    named = _named(store, model)
    results: list[TaskResult] = []
    limits = {"context": request.context, "threads": request.threads}
    with opened_subject(named.ref, named.adapter, packs=store.packs, **limits) as subject:
        tasks = _named_once(make(subject.model.info.can_call) for make in makers)
        _check_sees(subject, tasks)
        for task in tasks:
            results.append(evaluate(task, subject, settings.home, fresh=request.fresh, on_item=shown))
        if grader:
            results = _judged(store, results, subject, grader, settings.home)
        adapters = {info.name: info.digest for info in subject.model.info.adapters}
        return Report(
            model=named.name,
            weights=digest(named.ref),
            adapter=adapters.get(subject.adapter, ""),
            template=subject.model.template_text,
            tasks=tuple(results),
            started=started,
            seconds=time.monotonic() - clock,
            cpu_seconds=_cpu_seconds() - used,
        )


def _check_sees(subject: EvalSubject, tasks: Iterable[EvalTask]) -> None:
    """Raise UsageError for a model that reads text alone where an item has pictures."""
    from freehold.adapt.evals.pictures import images_of

    if subject.model.can_see:
        return
    for task in tasks:
        count = sum(bool(images_of(item.question.messages)) for item in task.items)
        if count:
            name = subject.model.name
            raise UsageError(
                f"{name} reads text only; {count} of {len(task.items)} items of {task.name} have pictures",
                "freehold list shows which models read pictures",
            )


def _named_once(tasks: Iterable[EvalTask]) -> list[EvalTask]:
    """Return the tasks. Raises UsageError for a name that occurs twice: one would overwrite the other's results."""
    tasks_by_name: dict[str, EvalTask] = {}
    for task in tasks:
        if task.name in tasks_by_name:
            raise UsageError(f"two tasks are called {task.name}", "rename one of the files")
        tasks_by_name[task.name] = task
    return list(tasks_by_name.values())


def _named(store: Store, model: str) -> _Named:
    """Find MODEL[+ADAPTER]; a stored model whose name has a plus is itself."""
    name, adapters = adapters_of(store, model)
    if len(adapters) > 1:
        raise UsageError(
            f"{model} has {len(adapters)} adapters; this takes 1",
            "an adapter that was trained on top of another contains it: name the last one",
        )
    path, beside = (adapters[0].path, f"+{adapters[0].name}") if adapters else (None, "")
    return _Named(held_or_fetched(store, name), path, f"{name}{beside}")


def _judged(
    store: Store, results: list[TaskResult], subject: EvalSubject, grader: ModelRef, home: Path
) -> list[TaskResult]:
    from freehold.adapt.evals.evaluate import judged
    from freehold.run.local import open_shown

    if not any(row.item.rubric for each in results for row in each.rows):
        return results
    with open_shown(grader, packs=store.packs) as judge, Ticking(f"{grader.name} judges"):
        return [judged(each, subject, judge, home) for each in results]


def _cpu_seconds() -> float:
    """Return the processor time of this process and of its children that ended."""
    return sum(os.times()[:4])


def _compare(one: Path, other: Path, *, as_json: bool) -> None:
    from freehold.adapt.evals.results import compare

    comparison = compare(one, other)
    if as_json:
        click.echo(json.dumps(comparison.as_json()))
        return
    for line in compared_lines(comparison):
        click.echo(printable(line))


# --- what `freehold eval` prints: a table of tasks with intervals, or one JSON object ---------------

_HEAD = ("TASK", "METRIC", "SCORE", "95% CI", "ITEMS", "NEW ANSWERS")


def show(report: Report) -> None:
    """Print the table on stdout, and what needs saying on stderr."""
    from freehold.adapt.evals.results import faults, interval, values

    rows = []
    for each in report.tasks:
        for metric in each.task.metrics:
            if numbers := values(each, metric):
                r = interval(numbers)
                bounds = f"{r.low:.3f} to {r.high:.3f}"
                now = str(each.answered) if metric == each.task.metrics[0] else ""
                rows.append((each.task.name, metric, f"{r.mid:.3f}", bounds, f"{len(numbers):,}", now))
    table(_HEAD, rows, right=(2, 4, 5))
    for each in report.tasks:
        for kind, count in faults(each).items():
            click.echo(f"{each.task.name}: {kind} on {count} answers, counted as wrong", err=True)
        if errors := [row.reply.error for row in each.rows if row.reply.error]:
            click.echo(f"{each.task.name}: {len(errors)} items count as wrong: {errors[0]}", err=True)
    click.echo(f"{report.cpu_seconds:.1f} CPU-seconds in {report.seconds:.1f} s", err=True)


def compared_lines(comparison: ResultComparison) -> list[str]:
    """Return a comparison as lines."""
    lines = []
    for each in comparison.tasks:
        lines.append(f"{each.task}, {each.metric}, {each.items:,} items")
        lines.append(f"  A {each.one:.3f}  {comparison.one}")
        lines.append(f"  B {each.other:.3f}  {comparison.other}")
        p = "" if each.p is None else f", p = {each.p:.2g} (exact McNemar)"
        lines.append(
            f"  A - B {each.one - each.other:+.3f} ({each.low:+.3f} to {each.high:+.3f}, 95% CI); "
            f"A higher on {each.wins}, B on {each.losses}{p}"
        )
        lines += [f"  note: {note}" for note in each.notes]
    return [*lines, *(f"note: {note}" for note in comparison.notes)]
