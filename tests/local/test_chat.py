"""The forms that chats and tools may be given in from Python."""

from __future__ import annotations

import pytest

from freehold.base.errors import UsageError
from freehold.base.types import Message, Tool, ToolCall
from freehold.run.local.jobs import as_choice, as_messages, as_tools

OFFER = {
    "type": "function",
    "function": {"name": "clock", "description": "time", "parameters": {"type": "object"}},
}


def test_openai_s_dictionaries_are_read():
    use = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"a": 1}'}}
    chat = as_messages(
        [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [use]},
            {"role": "tool", "content": "noon", "tool_call_id": "c1"},
        ]
    )
    assert chat[1:] == [
        Message("assistant", "", tool_calls=(ToolCall("c1", "clock", '{"a": 1}'),)),
        Message("tool", "noon", tool_call_id="c1"),
    ]
    assert as_tools([OFFER, Tool("b")]) == (Tool("clock", "time", {"type": "object"}), Tool("b"))


def test_arguments_given_as_an_object_become_its_text():
    use = {"function": {"name": "clock", "arguments": {"ä": 1}}}
    (message,) = as_messages([{"role": "assistant", "content": "x", "tool_calls": [use]}])
    assert message.tool_calls == (ToolCall("", "clock", '{"ä": 1}'),)


@pytest.mark.parametrize("tool", [3, {}, {"function": {}}, {"function": {"name": "x", "parameters": 3}}])
def test_what_is_no_tool_is_refused(tool):
    with pytest.raises(UsageError, match="tool"):
        as_tools([tool])


def test_choice_is_a_word_or_a_tool_s_name():
    tools = (Tool("clock"),)
    assert as_choice("none", tools) == ("none", "")
    assert as_choice("clock", tools) == ("required", "clock")
    with pytest.raises(UsageError, match="'clocks'"):
        as_choice("clocks", tools)
