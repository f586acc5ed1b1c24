"""From what `--data` names to a task: a file, or one of those that Freehold knows.

    FILE.jsonl | humaneval | ifeval | bfcl:CATEGORY | rg:DATASET[:k=v[,k=v...]]

Path: cli/eval -> open_task -> TaskMaker -> EvalTask
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from freehold.config import nearest
from freehold.errors import UsageError
from freehold.evals.items import EvalTask
from freehold.store.contract import OnEvent, ignore

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
    make = _maker(spec, options)
    return lambda tools: _limited(make(tools), options.limit)


def _maker(spec: str, options: TaskOptions) -> TaskMaker:
    name, _, rest = spec.partition(":")
    if spec == "humaneval":
        from freehold.evals.tasks.humaneval import STYLES, humaneval

        style = _style(spec, options.style, STYLES)
        task = humaneval(options.home, style, offline=options.offline, on_event=options.on_event)
        return lambda tools: task
    if spec == "ifeval":
        from freehold.evals.tasks.instructions import instructions

        _style(spec, options.style, ("chat",))
        task = instructions()
        return lambda tools: task
    if name == "bfcl" and rest:
        from freehold.evals.tasks.bfcl import STYLES, bfcl

        style = _style(spec, options.style, ("", *STYLES))
        return bfcl(rest, options.home, style, offline=options.offline, on_event=options.on_event)
    if name == "rg" and rest:
        from freehold.evals.tasks.gym import gym

        _style(spec, options.style, ("chat",))
        task = gym(rest, options.limit)
        return lambda tools: task
    return _file(spec, options)


def _file(spec: str, options: TaskOptions) -> TaskMaker:
    from freehold.evals.tasks.own import own

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


def _limited(task: EvalTask, limit: int | None) -> EvalTask:
    return task if limit is None else replace(task, items=task.items[:limit])
