"""POST /v1/responses: every documented field and item, whole and streamed, and what is kept of it."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from freehold.base.errors import BadTemplate, ContextOverflow, EngineLost, Overloaded
from freehold.base.types import Format, Message, Tool, ToolCall
from freehold.serve.http.core.fields import Pictures
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.responses import routes
from freehold.serve.http.openai.responses.fields import read_items
from freehold.serve.http.openai.responses.store import Bounds, Keeping, Responses, StoredItem
from tests.http.conftest import Running
from tests.http.fakes import Script, failing
from tests.http.test_streams import eventually

URL = "/v1/responses"
ASK = {"model": "fake:1b", "input": "hi you"}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Patch files."}
IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}
UNANSWERED = {"type": "function_call", "call_id": "9", "name": "weather", "arguments": "{}"}
UNASKED = {"type": "function_call_output", "call_id": "9", "output": ""}
LAST = ("response.completed", "response.incomplete", "response.failed")


def events(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream; checks names, numbers, and that exactly the last one ends it."""
    got = []
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            got.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {got[-1]['type']}"
    assert [e["sequence_number"] for e in got] == [*range(len(got))]
    assert [e["type"] for e in got[:2]] == ["response.created", "response.in_progress"]
    assert [e["type"] in LAST for e in got] == [False] * (len(got) - 1) + [True]
    return got


def stream(server: Running, **asked: Any) -> list[dict[str, Any]]:
    answer = server.client.post(URL, json={**ASK, "stream": True, **asked})
    assert answer.status_code == 200, answer.text
    return events(answer.text)


def whole(server: Running, **asked: Any) -> dict[str, Any]:
    answer = server.client.post(URL, json={**ASK, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def job_of(server: Running, **asked: Any) -> Any:
    whole(server, **asked)
    return server.models.served["fake:1b"].jobs[-1]


def refusal(server: Running, status: int = 400, **asked: Any) -> dict[str, Any]:
    answer = server.client.post(URL, json={**ASK, **asked})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.items() if k != "id"} for item in items]


