"""Jobs on Anthropic's wire: what is sent, what is refused or warned of, what is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, get_args

import pytest
from anthropic.types import Message as ClaudeMessage
from anthropic.types import MessageCountTokensParams, StopReason
from anthropic.types.message_create_params import (
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)
from pydantic import TypeAdapter

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Chunk, Format, Image, Message, SignedThinking, Tool, ToolCall, Usage
from freehold.route.providers.anthropic.wire import AnthropicWire
from freehold.route.providers.contract import Abilities, Provider, RemoteModel, Secret, UpstreamFault

WIRE = AnthropicWire()
HOUSE = Provider("anthropic", "anthropic", "https://api.anthropic.com/v1")
OLD = RemoteModel(HOUSE, "claude-haiku-4-5-20251001", context=200_000, max_output=64_000)
BOTH = RemoteModel(HOUSE, "claude-sonnet-4-6", max_output=64_000)
NEW = RemoteModel(HOUSE, "claude-opus-4-8", max_output=128_000)
NEWEST = RemoteModel(HOUSE, "claude-opus-5-5", max_output=128_000)
USER = Message("user", "Hello, Claude")
WEATHER = Tool(
    "get_weather", "Get the weather", {"type": "object", "properties": {"city": {"type": "string"}}}
)
OF_OLDER_MODELS = {"temperature", "top_p", "top_k"}  # which the vendor's newest types leave out
SIGNED = SignedThinking("Let me see.", "EqQB==")
PNG = Image("image/png", "iVBORw0KGgo=")


def sent(job: Job, model: RemoteModel = OLD, *, stream: bool = False) -> dict[str, Any]:
    """Return the body of a request, which the vendor's own types accept."""
    outgoing = WIRE.request(model, job, stream=stream)
    body = json.loads(outgoing.body)
    params = MessageCreateParamsStreaming if stream else MessageCreateParamsNonStreaming
    assert body.keys() <= params.__required_keys__ | params.__optional_keys__ | OF_OLDER_MODELS
    accepted(params, body)
    return body


@cache
def types_of(params: type) -> TypeAdapter[Any]:
    return TypeAdapter(params)


def accepted(params: type, body: dict[str, Any]) -> None:
    """Validate a request with the vendor's own types, which read lists as iterators: they are read to their end."""

    def read(value: Any) -> None:
        if isinstance(value, Mapping):
            for each in value.values():
                read(each)
        elif not isinstance(value, str | bytes) and hasattr(value, "__iter__"):
            for each in value:
                read(each)

    read(types_of(params).validate_python(body))


def warned(job: Job, model: RemoteModel = OLD) -> str:
    return "\n".join(WIRE.request(model, job, stream=False).warnings)


def asked(*messages: Message, **more: Any) -> Job:
    return Job(messages=messages or (USER,), **{"max_tokens": 4096, **more})


def loop(*signed: SignedThinking, calls: int = 1, **more: Any) -> Job:
    """A chat in the middle of a tool's turn."""
    made = tuple(ToolCall(f"toolu_{i}", "get_weather", '{"city": "Paris"}') for i in range(calls))
    results = [Message("tool", "18 C", tool_call_id=call.id) for call in made]
    said = Message("assistant", "I look.", tool_calls=made, signed=signed)
    return asked(USER, said, *results, tools=(WEATHER,), **more)


# --- requests -------------------------------------------------------------------------------------------


def test_plain_chat_is_the_documents_first_example():
    outgoing = WIRE.request(OLD, asked(max_tokens=1024), stream=False)
    assert json.loads(outgoing.body) == {
        "model": OLD.model,
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello, Claude"}]}],
    }
    assert (outgoing.path, outgoing.warnings) == ("/messages", ())
    assert outgoing.headers["anthropic-version"] == "2023-06-01"
    assert WIRE.authorized(Secret("k")) == {"x-api-key": "k"}


def test_max_tokens_is_filled_from_the_model_and_said():
    job = asked(max_tokens=None)
    assert sent(job)["max_tokens"] == 64_000
    assert "max_tokens was not given" in warned(job)
    assert sent(asked(max_tokens=90_000))["max_tokens"] == 64_000
    assert "90,000" in warned(asked(max_tokens=90_000))
    assert sent(asked(max_tokens=90_000), replace(OLD, max_output=0))["max_tokens"] == 90_000


