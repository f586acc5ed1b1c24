"""Answers constrained by a format, from the call to the text: the tiny model writes nonsense, and valid nonsense."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Chunk, Format, Message
from freehold.run.engine.constrain import grammar
from freehold.run.local.opening import ServedModel
from freehold.run.tokenizer import ChatTemplate
from tests.serving import served
from tests.vectors.files import write_gguf

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "yy"]}, "c": {"type": "boolean"}},
    "required": ["a", "b", "c"],
    "additionalProperties": False,
}  # fmt: skip
SHORT = Format("regex", "[a-f]{3,8}")
CHAT = Job(messages=(Message("user", "Hi"),), max_tokens=40, sampling={"seed": 1}, format=SHORT)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    path = write_gguf("qwen2", tmp_path_factory.mktemp("structured") / "tiny.gguf", dtype="Q8_0")
    with served(path, context=256, threads=1) as loaded:
        yield loaded


def finish(llm: ServedModel, job: Job) -> list[list[Chunk]]:
    answering = llm.start(job)
    answering.enter()
    got: list[list[Chunk]] = [[] for _ in range(job.n)]
    while not answering.done:
        llm.pump(0.01)
        for index, chunk in answering.take():
            got[index].append(chunk)
    return got


def text(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


def test_answer_has_the_properties_that_its_schema_names_and_no_others(llm: ServedModel):
    inner = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    schema = {
        "type": "object",
        "properties": {
            "one": {"$ref": "#/$defs/inner"},
            "many": {"type": "array", "items": inner, "maxItems": 2},
        },
        "required": ["one", "many"],
        "$defs": {"inner": inner},
    }
    answers = [llm.chat("Hi", format=schema, max_tokens=240, temperature=1.5, seed=seed) for seed in range(4)]
    ended = [json.loads(a.text) for a in answers if a.finish_reason == "stop"]
    assert ended and all(value.keys() == {"one", "many"} for value in ended)
    assert all(each.keys() == {"x"} for value in ended for each in (value["one"], *value["many"]))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answer_that_ends_fits_its_schema(llm: ServedModel, temperature: float):
    for seed in range(5):
        answer = llm.chat("Hi", format=SCHEMA, max_tokens=200, temperature=temperature, seed=seed)
        assert answer.finish_reason == "stop" or answer.usage.completion_tokens == 200
        if answer.finish_reason == "stop":
            jsonschema.validate(json.loads(answer.text), SCHEMA)


@pytest.mark.parametrize(
    "format, fits",
    [
        (Format("choice", '["yes", "no, é"]'), lambda t: t in ("yes", "no, é")),
        (Format("lark", 'start: "a" ("b" | "c")'), lambda t: t in ("ab", "ac")),
        (SHORT, lambda t: re.fullmatch("[a-f]{3,8}", t)),
    ],
)
def test_other_formats_hold_in_chats_and_texts(llm: ServedModel, format: Format, fits: Any):
    for answer in (llm.chat("Hi", format=format, seed=2), llm.generate("Hi", format=format, seed=2)):
        assert answer.finish_reason == "stop" and fits(answer.text)


def test_cut_answer_says_so_and_holds_the_beginning(llm: ServedModel):
    answer = llm.chat("Hi", format=Format("choice", '["abcdefgh"]'), max_tokens=3)
    assert (answer.text, answer.finish_reason) == ("abc", "length")


def test_full_context_cuts_a_format_that_has_no_end(llm: ServedModel):
    answer = llm.chat("Hi", format=Format("regex", "a(bc)*d{1000}"), seed=1)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 256


def test_logprobs_are_those_without_the_format(llm: ServedModel):
    held = llm.chat("Hi", format=SHORT, max_tokens=1, logprobs=3, seed=1)
    free = llm.chat("Hi", max_tokens=1, logprobs=3, seed=1)
    assert held.logprobs[0].top == free.logprobs[0].top
    assert sum(p for _, p in held.logprobs[0].top) < 0


def test_answers_of_one_job_are_each_as_alone_with_their_seed(llm: ServedModel):
    together = finish(llm, replace(CHAT, n=3))
    alone = [finish(llm, replace(CHAT, sampling={"seed": 1 + i}))[0] for i in range(3)]
    assert [text(c) for c in together] == [text(c) for c in alone]
    assert len({text(c) for c in together}) == 3


def test_resumed_answer_goes_on_in_its_format(llm: ServedModel):
    whole = [id for chunk in finish(llm, CHAT)[0] for id in chunk.token_ids]
    for made in range(len(whole) + 1):
        rest = finish(llm, replace(CHAT, resume=(tuple(whole[:made]),)))[0]
        assert [id for chunk in rest for id in chunk.token_ids] == whole[made:]


@pytest.mark.parametrize(
    "format, words",
    [
        (Format("regex", "["), "unclosed"),
        ([1], r"format is \[1\]"),
        ({"a": {1}}, "not a JSON schema"),
        ("yaml", "'yaml'"),
    ],
)
def test_what_is_no_format_is_refused_before_anything_is_computed(llm: ServedModel, format: Any, words: str):
    steps = llm.stats.steps
    with pytest.raises(UsageError, match=words):
        llm.chat("Hi", format=format)
    assert llm.stats.steps == steps


def test_refusal_of_what_the_engine_cannot_compile_names_the_field(llm: ServedModel):
    with pytest.raises(UsageError) as told:
        llm.chat("Hi", format=Format("regex", "["))
    assert told.value.field == "format"


def test_job_that_is_to_go_on_behind_the_end_cannot_have_a_format(llm: ServedModel):
    with pytest.raises(UsageError, match="ignore_eos"):
        llm.start(replace(CHAT, ignore_eos=True))
    with pytest.raises(UsageError, match="length of format is 262,145"):
        llm.start(replace(CHAT, format=Format("regex", "a" * 262_145)))


def test_format_that_becomes_too_costly_ends_its_own_answer_only(
    llm: ServedModel, monkeypatch: pytest.MonkeyPatch
):
    from freehold.run.engine.constrain import grammar

    held, free = llm.start(CHAT), llm.start(replace(CHAT, format=None))
    monkeypatch.setattr(grammar, "TOKEN_S", 0.0)
    monkeypatch.setattr(grammar, "SPARE_S", 0.0)
    held.enter()
    free.enter()
    failed, got = None, []
    while not free.done:
        llm.pump(0.01)
        got += free.take()
        try:
            held.take()
        except UsageError as e:
            failed = e
    assert failed is not None and "the limit is 0 s" in failed.message
    assert got[-1][1].finish_reason in ("stop", "length")


def test_thinking_that_the_prompt_opened_is_free_and_the_text_behind_it_held(llm: ServedModel):
    template = ChatTemplate("{# </think> #}{{ messages[0].content }}<think>", special_tokens={})
    thinking = ServedModel(llm._engine, llm._tokenizer, template, name="thinks")
    log = tuple(thinking.tokenize("hm </think>\n"))
    assert thinking._prompter.prompt(CHAT).inside
    for seed in range(3):
        chunks = finish(thinking, replace(CHAT, sampling={"seed": seed}, resume=(log,)))[0]
        assert chunks[-1].finish_reason == "stop" and re.fullmatch("[a-f]{3,8}", text(chunks))


# --- a real model --------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.model
def test_real_model_ends_in_valid_json(model_path):
    asked = f"Describe a knight. Answer in JSON that fits this schema: {json.dumps(SCHEMA)}"
    schema = {
        **SCHEMA,
        "properties": {**SCHEMA["properties"], "name": {"type": "string"}},
        "required": ["name", "a"],
    }
    with served(model_path("qwen2.5-coder-0.5b"), context=1024) as llm:
        got = [
            finish(
                llm,
                Job(messages=(Message("user", asked),), n=8, max_tokens=200, sampling={"seed": 0}, format=f),
            )
            for f in (Format("json_schema", json.dumps(schema)), Format("json"))
        ]
    ended = [(i, text(c)) for i, answers in enumerate(got) for c in answers if c[-1].finish_reason == "stop"]
    assert len(ended) >= 15
    for i, written in ended:
        jsonschema.validate(json.loads(written), [schema, {"type": "object"}][i])


class Point(BaseModel):
    x: int = Field(ge=0, le=99)
    kind: Literal["dot", "cross"]


class Nested(BaseModel):
    at: Point
    tags: list[Literal["a", "b"]] = Field(max_length=2)


class NoSchema(BaseModel):
    call: Callable[[], int]


@pytest.mark.parametrize("model", [Point, Nested])
def test_pydantic_model_as_format_gives_text_that_it_parses(llm: ServedModel, model: type[BaseModel]):
    answer = llm.chat("Hi", format=model, seed=3, max_tokens=240, temperature=1.0)
    assert answer.finish_reason == "stop" and model.model_validate_json(answer.text)


@pytest.mark.parametrize("given, says", [(NoSchema, "NoSchema cannot state"), (int, "give a JSON schema")])
def test_class_without_a_schema_is_refused(llm: ServedModel, given: type, says: str):
    with pytest.raises(UsageError) as raised:
        llm.chat("Hi", format=given)
    assert says in f"{raised.value.message} {raised.value.hint}"


def test_an_answer_whose_grammar_takes_long_holds_no_other_up(
    llm: ServedModel, monkeypatch: pytest.MonkeyPatch
):
    """One mask of 260 ms was waited for in the step of all."""
    wanted = finish(llm, CHAT)
    monkeypatch.setattr(grammar, "MARKS", 0)
    may_end = threading.Event()
    grammar.apart.submit(partial(may_end.wait, 60))
    slow = replace(CHAT, format=Format("regex", "(?:[a-f]{3,8})"))  # the same, but not the one that is kept
    held = llm.start(slow)
    held.enter()
    try:
        assert finish(llm, replace(CHAT, format=None, n=2))
        assert not held.done and not held.take()
    finally:
        may_end.set()
    got: list[Chunk] = []
    while not held.done:
        llm.pump(0.01)
        got += [chunk for _, chunk in held.take()]
    assert text(got) == text(wanted[0]) and got[-1].finish_reason == wanted[0][-1].finish_reason
