"""POST /v1/chat/completions: every documented field and shape, whole and streamed."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Any

import pytest

from freehold.base.types import MAX_FORMAT_CHARS, Message
from freehold.run.local import jobs
from freehold.serve.http.openai.fields import chat, generating
from tests.http.conftest import Running
from tests.http.fakes import Script

CHAT = {"model": "fake:1b", "messages": [{"role": "user", "content": "hi you"}]}


def events(text: str) -> list[Any]:
    """Return the JSON of each data line; the last line must be [DONE]."""
    lines = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def job_of(server: Running, **asked: Any) -> Any:
    answer = server.client.post("/v1/chat/completions", json={**CHAT, **asked})
    assert answer.status_code == 200, answer.text
    return server.models.served["fake:1b"].jobs[-1]


def refusal(server: Running, **asked: Any) -> dict[str, Any]:
    answer = server.client.post("/v1/chat/completions", json={**CHAT, **asked})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_whole_answer_has_openais_shape_and_a_receipt(serving):
    server = serving(Script(text="Hello there.", thinking="hm", cached=1, dropped=2))
    answer = server.client.post("/v1/chat/completions", json={**CHAT, "seed": 11})
    body = answer.json()
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "Hello there."
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == "hm"
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    receipt = body["freehold"]
    assert receipt["context"] == {"limit": 4096, "used": 5, "cached": 1, "dropped_messages": 2}
    assert receipt["sampling"]["seed"] == 11 and receipt["max_tokens"] == 4094
    assert receipt["warnings"] == [] and receipt["timings"]["total_s"] >= 0
    assert (receipt["n"], receipt["stop"], receipt["priority"]) == (1, [], "interactive")


def test_streamed_pieces_join_to_the_whole_answer(serving):
    server = serving(Script(text="One two three é 😀.", thinking="let me see"))
    whole = server.client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]
    streamed = events(server.client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)
    deltas = [e["choices"][0]["delta"] for e in streamed]
    assert "".join(d.get("content", "") for d in deltas) == whole["content"]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == whole["reasoning_content"]
    assert "".join(d.get("reasoning", "") for d in deltas) == whole["reasoning"]


def test_stream_has_one_id_role_first_and_the_finish_last(serving):
    answer = serving().client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    got = events(answer.text)
    assert len({(e["id"], e["created"], e["model"]) for e in got}) == 1
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert got[0]["freehold"]["context"]["limit"] == 4096
    assert [e["choices"][0]["finish_reason"] for e in got] == [None] * (len(got) - 1) + ["stop"]
    assert got[-1]["choices"][0]["delta"] == {} and got[-1]["freehold"]["context"]["used"] == 5
    assert not any("usage" in e for e in got)


def test_include_usage_adds_an_event_without_choices(serving):
    asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    got = events(serving().client.post("/v1/chat/completions", json=asked).text)
    assert got[-1]["choices"] == [] and got[-1]["usage"]["completion_tokens"] == 3
    assert got[-1]["freehold"]["sampling"]["seed"] == 7
    assert "freehold" not in got[-2]
    assert [e["usage"] for e in got[:-1]] == [None] * (len(got) - 1)


def test_options_of_a_stream_say_nothing_without_one_and_that_is_said(serving):
    for options, streamed in (({"include_usage": True}, False), ({"include_usage": True}, None), ({}, None)):
        asked = {**CHAT, "stream_options": options, "stream": streamed}
        body = serving().client.post("/v1/chat/completions", json=asked).json()
        said = ["field 'stream_options' was ignored: stream is not true"] if options else []
        assert body["freehold"]["warnings"] == said


def test_n_answers_are_interleaved_under_their_index(serving):
    server = serving()
    got = events(server.client.post("/v1/chat/completions", json={**CHAT, "stream": True, "n": 3}).text)
    texts = ["", "", ""]
    for e in got:
        choice = e["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["Hello there, world."] * 3
    whole = server.client.post("/v1/chat/completions", json={**CHAT, "n": 3}).json()
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 9 and whole["usage"]["prompt_tokens"] == 2
    assert sum("freehold" in e for e in got) == 4  # three that open, the last that ends


def test_pieces_that_are_there_together_go_out_together_and_lose_nothing(serving):
    server = serving(Script(text="a b c d e f", together=True))
    got = events(server.client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in got) == "a b c d e f"


def test_logprobs_have_bytes_and_alternatives(serving):
    server = serving(Script(text="Hé there"))
    asked = {**CHAT, "logprobs": True, "top_logprobs": 2}
    content = server.client.post("/v1/chat/completions", json=asked).json()["choices"][0]["logprobs"][
        "content"
    ]
    assert content[0]["token"] == "Hé" and bytes(content[0]["bytes"]).decode() == "Hé"
    assert content[0]["logprob"] == -0.5
    assert [t["logprob"] for t in content[0]["top_logprobs"]] == [-0.5, -1.5]
    streamed = events(server.client.post("/v1/chat/completions", json={**asked, "stream": True}).text)
    again = [e["choices"][0]["logprobs"]["content"] for e in streamed if e["choices"][0].get("logprobs")]
    assert [*chain(*again)] == content


def test_token_ids_come_when_asked_for(serving):
    server = serving()
    asked = {**CHAT, "return_token_ids": True, "logprobs": True}
    choice = server.client.post("/v1/chat/completions", json=asked).json()["choices"][0]
    assert len(choice["token_ids"]) == 3
    assert [t["id"] for t in choice["logprobs"]["content"]] == choice["token_ids"]
    got = events(server.client.post("/v1/chat/completions", json={**asked, "stream": True}).text)
    assert [i for e in got for i in e["choices"][0].get("token_ids", [])] == choice["token_ids"]
    prompt = server.client.post("/tokenize", json={k: CHAT[k] for k in ("model", "messages")}).json()[
        "tokens"
    ]
    assert got[0]["prompt_token_ids"] == prompt and not any("prompt_token_ids" in e for e in got[1:])


def test_a_salt_has_a_part_of_the_cache_of_its_own_and_no_other_share(serving):
    server = serving()
    plain, *salted = (job_of(server, **more) for more in ({}, {"cache_salt": "a"}, {"cache_salt": "b"}))
    tenants = [job.tenant for job in (plain, *salted)]
    assert len(set(tenants)) == 3 and all(each.startswith(f"{tenants[0]}|") for each in tenants[1:])
    assert {job.client for job in salted} == {plain.client}


def test_sampling_fields_reach_the_job_and_only_those_given(serving):
    server = serving()
    assert dict(job_of(server).sampling) == {}
    given = {
        "temperature": 0,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.2,
        "penalty_window": 0,
        "seed": 3,
    }
    job = job_of(server, **given, top_k=-1, logit_bias={"12": -100})
    assert dict(job.sampling) == {**given, "top_k": 0, "logit_bias": {12: -100}}


@pytest.mark.parametrize("given, used", [(-1, None), (-2, (1 << 63) - 2), (-(1 << 63), 0)])
def test_a_negative_seed_is_one_too_but_for_the_one_that_asks_for_chance(serving, given, used):
    assert job_of(serving(), seed=given).sampling.get("seed") == used


def test_other_fields_reach_the_job(serving):
    server = serving()
    job = job_of(server, stop="END", max_tokens=5, max_completion_tokens=9, ignore_eos=True, timeout=25)
    assert (job.stop, job.max_tokens, job.ignore_eos) == (("END",), 9, True)
    assert job.timeout_s is not None and 20 < job.timeout_s <= 25
    job = job_of(server, stop=["a", "b"], max_tokens=5, think=False, overflow="drop-oldest")
    assert (job.stop, job.max_tokens, job.think, job.overflow) == (("a", "b"), 5, False, "drop-oldest")
    assert job_of(server, top_logprobs=3, logprobs=True).logprobs == 3
    assert job_of(server, logprobs=True).logprobs == 0
    assert job_of(server, logprobs=False, top_logprobs=0).logprobs is None


@pytest.mark.parametrize(
    "given, priority",
    [(None, "interactive"), ("batch", "batch"), (0, "interactive"), (-3, "interactive"), (1, "batch")],
)
def test_priority_is_read_in_words_and_in_vllms_numbers(serving, given, priority):
    assert job_of(serving(), priority=given).priority == priority


@pytest.mark.parametrize(
    "given, seconds",
    [
        *[
            (30, 30),
            ("10m", 600),
            ("1h30m", 5400),
            ("500ms", 0.5),
            (-1, -1),
            ("-1m", -60),
            (0, 0),
            ("90", 90),
        ],
        *[("99999999h", math.inf), (1e300, math.inf)],  # no date that far can be written
    ],
)
def test_keep_alive_is_read_as_ollama_reads_it(serving, given, seconds):
    server = serving()
    job_of(server, keep_alive=given)
    assert server.models.served["fake:1b"].keep_alives[-1] == pytest.approx(seconds)


@pytest.mark.parametrize(
    "fields, think",
    [
        ({}, None),
        ({"think": True}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
def test_thinking_is_switched_by_any_of_its_names(serving, fields, think):
    assert job_of(serving(), **fields).think is think


def test_messages_are_read_in_parts_and_old_roles(serving):
    chat = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning_content": "hm"},
        {"role": "user", "content": "d"},
    ]
    assert job_of(serving(), messages=chat).messages == (
        Message("system", "be brief"),
        Message("user", "ab"),
        Message("assistant", "c", "hm"),
        Message("user", "d"),
    )


def test_no_value_passes_the_server_to_fail_at_the_engine():
    assert generating.MAX_N <= jobs.MAX_ANSWERS and chat.MAX_LOGPROBS <= jobs.MAX_LOGPROBS
    assert generating.MAX_STOPS <= jobs.MAX_STOPS and generating.MAX_STOP_CHARS <= jobs.MAX_STOP_CHARS
    assert generating.MAX_BIASES <= jobs.MAX_BIASES and chat.MAX_MESSAGES <= jobs.MAX_MESSAGES


def test_an_answer_longer_than_the_context_is_cut_with_a_warning(serving):
    client = serving().client
    said = "max_tokens was reduced to fit the context of 4,096 tokens"
    for limit, warnings in ((9, []), (4094, []), (4095, [said])):
        body = client.post("/v1/chat/completions", json={**CHAT, "max_tokens": limit}).json()
        assert body["freehold"]["warnings"] == warnings
        assert body["freehold"]["max_tokens"] == min(limit, 4094)
    two = {"model": "fake:1b", "prompt": ["a", "b"], "max_tokens": 5000}
    assert client.post("/v1/completions", json=two).json()["freehold"]["warnings"] == [said]


def test_unknown_fields_are_named_in_warnings_with_the_nearest_name(serving):
    server = serving()
    asked = {**CHAT, "temprature": 0.1, "verbosity": "low", "repeat_penalty": 1.1, "store": False}
    asked |= dict.fromkeys(("service_tier", "safety_identifier", "prompt_cache_key"), "x")
    warnings = server.client.post("/v1/chat/completions", json=asked).json()["freehold"]["warnings"]
    assert warnings == [
        "unknown field 'repeat_penalty' was ignored; did you mean repetition_penalty?",
        "unknown field 'temprature' was ignored; did you mean temperature?",
        "field 'verbosity' was ignored: this server does not use it",
    ]
    coloured = {"role": "user", "content": "x", "colour": "red"}
    body = server.client.post("/v1/chat/completions", json={**CHAT, "messages": [coloured]}).json()
    assert body["freehold"]["warnings"] == ["field 'colour' of messages was ignored"]
    asked = {
        **CHAT,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    got = events(server.client.post("/v1/chat/completions", json=asked).text)
    assert got[-1]["freehold"]["warnings"] == ["field 'continuous_usage_stats' of stream_options was ignored"]


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"structural_tag": {}},
        {"best_of": 3},
        {"min_tokens": 4},
        {"prompt_logprobs": 1},
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(serving, fields):
    error = refusal(serving(), **fields)
    assert error["code"] == "unsupported_parameter" and error["param"] == next(iter(fields))


def test_such_fields_pass_where_they_say_nothing(serving):
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "best_of": 1,
        "functions": None,
        "parallel_tool_calls": True,
        "add_special_tokens": False,
    }
    body = serving().client.post("/v1/chat/completions", json={**CHAT, **neutral}).json()
    assert body["freehold"]["warnings"] == []


def test_images_in_messages_are_refused(serving):
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    assert refusal(serving(), messages=[image])["code"] == "unsupported_content"


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"temperature": "hot"}, "temperature", ["'hot'", "float"]),
        ({"temperature": -1}, "temperature", ["-1", ">= 0"]),
        ({"n": 0}, "n", ["0", ">= 1"]),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", ["21", "<= 20"]),
        ({"top_logprobs": 2}, "top_logprobs", ["logprobs"]),
        ({"seed": -(1 << 63) - 1}, "seed", [str(-(1 << 63))]),
        ({"seed": 1.5}, "seed", ["1.5", "int"]),
        ({"stop": ["x"] * 17}, "stop", ["17", "16"]),
        ({"stop": ""}, "stop", ["0", "1,024"]),
        ({"stop": [1]}, "stop[0]", ["1", "str"]),
        ({"logit_bias": {"x": 1}}, "logit_bias", ["'x'"]),
        ({"logit_bias": {"5": 101}}, "logit_bias", ["an entry of logit_bias is wrong", "100"]),
        ({"logit_bias": {str(i): 1 for i in range(1001)}}, "logit_bias", ["1000"]),
        ({"messages": []}, "messages", ["1"]),
        ({"messages": "hi"}, "messages", ["'hi'"]),
        (
            {"messages": [{"role": "boss", "content": "x"}]},
            "messages[0].role",
            ["'boss': expected assistant"],
        ),
        ({"messages": [{"content": "x"}]}, "messages[0].role", ["missing"]),
        ({"messages": [{"role": "user"}]}, "messages[0].content", ["missing", "user"]),
        ({"messages": [{"role": "system", "content": None}]}, "messages[0].content", ["missing"]),
        ({"model": 3}, "model", ["3", "str"]),
        ({"model": ""}, "model", ["''"]),
        ({"max_tokens": 0}, "max_tokens", ["0"]),
        ({"max_completion_tokens": 0}, "max_completion_tokens", ["0"]),
        ({"stream": "yes"}, "stream", ["'yes'", "bool"]),
        ({"keep_alive": "soon"}, "keep_alive", ["'soon'"]),
        ({"timeout": 0}, "timeout", ["0"]),
        ({"overflow": "cut"}, "overflow", ["overflow is 'cut': expected drop-oldest or error"]),
        ({"priority": "high"}, "priority", ["priority is 'high': expected batch or interactive"]),
        ({"user": "x" * 513}, "user", ["512"]),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_what_was_expected(serving, fields, param, words):
    error = refusal(serving(), **fields)
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert all(word in error["message"] for word in [param, *words]), error["message"]


def test_a_missing_field_is_named(serving):
    answer = serving().client.post("/v1/chat/completions", json={"model": "fake:1b"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "messages is missing"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "x", "schema": SCHEMA, "strict": True}


@pytest.mark.parametrize(
    "fields, kind, source",
    [
        ({"response_format": {"type": "json_object"}}, "json", ""),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, "json_schema", SCHEMA),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json_object": True}}, "json", ""),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["é", "b"]}}, "choice", ["é", "b"]),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", 'start: "a"'),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a"]}, "choice", ["a"]),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"json_schema": SCHEMA}, "json_schema", SCHEMA),
        ({"grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, "regex", "a"),
    ],
)  # fmt: skip
def test_format_is_taken_from_every_name_it_has(serving, fields, kind: str, source: Any):
    server = serving()
    format = job_of(server, **fields).format
    assert format.kind == kind
    assert format.source == source
    text = {"model": "fake:1b", "prompt": "x", **fields}
    assert server.client.post("/v1/completions", json=text).status_code == 200
    assert server.models.served["fake:1b"].jobs[-1].format == format


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"guided_regex": "a", "json_schema": {}}, "json_schema", ["guided_regex and json_schema both"]),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", ["both say"]),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", ["structural_tag"]),
        ({"response_format": {"type": "json_schema"}}, "response_format", ["json_schema.schema"]),
        ({"response_format": {"type": "xml"}}, "response_format.type", ["'xml'"]),
        ({"grammar": 'root ::= "a"'}, "grammar", ["GBNF", "Lark"]),
        ({"guided_regex": "a" * (MAX_FORMAT_CHARS + 1)}, "guided_regex", ["262144"]),
        ({"json_schema": {"enum": ["a" * MAX_FORMAT_CHARS]}}, "json_schema", ["262,144"]),
        ({"guided_json": "{wrong"}, "guided_json", ["JSON schema is not JSON"]),
    ],
)
def test_format_that_cannot_be_is_refused_by_what_is_wrong(serving, fields, param: str, words: list[str]):
    error = refusal(serving(), **fields)
    assert error["param"] == param and [w for w in words if w not in error["message"]] == []


def test_integers_beyond_the_wire_become_floats(serving):
    large = {"type": "integer", "minimum": 2**64 - 1, "maximum": 10**30, "title": "1" * 30}
    read = {**large, "maximum": 1e30}
    for fields in ({"json_schema": large}, {"guided_json": json.dumps(large)}):
        assert job_of(serving(), **fields).format.source == read
    tool = {"type": "function", "function": {"name": "f", "parameters": large}}
    assert job_of(serving(), tools=[tool]).tools[0].parameters == read


# A last message that is the assistant's.

BEGUN = {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": "The colour is"}]}


@pytest.mark.parametrize(
    "fields, turn",
    [
        ({}, "new"),  # OpenAI answers anew
        ({"continue_final_message": False, "add_generation_prompt": True}, "new"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue"),
        ({"continue_final_message": True}, "continue"),
        ({"add_generation_prompt": False}, "none"),
    ],
)
def test_last_message_is_continued_where_vllms_fields_say_so(serving, fields, turn):
    server = serving()
    answer = server.client.post("/v1/chat/completions", json={**BEGUN, **fields})
    assert answer.json()["freehold"]["warnings"] == []
    job = server.models.served["fake:1b"].jobs[-1]
    assert job.turn == turn and job.messages[-1].content == "The colour is"


def test_last_message_is_not_continued_and_opened_at_once(serving):
    both = {**BEGUN, "continue_final_message": True, "add_generation_prompt": True}
    error = serving().client.post("/v1/chat/completions", json=both).json()["error"]
    assert error["param"] == "continue_final_message" and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "field, low, high, beyond",
    [
        ("temperature", 0, 2, (-0.1, 2.1)),
        ("top_p", 0, 1, (-0.1, 1.1)),
        ("presence_penalty", -2, 2, (-2.1, 2.1)),
        ("frequency_penalty", -2, 2, (-2.1, 2.1)),
        ("n", 1, 128, (0, 129)),
    ],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_ranges_are_openais(serving, route, field, low, high, beyond):
    client = serving(Script(text="a")).client
    asked = CHAT if "chat" in route else {"model": "fake:1b", "prompt": "x"}
    for value in (low, high):
        answer = client.post(route, json={**asked, field: value})
        assert answer.status_code == 200, answer.text
    for value in beyond:
        answer = client.post(route, json={**asked, field: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field
        assert f"{value}" in answer.json()["error"]["message"]