def test_system_messages_lead_and_later_ones_become_the_users():
    job = asked(
        Message("system", "Be brief."), USER, Message("assistant", "Hi"), Message("system", "Now French.")
    )
    body = sent(job)
    assert body["system"] == "Be brief."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert "Now French." in body["messages"][2]["content"][0]["text"]
    assert "system message within the chat" in warned(job)


def test_cache_breakpoints_stand_on_the_last_block_that_may_have_one():
    job = asked(
        Message("system", "Long.", cache="1h"),
        Message("user", "Look.", parts=("Look.", PNG), cache="5m"),
    )
    body = sent(job)
    assert body["system"] == [
        {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    ]
    text, picture = body["messages"][0]["content"]
    assert "cache_control" not in text
    assert picture["cache_control"] == {"type": "ephemeral"}


def test_cache_breakpoint_of_tools_is_on_the_last_tool_and_the_first_to_go():
    tools = (Tool("a"), Tool("b"))
    body = sent(replace(asked(USER), tools=tools, cache_tools="1h"))
    assert ["cache_control" in tool for tool in body["tools"]] == [False, True]
    assert body["tools"][1]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    turns = [Message(role, "x", cache="5m") for _ in range(2) for role in ("user", "assistant")]
    body = sent(replace(asked(*turns, USER), tools=tools, cache_tools="1h"))
    assert not any("cache_control" in tool for tool in body["tools"])


def test_only_the_last_four_breakpoints_are_sent():
    turns = [Message(role, "x", cache="5m") for _ in range(3) for role in ("user", "assistant")]
    body = sent(asked(*turns, USER))
    marked = ["cache_control" in turn["content"][0] for turn in body["messages"]]
    assert marked == [False, False, True, True, True, True, False]
    assert "breakpoints" in warned(asked(*turns, USER))


def test_pictures_go_as_base64_and_as_addresses():
    url = Image(url="https://x.example/a.jpg", detail="high")
    body = sent(asked(Message("user", "What?", parts=(PNG, url, "What?"))))
    sources = [block["source"] for block in body["messages"][0]["content"][:2]]
    assert sources == [
        {"type": "base64", "media_type": "image/png", "data": PNG.data},
        {"type": "url", "url": url.url},
    ]
    assert "detail" in warned(asked(Message("user", "What?", parts=(url, "What?"))))
    with pytest.raises(UnsupportedModel, match="of this type"):
        sent(asked(Message("user", "", parts=(Image("image/tiff", "AA"),))))


def test_results_of_tools_come_first_in_one_turn_of_the_user():
    job = loop(calls=2)
    assert job.messages is not None
    failed = replace(job.messages[-1], failed=True, parts=("see", PNG), cache="5m")
    body = sent(replace(job, messages=(*job.messages[:-1], failed, Message("user", "And?"))))
    _user, said, results = body["messages"]
    assert [block["type"] for block in said["content"]] == ["text", "tool_use", "tool_use"]
    assert said["content"][1]["input"] == {"city": "Paris"}
    first, second, text = results["content"]
    assert (first["tool_use_id"], first["content"]) == ("toolu_0", "18 C")
    assert (second["is_error"], [part["type"] for part in second["content"]]) == (True, ["text", "image"])
    assert second["cache_control"] == {"type": "ephemeral"}
    assert text == {"type": "text", "text": "And?"}


def test_text_before_a_result_moves_after_it():
    job = loop(calls=2)
    assert job.messages is not None
    user, said, one, two = job.messages
    body = sent(replace(job, messages=(user, said, one, Message("system", "Hurry."), two)))
    assert [b["type"] for b in body["messages"][2]["content"]] == ["tool_result", "tool_result", "text"]


def test_ids_in_foreign_letters_match_their_results():
    call = ToolCall("call:1/é", "get_weather", "")
    body = sent(
        asked(USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "", tool_call_id=call.id))
    )
    (use,), (result,) = (turn["content"] for turn in body["messages"][1:])
    assert use["id"] == result["tool_use_id"]
    assert use["id"].startswith("toolu_")
    assert use["input"] == {}
    assert "content" not in result


