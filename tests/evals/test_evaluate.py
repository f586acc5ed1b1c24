"""Items are answered many at once and kept: a stopped run continues, and only what changed is computed again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from freehold.adapt.evals.evaluate import (
    EvalItem,
    EvalQuestion,
    EvalSubject,
    EvalTask,
    EvaluatedModel,
    ItemMark,
    ModelReply,
    TaskResult,
    evaluate,
    judged,
)
from freehold.adapt.evals.tasks import own
from freehold.base.config import load_settings
from freehold.base.types import Message
from freehold.run.local import open_model
from freehold.run.store import Store
from freehold.serve.fake import FakeModel
from tests.vectors.files import write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvaluatedModel]:
    path = write_gguf("qwen2", tmp_path_factory.mktemp("evaluate") / "tiny.gguf", dtype="Q8_0")
    with open_model(
        Store(load_settings()).resolve(str(path)), context=256, threads=1, kind=EvaluatedModel
    ) as loaded:
        yield cast(EvaluatedModel, loaded)


@pytest.fixture
def subject(model: EvaluatedModel) -> EvalSubject:
    return EvalSubject(model, "", "s" * 64)


def item(n: int, mark: Callable[[ModelReply], ItemMark] | None = None, **more: Any) -> EvalItem:
    question = EvalQuestion((Message("user", f"Hi {n}"),), max_tokens=6)
    even = lambda reply: ItemMark({"acc": float(len(reply.text) % 2 == 0)})  # noqa: E731
    return replace(EvalItem({"n": n}, question, "even", mark or even, "even"), **more)


def task(items: int = 9, **more: Any) -> EvalTask:
    return EvalTask("t", tuple(item(n, **more) for n in range(items)), ("acc",), original=items)


def texts(result: TaskResult) -> list[str]:
    return [row.reply.text for row in result.rows]


def test_kept_answers_are_not_computed_again_and_fresh_computes_all(subject: EvalSubject, tmp_path: Path):
    first = evaluate(task(), subject, tmp_path)
    again = evaluate(task(), subject, tmp_path)
    fresh = evaluate(task(), subject, tmp_path, fresh=True)
    assert (first.answered, again.answered, fresh.answered) == (9, 0, 9)
    assert texts(first) == texts(again) == texts(fresh) and len(set(texts(first))) > 1
    assert [r.mark for r in first.rows] == [r.mark for r in again.rows]


def test_only_changed_items_are_computed_after_a_change(subject: EvalSubject, tmp_path: Path):
    evaluate(task(), subject, tmp_path)
    changed = replace(task(), items=(*task().items[:8], item(100)))
    assert evaluate(changed, subject, tmp_path).answered == 1
    assert evaluate(task(), replace(subject, digest="o" * 64), tmp_path).answered == 9  # other weights


def test_stopped_run_continues_to_the_results_of_an_undisturbed_one(subject: EvalSubject, tmp_path: Path):
    class Stop(KeyboardInterrupt):
        pass

    def stop(name: str, done: int, total: int) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        evaluate(task(), subject, tmp_path / "a", on_item=stop)
    (kept,) = (tmp_path / "a").rglob("items-*.jsonl")
    kept.write_bytes(kept.read_bytes()[:-7])  # as a kill leaves the last line
    resumed = evaluate(task(), subject, tmp_path / "a")
    assert 0 < resumed.answered < 9
    assert replace(resumed, answered=9).rows == _unmarked(evaluate(task(), subject, tmp_path / "b"), resumed)


def _unmarked(result: TaskResult, like: TaskResult) -> tuple[Any, ...]:
    """Give the rows the items of another result: their functions are made anew and never equal."""
    return tuple(replace(row, item=other.item) for row, other in zip(result.rows, like.rows, strict=True))


def test_marks_are_kept_and_made_again_where_the_way_of_marking_changed(subject: EvalSubject, tmp_path: Path):
    made: list[str] = []

    def mark(reply: ModelReply) -> ItemMark:
        made.append(reply.text)
        return ItemMark({"acc": 1.0})

    for key, count in (("a", 9), ("a", 9), ("b", 18)):
        evaluate(task(mark=mark, mark_key=key), subject, tmp_path)
        assert len(made) == count


def test_code_is_marked_beside_the_answers_and_every_mark_arrives(subject: EvalSubject, tmp_path: Path):
    seen: list[int] = []
    result = evaluate(
        task(runs_code=True), subject, tmp_path, on_item=lambda name, done, total: seen.append(done)
    )
    assert seen == list(range(10)) and all(row.mark.metrics for row in result.rows)


def test_item_that_is_too_long_counts_as_wrong_and_the_others_are_answered(
    subject: EvalSubject, tmp_path: Path
):
    long = replace(item(0), question=EvalQuestion(text="word " * 600))
    chosen = replace(item(0), question=EvalQuestion(text="word " * 80, choices=("word " * 300, "b")))
    result = evaluate(replace(task(), items=(long, chosen, item(1))), subject, tmp_path)
    assert result.answered == 1 and [bool(row.reply.error) for row in result.rows] == [True, True, False]
    assert "256" in result.rows[0].reply.error and result.rows[0].mark.metrics == {}


def test_choices_are_scored_by_the_sum_of_their_tokens(subject: EvalSubject, tmp_path: Path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"prompt": "the end of", "choices": [" it", " the long day"], "answer": 1, "metric": "ends"},
        {"messages": [{"role": "user", "content": "Hi"}], "choices": ["Yes", "No"], "answer": "No"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = own(path, "")
    assert task.metrics == ("acc", "acc_norm", "ends")
    plain, chat = evaluate(task, subject, tmp_path).rows
    model = subject.model
    start = len(model.tokenize("the end of"))
    wanted = [
        model.score(model.tokenize("the end of" + c))[start - 1 :].sum() for c in (" it", " the long day")
    ]
    np.testing.assert_allclose(plain.reply.sums, wanted, rtol=1e-5)
    assert plain.mark.metrics["acc"] == plain.mark.metrics["ends"] == float(wanted[1] > wanted[0])
    assert plain.mark.metrics["acc_norm"] == float(wanted[1] / 13 > wanted[0] / 3)
    ids = model.render([Message("user", "Hi")])
    answer = model.score([*ids, *model.tokenize("No", bos=False)])[len(ids) - 1 :].sum()
    assert chat.reply.sums[1] == pytest.approx(answer, rel=1e-5)


def test_mistake_in_a_way_of_marking_is_raised_and_not_counted_as_wrong(subject: EvalSubject, tmp_path: Path):
    def mark(reply: ModelReply) -> ItemMark:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(task(mark=mark, runs_code=True), subject, tmp_path)


def test_rubric_is_marked_by_a_model_once_and_under_the_cases_own_metric(
    subject: EvalSubject, tmp_path: Path
):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "judge": "It greets.", "max_tokens": 4, "metric": "tone"}))
    task = own(path, "grader@1")
    asked = FakeModel(['{"pass": true}'])
    first = judged(evaluate(task, subject, tmp_path), subject, cast(Any, asked), tmp_path)
    assert first.rows[0].mark.metrics == {"acc": 1.0, "tone": 1.0}
    again = judged(evaluate(task, subject, tmp_path), subject, cast(Any, asked), tmp_path)
    assert again.rows[0].mark == first.rows[0].mark and len(asked.calls) == 1
