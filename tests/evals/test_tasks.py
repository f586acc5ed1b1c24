"""Tasks from their data: what is asked, how it is marked, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from freehold.adapt.evals.evaluate import ModelReply
from freehold.adapt.evals.tasks import TaskOptions, open_task
from freehold.adapt.evals.tasks import bfcl as bfcl_task
from freehold.adapt.evals.tasks import gym as gym_task
from freehold.adapt.evals.tasks import humaneval as humaneval_task
from freehold.adapt.evals.verifier import FAILURES, RewardScore
from freehold.base import platforms
from freehold.base.errors import UsageError
from freehold.base.platforms import can_confine

ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Return the sum."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
}
PLAN = {
    "id": "simple_python_0",
    "question": [[{"role": "user", "content": "Three days in Rome."}]],
    "function": [
        {
            "name": "trip.plan",
            "description": "Plan.",
            "parameters": {
                "type": "dict",
                "properties": {"city": {"type": "string"}, "cost": {"type": "float", "optional": True}},
                "required": ["city"],
            },
        }
    ],
}
WANTED = {"id": "simple_python_0", "ground_truth": [{"trip.plan": {"city": ["Rome"], "cost": ["", 9.0]}}]}


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the packages' files."""
    files = {
        "HumanEval.jsonl.gz": gzip.compress(json.dumps(ADD).encode()),
        "BFCL_v4_simple_python.json": json.dumps(PLAN).encode(),
        "possible_answer/BFCL_v4_simple_python.json": json.dumps(WANTED).encode(),
        "BFCL_v4_irrelevance.json": json.dumps(PLAN).encode(),
        "BFCL_v4_live_relevance.json": json.dumps(PLAN).encode(),
    }
    for module in (bfcl_task, humaneval_task):
        monkeypatch.setattr(module, "data_file", lambda package, name, home, **options: files[name])


def opened(spec: str, *, tools: bool = False, **options: Any):
    return open_task(spec, TaskOptions(Path("home"), **options))(tools)


def metrics(spec: str, reply: ModelReply, **options: Any) -> Any:
    (item,) = opened(spec, **options).items
    return item.mark(reply).metrics


@pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")
def test_humaneval_continues_the_prompt_and_runs_its_test():
    task = opened("humaneval")
    (item,) = task.items
    assert (task.name, task.filter) == ("humaneval", "create_test")
    assert item.question.text == ADD["prompt"] and item.question.stop == humaneval_task.STOPS
    assert list(item.doc) == ["task_id", "prompt", "canonical_solution", "test", "entry_point"]
    assert item.mark(ModelReply(ADD["canonical_solution"])).metrics == {"pass@1": 1.0}
    wrong = item.mark(ModelReply("    return a - b\n"))
    assert wrong.metrics == {"pass@1": 0.0} and "AssertionError" in wrong.why
    assert item.mark(ModelReply("    raise SystemExit(0)\n")).metrics == {"pass@1": 0.0}


@pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")
def test_humaneval_in_a_chat_runs_the_code_block():
    reply = ModelReply("Here:\n```python\ndef add(a, b):\n    return b + a\n```\nIt adds.")
    assert metrics("humaneval", reply, style="chat") == {"pass@1": 1.0}
    assert opened("humaneval", style="chat").name == "humaneval_chat"


def test_bfcl_offers_tools_with_json_types_and_reads_their_calls_under_their_own_names():
    task = opened("bfcl:simple_python", tools=True)
    (tool,) = task.items[0].question.tools
    assert task.name == "bfcl_simple_python" and tool.name == "trip_plan"
    assert tool.parameters["type"] == "object"
    assert tool.parameters["properties"] == {"city": {"type": "string"}, "cost": {"type": "number"}}
    good = ModelReply(calls=(("trip_plan", '{"city": "rome", "cost": 9}'),))
    assert metrics("bfcl:simple_python", good, tools=True) == {"acc": 1.0}
    assert metrics("bfcl:simple_python", ModelReply("Rome it is"), tools=True) == {"acc": 0.0}
    assert metrics("bfcl:simple_python", ModelReply(calls=(("x", "[1]"),)), tools=True) == {"acc": 0.0}