def test_arguments_keep_their_digits_and_must_be_an_object():
    call = ToolCall("a", "f", '{"n": 12345678901234567890.10}')
    job = asked(USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "1", tool_call_id="a"))
    assert b"12345678901234567890.10" in WIRE.request(OLD, job, stream=False).body
    for wrong in ("[1]", '{"a": ', "nonsense"):
        broken = replace(
            job, messages=(USER, Message("assistant", "", tool_calls=(replace(call, arguments=wrong),)))
        )
        with pytest.raises(UsageError, match="not a JSON object"):
            sent(broken)


def test_signed_blocks_return_where_they_stood():
    first = SignedThinking("one", "S1")
    hidden = SignedThinking(redacted="blob==", text_before=2)
    later = SignedThinking("two", "S2", text_before=5, calls_before=1)
    calls = ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}")
    said = Message("assistant", "Hello", signed=(first, hidden, later), tool_calls=calls)
    results = [Message("tool", "1", tool_call_id=call.id) for call in calls]
    blocks = sent(asked(USER, said, *results))["messages"][1]["content"]
    assert [
        block.get("text") or block.get("thinking") or block.get("data") or block.get("id") for block in blocks
    ] == ["one", "He", "blob==", "llo", "a", "two", "b"]
    assert [block["signature"] for block in blocks if block["type"] == "thinking"] == ["S1", "S2"]


def test_unsigned_reasoning_is_left_out_and_said():
    job = asked(USER, Message("assistant", "Hi", thinking="Hmm"), USER)
    assert [b["type"] for b in sent(job)["messages"][1]["content"]] == ["text"]
    assert "did not sign" in warned(job)


