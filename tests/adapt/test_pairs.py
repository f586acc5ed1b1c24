"""Pairs of answers: what is refused, and what is held out for the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.adapt.align import Pair, contradictions, read_pairs
from freehold.adapt.lines import check_apart, held_out
from freehold.base.errors import UsageError
from freehold.base.types import Message


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def pair(prompt: str, chosen: str = "a", rejected: str = "b", line: int = 1) -> Pair:
    return Pair(line, (Message("user", prompt),), chosen, rejected)


def test_prompts_and_messages_are_read(tmp_path: Path):
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    found = read_pairs(
        written(
            tmp_path,
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "",
            {"messages": system, "chosen": "c", "rejected": "r"},
        )
    ).items
    assert [(p.line, [m.role for m in p.messages]) for p in found] == [(1, ["user"]), (3, ["system", "user"])]


def test_two_whole_conversations_are_one_pair(tmp_path: Path):
    user = {"role": "user", "content": "u"}
    line = {
        "prompt": "u",
        "chosen": [user, {"role": "assistant", "content": "c"}],
        "rejected": [user, {"role": "assistant", "content": "r"}],
    }
    assert read_pairs(written(tmp_path, line)).items == (pair("u", "c", "r"),)


@pytest.mark.parametrize(
    "line, why",
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ({"prompt": "p", "chosen": "c"}, "rejected is missing"),
        ({"prompt": "p", "chosen": " ", "rejected": "r"}, "chosen is empty"),
        ({"prompt": "p", "chosen": "c", "rejected": "c"}, "are the same"),
        ({"prompt": "p", "chosen": "c", "rejected": "c "}, "only in white space"),
        ({"promt": "p", "chosen": "c", "rejected": "r"}, "did you mean prompt?"),
        ({"prompt": "p", "messages": [], "chosen": "c", "rejected": "r"}, "either prompt or messages"),
        (
            {"messages": [{"role": "assistant", "content": "x"}], "chosen": "c", "rejected": "r"},
            "must be the user's",
        ),
        (
            {
                "chosen": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "c"}],
                "rejected": [{"role": "user", "content": "2"}, {"role": "assistant", "content": "r"}],
            },
            "differ before their last message",
        ),
    ],
)
def test_every_bad_line_is_named(tmp_path: Path, line: object, why: str):
    with pytest.raises(UsageError) as e:
        read_pairs(written(tmp_path, {"prompt": "p", "chosen": "1", "rejected": "2"}, line, line))
    assert "line 2: " in e.value.message
    assert why in e.value.message
    assert "line 3" in e.value.message


def test_a_repeated_pair_is_refused(tmp_path: Path):
    line = {"prompt": "p", "chosen": "c", "rejected": "r"}
    with pytest.raises(UsageError, match="line 2: the same as line 1"):
        read_pairs(written(tmp_path, line, line))


def test_an_empty_file_names_a_line_to_write(tmp_path: Path):
    with pytest.raises(UsageError) as e:
        read_pairs(written(tmp_path, ""))
    assert "has no line" in e.value.message
    assert '"rejected"' in e.value.hint


def test_a_prompt_is_never_on_both_sides():
    pairs = [pair(f"p{i % 50}", f"c{i}", f"r{i}", i) for i in range(200)]
    trained, tested = held_out(pairs, 0.2, 7, lambda p: p.prompt)
    assert not {p.prompt for p in trained} & {p.prompt for p in tested}
    assert len(trained) + len(tested) == 200
    assert 10 <= len(tested) <= 80


def test_a_line_added_leaves_the_split_of_others():
    pairs = [pair(f"p{i}", line=i) for i in range(100)]
    _, tested = held_out(pairs, 0.1, 1, lambda p: p.prompt)
    _, again = held_out([pair("new"), *reversed(pairs)], 0.1, 1, lambda p: p.prompt)
    assert set(tested) <= set(again) | {pair("new")}
    assert set(again) - {pair("new")} == set(tested)


def test_pairs_that_choose_the_opposite_are_found():
    assert contradictions([pair("p", "a", "b", 1), pair("q", "b", "a", 2), pair("p", "b", "a", 3)]) == [
        (1, 3)
    ]


def test_a_test_pair_whose_prompt_is_trained_on_is_refused():
    with pytest.raises(UsageError, match="its line 9 is line 4 of the other file"):
        check_apart(
            [pair("p", line=4)],
            [pair("q", line=8), pair("p", "x", "y", line=9)],
            lambda p: p.prompt,
            lambda p: p.line,
        )
