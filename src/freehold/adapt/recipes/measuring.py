"""What a gate measures: marks of held-out items, and which of them were trained on.

Answers are kept as those of `freehold eval` are, so a gate that was interrupted continues. Knows tasks and models;
decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.adapt.evals.contamination import Overlap, overlaps
from freehold.base.errors import UsageError

if TYPE_CHECKING:
    from freehold.adapt.evals.evaluate import EvalTask, TaskResult
    from freehold.base.config import Settings
    from freehold.run.store import ModelRef, Store

AT_ONCE = 48  # items that are asked before a look at whether the rest can change the verdict
OnItems = Callable[[int, int], None]  # answered, in all


@dataclass(frozen=True, slots=True)
class MeasuredTask:
    """Items by name, as `freehold eval --data` takes them."""

    data: str
    limit: int | None = None
    style: str = ""

    def opened(self, settings: Settings) -> EvalTask:
        """Return the task for a model without tools. Raises UsageError for items that a model must judge."""
        from freehold.adapt.evals.tasks import TaskOptions, open_task

        options = TaskOptions(settings.home, settings.offline, self.limit, self.style)
        task = open_task(self.data, options)(False)
        if any(item.rubric for item in task.items):
            raise UsageError(
                f"{self.data} has items that a model judges by a rubric; a gate takes plain checks",
                "use exact, contains, regex, json, json_schema, tests or choices",
            )
        if not task.items:
            raise UsageError(f"{self.data} has no item", "add items that no stage trains on")
        return task


def questions(task: EvalTask) -> list[str]:
    """Return what is asked in each item: the last message, or the text to continue."""
    return [
        item.question.messages[-1].content if item.question.messages else item.question.text
        for item in task.items
    ]


def trained_on(task: EvalTask, texts: Iterable[str]) -> list[Overlap]:
    """Return the items that occur in texts: equal, or 13 words in a row."""
    return overlaps(texts, questions(task))


def scored(
    task: MeasuredTask, ref: ModelRef, adapter: Path | None, settings: Settings, store: Store
) -> TaskResult:
    """Answer and mark all items of a task. Raises what the model raises."""
    from freehold.adapt.evals.evaluate import evaluate, opened_subject

    opened = task.opened(settings)
    with opened_subject(ref, adapter, packs=store.packs) as subject:
        return evaluate(opened, subject, settings.home)


@dataclass(frozen=True, slots=True)
class GateSubject:
    """A model with or without an adapter, to be measured."""

    ref: ModelRef
    adapter: Path | None


def marks_of(
    task: EvalTask,
    subject: GateSubject,
    settings: Settings,
    store: Store,
    *,
    stop: Callable[[Sequence[float]], bool] = lambda marks: False,
    on_items: OnItems = lambda done, total: None,
) -> list[float]:
    """Return the main metric of each item, from 0 to 1; fewer than all where `stop` says so of those so far."""
    from freehold.adapt.evals.evaluate import evaluate, opened_subject
    from freehold.adapt.evals.results import metric_of

    marks: list[float] = []
    with opened_subject(subject.ref, subject.adapter, packs=store.packs) as opened:
        for first in range(0, len(task.items), AT_ONCE):
            part = replace(task, items=task.items[first : first + AT_ONCE])
            for row in evaluate(part, opened, settings.home).rows:
                value = metric_of(row, task.metrics[0], main=True)
                numbers = value if isinstance(value, tuple) else (value or 0.0,)
                marks.append(sum(numbers) / len(numbers) if numbers else 0.0)
            on_items(len(marks), len(task.items))
            if stop(marks):
                break
    return marks