@pytest.mark.parametrize(
    ("more", "choice"),
    [
        ({}, None),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "required", "tool_name": "get_weather"}, {"type": "tool", "name": "get_weather"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_tool_choice(more, choice):
    body = sent(asked(tools=(WEATHER, Tool("now")), **more))
    assert body.get("tool_choice") == choice
    assert body["tools"][0]["input_schema"] == WEATHER.parameters
    assert body["tools"][1] == {"name": "now", "input_schema": {"type": "object", "properties": {}}}


def test_strict_tools_are_closed_or_said():
    strict = replace(WEATHER, strict=True)
    (tool,) = sent(asked(tools=(strict,)))["tools"]
    assert (tool["strict"], tool["input_schema"]["additionalProperties"]) == (True, False)
    bounded = Tool(
        "f", "", {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}, strict=True
    )
    (tool,) = sent(asked(tools=(bounded,)))["tools"]
    assert tool["input_schema"] == bounded.parameters
    assert "strict" not in tool
    assert "strict" in warned(asked(tools=(bounded,)))


# --- thinking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "more", "thinking"),
    [
        (OLD, {}, None),
        (OLD, {"think": False}, None),
        (OLD, {"think": True}, {"type": "enabled", "budget_tokens": 2048}),
        (OLD, {"think": True, "max_tokens": 60_000}, {"type": "enabled", "budget_tokens": 4096}),
        (OLD, {"effort": "high", "max_tokens": 60_000}, {"type": "enabled", "budget_tokens": 16384}),
        (OLD, {"think": True, "think_tokens": 3000}, {"type": "enabled", "budget_tokens": 3000}),
        (OLD, {"think": True, "think_tokens": 9000}, {"type": "enabled", "budget_tokens": 4095}),
        (OLD, {"think": True, "think_tokens": 20}, {"type": "enabled", "budget_tokens": 1024}),
        (OLD, {"think": True, "max_tokens": 500}, None),
        (BOTH, {"think": True}, {"type": "adaptive", "display": "summarized"}),
        (BOTH, {"think": False}, None),
        (NEWEST, {"think": True}, {"type": "adaptive", "display": "summarized"}),
        (NEWEST, {"think": False}, None),
        (replace(NEWEST, model="claude-sonnet-5"), {"think": False}, {"type": "disabled"}),
        (replace(NEWEST, model="claude-sonnet-5-5"), {"think": False}, {"type": "between_tools"}),
        (replace(OLD, model="claude-3-5-sonnet-20241022"), {"think": True}, None),
    ],
)
def test_thinking_is_asked_for_as_the_model_knows_it(model, more, thinking):
    assert sent(asked(**more), model).get("thinking") == thinking


def test_what_thinking_cannot_be_is_said():
    assert "budget of thinking" in warned(asked(think=True, think_tokens=9000))
    assert "max_tokens is 500" in warned(asked(think=True, max_tokens=500))
    assert "always thinks" in warned(asked(think=False), NEWEST)
    assert "effort instead" in warned(asked(think=True, think_tokens=2000), NEW)
    assert "does not think" in warned(asked(think=True), replace(OLD, model="claude-3-haiku-20240307"))
    assert "forced" in warned(asked(think=True, tools=(WEATHER,), tool_choice="required"))


def test_effort_goes_where_the_model_knows_it():
    assert sent(asked(effort="low"), NEW)["output_config"] == {"effort": "low"}
    assert "output_config" not in sent(asked(effort="low"), OLD)


def test_thinking_is_left_out_where_its_reasoning_is_missing():
    assert sent(loop(SIGNED, think=True))["thinking"]["type"] == "enabled"
    assert (
        sent(loop(think=True), BOTH)["thinking"]["type"] == "adaptive"
    )  # asks for no reasoning before calls
    assert "thinking" not in sent(loop(think=True))
    assert "not this model's" in warned(loop(think=True))
    ended = loop(think=True).messages
    assert ended is not None
    assert "thinking" in sent(asked(*ended, Message("assistant", "18"), USER, think=True))


# --- sampling, formats, refusals ------------------------------------------------------------------------


def test_sampling_that_the_model_takes_is_sent():
    sampling = {"temperature": 0.2, "top_k": 5, "top_p": 1.0, "min_p": 0.0, "frequency_penalty": 0.0}
    body = sent(asked(sampling=sampling, stop=("END",)), stream=True)
    assert (body["temperature"], body["top_k"], body["stop_sequences"], body["stream"]) == (
        0.2,
        5,
        ["END"],
        True,
    )
    assert body.keys() & {"top_p", "min_p", "frequency_penalty"} == set()
    assert warned(asked(sampling=sampling)) == ""


@pytest.mark.parametrize(
    ("model", "sampling", "left"),
    [
        (OLD, {"seed": 7, "presence_penalty": 0.5, "min_p": 0.1}, ["seed", "presence_penalty", "min_p"]),
        (OLD, {"temperature": 0.5, "top_p": 0.9}, ["top_p"]),
        (OLD, {"temperature": 1.7}, ["temperature"]),
        (NEW, {"temperature": 0.5, "top_k": 3}, ["temperature", "top_k"]),
    ],
)
def test_sampling_that_the_model_does_not_take_is_said(model, sampling, left):
    said = warned(asked(sampling=sampling), model)
    assert all(name in said for name in left)
    assert len(said.splitlines()) == len(left)


def test_thinking_has_no_temperature():
    job = asked(sampling={"temperature": 0.3}, think=True)
    assert "temperature" not in sent(job)
    assert "temperature" in warned(job)
    assert warned(asked(sampling={"temperature": 1}), NEW) == ""


@pytest.mark.parametrize(
    "job",
    [
        Job(prompt="Once", max_tokens=5),
        asked(n=2),
        asked(logprobs=3),
        asked(prompt_logprobs=0),
        asked(template="{{ x }}"),
        asked(adapter="a"),
        asked(ignore_eos=True),
        asked(turn="none"),
        asked(sampling={"logit_bias": {5: 1.0}}),
        asked(stop=(" \n",)),
        asked(format=Format("json")),
        asked(format=Format("regex", "a+")),
        asked(format=Format("json_schema", {"type": "object", "additionalProperties": {"type": "string"}})),
        asked(Message("assistant", "Hi"), USER),
        asked(Message("system", "only")),
        asked(Message("assistant", "", parts=(PNG,))),
    ],
)
def test_what_would_change_the_answer_is_refused(job):
    with pytest.raises(UnsupportedModel):
        sent(job)


def test_begun_answer_is_continued_where_the_model_can():
    job = asked(USER, Message("assistant", "The best answer is ("), turn="continue")
    assert sent(job)["messages"][-1]["content"][0]["text"] == "The best answer is ("
    with pytest.raises(UnsupportedModel, match="does not continue"):
        sent(job, NEW)


def test_forced_tools_are_refused_where_the_model_cannot():
    with pytest.raises(UnsupportedModel, match="tool"):
        sent(asked(tools=(WEATHER,), tool_choice="required"), NEWEST)
    five = replace(NEWEST, model="claude-opus-5")
    assert sent(asked(tools=(WEATHER,), tool_choice="required"), five)["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize("lacking", [{"images": False}, {"tools": False}, {"json_schema": False}])
def test_abilities_of_the_file_hold(lacking):
    job = asked(
        Message("user", "", parts=(PNG,)),
        tools=(WEATHER,),
        format=Format("json_schema", {"type": "object", "properties": {"a": {"type": "string"}}}),
    )
    sent(job)
    with pytest.raises(UnsupportedModel):
        sent(job, replace(OLD, abilities=Abilities(**lacking)))


def test_schema_is_closed_and_what_is_not_enforced_is_said():
    schema = {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 0, "description": "Years"},
            "tags": {
                "type": "array",
                "items": {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}},
            },
        },
        "required": ["age"],
        "$defs": {"X": {"oneOf": [{"type": "string", "format": "date"}, {"type": "null"}]}},
    }
    job = asked(format=Format("json_schema", schema))
    made = sent(job)["output_config"]["format"]["schema"]
    assert made["additionalProperties"] is False
    assert made["properties"]["age"] == {"type": "integer", "description": "Years\n(minimum: 0)"}
    assert made["properties"]["tags"]["items"]["additionalProperties"] is False
    assert made["$defs"]["X"] == {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}
    assert "minimum, oneOf" in warned(job)


