"""Jobs on Gemini's wire: what is sent, what is refused or warned of, what is read."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import pytest

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Chunk, Format, Image, Message, SignedThinking, Tool, ToolCall, Usage
from freehold.route.providers.contract import Abilities, Provider, RemoteModel, Secret, UpstreamFault
from freehold.route.providers.faults import shared
from freehold.route.providers.gemini.wire import OWN_ID, UNSIGNED, GeminiWire

WIRE = GeminiWire()
PLACE = Provider("gemini", "gemini", "https://generativelanguage.googleapis.com/v1beta")
OLD = RemoteModel(PLACE, "gemini-2.5-flash", max_output=65_536)
PRO = RemoteModel(PLACE, "gemini-2.5-pro")
NEW = RemoteModel(PLACE, "gemini-3.8-flash")
USER = Message("user", "Hello")
WEATHER = Tool(
    "get_weather", "Get the weather", {"type": "object", "properties": {"city": {"type": "string"}}}
)
PNG = Image("image/png", "iVBORw0KGgo=")


def sent(job: Job, model: RemoteModel = OLD, *, stream: bool = False) -> dict[str, Any]:
    return json.loads(WIRE.request(model, job, stream=stream).body)


def warned(job: Job, model: RemoteModel = OLD) -> str:
    return "\n".join(WIRE.request(model, job, stream=False).warnings)


def asked(*messages: Message, **more: Any) -> Job:
    return Job(messages=messages or (USER,), **more)


def loop(*calls: ToolCall, signed: tuple[SignedThinking, ...] = (), text: str = "", **more: Any) -> Job:
    """A chat in the middle of a tool's turn."""
    results = [Message("tool", "18 C", tool_call_id=call.id) for call in calls]
    return asked(
        USER, Message("assistant", text, tool_calls=calls, signed=signed), *results, tools=(WEATHER,), **more
    )


PARIS = ToolCall(f"{OWN_ID}1", "get_weather", '{"city": "Paris"}', "SIG")
OSLO = ToolCall(f"{OWN_ID}2", "get_weather", '{"city": "Oslo"}')


# --- requests -------------------------------------------------------------------------------------------


def test_plain_chat_and_its_doors():
    outgoing = WIRE.request(OLD, asked(Message("system", "Be brief."), USER), stream=False)
    assert json.loads(outgoing.body) == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
    }
    assert (outgoing.path, outgoing.warnings) == ("/models/gemini-2.5-flash:generateContent", ())
    streamed = WIRE.request(replace(OLD, model="models/gemini-2.5-flash"), asked(), stream=True)
    assert streamed.path == "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert WIRE.authorized(Secret("k")) == {"x-goog-api-key": "k"}
    assert (
        WIRE.request(replace(OLD, model="a/../b?x"), asked(), stream=False).path
        == "/models/a%2F..%2Fb%3Fx:generateContent"
    )


def test_turns_of_one_role_are_one_and_system_messages_within_are_the_users():
    job = asked(
        USER,
        Message("user", "Look.", parts=(PNG, "Look.")),
        Message("assistant", "Hi"),
        Message("system", "French."),
    )
    first, second, third = sent(job)["contents"]
    assert first["parts"] == [
        {"text": "Hello"},
        {"inlineData": {"mimeType": "image/png", "data": PNG.data}},
        {"text": "Look."},
    ]
    assert second == {"role": "model", "parts": [{"text": "Hi"}]}
    assert "French." in third["parts"][0]["text"]
    assert "within the chat" in warned(job)


def test_options_are_sent_under_their_names():
    sampling = {
        "temperature": 1.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": 1.0,
    }
    job = asked(sampling=sampling, max_tokens=100, stop=("END", "STOP"))
    assert sent(job)["generationConfig"] == {
        "temperature": 1.5,
        "topP": 0.9,
        "topK": 40,
        "seed": 7,
        "presencePenalty": 0.5,
        "frequencyPenalty": 1.0,
        "maxOutputTokens": 100,
        "stopSequences": ["END", "STOP"],
    }
    assert warned(job) == ""
    assert "min_p" in warned(asked(sampling={"min_p": 0.1}))


