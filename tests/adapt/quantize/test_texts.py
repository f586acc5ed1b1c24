"""Texts to calibrate on: equal pieces, of every kind, the same each time; a user's file is refused by line."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from freehold.adapt.quantize import texts
from freehold.base.errors import UsageError
from freehold.run.tokenizer import ChatTemplate


class Bytes:
    """A tokenizer of bytes."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_rendered(self, rendered) -> list[int]:
        return [0, *rendered.text.encode()]


LETTERS = cast(Any, Bytes())


@pytest.mark.heavy
def test_default_texts_are_equal_pieces_of_every_kind_in_a_fixed_order():
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    made = texts.default_texts(LETTERS, template, 6 * texts.LENGTH)
    assert [len(ids) for ids in made] == [texts.LENGTH] * 6
    assert b"<user>" in bytes(made[2] + made[5])
    assert made == texts.default_texts(LETTERS, template, 6 * texts.LENGTH)
    assert texts.texts_hash(made) != texts.texts_hash(made[1:])


def test_a_third_of_every_kind_is_held_out():
    chosen = texts.held_out([[i] for i in range(18)])
    assert [i for i, out in enumerate(chosen) if out] == [6, 7, 8, 15, 16, 17]


def test_a_file_of_lines_gives_texts_and_names_a_bad_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "' + "a" * 600 + '"}\n\n{"text": "' + "b" * 600 + '"}\n')
    assert [len(ids) for ids in texts.file_texts(path, LETTERS, None)] == [texts.LENGTH] * 2
    path.write_text('{"text": "' + "a" * 600 + '"}\n{"txt": 1}\n')
    with pytest.raises(UsageError, match="line 2: it has neither text, messages nor a prompt"):
        texts.file_texts(path, LETTERS, None)
    path.write_text('{"text": "short"}\n')
    with pytest.raises(UsageError, match="too few"):
        texts.file_texts(path, LETTERS, None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"messages": [1]}, "line 1: a message has role"),
        ({"messages": []}, "line 1: messages is not a list"),
        ({"text": 1}, "line 1: it has neither"),
        ({"completion": "yes"}, "line 1: prompt is missing"),
        ("[" * 100_000, "line 1: is not JSON"),
    ],
)
def test_a_line_that_is_no_text_and_no_chat_is_named(tmp_path, line, says):
    path = tmp_path / "mine.jsonl"
    path.write_text(line if isinstance(line, str) else json.dumps(line))
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    with pytest.raises(UsageError, match=says):
        texts.file_texts(path, LETTERS, template)


def test_examples_of_a_training_are_chats(tmp_path):
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    turns = [{"role": "user", "content": "u" * 400}, {"role": "assistant", "content": "a" * 200}]
    forms = ({"messages": turns}, {"prompt": "u" * 400, "completion": "a" * 200})
    cut = []
    for form in forms:
        (tmp_path / "mine.jsonl").write_text(json.dumps(form))
        cut.append(texts.file_texts(tmp_path / "mine.jsonl", LETTERS, template))
    assert cut[0] == cut[1] and len(cut[0]) == 1


def test_a_file_that_is_missing_or_no_text_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"none\.txt: No such file"):
        texts.file_texts(tmp_path / "none.txt", LETTERS, None)
    (tmp_path / "raw.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"raw\.txt is not UTF-8 text"):
        texts.file_texts(tmp_path / "raw.txt", LETTERS, None)


def test_a_line_of_a_file_ends_at_a_newline_alone(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": "a\u2028" * 400}, ensure_ascii=False), encoding="utf-8")
    assert texts.file_texts(path, LETTERS, None)