def test_count_has_its_own_door():
    outgoing = WIRE.count(OLD, loop(max_tokens=None))
    body = json.loads(outgoing.body)
    assert outgoing.path == "/messages/count_tokens"
    assert (
        body.keys() <= MessageCountTokensParams.__required_keys__ | MessageCountTokensParams.__optional_keys__
    )
    TypeAdapter(MessageCountTokensParams).validate_python(body)
    assert outgoing.warnings == ()
    assert WIRE.counted(b'{"input_tokens": 2095}') == 2095
    with pytest.raises(UpstreamFault):
        WIRE.counted(b"<html>")


def test_embeddings_are_refused():
    with pytest.raises(UnsupportedModel, match="no embeddings"):
        WIRE.embed(OLD, EmbedJob(("a",)))


# --- answers --------------------------------------------------------------------------------------------


def body_of(content: list[dict[str, Any]], reason: str = "end_turn", **usage: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": OLD.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": "END" if reason == "stop_sequence" else None,
        "usage": {"input_tokens": 12, "output_tokens": 6, **usage},
    }


def whole(body: dict[str, Any]) -> list[Chunk]:
    ClaudeMessage.model_validate(body)
    answer = WIRE.whole(json.dumps(body).encode(), asked())
    assert answer.answer_id == "msg_1"
    return [chunk for _, chunk in answer.pieces]


TEXT = {"type": "text", "text": "Hi", "citations": None}


@pytest.mark.parametrize(
    ("reason", "finish", "stop"),
    [
        ("end_turn", "stop", ""),
        ("stop_sequence", "stop", "END"),
        ("max_tokens", "length", ""),
        ("tool_use", "tool_calls", ""),
        ("refusal", "refusal", ""),
        ("pause_turn", "length", ""),
        ("model_context_window_exceeded", "length", ""),
    ],
)
def test_every_stop_reason_of_the_documents(reason, finish, stop):
    *_, last = whole(body_of([TEXT], reason))
    assert (last.finish_reason, last.stop) == (finish, stop)
    assert reason in get_args(StopReason)
    assert len(get_args(StopReason)) == 7


def test_unknown_stop_reason_is_no_end():
    body = json.dumps({**body_of([TEXT]), "stop_reason": "tired"}).encode()
    with pytest.raises(UpstreamFault, match="tired") as fault:
        WIRE.whole(body, asked())
    assert fault.value.cause == "invalid"


