"""Two results are paired by their items: exact p-values, seeded bounds, and refusals where the items differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.adapt.evals.paired import mcnemar
from freehold.adapt.evals.results import compare
from freehold.base.errors import UsageError

GOLDEN = json.loads((Path(__file__).parent / "data" / "mcnemar.json").read_text())


def test_p_values_are_those_of_scipys_binomtest_on_a_thousand_tables():
    assert len(GOLDEN) == 1000
    for wins, losses, p in GOLDEN:
        assert mcnemar(wins, losses) == pytest.approx(p, rel=1e-12), (wins, losses)


def write(folder: Path, scores: list[float], *, first: int = 0, prompt: str = "p", **more: Any) -> Path:
    """Write a result as lm-eval does."""
    folder.mkdir(parents=True)
    results = {"model_name": folder.name, "configs": {"t": {"metric_list": [{"metric": "acc"}]}}, **more}
    (folder / "results_2026.json").write_text(json.dumps(results))
    rows = [
        {"doc_id": i, "doc_hash": f"h{i}", "prompt_hash": f"{prompt}{i}", "acc": score}
        for i, score in enumerate(scores, first)
    ]
    (folder / "samples_t_2026.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_wins_and_losses_are_counted_item_by_item(tmp_path: Path):
    a, b = write(tmp_path / "a", [1, 1, 1, 0, 0, 1]), write(tmp_path / "b", [1, 0, 0, 1, 0, 0])
    (found,) = compare(a, b).tasks
    assert (found.items, found.wins, found.losses, found.p) == (6, 3, 1, mcnemar(3, 1))
    assert found.low <= found.one - found.other == pytest.approx(2 / 6) and found.high <= 1


def test_graded_scores_have_bounds_and_no_mcnemar_and_equal_runs_equal_bounds(tmp_path: Path):
    a, b = write(tmp_path / "a", [0.5, 1, 0.25] * 10), write(tmp_path / "b", [0.25, 0.5, 0.25] * 10)
    one, again = compare(a, b), compare(a, b)
    assert one == again and one.tasks[0].p is None and 0 < one.tasks[0].low < 0.25 < one.tasks[0].high


def test_item_that_occurs_twice_is_paired_twice(tmp_path: Path):
    folders = [write(tmp_path / name, [1, 0, 1]) for name in "ab"]
    for folder, scores in zip(folders, ([1, 1, 0], [0, 1, 0]), strict=True):
        rows = [{"doc_id": i, "doc_hash": "same", "acc": score} for i, score in enumerate(scores)]
        (folder / "samples_t_2026.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = compare(*folders).tasks
    assert (found.items, found.wins, found.losses) == (3, 1, 0)


def test_unequal_items_are_refused_with_their_number_and_the_first(tmp_path: Path):
    a, b = write(tmp_path / "a", [1] * 5), write(tmp_path / "b", [1] * 5, first=2)
    with pytest.raises(UsageError, match=r"t: 4 items are in only one result; the first is doc 0 of a"):
        compare(a, b)


def test_other_prompts_and_templates_are_named(tmp_path: Path):
    a = write(tmp_path / "a", [1, 0], chat_template_sha="x")
    b = write(tmp_path / "b", [1, 0], prompt="q", chat_template_sha="y")
    found = compare(a, b)
    assert found.notes == ("their chat templates differ",)
    assert found.tasks[0].notes == ("the prompts of 2 items differ",)


def test_results_without_a_common_task_samples_or_file_are_refused(tmp_path: Path):
    a = write(tmp_path / "a", [1])
    other = write(tmp_path / "b", [1], configs={"u": {"metric_list": [{"metric": "acc"}]}})
    with pytest.raises(UsageError, match="no task is in both: t; u"):
        compare(a, other)
    with pytest.raises(UsageError, match=r"has no results_\*.json"):
        compare(a, tmp_path / "nowhere")
    (a / "samples_t_2026.jsonl").unlink()
    with pytest.raises(UsageError, match=r"samples_t_2026.jsonl: No such file"):
        compare(a, a)


def test_a_folder_with_results_of_several_models_is_refused_and_one_of_them_is_named(tmp_path: Path):
    """The newest of them would be compared, whatever the user meant."""
    for name in "ab":
        write(tmp_path / "results" / name, [1, 0])
    with pytest.raises(UsageError, match="results has results in 2 folders") as e:
        compare(tmp_path / "results", tmp_path / "results")
    assert str(tmp_path / "results" / "a") in e.value.hint


def test_lines_are_parted_by_newlines_alone(tmp_path: Path):
    """JSON may hold U+2028 and U+0085 as they are, and an answer half a pair of surrogates."""
    folders = [write(tmp_path / name, [1]) for name in "ab"]
    for folder in folders:
        row = {"doc_id": 0, "doc_hash": "h", "acc": 1.0, "resps": "a\u2028b\u0085c\ud800"}
        text = json.dumps(row, ensure_ascii=False) + "\n"
        (folder / "samples_t_2026.jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert compare(*folders).tasks[0].items == 1


@pytest.mark.parametrize(
    "more",
    [
        {"configs": []},
        {"configs": {"t": 3}},
        {"configs": {"t": {"metric_list": {"metric": "acc"}}}},
        {"configs": {"t": {"metric_list": ["acc"]}}},
        {"configs": {"../../t": {"metric_list": [{"metric": "acc"}]}}},
        {"configs": {"t/u": {"metric_list": [{"metric": "acc"}]}}},
    ],
)
def test_results_of_a_wrong_shape_are_refused(tmp_path: Path, more: dict[str, Any]):
    a = write(tmp_path / "a", [1], **more)
    with pytest.raises(UsageError):
        compare(a, a)


@pytest.mark.parametrize("acc", ["1", None, {}, ["1"], [None], [], 10**400, float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(tmp_path: Path, acc: Any):
    a = write(tmp_path / "a", [acc], chat_template_sha=["unhashable"])
    with pytest.raises(UsageError, match="has no number for acc"):
        compare(a, a)


def test_samples_without_an_item_are_refused(tmp_path: Path):
    a = write(tmp_path / "a", [])
    with pytest.raises(UsageError, match="has no item"):
        compare(a, a)