def test_several_answers_and_logprobs_where_the_file_says_so():
    able = replace(OLD, abilities=Abilities(several=True, logprobs=True))
    config = sent(asked(n=2, logprobs=3), able)["generationConfig"]
    assert config == {"candidateCount": 2, "responseLogprobs": True, "logprobs": 3}


def test_calls_made_here_have_no_ids_on_the_wire():
    user, said, results = sent(loop(PARIS, OSLO))["contents"]
    assert said["parts"] == [
        {"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}, "thoughtSignature": "SIG"},
        {"functionCall": {"name": "get_weather", "args": {"city": "Oslo"}}},
    ]
    answer = {"functionResponse": {"name": "get_weather", "response": {"output": "18 C"}}}
    assert results == {"role": "user", "parts": [answer, answer]}
    assert user["role"] == "user"


def test_ids_of_others_are_kept_on_both_sides():
    _, said, results = sent(loop(replace(PARIS, id="abc12345")))["contents"]
    assert said["parts"][0]["functionCall"]["id"] == "abc12345"
    assert results["parts"][0]["functionResponse"]["id"] == "abc12345"


def test_failed_results_and_pictures_in_them():
    job = loop(PARIS)
    assert job.messages is not None
    failed = replace(job.messages[-1], failed=True)
    seen = replace(job.messages[-1], parts=("18 C", PNG))
    body = sent(replace(job, messages=(*job.messages[:-1], failed)))
    assert body["contents"][-1]["parts"][0]["functionResponse"]["response"] == {"error": "18 C"}
    body = sent(replace(job, messages=(*job.messages[:-1], seen)), NEW)
    assert "inlineData" in body["contents"][-1]["parts"][0]["functionResponse"]["parts"][0]
    with pytest.raises(UnsupportedModel, match="in tool results"):
        sent(replace(job, messages=(*job.messages[:-1], seen)))
    with pytest.raises(UsageError, match="belongs to no call"):
        sent(asked(USER, Message("tool", "1", tool_call_id="zzz")))


def test_text_after_results_is_a_turn_of_its_own():
    job = loop(PARIS)
    assert job.messages is not None
    body = sent(replace(job, messages=(*job.messages, Message("user", "And Oslo?"))))
    assert [next(iter(part)) for content in body["contents"][2:] for part in content["parts"]] == [
        "functionResponse",
        "text",
    ]
    assert len(body["contents"]) == 4


def test_signatures_return_on_the_parts_that_had_them():
    signed = (
        SignedThinking("", "T1"),
        SignedThinking("Hmm.", "T2", text_before=3),
        SignedThinking("", "T3", "", 7),
    )
    job = loop(PARIS, signed=signed, text="One two")
    assert sent(job, NEW)["contents"][1]["parts"] == [
        {"text": "One", "thoughtSignature": "T1"},
        {"text": "Hmm.", "thought": True, "thoughtSignature": "T2"},
        {"text": " two"},
        {"text": "", "thoughtSignature": "T3"},
        {"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}, "thoughtSignature": "SIG"},
    ]


def test_calls_of_another_model_are_marked_in_the_current_turn_only():
    def signatures(job: Job, model: RemoteModel) -> list[str | None]:
        parts = [part for content in sent(job, model)["contents"] for part in content["parts"]]
        return [part.get("thoughtSignature") for part in parts if "functionCall" in part]

    foreign = replace(PARIS, signature="")
    assert signatures(loop(foreign, OSLO), NEW) == [UNSIGNED, None]
    assert "another model" in warned(loop(foreign, OSLO), NEW)
    assert signatures(loop(foreign), OLD) == [None]
    assert signatures(loop(PARIS, OSLO), NEW) == ["SIG", None]
    ended = loop(foreign).messages
    assert ended is not None
    assert signatures(asked(*ended, Message("assistant", "18"), USER), NEW) == [None]


@pytest.mark.parametrize(
    ("more", "config"),
    [
        ({}, None),
        ({"tool_choice": "none"}, {"mode": "NONE"}),
        ({"tool_choice": "required"}, {"mode": "ANY"}),
        ({"tool_choice": "required", "tool_name": "now"}, {"mode": "ANY", "allowedFunctionNames": ["now"]}),
    ],
)
def test_tool_choice(more, config):
    body = sent(asked(tools=(WEATHER, Tool("now")), **more))
    assert body.get("toolConfig") == (config and {"functionCallingConfig": config})
    weather, now = body["tools"][0]["functionDeclarations"]
    assert weather["parametersJsonSchema"] == WEATHER.parameters
    assert now == {"name": "now", "description": ""}


def test_what_tools_cannot_be_is_said():
    bounded = Tool(
        "f", "", {"type": "object", "properties": {"s": {"type": "string", "pattern": "a+"}}}, strict=True
    )
    said = warned(asked(tools=(bounded,), parallel_tool_calls=False))
    assert "pattern" in said
    assert "strict" in said
    assert "parallel_tool_calls" in said
    (made,) = sent(asked(tools=(bounded,)))["tools"][0]["functionDeclarations"]
    assert made["parametersJsonSchema"]["properties"]["s"] == {
        "type": "string",
        "description": "(pattern: a+)",
    }


def test_formats():
    schema = {"type": "object", "properties": {"a": {"const": "x"}, "b": {"type": "string", "minLength": 2}}}
    config = sent(asked(format=Format("json_schema", schema)))["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"]["properties"]["a"] == {"enum": ["x"]}
    assert "minLength" in warned(asked(format=Format("json_schema", schema)))
    assert sent(asked(format=Format("json")))["generationConfig"] == {"responseMimeType": "application/json"}
    config = sent(asked(format=Format("choice", ["yes", "no"])))["generationConfig"]
    assert config == {
        "responseMimeType": "text/x.enum",
        "responseSchema": {"type": "STRING", "enum": ["yes", "no"]},
    }


@pytest.mark.parametrize(
    ("model", "more", "thinking"),
    [
        (OLD, {}, None),
        (OLD, {"think": True}, {"includeThoughts": True}),
        (OLD, {"think": True, "think_tokens": 500}, {"includeThoughts": True, "thinkingBudget": 500}),
        (OLD, {"effort": "low"}, {"includeThoughts": True, "thinkingBudget": 1024}),
        (OLD, {"think": False}, {"thinkingBudget": 0}),
        (PRO, {"think": False}, {"thinkingBudget": 128}),
        (NEW, {"effort": "high"}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        (NEW, {"think": False}, {"thinkingLevel": "MINIMAL"}),
        (
            replace(NEW, model="gemini-3-pro-preview"),
            {"effort": "medium"},
            {"includeThoughts": True, "thinkingLevel": "HIGH"},
        ),
        (replace(OLD, model="gemini-2.0-flash"), {"think": True}, None),
        (replace(OLD, model="gemini-2.0-flash"), {"think": False}, None),
    ],
)
def test_thinking_is_asked_for_as_the_model_knows_it(model, more, thinking):
    assert sent(asked(**more), model).get("generationConfig", {}).get("thinkingConfig") == thinking


def test_what_thinking_cannot_be_is_said():
    assert "switched off" in warned(asked(think=False), PRO)
    assert warned(asked(think=False), OLD) == ""
    assert "effort instead" in warned(asked(think=True, think_tokens=50), NEW)
    assert "no medium" in warned(asked(effort="medium"), replace(NEW, model="gemini-3-pro-preview"))
    assert "does not think" in warned(asked(think=True), replace(OLD, model="gemini-2.0-flash"))


@pytest.mark.parametrize(
    "job",
    [
        Job(prompt="Once"),
        asked(n=2),
        asked(logprobs=1),
        asked(prompt_logprobs=0),
        asked(USER, Message("assistant", "I"), turn="continue"),
        asked(sampling={"logit_bias": {5: 1.0}}),
        asked(stop=tuple("abcdef")),
        asked(format=Format("regex", "a+")),
        asked(format=Format("json"), tools=(WEATHER,)),
        asked(Message("user", "", parts=(Image(url="https://x.example/a.png"),))),
        asked(Message("user", "", parts=(Image("image/gif", "AA"),))),
        asked(Message("assistant", "Hi"), USER),
        asked(Message("system", "only")),
    ],
)
def test_what_would_change_the_answer_is_refused(job):
    with pytest.raises(UnsupportedModel):
        sent(job)


def test_cache_marks_are_said():
    assert "cache" in warned(asked(Message("user", "Hello", cache="1h")))


def test_count_has_its_own_door():
    outgoing = WIRE.count(OLD, loop(PARIS))
    body = json.loads(outgoing.body)["generateContentRequest"]
    assert outgoing.path == "/models/gemini-2.5-flash:countTokens"
    assert (body["model"], len(body["contents"]), "tools" in body) == ("models/gemini-2.5-flash", 3, True)
    assert WIRE.counted(b'{"totalTokens": 31, "promptTokensDetails": []}') == 31
    with pytest.raises(UpstreamFault):
        WIRE.counted(b"{}")


# --- answers --------------------------------------------------------------------------------------------


def event(*parts: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [*parts]}, "index": index}
    if finish:
        candidate["finishReason"] = finish
    return json.dumps({"candidates": [candidate], "responseId": "r1", "modelVersion": "x", **more}).encode()


COUNTS = {
    "promptTokenCount": 20,
    "cachedContentTokenCount": 8,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 11,
    "toolUsePromptTokenCount": 3,
    "totalTokenCount": 39,
}


def read(*events: bytes, job: Job | None = None) -> tuple[list[tuple[int, Chunk]], bool]:
    reader = WIRE.reader(job or asked())
    pieces = [piece for data in events for piece in reader.push("", data)]
    return pieces, reader.ended


@pytest.mark.parametrize(
    ("given", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("LANGUAGE", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
    ],
)
def test_finish_reasons(given, finish):
    pieces, ended = read(event({"text": "Hi"}), event(finish=given, usageMetadata=COUNTS))
    assert ended
    assert pieces[-1][1].finish_reason == finish


@pytest.mark.parametrize(
    "given",
    [
        "MALFORMED_FUNCTION_CALL",
        "UNEXPECTED_TOOL_CALL",
        "OTHER",
        "MALFORMED_RESPONSE",
        "FINISH_REASON_UNSPECIFIED",
        "NEW",
    ],
)
def test_an_answer_given_up_is_no_answer(given):
    with pytest.raises(UpstreamFault, match=given) as fault:
        read(event(finish=given))
    assert fault.value.cause == "invalid"


def test_thoughts_are_output_and_tools_results_input():
    pieces, _ = read(event({"text": "Hi"}, finish="STOP", usageMetadata=COUNTS))
    assert pieces[-1][1].usage == Usage(
        prompt_tokens=23, completion_tokens=16, cached_tokens=8, thought_tokens=11
    )


def test_counts_below_0_are_invalid():
    with pytest.raises(UpstreamFault, match="below 0"):
        read(event({"text": "Hi"}, finish="STOP", usageMetadata={**COUNTS, "thoughtsTokenCount": -1}))


def test_stream_without_its_finish_reason_has_not_ended():
    pieces, ended = read(
        event({"text": "Hi"}, usageMetadata=COUNTS), event({"text": " there"}, usageMetadata=COUNTS)
    )
    assert not ended
    assert all(chunk.finish_reason is None for _, chunk in pieces)


def test_answers_end_together_once_all_have_ended():
    job = asked(n=2)
    first = event({"text": "A"}, finish="STOP", usageMetadata=COUNTS)
    pieces, ended = read(first, job=job)
    assert (ended, [i for i, _ in pieces]) == (False, [0])
    last = event({"text": "B"}, finish="MAX_TOKENS", index=1, usageMetadata=COUNTS)
    pieces, ended = read(first, last, job=job)
    ends = [(i, c.finish_reason, c.usage and c.usage.completion_tokens) for i, c in pieces if c.finish_reason]
    assert (ended, ends) == (True, [(0, "stop", 0), (1, "length", 16)])


def test_blocked_prompt_is_a_filtered_answer():
    blocked = json.dumps(
        {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9}}
    )
    ((_, chunk),), ended = read(blocked.encode())
    assert (ended, chunk.finish_reason, chunk.usage) == (True, "content_filter", Usage(9, 0))


def test_calls_get_ids_and_keep_their_signature():
    call = {"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}, "thoughtSignature": "SIG"}
    bare = {"functionCall": {"name": "now"}}
    given = {"functionCall": {"id": "abc", "name": "now", "args": {}}}
    pieces, _ = read(event(call, bare, given, finish="STOP", usageMetadata=COUNTS))
    calls: list[ToolCall] = []
    for _, chunk in pieces:
        for piece in chunk.tool_calls:
            piece.join(calls)
    first, second, third = calls
    assert first.id.startswith(OWN_ID)
    assert first.id != second.id
    assert third.id == "abc"
    assert (json.loads(first.arguments), first.signature) == ({"city": "Paris"}, "SIG")
    assert (second.arguments, third.arguments) == ("{}", "{}")
    assert pieces[-1][1].finish_reason == "tool_calls"


def test_thoughts_and_signed_text():
    pieces, _ = read(
        event({"text": "Hmm.", "thought": True}),
        event({"text": "Yes"}),
        event({"text": "", "thoughtSignature": "T"}, finish="STOP", usageMetadata=COUNTS),
    )
    chunks = [chunk for _, chunk in pieces]
    assert ("".join(c.thinking for c in chunks), "".join(c.text for c in chunks)) == ("Hmm.", "Yes")
    assert [block for c in chunks for block in c.signed] == [SignedThinking("", "T", text_before=3)]


def test_logprobs_are_read():
    scores = {
        "chosenCandidates": [{"token": "Hi", "tokenId": 5, "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "Hi", "tokenId": 5, "logProbability": -0.5}]}],
    }
    data = json.loads(event({"text": "Hi"}, finish="STOP"))
    data["candidates"][0]["logprobsResult"] = scores
    pieces, _ = read(json.dumps(data).encode())
    (logged,) = [entry for _, chunk in pieces for entry in chunk.logprobs]
    assert (logged.token_id, logged.logprob, logged.token, logged.top) == (5, -0.5, b"Hi", ((5, -0.5),))


def test_whole_answer_reads_as_its_stream():
    parts = {"text": "Hmm.", "thought": True}, {"text": "Yes", "thoughtSignature": "T"}
    answer = WIRE.whole(event(*parts, finish="STOP", usageMetadata=COUNTS), asked())
    streamed, _ = read(*(event(part) for part in parts), event(finish="STOP", usageMetadata=COUNTS))
    assert answer.answer_id == "r1"
    assert list(answer.pieces) == streamed


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'\xff{"candidates": []}', b'{"candidates": [{}]}', b"[" * 5000]
)
def test_what_is_no_answer_is_invalid(body):
    with pytest.raises(UpstreamFault) as fault:
        WIRE.whole(body, asked())
    assert fault.value.cause == "invalid"


@pytest.mark.parametrize("more", [event({"text": "x"}, index=1), event({"text": "x"}, index=-1)])
def test_answers_that_were_not_asked_for_are_invalid(more):
    with pytest.raises(UpstreamFault, match="not asked for"):
        read(more)


def error(code: int, status: str, message: str = "No.", *details: dict[str, Any]) -> bytes:
    return json.dumps(
        {"error": {"code": code, "message": message, "status": status, "details": details}}
    ).encode()


def test_an_error_in_a_stream_is_a_fault():
    with pytest.raises(UpstreamFault) as fault:
        read(event({"text": "x"}), error(503, "UNAVAILABLE", "overloaded"))
    assert (fault.value.cause, fault.value.status) == ("server", 503)


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
WRONG_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."


@pytest.mark.parametrize(
    ("status", "body", "cause", "wait"),
    [
        (400, error(400, "INVALID_ARGUMENT"), "request", None),
        (400, error(400, "INVALID_ARGUMENT", TOO_LONG), "context", None),
        (
            400,
            error(400, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes."),
            "context",
            None,
        ),
        (400, error(400, "INVALID_ARGUMENT", "API key not valid.", WRONG_KEY), "auth", None),
        (400, error(400, "FAILED_PRECONDITION", "User location is not supported."), "auth", None),
        (403, error(403, "PERMISSION_DENIED"), "auth", None),
        (404, error(404, "NOT_FOUND"), "request", None),
        (413, b"", "context", None),
        (429, error(429, "RESOURCE_EXHAUSTED", "Quota", RETRY), "rate", 34.5),
        (429, b"[" + error(429, "RESOURCE_EXHAUSTED", "Quota", RETRY) + b"]", "rate", 34.5),
        (500, error(500, "INTERNAL"), "server", None),
        (503, error(503, "UNAVAILABLE"), "server", None),
        (504, error(504, "DEADLINE_EXCEEDED"), "timeout", None),
        (502, b"<html>", "server", None),
    ],
)
def test_statuses_and_words_become_causes(status, body, cause, wait):
    fault = WIRE.fault(status, {}, body)
    assert (fault.cause, fault.status, fault.retry_after_s) == (cause, status, wait)
    assert "html" not in fault.message


# --- embeddings -----------------------------------------------------------------------------------------


def test_embeddings_are_asked_in_one_batch_and_come_at_unit_length():
    job = EmbedJob(("one", "three"), dimensions=3, truncate=True)
    outgoing = WIRE.embed(OLD, job)
    body = json.loads(outgoing.body)
    assert outgoing.path.endswith(":batchEmbedContents")
    assert outgoing.warnings == ()
    assert body["requests"][1] == {
        "model": "models/gemini-2.5-flash",
        "content": {"parts": [{"text": "three"}]},
        "outputDimensionality": 3,
    }
    came = {
        "embeddings": [{"values": [3, 4, 0]}, {"values": [0, 0, 2]}],
        "usageMetadata": {"promptTokenCount": 5},
    }
    vectors = WIRE.vectors(json.dumps(came).encode(), job)
    assert (vectors.width, vectors.tokens) == (3, (2, 3))
    assert math.isclose(struct.unpack("<6f", vectors.data)[1], 0.8, rel_tol=1e-6)


@pytest.mark.parametrize(
    "came", [{}, {"embeddings": [{"values": [1.0]}]}, {"embeddings": [{"values": [1.0]}, {"values": []}]},
             {"embeddings": [{"values": [0.0]}, {"values": [1.0]}]}],
)  # fmt: skip
def test_embeddings_that_do_not_fit_are_invalid(came):
    with pytest.raises(UpstreamFault):
        WIRE.vectors(json.dumps(came).encode(), EmbedJob(("a", "b")))


def test_embeddings_it_cannot_make_are_refused():
    for job in (EmbedJob(("a",) * 101), EmbedJob(("a",), pooling="cls")):
        with pytest.raises(UnsupportedModel):
            WIRE.embed(OLD, job)
    with pytest.raises(UsageError):
        WIRE.embed(OLD, EmbedJob(((1, 2),)))
    assert "cuts a text" in WIRE.embed(OLD, EmbedJob(("a",))).warnings[0]


def test_shared_counts_add_up():
    assert shared(10, ["a", "b", "c"]) == (3, 3, 4)
    assert sum(shared(7, ["a" * 5, "", "a" * 9, "ab"])) == 7
    assert shared(5, ["", ""]) == (2, 3)