def test_prompt_tokens_hold_cached_and_written_ones():
    split = {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100}
    details = {"thinking_tokens": 4}
    *_, last = whole(
        body_of(
            [TEXT],
            cache_read_input_tokens=1800,
            cache_creation_input_tokens=248,
            cache_creation=split,
            output_tokens_details=details,
        )
    )
    assert last.usage == Usage(
        prompt_tokens=12 + 1800 + 248,
        completion_tokens=6,
        cached_tokens=1800,
        written_tokens=148,
        written_hour_tokens=100,
        thought_tokens=4,
    )


def test_counts_below_0_are_invalid():
    body = json.dumps(body_of([TEXT], cache_read_input_tokens=-5)).encode()
    with pytest.raises(UpstreamFault, match="below 0"):
        WIRE.whole(body, asked())


def test_refusal_carries_the_explanation():
    body = body_of([], "refusal")
    body["stop_details"] = {"type": "refusal", "category": "cyber", "explanation": "Not this."}
    (last,) = whole(body)
    assert (last.finish_reason, last.refusal) == ("refusal", "Not this.")


def test_whole_answer_with_thinking_and_tools():
    content = [
        {"type": "thinking", "thinking": "Let me see.", "signature": "S"},
        {"type": "redacted_thinking", "data": "blob"},
        TEXT,
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
    ]
    chunks = whole(body_of(content, "tool_use"))
    assert "".join(chunk.thinking for chunk in chunks) == "Let me see."
    signed = [block for chunk in chunks for block in chunk.signed]
    assert signed == [SignedThinking("Let me see.", "S"), SignedThinking(redacted="blob")]
    calls: list[ToolCall] = []
    for chunk in chunks:
        for piece in chunk.tool_calls:
            piece.join(calls)
    assert [(call.id, json.loads(call.arguments)) for call in calls] == [
        ("toolu_1", {"city": "Paris"}),
        ("toolu_2", {}),
    ]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"type": "error"}', b'\xff{"id": "x"}', b"[" * 5000]
)
def test_what_is_no_message_is_invalid(body):
    with pytest.raises(UpstreamFault) as fault:
        WIRE.whole(body, asked())
    assert fault.value.cause == "invalid"


# --- failures -------------------------------------------------------------------------------------------


def error(kind: str, message: str = "No.") -> bytes:
    return json.dumps(
        {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    ).encode()


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (400, error("invalid_request_error"), "request"),
        (
            400,
            error("invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"),
            "context",
        ),
        (
            400,
            error("invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2"),
            "context",
        ),
        (400, error("invalid_request_error", "Your credit balance is too low to access the API."), "auth"),
        (401, error("authentication_error"), "auth"),
        (402, error("billing_error"), "auth"),
        (403, error("permission_error"), "auth"),
        (404, error("not_found_error"), "request"),
        (413, error("request_too_large"), "context"),
        (413, b"<html>too large</html>", "context"),
        (422, b"", "request"),
        (429, error("rate_limit_error"), "rate"),
        (500, error("api_error"), "server"),
        (502, b"<html>Bad gateway</html>", "server"),
        (504, error("timeout_error"), "timeout"),
        (529, error("overloaded_error"), "rate"),
        (302, b"", "redirect"),
    ],
)
def test_statuses_and_words_become_causes(status, body, cause):
    fault = WIRE.fault(status, {"Retry-After": "7"}, body)
    assert (fault.cause, fault.status, fault.retry_after_s) == (cause, status, 7.0)
    assert "html" not in fault.message


def test_a_key_in_an_error_is_not_passed_on():
    key = "sk-ant-api03-abcdefghijklmnop-QRSTUV"
    fault = WIRE.fault(401, {}, error("authentication_error", f"invalid x-api-key {key}"))
    assert key not in fault.message
    assert "***" in fault.message
    assert fault.retry_after_s is None


@pytest.mark.parametrize(
    ("older", "newer"), list(pairwise(["claude-3-7-sonnet-20250219", BOTH.model, NEW.model]))
)
def test_versions_are_read_from_names(older, newer):
    from freehold.route.providers.anthropic.wire import claude_of

    assert claude_of(older) != claude_of(newer)
    assert claude_of(f"anthropic/{older}") == claude_of(older)
    assert claude_of("some-alias") == claude_of("claude-5-5")
