"""Results have lm-eval's shape and hashes, so that what reads its folders reads ours."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from freehold.adapt.evals.evaluate import (
    EvalItem,
    EvalQuestion,
    EvalTask,
    ItemMark,
    ItemResult,
    ModelReply,
    TaskResult,
)
from freehold.adapt.evals.results import Report, faults, values, written
from freehold.base.errors import StoreError

# Of lm-eval 0.4.13's own results file.
KEYS = {
    *(
        "results",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "config",
    ),
    *("git_hash", "date", "task_hashes", "model_source", "model_name", "model_name_sanitized"),
    *("system_instruction", "chat_template", "chat_template_sha", "total_evaluation_time_seconds"),
}
SAMPLE_KEYS = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash", "acc"),
}


def report(*marks: ItemMark) -> Report:
    items = tuple(
        EvalItem(
            {"q": f"é{i}"},
            EvalQuestion(text=f"p{i}", stop=("\n",), max_tokens=8),
            "a",
            lambda r: ItemMark({}),
            "k",
        )
        for i in range(len(marks))
    )
    rows = tuple(
        ItemResult(item, ModelReply(f"r{i}"), mark, "k")
        for i, (item, mark) in enumerate(zip(items, marks, strict=True))
    )
    task = EvalTask("t", items, ("acc", "parts"), original=9)
    result = TaskResult(task, rows, len(rows))
    return Report("org/m:1", "w", "", "{{x}}", (result,), datetime(2026, 11, 28, tzinfo=UTC), 1.5, 1.0)


GOOD, BAD = ItemMark({"acc": 1.0, "parts": (1.0, 1.0)}), ItemMark({"acc": 0.0, "parts": (1.0, 0.0, 0.0)})


def test_results_have_lm_evals_keys_and_means():
    found = report(GOOD, BAD, GOOD, BAD).as_json()
    assert found.keys() >= KEYS
    means = found["results"]["t"]
    assert means["acc,none"] == 0.5 and means["acc_stderr,none"] == pytest.approx(0.288675)
    assert means["parts,none"] == 0.6  # six of ten parts: they count one by one
    assert found["n-samples"] == {"t": {"original": 9, "effective": 4}}
    assert found["higher_is_better"] == {"t": {"acc": True, "parts": True}}


def test_item_without_a_metric_counts_as_wrong_and_faults_are_counted():
    made = report(GOOD, ItemMark({}, "too long"), ItemMark({"acc": 0.0}, fault="the verifier raised X"))
    (result,) = made.tasks
    assert values(result, "acc") == [1.0, 0.0, 0.0]
    assert faults(result) == {"the verifier raised X": 1}


def test_samples_have_lm_evals_fields_and_hashes(tmp_path: Path):
    path = written(report(GOOD, BAD), tmp_path)
    assert path.parent.name == "org__m__1" and path.name == "results_2026-11-28T00-00-00.000000.json"
    (samples,) = path.parent.glob("samples_t_*.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first.keys() >= SAMPLE_KEYS and first["metrics"] == ["acc", "parts"]
    assert first["arguments"]["gen_args_0"]["arg_0"] == "p0" and first["resps"] == [["r0"]]
    doc = json.dumps({"q": "é0"}, indent=2, ensure_ascii=False)
    assert first["doc_hash"] == hashlib.sha256(doc.encode()).hexdigest()
    assert first["prompt_hash"] == hashlib.sha256(b"p0").hexdigest()


def test_results_of_a_model_by_its_path_are_not_in_a_hidden_folder(tmp_path: Path):
    for model, folder in (("./q3+tuned", "q3+tuned"), ("../q3", "q3"), ("/models/q3", "models__q3")):
        path = written(replace(report(GOOD), model=model), tmp_path)
        assert path.parent == tmp_path / folder
        assert json.loads(path.read_text())["model_name"] == model


def test_task_hash_names_the_items_and_not_the_answers():
    hashes = [report(*marks).as_json()["task_hashes"]["t"] for marks in ((GOOD, BAD), (BAD, BAD), (GOOD,))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_folder_that_cannot_be_written_is_one_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        written(report(GOOD), tmp_path / "file")
