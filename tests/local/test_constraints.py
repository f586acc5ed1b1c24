"""A random model constrained to calls and to a budget of thinking: the whole way but for real weights."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest

import freehold
from freehold import LLM
from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Chunk, Format, Message, Tool
from freehold.run.engine.constrain.constraint import Constraint
from freehold.run.local.answering import AnswerDelta, AnswerText, ConstraintBuilder
from freehold.run.local.prompt import Prompt, Prompter
from freehold.run.tokenizer import Tokenizer, TokenKind, tokenizer_from_gguf
from freehold.run.tokenizer.dialects import dialect_of
from tests.engine.instances import patiently
from tests.local.test_jobs import answered, ids, text
from tests.serving import served
from tests.tokenizer import families
from tests.vectors.files import EOS, MERGES, SPECIAL, vocabulary, write_gguf

PICK = Tool("pick", "", {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]})
DROP = Tool("drop", "", {"type": "object", "properties": {"all": {"type": "boolean"}}, "required": ["all"]})
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    '{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
    "{# </think> arguments #}"
)
ASKED: dict[str, Any] = {
    "tools": [PICK, DROP],
    "tool_choice": "required",
    "max_tokens": 300,
    "temperature": 1.0,
}
JOB = Job(
    messages=(Message("user", "Hi"),),
    max_tokens=300,
    sampling={"seed": 3, "temperature": 1.0},
    tools=(PICK, DROP),
    tool_choice="required",
    parallel_tool_calls=False,
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("held") / "tiny.gguf"
    write_gguf("qwen2", path, dtype="Q8_0", keys={"tokenizer.chat_template": TEMPLATE})
    with served(path, context=512, threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("seed", range(3))
def test_required_answer_is_calls_that_fit_their_schemas(llm: LLM, seed: int):
    answer = llm.chat("Hi", **ASKED, parallel_tool_calls=False, seed=seed)
    (call,) = answer.tool_calls
    arguments = json.loads(call.arguments)
    assert arguments in ([{"n": 1}, {"n": 2}] if call.name == "pick" else [{"all": True}, {"all": False}])
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")


def test_named_tool_is_the_one_that_is_called(llm: LLM):
    for name in ("pick", "drop"):
        answer = llm.chat("Hi", **{**ASKED, "tool_choice": name}, parallel_tool_calls=False, seed=1)
        assert [call.name for call in answer.tool_calls] == [name]


def test_same_seed_makes_the_same_ids(llm: LLM):
    first, again = (llm.chat("Hi", **ASKED, seed=5, parallel_tool_calls=False) for _ in range(2))
    assert first.tool_calls == again.tool_calls
    other = llm.chat("Ho", **ASKED, seed=5, parallel_tool_calls=False)
    assert other.tool_calls[0].id != first.tool_calls[0].id


def calls(chunks: list[Chunk]):
    return [piece for chunk in chunks for piece in chunk.tool_calls]


@pytest.mark.parametrize("sent", [1, 12, 30])
def test_resumed_answer_makes_the_same_call(llm: LLM, sent: int):
    (whole,) = answered(llm, JOB)
    (rest,) = answered(llm, replace(JOB, resume=(ids(whole)[:sent],)))
    assert ids(rest) == ids(whole)[sent:]
    assert calls(rest) == calls(whole) and len(calls(whole)) == 1
    assert rest[-1].finish_reason == whole[-1].finish_reason == "tool_calls"


def test_calls_that_were_sent_are_not_sent_again(llm: LLM):
    (whole,) = answered(llm, JOB)
    (rest,) = answered(llm, replace(JOB, resume=(ids(whole),)))
    assert calls(rest) == [] and rest[-1].finish_reason == "tool_calls"


def test_none_tells_the_model_of_no_tools(llm: LLM):
    with_tools = llm.chat("Hi", tools=[PICK], tool_choice="none", max_tokens=8, seed=1)
    assert with_tools.token_ids == llm.chat("Hi", max_tokens=8, seed=1).token_ids


def test_auto_is_held_once_the_mark_was_written(llm: LLM):
    job = replace(JOB, tool_choice="auto", resume=(tuple(llm.tokenize("Well: <tool_call>")),))
    (rest,) = answered(llm, job)
    assert [piece.name in ("pick", "drop") for piece in calls(rest)] == [True]


@pytest.mark.parametrize(
    "begun",
    [
        '{"name": "pick", "arguments": {',
        'Well:\n```json\n{\n  "name": "drop",\n  "parameters": {\n    "',
    ],
)
def test_auto_is_held_once_a_bare_call_has_come_to_its_arguments(llm: LLM, begun: str):
    job = replace(JOB, tool_choice="auto", resume=(tuple(llm.tokenize(begun)),))
    (rest,) = answered(llm, job)
    (call, *_) = calls(rest)
    arguments = json.loads(call.arguments)
    assert arguments in ([{"n": 1}, {"n": 2}] if call.name == "pick" else [{"all": True}, {"all": False}])


def test_answer_beside_a_format_is_calls_or_fits_it(llm: LLM):
    asked: dict[str, Any] = {**ASKED, "format": {"enum": ["yes", "no"]}, "parallel_tool_calls": False}
    for name in ("pick", "drop"):  # what must be called leaves no text to hold
        answer = llm.chat("Hi", **{**asked, "tool_choice": name}, seed=1)
        assert [call.name for call in answer.tool_calls] == [name] and not answer.text
    answers = [llm.chat("Hi", **{**asked, "tool_choice": "auto"}, seed=seed) for seed in range(12)]
    for answer in answers:
        if answer.tool_calls:
            assert answer.finish_reason == "tool_calls" and not answer.text
        else:
            assert answer.finish_reason == "stop" and answer.text in ('"yes"', '"no"')
    assert {bool(answer.tool_calls) for answer in answers} == {True, False}
    told = llm.chat("Hi", **{**asked, "tool_choice": "auto", "think": True, "think_tokens": 4}, seed=1)
    assert told.thinking and (told.tool_calls or told.text in ('"yes"', '"no"'))


def test_schemas_that_no_grammar_can_hold_are_a_warning_in_auto_and_an_error_in_required(llm: LLM):
    strange = Tool("strange", "", {"type": "object", "properties": {"a": {"$ref": "http://example.com/a"}}})
    told = "the parameters of tool 'strange': "
    begun = llm.start(replace(JOB, tools=(PICK, strange), tool_choice="auto")).begin
    assert begun is not None and f"not constrained by the tools' schemas: {told}" in begun.warnings[0]
    for change in ({}, {"tool_choice": "auto", "format": Format("json")}):
        with pytest.raises(UsageError, match=rf"^{told}(?!at \d).*example"):
            llm.start(replace(JOB, tools=(PICK, strange), **change))
    with pytest.raises(UsageError, match=r"^format: "):
        llm.start(replace(JOB, tool_choice="auto", format=Format("regex", "(")))
    llm.start(replace(JOB, tools=(PICK, strange), tool_name="pick"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tools": (PICK, PICK)}, "two tools are called 'pick'"),
        ({"tools": (Tool("a b"),)}, "'a b'"),
        ({"tools": ()}, "there are no tools"),
        ({"tools": (PICK,) * 129}, "number of tools is 129"),
        ({"tool_name": "other"}, "tool_choice names 'other'"),
        ({"tools": (Tool("x", "", {"type": "array"}),)}, "of type array; expected object"),
        ({"tool_choice": "maybe"}, "tool_choice is 'maybe'"),
        ({"tools": (Tool("x", "", {"a": "b" * (1 << 18)}),)}, "length of x's parameters"),
        (
            {"messages": (Message("assistant", "", tool_calls=(freehold.ToolCall("", "x", "[]"),)),)},
            "no JSON object",
        ),
        ({"think_tokens": -1}, "think_tokens is -1"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(llm: LLM, change: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        llm.start(replace(JOB, **change))


# --- thinking -------------------------------------------------------------------------------------------

THINKING = Job(messages=JOB.messages, max_tokens=40, sampling={"seed": 2}, think=True, think_tokens=5)


def test_used_up_budget_closes_thinking_and_the_answer_goes_on(llm: LLM):
    close = llm.tokenize("\n</think>\n\n")
    (chunks,) = answered(llm, THINKING)
    assert ids(chunks)[5 : 5 + len(close)] == tuple(close)
    free = answered(llm, replace(THINKING, think_tokens=None))[0]
    assert ids(chunks)[:5] == ids(free)[:5]
    assert text(chunks) == text(chunks).lstrip() and len(ids(chunks)) == 40


@pytest.mark.parametrize("sent", [3, 8, 20])
def test_budget_is_kept_by_a_resumed_answer(llm: LLM, sent: int):
    (whole,) = answered(llm, THINKING)
    (rest,) = answered(llm, replace(THINKING, resume=(ids(whole)[:sent],)))
    assert ids(rest) == ids(whole)[sent:]


def test_budget_of_a_model_that_does_not_think_is_a_warning(llm: LLM):
    begun = llm.start(replace(THINKING, think=False)).begin
    assert begun is not None and begun.warnings == ("think_tokens was left out: tiny does not think here",)


def test_level_of_effort_is_an_error_in_python_and_a_warning_in_a_job(llm: LLM):
    with pytest.raises(UsageError, match="'low'"):
        llm.chat("Hi", effort="low")
    begun = llm.start(replace(THINKING, think=None, effort="low")).begin
    assert begun is not None and "effort 'low' was left out" in begun.warnings[0]


def test_info_tells_what_the_template_can(llm: LLM):
    assert (llm.info.can_call, llm.info.thinking, llm.info.efforts) == (True, "switch", ())


def test_control_tokens_are_spelled_by_their_ids(llm: LLM):
    eos = llm._tokenizer.added_id("<|im_end|>")
    assert llm._constraints._spell("a<|im_end|>b\n") == f'"a" <[{eos}]> "b\\n"'
    assert Prompt([], dialect=dialect_of("[TOOL_CALLS]")).dialect is not None


# --- every call that a grammar admits -------------------------------------------------------------------

RICH = Tool(
    "rich",
    "",
    {
        "type": "object",
        "properties": {
            "Name": {"type": "string"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]+$", "maxLength": 6},
            "has_a": {"type": "string", "pattern": "a|b", "minLength": 2},
            "size": {"enum": ["s", 'm"<', 3, None, True, {"a": [1.5]}]},
            "count": {"type": "integer", "minimum": 2, "exclusiveMaximum": 90},
            "ratio": {"type": ["number", "null"]},
            "tags": {
                "type": "array",
                "items": {"type": "string", "maxLength": 3},
                "minItems": 1,
                "maxItems": 3,
            },
            "pair": {"minItems": 2, "items": {"type": "boolean"}},
            "odd key:": {"type": "boolean"},
            "place": {"$ref": "#/$defs/place", "description": "where"},
            "either": {
                "oneOf": [
                    {"type": "object", "properties": {"is": {"const": "x"}, "v": {}}, "required": ["is"]},
                    {"type": "object", "properties": {"is": {"const": "y"}}, "required": ["is"]},
                    {"type": "integer"},
                ]
            },
            "maybe": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None},
            "more": {"properties": {"own": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
            "both": {"allOf": [{"$ref": "#/$defs/place"}], "required": ["within"]},
        },
        "required": ["count", "place", "either"],
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "within": {"$ref": "#/$defs/place"}},
                "required": ["city"],
            }
        },
    },
)
FREE = Tool("free")
GEMMA_MARKS = ("<|tool_call>", "<tool_call|>", '<|"|>')
GLM_MARKS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
HUNYUAN_MARKS = (*GLM_MARKS, "<tool_calls>", "</tool_calls>", "<tool_sep>")
DEEPSEEK_MARKS = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
)
KIMI_MARKS = (
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
)
HARMONY_MARKS = (
    *("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"),
    *("<|call|>", "<|return|>"),
)


# A mark of many characters comes by chance only as one token.
def vocabulary_with(marks: tuple[str, ...], kind: TokenKind) -> Tokenizer:
    tokens = [*vocabulary(), *marks]
    kinds = [TokenKind.CONTROL if t in SPECIAL else kind if t in marks else TokenKind.NORMAL for t in tokens]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.array(kinds, np.int32),
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.eos_token_id": np.uint32(EOS),
        }
    )


# Files of Gemma 4 have its marks as control tokens or as tokens of the user's own; gpt-oss has control tokens.
VOCABULARIES = {
    "gemma4": ("gemma4", vocabulary_with(GEMMA_MARKS, TokenKind.CONTROL)),
    "gemma4, plain": ("gemma4", vocabulary_with(GEMMA_MARKS, TokenKind.USER_DEFINED)),
    "harmony": ("harmony", vocabulary_with(HARMONY_MARKS, TokenKind.CONTROL)),
    "xml": ("xml", vocabulary_with(("<tool_call>", "\n</parameter>\n"), TokenKind.USER_DEFINED)),
    "glm": ("glm", vocabulary_with(GLM_MARKS, TokenKind.USER_DEFINED)),
    "glm, control": ("glm", vocabulary_with(GLM_MARKS, TokenKind.CONTROL)),
    "glm-4.7": ("glm-4.7", vocabulary_with(GLM_MARKS, TokenKind.CONTROL)),
    "minimax": (
        "minimax",
        vocabulary_with(("<minimax:tool_call>", "</parameter>\n"), TokenKind.USER_DEFINED),
    ),
    "seed": ("seed", vocabulary_with(("<seed:tool_call>", "</parameter>\n"), TokenKind.USER_DEFINED)),
    "hermes": ("qwen3", vocabulary_with(("<tool_call>", "</tool_call>"), TokenKind.USER_DEFINED)),
    "mistral": ("mistral-v13", vocabulary_with(("[TOOL_CALLS]", "[ARGS]"), TokenKind.CONTROL)),
    "mistral-v3": ("mistral-v3", vocabulary_with(("[TOOL_CALLS]",), TokenKind.CONTROL)),
    "nemotron": ("nemotron", vocabulary_with(("<TOOLCALL>", "</TOOLCALL>"), TokenKind.USER_DEFINED)),
    "tool-calls": ("tool-calls", vocabulary_with(("<tool_calls>", "</tool_calls>"), TokenKind.CONTROL)),
    "llama": ("llama", vocabulary_with(("<|python_tag|>",), TokenKind.CONTROL)),
    "llama4": ("llama4", vocabulary_with(("<|python_start|>", "<|python_end|>"), TokenKind.CONTROL)),
    "deepseek-v3": ("deepseek-v3", vocabulary_with(DEEPSEEK_MARKS, TokenKind.CONTROL)),
    "deepseek-v3.1": ("deepseek-v3.1", vocabulary_with(DEEPSEEK_MARKS, TokenKind.CONTROL)),
    "lfm2": ("lfm2", vocabulary_with(("<|tool_call_start|>", "<|tool_call_end|>"), TokenKind.CONTROL)),
    "kimi": ("kimi", vocabulary_with(KIMI_MARKS, TokenKind.CONTROL)),
    "cohere": ("cohere", vocabulary_with(("<|START_ACTION|>", "<|END_ACTION|>"), TokenKind.CONTROL)),
    "phi4": ("phi4", vocabulary_with(("<|tool_call|>", "<|/tool_call|>"), TokenKind.CONTROL)),
    "granite": ("granite", vocabulary_with(("<|tool_call|>",), TokenKind.CONTROL)),
    "functionary": ("functionary", vocabulary_with((), TokenKind.CONTROL)),
    "dsml": ("dsml", vocabulary_with(("｜DSML｜", "</"), TokenKind.CONTROL)),
    "hunyuan": ("hunyuan", vocabulary_with(HUNYUAN_MARKS, TokenKind.CONTROL)),
}


def held(family: str, tokenizer: Tokenizer, job: Job) -> tuple[Prompt, Constraint]:
    """Return a job's prompt, and what holds its answers."""
    prompt = Prompter(tokenizer, families.template(family), "tiny", 1 << 20).prompt(job)
    constraint, left = ConstraintBuilder(tokenizer, "tiny").constraint(job, prompt)
    assert constraint is not None and not left
    return prompt, constraint