def test_bfcl_without_tools_reads_python_from_the_text():
    task = opened("bfcl:simple_python")
    system, user = task.items[0].question.messages
    assert task.name == "bfcl_simple_python_text" and "trip.plan" in system.content
    assert user.content == "Three days in Rome." and not task.items[0].question.tools
    assert metrics("bfcl:simple_python", ModelReply('[trip.plan(city="Rome")]')) == {"acc": 1.0}
    assert metrics("bfcl:simple_python", ModelReply("trip.plan(city='Oslo')")) == {"acc": 0.0}


def test_bfcl_irrelevance_is_right_without_a_call_and_relevance_with_any():
    call, words = ModelReply("[trip.plan(city='Oslo')]"), ModelReply("None of these serves.")
    assert metrics("bfcl:irrelevance", words) == {"acc": 1.0} == metrics("bfcl:live_relevance", call)
    assert metrics("bfcl:irrelevance", call) == {"acc": 0.0} == metrics("bfcl:live_relevance", words)


@pytest.mark.parametrize("kind", FAILURES)
def test_verifier_that_fails_marks_the_answer_wrong_and_is_named(kind: str):
    mark = gym_task.marked(RewardScore(0.0, kind, "because"))
    assert mark.metrics == {"acc": 0.0, "score": 0.0} and mark.why == "because"
    assert mark.fault == f"the verifier failed: {kind}"


def test_graded_scores_are_right_only_when_full():
    assert gym_task.marked(RewardScore(1.0)).metrics == {"acc": 1.0, "score": 1.0}
    assert gym_task.marked(RewardScore(0.25)).metrics == {"acc": 0.0, "score": 0.25}


def test_the_last_marked_answer_counts_and_without_one_the_whole_text():
    assert gym_task.extracted("<answer>1</answer> no, <answer> 2 </answer>") == "2"
    assert gym_task.extracted(" 3\n") == "3" and gym_task.extracted("<answer>4") == "4"


@pytest.mark.heavy
@pytest.mark.skipif(not can_confine(), reason="verifiers run on Linux only")
def test_gym_items_follow_from_options_and_their_own_answers_score_full():
    pytest.importorskip("reasoning_gym")
    one, again = (opened("rg:chain_sum:min_terms=2,max_terms=2,seed=5", limit=3) for _ in range(2))
    assert [i.doc for i in one.items] == [i.doc for i in again.items] and len(one.items) == 3
    for item in one.items:
        assert item.mark(ModelReply(f"<answer>{item.target}</answer>")).metrics == {"acc": 1.0, "score": 1.0}
    factors = opened("rg:prime_factorization", limit=1)
    failed = factors.items[0].mark(ModelReply("garbage"))
    assert failed.fault == "the verifier failed: exception" and failed.why.startswith("ValueError")
    for task in (one, factors):
        task.close()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rg:chain_sun", "no data set 'chain_sun'"),
        ("rg:chain_sum:terms", "'terms' is not an option"),
        ("rg:chain_sum:colour=red", "rg:chain_sum: "),
        ("bfcl:multi_turn_base", "bfcl:multi_turn_base is not a category"),
        ("humaneval:x", "neither a file nor a task"),
    ],
)
def test_task_that_is_not_known_is_refused(spec: str, said: str):
    if spec.startswith("rg:"):
        pytest.importorskip("reasoning_gym")
    with pytest.raises(UsageError, match=said):
        opened(spec)


def test_data_set_like_no_other_is_refused_with_the_command_that_lists_them():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UsageError, match="no data set 'qqqq'") as raised:
        opened("rg:qqqq")
    assert "lists them" in raised.value.hint


def test_missing_reasoning_gym_names_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(UsageError, match="rg:chain_sum needs reasoning-gym") as raised:
        opened("rg:chain_sum")
    assert raised.value.hint == "pip install reasoning-gym"


@pytest.mark.parametrize(
    "options", ["size=1e18", "size=1000000000000", "size=0", "size=true", "seed=x", "datasets=x"]
)
def test_options_that_a_data_set_cannot_take_are_refused(options: str):
    """A size without bound would be made in memory before the first question."""
    pytest.importorskip("reasoning_gym")
    name = "composite" if options.startswith("datasets") else "chain_sum"
    with pytest.raises(UsageError, match=f"rg:{name}"):
        gym_task.gym(f"{name}:{options}", 3 if "size" not in options else None)
