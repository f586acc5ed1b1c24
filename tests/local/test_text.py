"""From tokens to what an answer says: thinking, text, calls, stop strings, and where they meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freehold.base.serving import Begin
from freehold.base.types import SamplingParams, Tool
from freehold.run.local.answering import AnswerDelta, AnswerText, call_id
from freehold.run.local.prompt import Prompt
from freehold.run.tokenizer import tokenizer_from_gguf
from freehold.run.tokenizer.dialects import dialect_of
from tests.tokenizer import toys

TOKENIZER = tokenizer_from_gguf(toys.byte_level())
TOOLS = (Tool("clock"), Tool("get_weather"))
HERMES = dialect_of("<tool_call> arguments")
CALL = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


def said(
    text: str, stop: tuple[str, ...] = (), *, many: bool = True, **how: Any
) -> tuple[AnswerDelta, AnswerText]:
    """Return all that an answer of `text` says, and its last state."""
    prompt = Prompt([], **{"tools": TOOLS, "dialect": HERMES, **how})
    answer = AnswerText(TOKENIZER, prompt, stop, name_call=lambda i: f"id{i}", many_calls=many)
    pieces = [answer.push(id) for id in TOKENIZER.encode(text)] + [answer.finish()]
    return AnswerDelta(
        "".join(p.thinking for p in pieces),
        "".join(p.text for p in pieces),
        tuple(c for p in pieces for c in p.calls),
    ), answer


def test_thinking_text_and_calls_come_apart():
    got, answer = said(f"<think>\nHm.\n</think>\n\nI look.\n{CALL}\n{CALL}", tags=("<think>", "</think>"))
    assert (got.thinking, got.text) == ("Hm.", "I look.")
    assert [(c.index, c.id, c.name, c.arguments) for c in got.calls] == [
        (0, "id0", "clock", "{}"),
        (1, "id1", "clock", "{}"),
    ]
    assert answer.over is None and answer.calls == 2


def test_call_within_thinking_is_thinking():
    got, _ = said(f"<think>{CALL}</think>No.", tags=("<think>", "</think>"))
    assert (got.thinking, got.text, got.calls) == (CALL, "No.", ())


def test_answer_may_end_with_its_first_call():
    got, answer = said(f"{CALL}{CALL}more", many=False)
    assert len(got.calls) == 1 and got.text == "" and answer.over == "tool_calls"


def test_stop_string_is_for_text_and_not_for_calls():
    got, answer = said(f"{CALL} over now", stop=("clock",))
    assert len(got.calls) == 1 and answer.over is None
    got, answer = said(f"It is over now {CALL}", stop=("over",))
    assert (got.text, got.calls, answer.over) == ("It is ", (), "stop")


def test_without_tools_a_call_is_text():
    assert said(CALL, dialect=None)[0].text == CALL


def test_control_token_that_is_a_mark_is_seen():
    mistral = dialect_of("[TOOL_CALLS]")
    vocabulary = toys.byte_level()
    vocabulary["tokenizer.ggml.tokens"] = [*vocabulary["tokenizer.ggml.tokens"], "[TOOL_CALLS]"]  # type: ignore[misc]
    kinds = vocabulary["tokenizer.ggml.token_type"]
    vocabulary["tokenizer.ggml.token_type"] = np.append(kinds, toys.CONTROL).astype(np.int32)
    tokenizer = tokenizer_from_gguf(vocabulary)
    mark = tokenizer.added_id("[TOOL_CALLS]")
    ids = [mark, *tokenizer.encode("clock[ARGS]{}")]
    for shown, calls in ((frozenset((mark,)), 1), (frozenset(), 0)):
        prompt = Prompt([], tools=TOOLS, dialect=mistral, shown=shown)
        answer = AnswerText(tokenizer, prompt, (), name_call=str)
        for id in ids:
            answer.push(id)
        answer.finish()
        assert answer.calls == calls


@pytest.mark.parametrize("short, size", [(True, 9), (False, 29)])
def test_ids_of_calls_follow_from_prompt_and_seed(short, size):
    def begun(prompt: tuple[int, ...], seed: int) -> Begin:
        return Begin(99, prompt, SamplingParams(seed=seed), 9)

    first = call_id(begun((1, 2), 3), 0, 0, short=short)
    assert first == call_id(begun((1, 2), 3), 0, 0, short=short)
    assert len(first) == size and first.removeprefix("call_").isalnum()
    others = [begun((1, 3), 3), begun((1, 2), 4)]
    assert (
        len({first, *(call_id(b, 0, 0, short=short) for b in others), call_id(others[0], 1, 0, short=short)})
        == 4
    )