def test_a_whole_answer_has_openais_shape_and_a_receipt(serving):
    body = whole(serving(Script(text="Hello there.", thinking="let me see", cached=1)), metadata={"a": "b"})
    assert body["object"] == "response" and body["id"].startswith("resp_") and body["status"] == "completed"
    thought, message = body["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "let me see"}]
    assert message["role"] == "assistant" and message["status"] == "completed"
    assert message["content"] == [
        {"type": "output_text", "text": "Hello there.", "annotations": [], "logprobs": []}
    ]
    assert body["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 7,
    }
    assert body["metadata"] == {"a": "b"} and body["temperature"] == 0.7 and body["store"] is True
    assert body["freehold"]["context"]["limit"] == 4096 and body["freehold"]["warnings"] == []


@pytest.mark.parametrize(
    "script",
    [
        Script(),
        Script(text="", thinking=""),
        Script(text="  \n", thinking="hm"),
        Script(text=" Yes ", thinking="hm so", calls=(("weather", '{"a": 1}'), ("apply_patch", '{"input": "x"}'))),
        Script(text="\n", calls=(("weather", '{"a": 1}'), ("weather", "{}")), after="and more"),
        Script(text="", calls=(("weather", "{}"),), after=" \n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("limit", [None, 1, 3, 4])
def test_a_stream_announces_the_items_of_the_whole_answer(serving, script, limit):
    asked = {
        "tools": [WEATHER, PATCH],
        "max_output_tokens": limit,
        "include": ["message.output_text.logprobs"],
    }
    server = serving(script)
    body, got = whole(server, **asked), stream(server, **asked)
    last = got[-1]["response"]
    assert without_ids(last["output"]) == without_ids(body["output"]) and last["usage"] == body["usage"]
    assert got[-1]["type"] == f"response.{body['status']}" == f"response.{last['status']}"
    added = [e["item"] for e in got if e["type"] == "response.output_item.added"]
    done = [e["item"] for e in got if e["type"] == "response.output_item.done"]
    assert done == last["output"] and [i["id"] for i in added] == [i["id"] for i in done]
    for index, item in enumerate(done):
        mine = [e for e in got if e.get("item_id") == item["id"]]
        assert {e["output_index"] for e in mine} == {index}
        said = "".join(e["delta"] for e in mine if e["type"].endswith(".delta"))
        assert said == (
            item.get("arguments") or item.get("input") or item.get("content", [{}])[0].get("text", "")
        )


@pytest.mark.parametrize("streamed", [True, False])
def test_log_probabilities_that_wait_for_an_answers_end_are_counted_as_the_callers(serving, streamed: bool):
    """A stream kept all of them until its end, and counted none."""
    server = serving(Script(text="word " * 400), limits=ServerLimits(caller_bytes=100_000))
    asked = {**ASK, "include": ["message.output_text.logprobs"], "top_logprobs": 20, "stream": streamed}
    answer = server.client.post(URL, json=asked)
    if streamed:
        last = events(answer.text)[-1]
        assert (
            last["type"] == "response.failed" and last["response"]["error"]["code"] == "rate_limit_exceeded"
        )
    else:
        assert answer.status_code == 429
    assert server.client.post(URL, json={**asked, "top_logprobs": 0}).status_code == 200
    assert eventually(lambda: server.doors.server.bodies.held == 0)


def test_events_of_a_message_come_in_openais_order(serving):
    got = [e["type"].removeprefix("response.") for e in stream(serving(Script(text="Hello there.")))]
    assert got == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip


def test_reasoning_comes_as_text_or_under_the_name_of_a_summary(serving):
    server = serving(Script(thinking="hm so", text="Yes"))
    plain = [e["type"] for e in stream(server)]
    assert "response.reasoning_text.delta" in plain and "response.reasoning_text.done" in plain
    got = stream(server, reasoning={"summary": "auto"})
    assert "response.reasoning_summary_part.added" in [e["type"] for e in got]
    said = [e for e in got if e["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(e["delta"] for e in said) == "hm so" and {e["summary_index"] for e in said} == {0}
    item = got[-1]["response"]["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "hm so"}] and item["content"] == []


def test_calls_of_functions_and_of_free_form_tools(serving):
    patch = '*** Begin Patch\n"é"\n'
    calls = (("weather", '{"city": "Ulm"}'), ("apply_patch", json.dumps({"input": patch})))
    got = stream(serving(Script(text="", calls=calls)), tools=[WEATHER, PATCH])
    first, second = got[-1]["response"]["output"]
    assert first["type"] == "function_call" and first["call_id"] == "call_0"
    assert json.loads(first["arguments"]) == {"city": "Ulm"}
    assert (second["type"], second["name"], second["input"]) == ("custom_tool_call", "apply_patch", patch)
    said = [e["delta"] for e in got if e["type"] == "response.custom_tool_call_input.delta"]
    assert said == [patch]


@pytest.mark.parametrize("written", ["no json", '{"text": "x"}', '["x"]', '{"input": 1}', ""])
def test_a_free_form_call_that_is_no_such_object_is_shown_as_written(serving, written):
    body = whole(serving(Script(text="", calls=(("apply_patch", written),))), tools=[PATCH])
    assert body["output"][0]["input"] == written


def test_an_answer_cut_by_its_limit_is_incomplete(serving):
    server = serving(Script(text="one two three"))
    for body in (whole(server, max_output_tokens=2), stream(server, max_output_tokens=2)[-1]["response"]):
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}
        assert body["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_stream_ends_with_failed_when_the_engine_dies(serving, at):
    # The delay lets the stream begin, with a comment.
    script = Script(text="one two three", fail=EngineLost("it died"), fail_at=at, start_delay=0.15)
    server = serving(script, keep_alive_s=0.05)
    last = stream(server)[-1]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "it died" in last["response"]["error"]["message"]


@pytest.mark.parametrize(
    "error, status, code",
    [
        (
            ContextOverflow("the prompt has 9,000 tokens; there is room for 4,096"),
            400,
            "context_length_exceeded",
        ),
        (BadTemplate("roles must alternate"), 400, "template_refused"),
        (Overloaded("full", wait_s=1), 429, "overloaded"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_before_the_first_event_has_its_status(serving, error, status, code, streamed):
    said = refusal(serving(failing("start", error)), status, stream=streamed)
    assert said["code"] == code and said["message"].startswith(error.message)


def test_a_context_overflow_after_a_comment_has_the_code_agents_know(serving):
    server = serving(
        Script(start_delay=0.3, fail=ContextOverflow("9,000 tokens, room for 4,096")), keep_alive_s=0.05
    )
    answer = server.client.post(URL, json={**ASK, "stream": True}).text
    assert events(answer)[-1]["response"]["error"]["code"] == "context_length_exceeded"


def test_fields_reach_the_job(serving):
    server = serving()
    job = job_of(
        server,
        instructions="be brief",
        temperature=0,
        top_p=0.5,
        max_output_tokens=9,
        top_logprobs=2,
        reasoning={"effort": "high"},
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        truncation="auto",
        seed=3,
        stop=["END"],
        priority="batch",
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    )
    assert job.messages == (Message("system", "be brief"), Message("user", "hi you"))
    assert dict(job.sampling) == {"temperature": 0, "top_p": 0.5, "seed": 3}
    assert (job.max_tokens, job.logprobs, job.effort, job.think) == (9, 2, "high", None)
    assert job.tools == (Tool("weather", "", {"type": "object"}),)
    assert (job.tool_choice, job.tool_name, job.parallel_tool_calls) == ("required", "", False)
    assert (job.overflow, job.stop, job.priority) == ("drop-oldest", ("END",), "batch")
    assert job.format == Format("json_schema", '{"type":"object"}')
    assert job_of(server, text={"format": {"type": "json_object"}}).format == Format("json")
    assert job_of(server, text={"format": {"type": "text"}}).format is None
    assert job_of(server, guided_regex="a+").format == Format("regex", "a+")
    assert job_of(server, reasoning={"effort": "none"}).think is False
    assert job_of(server).overflow == "error"


@pytest.mark.parametrize(
    "choice, mode, name, offered",
    [
        ("none", "none", "", 2),
        ({"type": "function", "name": "weather"}, "required", "weather", 2),
        ({"type": "custom", "name": "apply_patch"}, "required", "apply_patch", 2),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "weather"}, {"name": []}]},
            "auto",
            "",
            1,
        ),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"name": "weather"}]}, "required", "", 1),
    ],
)
def test_a_choice_of_tools_is_read_in_every_form(serving, choice, mode, name, offered):
    job = job_of(serving(), tools=[WEATHER, PATCH], tool_choice=choice)
    assert (job.tool_choice, job.tool_name, len(job.tools)) == (mode, name, offered)


def test_a_free_form_tool_is_told_of_as_a_function_of_one_text(serving):
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
    server = serving()
    (tool,) = job_of(server, tools=[{**PATCH, "format": grammar}]).tools
    assert tool.parameters["required"] == ["input"] and "start: /x+/" in tool.description
    warnings = whole(server, tools=[{**PATCH, "format": grammar}])["freehold"]["warnings"]
    assert warnings == ["the grammar of 'apply_patch' is shown to the model and not enforced"]


def test_tools_that_a_provider_runs_are_left_out_with_a_warning(serving):
    tools = [
        {"type": "web_search"},
        WEATHER,
        {"type": "namespace", "name": "x", "tools": []},
        {},
    ]
    server = serving()
    assert [t.name for t in job_of(server, tools=tools).tools] == ["weather"]
    warnings = whole(server, tools=tools)["freehold"]["warnings"]
    assert [w.split("'")[1] for w in warnings] == ["web_search", "namespace", "None"]


def test_items_become_the_turns_of_a_chat(serving):
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "content": None,
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "apply_patch", "input": "p"},
        {"type": "function_call_output", "call_id": "1", "output": "sun"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "ok"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]},
        {"type": "function_call", "call_id": "3", "name": "weather", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "3", "output": "rain"},
    ]
    assert job_of(serving(), input=items, instructions="be brief").messages == (
        Message("system", "be brief\n\nrules"),
        Message("user", "ab"),
        Message(
            "assistant",
            "c",
            "hm",
            (ToolCall("1", "weather", "{}"), ToolCall("2", "apply_patch", '{"input":"p"}')),
        ),
        Message("tool", "sun", tool_call_id="1", name="weather"),
        Message("tool", "ok", tool_call_id="2", name="apply_patch"),
        Message("assistant", "", "so", (ToolCall("3", "weather", '{"a":1}'),)),
        Message("tool", "rain", tool_call_id="3", name="weather"),
    )


