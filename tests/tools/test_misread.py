"""Text that may be a call is buffered until it is known, and never longer than its limit."""

from __future__ import annotations

import pytest

from freehold.serve.tools import misread
from freehold.serve.tools.misread import CallText


def shown(text: str, step: int = 3, names: tuple[str, ...] = ("echo",)) -> tuple[str, bool]:
    """Return what is shown of a text that comes in pieces, and whether it was meant as a call."""
    calls = CallText(names)
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    return "".join(calls.shown(piece, ended=False) for piece in pieces) + calls.shown(
        "", ended=True
    ), calls.is_call


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "rest", "is_call"),
    [
        ("I look. <tool_call>\n{", "I look. ", True),
        ('{"name": "echo", "arguments": {', "", True),
        ('{"name": "other"}', '{"name": "other"}', False),
        ("a < b", "a < b", False),
        ("", "", False),
    ],
)
def test_a_call_is_known_at_its_end_and_other_text_is_shown(text: str, rest: str, is_call: bool, step: int):
    assert shown(text, step) == (rest, is_call)


@pytest.mark.parametrize(
    "text",
    ["```python\nx", "```\nls -l", '```json\n"a"', '{"rows": [' + "1, " * 80, "[1, 2]", "```" + "x" * 30],
)
def test_code_and_other_data_are_shown_before_their_end(text: str):
    assert CallText(["echo"]).shown(text, ended=False) == text


@pytest.mark.parametrize(
    "text", ["```", "```js", "```json\n", "```json\n{", '{"na', '{"arguments": {}, "name": "e']
)
def test_what_may_become_a_call_waits(text: str):
    assert CallText(["echo"]).shown(text, ended=False) == ""


def test_without_tools_every_text_is_shown():
    assert shown("<tool_call>{", names=()) == ("<tool_call>{", False)


def test_what_is_buffered_has_a_limit_and_is_text_beyond_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(misread, "MOST_CHARS", 20)
    assert shown('{"name": "echo", ' + "x" * 30, step=1) == ('{"name": "echo", ' + "x" * 30, False)


def test_a_stopped_answer_gives_what_was_buffered_and_an_ended_one_no_call():
    calls = CallText(["echo"])
    assert calls.shown('{"name"', ended=False) == "" and calls.rest() == '{"name"' and calls.rest() == ""
    calls.shown('{"name": "echo"', ended=True)
    assert calls.is_call and calls.rest() == ""
