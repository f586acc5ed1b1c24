"""A user's cases: what a line may be, and what an error says of one that may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.adapt.evals import samples
from freehold.adapt.evals.samples import read
from freehold.base.errors import UsageError

PLAIN = {"prompt": "Capital of France?", "exact": "Paris"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_cases_are_read_with_their_judges(tmp_path: Path):
    found = read(
        write(
            tmp_path / "a.jsonl",
            PLAIN,
            "",
            {
                "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
                "regex": "x",
            },
            {"prompt": "p", "json_schema": {"type": "object"}, "max_tokens": 9},
            {"prompt": "p", "contains": ["a", "b"]},
        )
    )
    assert [(c.line, c.judge.kind, c.max_tokens) for c in found.cases] == [
        (1, "exact", 256),
        (3, "regex", 256),
        (4, "json_schema", 9),
        (5, "contains", 256),
    ]
    assert [m.role for m in found.cases[1].messages] == ["system", "user"]


def test_a_digest_is_of_what_is_asked_and_how_it_is_judged(tmp_path: Path):
    other = PLAIN | {"exact": "Rome"}
    one = read(write(tmp_path / "a.jsonl", PLAIN, other))
    turned = read(write(tmp_path / "b.jsonl", other, PLAIN))
    assert one.digest == turned.digest
    assert one.digest != read(write(tmp_path / "c.jsonl", PLAIN)).digest
    rubric = {"prompt": "p", "judge": "polite"}
    path = write(tmp_path / "d.jsonl", rubric)
    assert read(path, "a@1").digest != read(path, "b@2").digest


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "not a JSON object"),
        ({"prompt": "p"}, "no judge"),
        ({"prompt": "p", "exact": "a", "regex": "b"}, "exact and regex"),
        ({"prompt": "p", "exat": "a"}, "did you mean exact"),
        ({"instruction": "p", "output": "a"}, "known: prompt, images, messages, "),
        ({"prompt": "p", "choices": [" a", " b"], "answer": 0}, "scored by log-likelihood"),
        ({"prompt": "p", "exact": "a", "answer": 0}, "answer is for cases with choices"),
        ({"prompt": "p", "choices": [" a"], "answer": 0}, "a list of 2 to 64"),
        ({"prompt": "p", "choices": [" a", " a"], "answer": 0}, "different texts"),
        ({"prompt": "p", "choices": [" a", " b"], "answer": 2}, "neither a choice nor an index"),
        ({"prompt": "p", "choices": [" a", " b"]}, "neither a choice nor an index"),
        ({"prompt": "p", "choices": [" a", " b"], "answer": 0, "exact": "a"}, "exact and choices"),
        ({"prompt": "p", "exact": "a", "metric": "two words"}, "is not a name"),
        ({"prompt": "", "exact": "a"}, "prompt is empty"),
        ({"prompt": "p", "messages": [], "exact": "a"}, "either prompt or messages"),
        ({"messages": [{"role": "tool", "content": "x"}], "exact": "a"}, "a message has role"),
        ({"messages": [{"role": "assistant", "content": "x"}], "exact": "a"}, "must be the user's"),
        ({"prompt": "p", "exact": "a", "max_tokens": 0}, "not within 1..4,096"),
        ({"prompt": "p", "exact": "a", "max_tokens": True}, "not within"),
        ({"prompt": "p", "regex": "("}, "regex '('"),
        ({"prompt": "p", "regex": "(?=a)b"}, "look-around"),
        ({"prompt": "p", "json_schema": {"$ref": "http://example.org/s"}}, "not fetched"),
        ({"prompt": "p", "json_schema": "x"}, "not a JSON object"),
        ({"prompt": "p", "judge": "polite"}, "--judge MODEL"),
        ({"prompt": "p", "contains": []}, "contains is empty"),
        ({"prompt": "p", "exact": "a" * 20_000}, "more than 16,384"),
        ({"prompt": "p" * 300_000, "exact": "a"}, "more than a case may have"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, row: object, says: str):
    with pytest.raises(UsageError) as caught:
        read(write(tmp_path / "a.jsonl", PLAIN, row))
    assert "line 2: " in caught.value.message and says in caught.value.message


def test_many_bad_lines_are_counted_and_twins_are_named(tmp_path: Path):
    with pytest.raises(UsageError, match="line 2: the same as line 1"):
        read(write(tmp_path / "a.jsonl", PLAIN, PLAIN))
    with pytest.raises(UsageError, match="and 4 more"):
        read(write(tmp_path / "a.jsonl", *[{"prompt": f"{i}"} for i in range(9)]))


def test_files_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="has no case"):
        read(write(tmp_path / "a.jsonl", ""))
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "none.jsonl")
    monkeypatch.setattr(samples, "MOST_CASES", 1)
    with pytest.raises(UsageError, match="2 cases, more than 1"):
        read(write(tmp_path / "a.jsonl", PLAIN, {"prompt": "p", "exact": "q"}))
    monkeypatch.setattr(samples, "MOST_BYTES", 10)
    with pytest.raises(UsageError, match="bytes, more than 10"):
        read(tmp_path / "a.jsonl")


def test_choices_are_read_where_they_can_be_scored(tmp_path: Path):
    rows = [{"prompt": "p", "choices": [" a", " b"], "answer": " b"}, {**PLAIN, "metric": "facts"}]
    chosen, plain = read(write(tmp_path / "a.jsonl", *rows), scored=True).cases
    assert (chosen.choices, chosen.answer, chosen.plain, chosen.judge.kind) == (
        (" a", " b"),
        1,
        True,
        "choices",
    )
    assert (plain.metric, plain.plain, plain.table) == ("facts", False, rows[1])
