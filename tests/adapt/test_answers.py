"""A teacher's answers: which are rejected, tried again, and kept across a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from freehold.adapt.distil import BATCH, AnswerBook, Taught, loops
from freehold.adapt.sampling import SampledAnswer
from freehold.adapt.teacher_prompts import TeacherContext, TeacherPrompt, read_prompts
from freehold.base.errors import StoreError, UsageError
from freehold.base.types import Message, SamplingParams


class Scripted:
    """Answers by a table of texts, one a try; a text stands for its own code points."""

    tokenizer: Any
    context = 100

    def __init__(self, *answers: str, cut: str = "") -> None:
        self.answers, self.cut, self.calls = answers, cut, 0
        self.tokenizer = self
        self.seeds: list[int] = []

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def render(self, messages: Sequence[Message]) -> list[int]:
        return [ord(c) for c in messages[-1].content]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int = 1,
        *,
        seeds: Sequence[int],
        max_tokens: int,
        sampling: SamplingParams,
    ) -> list[list[SampledAnswer]]:
        text = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        self.seeds += seeds
        if not prompts:
            return []
        reason = "length" if text == self.cut else "stop"
        ids = tuple(ord(c) for c in text)
        return [[SampledAnswer(ids, np.zeros(len(ids), np.float32), reason)] for _ in prompts]


def asked(count: int, **check: Any) -> list[TeacherPrompt]:
    return [TeacherPrompt(i, (Message("user", f"q{i}"),), **check) for i in range(1, count + 1)]


def ask(path: Path, teacher: Scripted, questions: list[TeacherPrompt], tries: int = 1) -> list[Taught]:
    return AnswerBook(path).ask(cast(Any, teacher), questions, seed=1, max_tokens=64, tries=tries)


@pytest.mark.parametrize(
    "text, fault",
    [("  ", "empty"), ("ab" * 40, "loops"), ("cut here", "cut"), ("fine", "")],
)
def test_faulty_answers_are_rejected_by_kind(tmp_path: Path, text: str, fault: str):
    [found] = ask(tmp_path / "a", Scripted(text, cut="cut here"), asked(1))
    assert found.fault == fault
    assert found.answer == ("" if fault else text)


def test_a_rejected_answer_is_tried_again_and_its_tokens_counted(tmp_path: Path):
    teacher = Scripted("", "x" * 60, "good")
    [found] = ask(tmp_path / "a", teacher, asked(1), tries=4)
    assert (found.answer, found.tries, found.tokens) == ("good", 3, 64)
    assert len(set(teacher.seeds)) == 3


def test_a_line_s_judge_rejects(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "q", "regex": "^[0-9]+$"}\n{"prompt": "r"}')
    found = ask(tmp_path / "a", Scripted("seven"), list(read_prompts(path).items))
    assert [each.fault for each in found] == ["regex", ""]


def test_a_killed_run_asks_no_question_twice(tmp_path: Path):
    path, questions = tmp_path / "a", asked(BATCH + 3)
    ask(path, Scripted("one"), questions[:BATCH])
    with path.open("ab") as file:
        file.write(b'{"line": 40, "ans')  # half a line, as a kill leaves it
    teacher = Scripted("two")
    found = ask(path, teacher, questions)
    assert [each.answer for each in found] == ["one"] * BATCH + ["two"] * 3
    assert teacher.calls == 1
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == BATCH + 3


def test_a_seed_follows_from_the_line_alone(tmp_path: Path):
    all_of_them, one = Scripted("x"), Scripted("x")
    ask(tmp_path / "a", all_of_them, asked(5))
    ask(tmp_path / "b", one, asked(5)[3:4])
    assert one.seeds == all_of_them.seeds[3:4]


def test_a_prompt_that_the_teacher_has_no_room_for_is_not_asked(tmp_path: Path):
    questions = [TeacherPrompt(1, (Message("user", "x" * 100),)), *asked(3)[1:]]
    found = ask(tmp_path / "a", Scripted("fine"), questions)
    assert [each.fault for each in found] == ["long", "", ""]


def test_a_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("{}\n")
    with pytest.raises(StoreError, match="damaged"):
        AnswerBook(path)


def test_loops_are_found_inside_and_tables_are_none():
    assert loops([*range(20), *[1, 2, 3] * 20, *range(20)])
    assert not loops([7] * 40)
    assert not loops(list(range(500)))
    assert not loops([])
    assert not loops([row * 3 + column if column % 4 else 9 for row in range(20) for column in range(16)])


def test_a_line_with_two_judges_is_refused(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "q", "regex": "x", "exact": "x"}')
    with pytest.raises(UsageError, match="line 1: exact and regex; a line has one judge or none"):
        read_prompts(path)


def test_a_teacher_sees_instructions_and_examples_before_its_lines(tmp_path: Path):
    system, shots, prompts = (tmp_path / name for name in ("s.txt", "shots.jsonl", "p.jsonl"))
    system.write_text("Answer in upper case.\n")
    shots.write_text('{"prompt": "a?", "completion": "A"}\n')
    lines = [
        {"prompt": "b?"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "c?"}]},
        {"prompt": "d?", "teacher_messages": [{"role": "user", "content": "d, in capitals?"}]},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    context, items = TeacherContext.read(system, shots), read_prompts(prompts).items
    shown = [[(m.role, m.content) for m in context.before(each)] for each in items]
    example = [("user", "a?"), ("assistant", "A")]
    assert shown[0] == [("system", "Answer in upper case."), *example, ("user", "b?")]
    assert shown[1] == [("system", "Answer in upper case.\n\nBe brief."), *example, ("user", "c?")]
    assert shown[2] == [("user", "d, in capitals?")]
    assert [m.content for m in items[2].messages] == ["d?"]
    assert not TeacherContext() and TeacherContext().before(items[0]) == items[0].messages


@pytest.mark.parametrize(
    ("system", "shots", "message"),
    [
        ("", None, "is empty"),
        (None, '{"prompt": "a?"}', "line 1: completion is missing"),
        ("\xff", None, "UTF-8"),
    ],
)
def test_bad_instructions_and_examples_are_refused(
    tmp_path: Path, system: str | None, shots: str | None, message: str
):
    paths = [tmp_path / "s", tmp_path / "e"]
    for path, text in zip(paths, (system, shots), strict=True):
        path.write_bytes((text or "").encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        TeacherContext.read(None if system is None else paths[0], None if shots is None else paths[1])