def by_chance(
    tokenizer: Tokenizer, prompt: Prompt, constraint: Constraint, seed: int, begun: str = ""
) -> list[AnswerDelta]:
    """Draw an answer of any tokens that may come, and return what is read of it up to where it is free."""
    matcher, random = constraint.matcher(tokenizer.eos_ids), Random(seed)
    ends = {*range(len(vocabulary()), tokenizer.vocab_size), *tokenizer.encode('"', bos=False)}
    answer, said = AnswerText(tokenizer, prompt, (), name_call=str), []
    for id in tokenizer.encode(begun, special=True, bos=False):
        matcher.advance(id)
        said.append(answer.push(id))
    for _ in range(20_000):
        mask = patiently(matcher.mask)
        free = [] if mask is None else np.flatnonzero(mask).tolist()
        marks = [id for id in free if id in ends]  # else a text would have no end
        id = random.choice(marks if marks and random.random() < 0.2 else free) if free else None
        if id is None or id in tokenizer.eos_ids:
            return [*said, answer.finish()]
        matcher.advance(id)
        said.append(answer.push(id))
    raise AssertionError("it has no end")


# What is written as a keyword has no odd name.
PLAIN = replace(RICH, parameters={**RICH.parameters, "properties": {**RICH.parameters["properties"]}})  # type: ignore[dict-item]
del PLAIN.parameters["properties"]["odd key:"]  # type: ignore[attr-defined]