@pytest.mark.parametrize(
    "asked, param, code",
    [
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "unsupported_item"),
        ({"input": [3]}, "input[0]", "invalid_value"),
        ({"input": []}, "input", None),
        ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [IMAGE]}, "input[0].content[0]", "unsupported_content"),
        ({"input": [UNASKED]}, "input[0].call_id", "invalid_value"),
        ({"input": [UNANSWERED, {"role": "user", "content": "x"}]}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "msg_9"}]}, "input[0].id", "item_not_found"),
        ({"previous_response_id": "resp_9"}, "previous_response_id", "previous_response_not_found"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"guided_regex": "a", "text": {"format": {"type": "json_object"}}}, "text.format", None),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"n": 1000}, "n", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", None),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", None),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "nix"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "missing_required_parameter"),
        ({"text": {"format": {"type": "json_schema", "schema": {"x": "y" * 300_000}}}}, "text.format.schema", None),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
        ({"metadata": {"a": "b" * 513}}, "metadata", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(serving, asked, param, code):
    error = refusal(serving(), **asked)
    assert error["param"] == param and error["code"] == code, error


def test_a_model_that_is_not_here_and_a_body_too_long(serving):
    assert refusal(serving(), 404, model="nix")["code"] == "model_not_found"
    server = serving(limits=ServerLimits(body_bytes=1000))
    assert refusal(server, 413, input="x" * 2000)["code"] == "body_too_large"
    assert server.client.post(URL, json={"model": "fake:1b"}).json()["error"]["message"] == "input is missing"


def test_what_is_left_out_is_named_in_warnings(serving):
    body = whole(
        serving(),
        instrucions="x",
        text={"verbosity": "low"},
        include=["reasoning.encrypted_content", "computer_call_output.output.image_url"],
        input=[{"role": "user", "content": "x", "mood": "good"}],
    )
    assert body["freehold"]["warnings"] == [
        "unknown field 'instrucions' was ignored; did you mean instructions?",
        "field 'mood' of items was ignored",
        "include reasoning.encrypted_content was ignored: reasoning comes in the open",
        "include 'computer_call_output.output.image_url' was ignored",
        "text.verbosity was ignored: say it in the instructions",
    ]
    silent = {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "service_tier": "auto"}
    assert whole(serving(), **silent)["freehold"]["warnings"] == []


def test_a_stored_response_is_given_again_and_listed_and_deleted(serving):
    server = serving(Script(text="Yes."))
    body = whole(server, instructions="be brief")
    at = f"{URL}/{body['id']}"
    assert server.client.get(at).json() == body
    items = server.client.get(f"{at}/input_items").json()
    assert items["data"][0]["content"] == [{"type": "input_text", "text": "hi you"}]
    assert items["first_id"] == items["last_id"] == items["data"][0]["id"] and not items["has_more"]
    assert server.client.post(f"{at}/cancel").json()["error"]["code"] == "not_in_background"
    assert server.client.delete(at).json() == {"id": body["id"], "object": "response", "deleted": True}
    for answer in (server.client.get(at), server.client.delete(at), server.client.post(f"{at}/cancel")):
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "response_not_found"
    unkept = whole(server, store=False)["id"]
    assert server.client.get(f"{URL}/{unkept}").status_code == 404


def test_a_chat_goes_on_from_a_stored_response(serving):
    server = serving(Script(text="Yes.", thinking="hm", calls=(("weather", "{}"),)))
    first = stream(server, tools=[WEATHER], instructions="be brief")[-1]["response"]
    result = {"type": "function_call_output", "call_id": "call_0", "output": "sun"}
    job = job_of(server, previous_response_id=first["id"], input=[result], store=False)
    assert job.messages == (
        Message("user", "hi you"),
        Message("assistant", "Yes.", "hm", (ToolCall("call_0", "weather", "{}"),)),
        Message("tool", "sun", tool_call_id="call_0", name="weather"),
    )
    second = whole(server, previous_response_id=first["id"], input=[result])
    kinds = [
        i["type"] for i in server.client.get(f"{URL}/{second['id']}/input_items?order=asc").json()["data"]
    ]
    assert kinds == ["message", "reasoning", "message", "function_call", "function_call_output"]
    page = server.client.get(f"{URL}/{second['id']}/input_items?order=asc&limit=2").json()
    rest = server.client.get(f"{URL}/{second['id']}/input_items?order=asc&after={page['last_id']}").json()
    assert page["has_more"] and [i["type"] for i in rest["data"]] == kinds[2:]


def test_a_reference_is_replaced_by_the_item_it_names(serving):
    server = serving(Script(text="Yes."))
    said = whole(server)["output"][0]
    job = job_of(
        server, input=[{"type": "item_reference", "id": said["id"]}, {"role": "user", "content": "go on"}]
    )
    assert job.messages == (Message("assistant", "Yes."), Message("user", "go on"))


def test_a_reference_repeated_has_a_bound_and_is_parsed_once(serving, monkeypatch):
    server, parsed = serving(Script(text="Yes.")), []
    item_of = StoredItem.parsed
    monkeypatch.setattr(StoredItem, "parsed", lambda item: parsed.append(item) or item_of(item))
    said = whole(server, input="x" * 100_000)
    listed = server.client.get(f"{URL}/{said['id']}/input_items").json()["data"]
    assert parsed == []
    asked = {"type": "item_reference", "id": listed[0]["id"]}
    assert len(job_of(server, input=[asked] * 100).messages) == 100
    assert len(parsed) == 1
    error = refusal(server, input=[asked] * 200)
    assert error["param"] == "input" and "expected at most 16,777,216" in error["message"]


def parts(count: int) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_text", "text": ""}] * count}


def test_a_chat_that_is_continued_may_hold_what_a_body_may(serving):
    server = serving(Script(text="Yes."))
    first = whole(server, input=[parts(1000)] * 40)
    second = whole(server, input=[parts(1000)] * 26, previous_response_id=first["id"])
    error = refusal(server, previous_response_id=second["id"])
    assert error["param"] == "previous_response_id" and error["code"] == "chat_too_long"
    assert "the chat so far has 66,1" in error["message"] and "expected at most 65,536" in error["message"]
    item = server.client.get(f"{URL}/{first['id']}/input_items?limit=1").json()["data"][0]
    again = {"type": "item_reference", "id": item["id"]}
    error = refusal(server, input=[again] * 66)
    assert error["param"] == "input" and "lists and objects; expected at most 65,536" in error["message"]


def test_a_chat_of_many_parts_is_read_and_kept_beside_the_loop(serving, monkeypatch):
    server, threads = serving(Script(text="Yes.")), []
    for owner, name in ((StoredItem, "of"), (StoredItem, "parsed")):
        inner = getattr(owner, name)
        seen = lambda *args, inner=inner: threads.append(threading.get_ident()) or inner(*args)  # noqa: E731
        monkeypatch.setattr(owner, name, seen)
    read = routes.response_job
    monkeypatch.setattr(routes, "response_job", lambda *a: threads.append(threading.get_ident()) or read(*a))
    first = whole(server, input=[parts(1000)] * 4)
    threads.clear()
    whole(server, previous_response_id=first["id"], input="go on")
    assert len(threads) == 4 + 1 + 1 + 1 + 1 and server.thread.ident not in threads


def test_ten_thousand_items_of_one_turn_are_joined_once():
    rules = [{"role": "system", "content": "x" * 1500}] * 9_998
    thoughts = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "y" * 1500}]}] * 9_998
    began = time.process_time()
    system, user = read_items([*rules, {"role": "user", "content": "hi"}], "Be brief.", 0, [], Pictures())
    assert system.content.startswith("Be brief.\n\nxx") and len(system.content) == 9 + 9_998 * 1502
    *_, answer = read_items([*thoughts, {"role": "assistant", "content": "A"}], None, 0, [], Pictures())
    assert user.content == "hi" and len(answer.thinking) == 9_998 * 1502 - 2
    assert time.process_time() - began < 3  # seconds; adding one behind the other took 90


