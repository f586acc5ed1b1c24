"""The tasks of an evaluation: one file each, all of them EvalTasks; here is which one a name takes.

`freehold eval --data` names a user's file of cases, or one of those that Freehold knows:

FILE.jsonl | humaneval | ifeval | bfcl:CATEGORY | rg:DATASET[:k=v[,k=v...]]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from freehold.adapt.evals.evaluate import EvalItem, EvalQuestion, EvalTask, ItemMark, Metric, ModelReply
from freehold.adapt.evals.samples import Case, read
from freehold.base.config import nearest
from freehold.base.errors import UsageError
from freehold.run.store.contract import OnEvent, ignore

KNOWN = ("humaneval", "ifeval", "bfcl", "rg")
_EXAMPLES = {"bfcl": "bfcl:simple_python", "rg": "rg:chain_sum"}  # of tasks that need a name after a colon

# From whether the model's template can offer tools to the task.
TaskMaker = Callable[[bool], EvalTask]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What tasks need beside their name. `style`: of the prompts, "" for the task's own. `judge`: name and digest."""

    home: Path
    offline: bool = False
    limit: int | None = None
    style: str = ""
    judge: str = ""
    on_event: OnEvent = ignore


def open_task(spec: str, options: TaskOptions) -> TaskMaker:
    """Read a task's data. Raises UsageError for a name or option that is not known, and what reading data raises."""
    make, limit = _maker(spec, options), options.limit

    def limited(tools: bool) -> EvalTask:
        task = make(tools)
        return task if limit is None else replace(task, items=task.items[:limit])

    return limited


def _maker(spec: str, options: TaskOptions) -> TaskMaker:
    name, _, rest = spec.partition(":")
    if spec == "humaneval":
        from freehold.adapt.evals.tasks.humaneval import STYLES, humaneval

        style = _style(spec, options.style, STYLES)
        task = humaneval(options.home, style, offline=options.offline, on_event=options.on_event)
        return lambda tools: task
    if spec == "ifeval":
        from freehold.adapt.evals.tasks.instructions import instructions

        _style(spec, options.style, ("chat",))
        task = instructions()
        return lambda tools: task
    if name == "bfcl" and rest:
        from freehold.adapt.evals.tasks.bfcl import STYLES, bfcl

        style = _style(spec, options.style, ("", *STYLES))
        return bfcl(rest, options.home, style, offline=options.offline, on_event=options.on_event)
    if name == "rg" and rest:
        from freehold.adapt.evals.tasks.gym import gym

        _style(spec, options.style, ("chat",))
        task = gym(rest, options.limit)
        return lambda tools: task
    return _file(spec, options)


def _file(spec: str, options: TaskOptions) -> TaskMaker:

    path = Path(spec).expanduser()
    if not path.is_file():
        near = nearest(spec.rstrip(":"), list(KNOWN))
        if near:
            hint = f"did you mean {_EXAMPLES.get(near, near)}?"
        else:
            hint = "tasks: humaneval, ifeval, bfcl:simple_python, rg:DATASET"
        raise UsageError(f"--data {spec} is neither a file nor a task", hint)
    _style(spec, options.style, ("chat",))
    task = own(path, options.judge)
    return lambda tools: task


def _style(spec: str, style: str, styles: tuple[str, ...]) -> str:
    if style and style not in styles:
        named = ", ".join(filter(None, styles))
        raise UsageError(f"{spec} has no style {style!r}", f"styles: {named}")
    return style or styles[0]


# --- a user's own file of cases as a task -----------------------------------------------------------
# Texts, patterns, JSON, choices by log-likelihood, code, rubrics.


def own(path: Path, judge: str) -> EvalTask:
    """Return the cases of a file. `judge`: names the model that judges rubrics. Raises UsageError for bad lines."""
    samples = read(path, judge, scored=True)
    items = tuple(_item(case) for case in samples.cases)
    named = dict.fromkeys(case.metric for case in samples.cases if case.metric)
    metrics = ["acc"]
    if any(case.choices for case in samples.cases):
        metrics.append("acc_norm")
    if any(case.judge.kind == "tests" for case in samples.cases):
        metrics.append("score")
    metrics += [name for name in named if name not in metrics]
    config = {"file": path.name, "samples_digest": samples.digest}
    return EvalTask(path.stem, items, tuple(metrics), original=len(items), config=config)


def _item(case: Case) -> EvalItem:
    question = EvalQuestion(case.messages, choices=case.choices, max_tokens=case.max_tokens)
    if case.plain:
        question = EvalQuestion(text=case.messages[0].content, choices=case.choices)
    target = case.choices[case.answer] if case.choices else str(case.table.get(case.judge.kind, ""))
    return EvalItem(
        case.table,
        question,
        target,
        lambda reply: _mark(case, reply),
        f"{case.judge.key} {case.metric}",
        runs_code=case.judge.kind == "tests",
        rubric=case.judge.rubric,
    )


def _mark(case: Case, reply: ModelReply) -> ItemMark:
    if case.choices:
        return _chosen(case, reply)
    mark = case.judge.mark(reply.text)
    metrics: dict[str, Metric] = {"acc": float(mark.passed)}
    if mark.score is not None:
        metrics["score"] = mark.score
    return ItemMark(_named(case, metrics), mark.why)


def _chosen(case: Case, reply: ModelReply) -> ItemMark:
    """Mark the likeliest choice: by its sum of log-probabilities, and by the sum over its characters."""
    plain = max(range(len(reply.sums)), key=lambda i: reply.sums[i])
    even = max(range(len(reply.sums)), key=lambda i: reply.sums[i] / len(case.choices[i]))
    metrics: dict[str, Metric] = {"acc": float(plain == case.answer), "acc_norm": float(even == case.answer)}
    why = "" if plain == case.answer else f"chose {case.choices[plain][:60]!r}"
    return ItemMark(_named(case, metrics), why)


def _named(case: Case, metrics: dict[str, Metric]) -> dict[str, Metric]:
    return {**metrics, case.metric: metrics["acc"]} if case.metric else metrics