@pytest.mark.heavy
@pytest.mark.parametrize("tool", [RICH, FREE], ids=["rich", "free"])
@pytest.mark.parametrize("family, tokenizer", VOCABULARIES.values(), ids=VOCABULARIES)
def test_every_call_that_is_admitted_is_read_and_fits(family: str, tokenizer: Tokenizer, tool: Tool):
    tool = PLAIN if family == "lfm2" and tool is RICH else tool
    bound = held(family, tokenizer, replace(JOB, tools=(tool, PICK), parallel_tool_calls=True))
    wanted = {each.name: {"type": "object", **each.parameters} for each in (tool, PICK)}
    wrong: dict[int, object] = {}
    for seed in range(8):
        said = by_chance(tokenizer, *bound, seed)
        called = [call for each in said for call in each.calls]
        if not called or any(each.text for each in said):
            wrong[seed] = said
        for call in called:
            try:
                jsonschema.validate(json.loads(call.arguments), wanted[call.name])
            except (ValueError, KeyError, jsonschema.ValidationError) as e:
                wrong[seed] = e
    assert not wrong


BEGUN = {
    "llama4": '{"name": "pick", "parameters": {',
    "qwen3": "Well:\n<tool_call>",
    "mistral-v13": "Well:[TOOL_CALLS]",
    "mistral-v3": "[TOOL_CALLS]",
    "nemotron": "Well: <TOOLCALL>",
    "tool-calls": "<tool_calls>",
    "llama": '{"name": "pick", "parameters": {',
    "deepseek-v3": "<｜tool▁calls▁begin｜>",
    "deepseek-v3.1": "<｜tool▁calls▁begin｜>",
    "lfm2": "<|tool_call_start|>",
    "kimi": "Well:<|tool_calls_section_begin|>",
    "cohere": "<|START_ACTION|>",
    "phi4": "<|tool_call|>",
    "granite": "<|tool_call|>",
    "functionary": "Well: <function=",
    "xml": "Well:\n<tool_call>",
    "glm": "Well:\n<tool_call>",
    "glm-4.7": "Well:<tool_call>",
    "minimax": "Well:\n<minimax:tool_call>",
    "seed": "<seed:tool_call>",
    "dsml": "Well:\n\n<｜DSML｜function_calls>",
    "hunyuan": "<tool_calls>",
    "gemma4": "Well:<|tool_call>",
    "harmony": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.",
}


@pytest.mark.parametrize("family, tokenizer", VOCABULARIES.values(), ids=VOCABULARIES)
def test_call_behind_a_family_s_own_mark_is_held(family: str, tokenizer: Tokenizer):
    said = by_chance(tokenizer, *held(family, tokenizer, replace(JOB, tool_choice="auto")), 1, BEGUN[family])
    (call,) = [call for each in said for call in each.calls]
    assert (call.name, json.loads(call.arguments)) in [
        *(("pick", {"n": n}) for n in (1, 2)),
        *(("drop", {"all": value}) for value in (True, False)),
    ]


def test_required_call_may_come_behind_thinking_and_nothing_else():
    family, tokenizer = VOCABULARIES["harmony"]
    bound = held(family, tokenizer, JOB)
    answers = [by_chance(tokenizer, *bound, seed) for seed in range(12)]
    assert {bool("".join(each.thinking for each in said)) for said in answers} == {True, False}