def response(id: str, size: int) -> dict[str, Any]:
    return {"id": id, "output": [], "text": "x" * size}


def keep(store: Responses, tenant: str, response: dict[str, Any], *asked: StoredItem) -> str:
    keeping = Keeping(store, tenant, asked, None)
    why = keeping.prepare(response, ())
    keeping.put()
    return why


def test_tenants_see_only_their_own_and_the_oldest_goes_first():
    store = Responses(Bounds(one=1000, tenant=2500, everybody=4000))
    for id in ("a", "b"):
        item = StoredItem.of({"type": "reasoning", "id": f"item-{id}"})
        assert keep(store, "ann", response(id, 400), item) == ""
    with pytest.raises(Refused, match="no response 'a'"):
        store.get("bob", "a")
    (found,) = store.named("ann", ["item-a"]).values()
    assert store.named("bob", ["item-a"]) == {} and found.parsed()["id"] == "item-a"
    store.get("ann", "a")
    keep(store, "ann", response("c", 900))
    with pytest.raises(Refused, match="'b'"):
        store.get("ann", "b")
    assert store.named("ann", ["item-b"]) == {} and store.get("ann", "a")
    for id in ("d", "e"):  # the sum is too large: who has most loses
        keep(store, "bob", response(id, 900))
    assert store.bytes <= 4000 and store.get("bob", "e")
    assert "more than 1,000" in keep(store, "bob", response("f", 2000))


def test_what_is_too_large_to_keep_is_said(serving):
    server = serving()
    server.doors.server.part(Responses)._bounds = Bounds(one=10)
    try:
        body = whole(server)
        assert body["store"] is False and "was not stored" in body["freehold"]["warnings"][0]
    finally:
        server.doors.server.part(Responses)._bounds = Bounds()


def test_keys_keep_responses_apart(serving):
    from freehold.serve.http.core.keys import Ring, key_of

    keys = {"ann": "a" * 20, "bob": "b" * 20}
    client = serving(keys=Ring(key_of(*pair) for pair in keys.items())).client
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
    id = client.post(URL, json=ASK, headers=ann).json()["id"]
    assert client.get(f"{URL}/{id}", headers=ann).status_code == 200
    assert client.get(f"{URL}/{id}", headers=bob).status_code == 404
    asked = {**ASK, "previous_response_id": id}
    assert client.post(URL, json=asked, headers=bob).status_code == 400
