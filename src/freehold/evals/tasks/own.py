"""A user's own file of cases as a task: texts, patterns, JSON, choices by log-likelihood, code, rubrics.

Knows the cases of samples.py. Path: open_task -> own -> EvalTask
"""

from __future__ import annotations

from pathlib import Path

from freehold.evals.items import EvalItem, EvalQuestion, EvalTask, ItemMark, Metric, ModelReply
from freehold.evals.samples import Case, read


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
