"""POST /v1/messages and its neighbours as raw HTTP: every field, every shape, every refusal, what the cache needs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from freehold.base import errors
from freehold.base.types import Format, Message, Tool, ToolCall
from freehold.serve.http.anthropic.fields import Block, InputMessage
from freehold.serve.http.anthropic.job import BILLING, read_chat
from freehold.serve.http.anthropic.shape import anthropic_error
from freehold.serve.http.core.fields import Pictures
from freehold.serve.http.core.problems import problem
from tests.http.conftest import JSON, Running
from tests.http.fakes import CONTEXT, Script, failing

URL = "/v1/messages"
CHAT = {"model": "fake:1b", "max_tokens": 100, "messages": [{"role": "user", "content": "hi you"}]}
WEATHER = {"name": "weather", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}
CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {**user(*content), "role": "assistant"}


def ask(server: Running, **asked: Any) -> dict[str, Any]:
    answer = server.client.post(URL, json={**CHAT, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()


def job_of(server: Running, **asked: Any) -> Any:
    ask(server, **asked)
    return server.models.served["fake:1b"].jobs[-1]


def chat_of(server: Running, *messages: Any, **asked: Any) -> tuple[Message, ...]:
    return job_of(server, messages=list(messages), **asked).messages


def warnings(server: Running, **asked: Any) -> list[str]:
    return ask(server, **asked)["freehold"]["warnings"]


def refusal(server: Running, route: str = URL, status: int = 400, **asked: Any) -> str:
    answer = server.client.post(route, json={**CHAT, **asked})
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["type"] == "error" and body["request_id"] == answer.headers["request-id"]
    if status == 400:
        assert body["error"]["type"] == "invalid_request_error"
    return body["error"]["message"]


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, data) of each event, whose data must have the name as its type."""
    found = []
    for part in text.split("\n\n")[:-1]:
        name, data = part.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


# --- shapes ---------------------------------------------------------------------------------------------


def test_whole_answer_has_anthropics_shape_and_a_receipt(serving):
    body = ask(serving(Script(text="Hello there.", thinking="hm", cached=1)), seed=11)
    assert body["type"] == "message" and body["role"] == "assistant" and body["id"].startswith("msg_")
    thought, text = body["content"]
    assert thought["type"] == "thinking" and thought["thinking"] == "hm" and thought["signature"]
    assert text == {"type": "text", "text": "Hello there."}
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    counts = {"input_tokens": 1, "cache_read_input_tokens": 1, "cache_creation_input_tokens": 0}
    assert body["usage"] == {**counts, "output_tokens": 3, "output_tokens_details": {"thinking_tokens": 1}}
    receipt = body["freehold"]
    assert receipt["context"] == {"limit": CONTEXT, "used": 5, "cached": 1, "dropped_messages": 0}
    assert receipt["sampling"]["seed"] == 11 and receipt["warnings"] == []


def test_stream_has_its_events_in_order_and_by_name(serving):
    server = serving(Script(text="One two", thinking="let me", calls=(("weather", '{"city":"Rome"}'),)))
    answer = server.client.post(f"{URL}?beta=true", json={**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    got = events(answer.text)
    names = [name for name, _ in got]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = got[0][1]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] == 2
    assert start["freehold"]["context"]["limit"] == CONTEXT
    deltas = [e["delta"]["type"] for name, e in got if name == "content_block_delta"]
    assert deltas == [
        *["thinking_delta"] * 2,
        "signature_delta",
        *["text_delta"] * 2,
        *["input_json_delta"] * 2,
    ]
    indices = [e["index"] for name, e in got if name == "content_block_start"]
    assert indices == [0, 1, 2] == [e["index"] for name, e in got if name == "content_block_stop"]
    last = got[-2][1]
    assert last["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert last["usage"]["output_tokens"] == 7 and last["freehold"]["warnings"] == []


@pytest.mark.parametrize(
    "script",
    [
        Script(text="One two é 😀.", thinking="let me see"),
        Script(text="", calls=(("a", "{}"), ("b", '{"x": [1, "é"]}'))),
        Script(text="", thinking="only thought"),
        Script(text=""),
    ],
)
def test_events_fold_to_the_whole_answer(serving, script):
    server = serving(script)
    whole = ask(server)
    blocks: list[dict[str, Any]] = []
    for name, e in events(server.client.post(URL, json={**CHAT, "stream": True}).text):
        if name == "content_block_start":
            blocks.append({**e["content_block"], "json": ""})
        if name == "content_block_delta":
            for key, text in e["delta"].items():
                into = "json" if key == "partial_json" else key
                blocks[-1][into] = blocks[-1].get(into, "") + text if key != "type" else blocks[-1]["type"]
    for block in blocks:
        block["input"] = json.loads(block.pop("json") or "{}")
        if block["type"] != "tool_use":
            del block["input"]
    assert blocks == whole["content"]


@pytest.mark.parametrize(
    "script, asked, reason, sequence",
    [
        (Script(), {}, "end_turn", None),
        (Script(), {"max_tokens": 2}, "max_tokens", None),
        (Script(stop="END"), {"stop_sequences": ["END", "x"]}, "stop_sequence", "END"),
        (Script(calls=(("weather", "{}"),)), {"tools": [WEATHER]}, "tool_use", None),
        (Script(text="a " * CONTEXT), {"max_tokens": 2 * CONTEXT}, "model_context_window_exceeded", None),
    ],
)
def test_reason_to_stop_is_told_in_both_ways(serving, script, asked, reason, sequence):
    server = serving(script)
    body = ask(server, **asked)
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    got = events(server.client.post(URL, json={**CHAT, **asked, "stream": True}).text)
    assert got[-2][1]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_thinking_that_is_to_be_omitted_has_a_block_without_text(serving):
    server = serving(Script(thinking="secret thought"))
    asked = {"thinking": {"type": "enabled", "budget_tokens": 50, "display": "omitted"}}
    thought = ask(server, **asked)["content"][0]
    assert thought["thinking"] == "" and thought["signature"]
    streamed = server.client.post(URL, json={**CHAT, **asked, "stream": True}).text
    assert "secret" not in streamed and "signature_delta" in streamed


def test_thinking_that_was_omitted_comes_back_in_its_signature(serving):
    server = serving(Script(thinking="secret thought é"))
    omitted = {"thinking": {"type": "adaptive", "display": "omitted"}}
    thought = ask(server, **omitted)["content"][0]
    said = assistant(thought, {"type": "text", "text": "b"})
    assert chat_of(server, user("a"), said, user("c"))[1] == Message("assistant", "b", "secret thought é")
    for foreign in ("", "ErUB", "text-!", "text-__8=", "text-é"):
        said["content"][0] = {**thought, "signature": foreign}
        assert chat_of(server, user("a"), said, user("c"))[1].thinking == ""


def test_input_that_was_cut_off_is_named_in_the_warnings(serving):
    body = ask(serving(Script(text="", calls=(("weather", '{"city":"Rome"}'),))), max_tokens=2)
    assert body["content"] == [{"type": "tool_use", "id": "call_0", "name": "weather", "input": {}}]
    assert body["stop_reason"] == "max_tokens"
    assert body["freehold"]["warnings"] == ['the input of a tool_use was cut off: {"city"']


def test_ping_is_the_sign_of_life_while_a_model_loads(serving):
    server = serving(Script(use_delay=0.5), keep_alive_s=0.1)
    got = events(server.client.post(URL, json={**CHAT, "stream": True}).text)
    assert [name for name, _ in got[:2]] == ["ping", "ping"] and got[-1][0] == "message_stop"


# --- an answer that is begun ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last", [assistant("The best colour is"), assistant({"type": "text", "text": "The best colour is"})]
)
def test_assistants_turn_at_the_end_is_continued(serving, last):
    server = serving()
    job = job_of(server, messages=[user("Name one."), last], tools=[{"name": "f", "input_schema": {}}])
    assert job.turn == "continue" and job.messages[-1] == Message("assistant", "The best colour is")
    assert job_of(server).turn == "new"
    server.client.post(URL + "/count_tokens", json={"model": "fake:1b", "messages": [user("a"), last]})
    assert server.models.served["fake:1b"].counted[-1].turn == "continue"


def test_answer_begun_with_nothing_is_a_new_one(serving):
    for last in (assistant(""), {"role": "assistant", "content": []}):
        job = job_of(serving(), messages=[user("a"), last])
        assert job.turn == "new" and job.messages == (Message("user", "a"),)


def test_thinking_goes_before_an_answer_that_is_begun(serving):
    thinks = {"thinking": {"type": "enabled", "budget_tokens": 10}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    begun = assistant(thought, {"type": "text", "text": "b"})
    assert job_of(serving(), messages=[user("a"), begun], **thinks).turn == "continue"
    said = refusal(serving(), messages=[user("a"), assistant("b")], **thinks)
    assert "must start with a thinking block" in said
    shaped = {"output_config": {"format": {"type": "json_schema", "schema": {}}}}
    assert "format" in refusal(serving(), messages=[user("a"), assistant("b")], **shaped)


@pytest.mark.parametrize(
    "field, wrong, right",
    [("temperature", 1.1, 1), ("temperature", -0.1, 0), ("top_p", 1.1, 0), ("stop_sequences", [" "], ["a"])],
)
def test_ranges_are_anthropics(serving, field, wrong, right):
    assert field in refusal(serving(), **{field: wrong})
    assert job_of(serving(), **{field: right}) is not None


# --- fields to jobs -------------------------------------------------------------------------------------


def test_fields_reach_the_job(serving):
    server = serving()
    given = {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 5}
    job = job_of(server, **given, stop_sequences=["a", "b"], overflow="drop-oldest", priority="batch")
    assert dict(job.sampling) == given and job.stop == ("a", "b") and job.max_tokens == 100
    assert job.overflow == "drop-oldest" and job.priority == "batch"
    assert (job.think, job.think_tokens, job.effort, job.format, job.tools) == (None, None, None, None, ())
    assert dict(job_of(server).sampling) == {}


@pytest.mark.parametrize(
    "thinking, think, budget",
    [
        ({"type": "enabled", "budget_tokens": 50}, True, 50),
        ({"type": "disabled"}, False, None),
        ({"type": "adaptive", "display": "summarized"}, None, None),
    ],
)
def test_thinking_reaches_the_job_with_its_budget(serving, thinking, think, budget):
    job = job_of(serving(), thinking=thinking, output_config={"effort": "high"})
    assert (job.think, job.think_tokens, job.effort) == (think, budget, "high")
    assert job_of(serving(), output_config={"effort": "max"}).effort == "high"
    assert job_of(serving(), output_config={"effort": "low"}).effort == "low"


@pytest.mark.parametrize(
    "thinks, thinking, said",
    [
        ("none", {"type": "enabled", "budget_tokens": 50}, "thinking was left out: fake:1b does not think"),
        ("always", {"type": "disabled"}, "thinking could not be disabled: fake:1b always thinks"),
    ],
)
def test_what_the_model_cannot_do_with_thinking_is_left_out_and_told(serving, thinks, thinking, said):
    server = serving(Script(thinks=thinks))
    (warning,) = warnings(server, thinking=thinking)
    job = server.models.served["fake:1b"].jobs[-1]
    assert warning.startswith(said) and (job.think, job.think_tokens) == (None, None)


@pytest.mark.parametrize(
    "choice, expected",
    [
        ({"type": "auto"}, ("auto", "", True)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", "", False)),
        ({"type": "tool", "name": "weather"}, ("required", "weather", True)),
        ({"type": "none"}, ("none", "", True)),
    ],
)
def test_tools_and_the_choice_among_them_reach_the_job(serving, choice, expected):
    job = job_of(serving(), tools=[{**WEATHER, "cache_control": {"type": "ephemeral"}}], tool_choice=choice)
    assert job.tools == (Tool("weather", "Look.", WEATHER["input_schema"]),)
    assert (job.tool_choice, job.tool_name, job.parallel_tool_calls) == expected


def test_tools_that_anthropic_runs_are_ignored_with_a_warning(serving):
    server = serving()
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    said = "tools[0] of type 'web_search_20250305' was ignored: this server does not run tools"
    assert warnings(server, tools=[search, {**WEATHER, "type": "custom"}]) == [said]
    assert "'mcp_toolset' was ignored" in warnings(server, tools=[{"type": "mcp_toolset"}, WEATHER])[0]
    assert [t.name for t in server.models.served["fake:1b"].jobs[-1].tools] == ["weather"]


def test_deferred_tools_are_shown_once_a_result_refers_to_them(serving):
    server = serving()
    tools = [{**WEATHER, "name": n, "defer_loading": n != "b"} for n in "abcd"]
    found = {**RESULT, "content": [{"type": "tool_reference", "tool_name": n} for n in "da"]}
    job = job_of(server, messages=[user("?"), assistant(CALL), user(found)], tools=tools)
    assert [t.name for t in job.tools] == ["b", "d", "a"]
    assert job.messages[2].content == "d can be called now.\na can be called now."
    assert [t.name for t in job_of(server, tools=tools).tools] == ["b"]
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    assert [t.name for t in job_of(server, tools=[search, *tools]).tools] == ["b", "a", "c", "d"]


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_schema_reaches_the_job_by_either_name(serving, place):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    format = {"type": "json_schema", "schema": schema}
    job = job_of(serving(), **{place: format if place == "output_format" else {"format": format}})
    assert job.format is not None and job.format.kind == "json_schema"
    assert job.format.source == schema and isinstance(job.format, Format)


# --- messages -------------------------------------------------------------------------------------------


def test_turns_of_one_role_are_one_turn(serving):
    chat = chat_of(
        serving(), user("a"), user({"type": "text", "text": "b"}), assistant("c"), assistant("d"), user("e")
    )
    assert chat == (Message("user", "a\nb"), Message("assistant", "cd"), Message("user", "e"))


def test_system_blocks_stand_first_and_are_one_text(serving):
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    system = [*blocks, {"type": "text", "text": "Be kind."}]
    assert chat_of(serving(), user("a"), system=system)[0] == Message(
        "system", "Be brief.\nBe kind.", cache="5m"
    )
    assert chat_of(serving(), user("a"), system="Be brief.")[0] == Message("system", "Be brief.")


def test_a_round_of_tools_is_read_as_calls_and_results(serving):
    thought = {"type": "thinking", "thinking": "I look.", "signature": "x"}
    more = {**CALL, "id": "t2", "input": {}}
    failed = {"type": "tool_result", "tool_use_id": "t2", "is_error": True}
    failed["content"] = [{"type": "text", "text": "no"}, {"type": "text", "text": "net"}]
    chat = chat_of(
        serving(),
        user("weather?"),
        assistant(thought, {"type": "text", "text": "Let me see."}, CALL, more),
        user(RESULT, failed, {"type": "text", "text": "and now?"}),
        tools=[WEATHER],
    )
    calls = (ToolCall("t1", "weather", '{"city":"Rome"}'), ToolCall("t2", "weather", "{}"))
    assert chat[1:] == (
        Message("assistant", "Let me see.", "I look.", calls),
        Message("tool", "sunny", tool_call_id="t1", name="weather"),
        Message("tool", "Error: no\nnet", tool_call_id="t2", name="weather", failed=True),
        Message("user", "and now?"),
    )


def test_a_system_message_within_the_chat_stays_at_its_place(serving):
    server = serving()
    between = {"role": "system", "content": "5 tokens left"}
    chat = [user("weather?"), assistant(CALL), between, user(RESULT)]
    assert chat_of(server, *chat)[2:] == (
        Message("tool", "sunny", tool_call_id="t1", name="weather"),
        Message("user", "<system-reminder>\n5 tokens left\n</system-reminder>"),
    )
    assert chat_of(server, between, user("a"), system="Be brief.") == (
        Message("system", "Be brief.\n5 tokens left"),
        Message("user", "a"),
    )
    passing = {**between, "clear_at": "next_user_message"}
    assert len(chat_of(server, user("a"), passing)[0].content) > 1
    assert chat_of(server, user("a"), passing, user("b")) == (Message("user", "a\nb"),)
    block = {"type": "mid_conv_system", "content": [{"type": "text", "text": "now"}]}
    assert chat_of(server, user({"type": "text", "text": "a"}, block))[0].content.startswith("a\n<system-rem")


def test_documents_of_text_and_search_results_are_read(serving):
    document = {"type": "document", "title": "Log", "source": {"type": "text", "media_type": "text/plain"}}
    document["source"]["data"] = "all is well"
    found = {"type": "search_result", "title": "T", "source": "a.example", "content": [{"type": "text"}]}
    found["content"][0]["text"] = "x"
    assert chat_of(serving(), user(document, found)) == (
        Message("user", "Log\nall is well\nT\na.example\nx"),
    )


def test_what_only_anthropic_can_read_is_left_out_and_told(serving):
    redacted = {"type": "redacted_thinking", "data": "AAAA"}
    searched = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}
    said = assistant(redacted, searched, found, {"type": "text", "text": "b"})
    told = warnings(serving(), messages=[user("a"), said, user("c")])
    assert [t.split("'")[1] for t in told] == [
        "redacted_thinking",
        "server_tool_use",
        "web_search_tool_result",
    ]


@pytest.mark.parametrize(
    "messages, said",
    [
        ([assistant("a"), user("b")], "messages does not begin with a user's turn"),
        ([user("a"), assistant("b ")], "messages: final assistant content cannot end with trailing white"),
        ([user("a"), assistant({"type": "thinking", "thinking": "b"})], "messages: the final block in an"),
        ([user("a"), assistant(CALL)], "messages ends with a tool_use"),
        ([{"role": "system", "content": "a"}], "messages does not begin with a user's turn"),
        ([{"role": "tool", "content": "a"}], "messages[0].role is 'tool'"),
        ([user("")], "messages[0] has no content"),
        ([user("a"), assistant(CALL), user("b")], "messages[2] has no tool_result for 't1'"),
        (
            [user(RESULT)],
            "messages[0] has a tool_result for 't1', which is not a tool_use of the turn before it",
        ),
        ([user("a"), assistant(CALL), user(RESULT, RESULT)], "messages[2] has 2 tool_results for 't1'"),
        (
            [user("a"), assistant(CALL), user({"type": "text", "text": "b"}, RESULT)],
            "messages[2].content[1] is a tool_result after a text",
        ),
        ([user("a"), assistant(CALL, CALL), user(RESULT)], "messages[1].content[1].id is 't1'"),
        ([{"role": "user"}], "messages[0].content is missing"),
        ([user({"type": "text"})], "messages[0].content[0].text is missing"),
        ([user({"type": "thinking", "thinking": "x"})], "messages[0].content[0] is of type 'thinking'"),
        (
            [user({"type": "image", "source": {"type": "url", "url": "http://x"}})],
            "messages[0].content[0] is of type 'image'",
        ),
        (
            [user("a"), assistant(CALL), user({**RESULT, "content": [{"type": "image"}]})],
            "messages[2].content[0].content[0] is of type 'image'",
        ),
        (
            [user({"type": "document", "source": {"type": "base64", "data": "AA"}})],
            "messages[0].content[0].source is of type 'base64'",
        ),
    ],
)
def test_a_chat_that_does_not_fit_together_is_refused_by_place(serving, messages, said):
    assert refusal(serving(), messages=messages).startswith(said)
    assert refusal(serving(), f"{URL}/count_tokens", messages=messages).startswith(said)


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"max_tokens": None}, "max_tokens is null"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 10**30}, "max_tokens is 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"stop_sequences": [""]}, "stop_sequences[0] is ''"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences is a list of 17"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is missing"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens is 100; expected"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is missing"),
        ({"output_config": {"format": {"type": "json_schema", "schema": []}}}, "output_config.format.schema"),
        (
            {"output_format": {"type": "json_schema", "schema": {"x": "y" * 300_000}}},
            "output_format.schema has",
        ),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name is 'a b'"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema is missing"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name is missing"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name is 'weather', as another's"),
        ({"tools": [{**WEATHER, "name": f"t{i}"} for i in range(129)]}, "tools is a list of 129"),
        ({"tool_choice": {"type": "any"}}, "tool_choice is 'any', and there are no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name is 'x'"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers is not supported"),
    ],
)
def test_values_out_of_range_are_refused_by_name(serving, asked, said):
    assert refusal(serving(), **asked).startswith(said)


def test_unknown_fields_are_named_in_warnings(serving):
    said = assistant({"type": "text", "text": "b", "citations": None, "sparkle": 1})
    asked = {
        "messages": [user("a"), said, user("c")],
        "temprature": 0.5,
        "context_management": {"edits": [1]},
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "mcp_servers": [],
        "tools": [{**WEATHER, "strict": True, "input_examples": [{}]}],
    }
    assert warnings(serving(), **asked) == [
        "unknown field 'context_management' was ignored",
        "unknown field 'temprature' was ignored; did you mean temperature?",
        "field 'input_examples' of tools was ignored",
        "field 'sparkle' of blocks was ignored",
    ]


# --- the billing line -----------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [True, False])
def test_a_changing_billing_line_is_no_part_of_the_prompt(serving, apart):
    server = serving()

    def system(mark: str) -> Any:
        line = f"{BILLING} cc_version=2.1; cc_entrypoint=cli; cch={mark};"
        if not apart:
            return f"{line}\nYou help."
        return [{"type": "text", "text": line}, {"type": "text", "text": "You help."}]

    first, second = (chat_of(server, user("a"), system=system(mark)) for mark in ("fa690", "0aaa9"))
    assert first == second == (Message("system", "You help."), Message("user", "a"))
    (told,) = warnings(server, system=system("x"))
    assert told.startswith(f"the line {BILLING} of system was left out of the prompt")


def test_the_billing_line_is_left_alone_where_the_user_writes_it(serving):
    assert chat_of(serving(), user(f"{BILLING} what is it?"))[0].content == f"{BILLING} what is it?"
    system = f"Never say\n{BILLING}"
    assert chat_of(serving(), user("a"), system=system)[0].content == system


# --- counting and models --------------------------------------------------------------------------------


def test_tokens_are_counted_with_all_that_makes_the_prompt(serving):
    server = serving()
    asked = {**CHAT, "system": "be brief", "tools": [WEATHER], "thinking": {"type": "disabled"}}
    body = server.client.post(f"{URL}/count_tokens", json=asked).json()
    assert body["input_tokens"] == 4 and body["freehold"]["context"] == {"limit": CONTEXT, "used": 4}
    (job,) = server.models.served["fake:1b"].counted
    assert job.tools[0].name == "weather" and job.think is False and body["freehold"]["warnings"] == []


def test_a_chat_beyond_the_context_is_counted(serving):
    asked = {"model": "fake:1b", "messages": [user("a " * 2 * CONTEXT)]}
    body = serving().client.post(f"{URL}/count_tokens", json=asked).json()
    assert body["input_tokens"] == 2 * CONTEXT + 1


HEADERS = {"anthropic-version": "2023-06-01"}


def test_models_have_anthropics_shape_where_its_header_is(serving):
    client = serving().client
    body = client.get("/v1/models", headers=HEADERS).json()
    first = body["data"][0]
    assert (first["type"], first["id"], first["display_name"]) == ("model", "fake:1b", "fake:1b")
    assert first["created_at"] == "2023-11-14T22:13:20Z"
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, "fake:1b", "org/fake:2b")
    assert client.get("/v1/models").json()["object"] == "list"
    one = client.get("/v1/models/org/fake:2b", headers=HEADERS).json()
    assert one["type"] == "model" and one["id"] == "org/fake:2b"
    assert client.get("/v1/models/org/fake:2b").json()["object"] == "model"


def test_models_come_in_pages(serving):
    client = serving().client

    def page(query: str) -> tuple[list[str], bool]:
        body = client.get(f"/v1/models?{query}", headers=HEADERS).json()
        return [m["id"] for m in body["data"]], body["has_more"]

    assert page("limit=1") == (["fake:1b"], True)
    assert page("limit=1&after_id=fake:1b") == (["org/fake:2b"], False)
    assert page("limit=1&before_id=org/fake:2b") == (["fake:1b"], False)
    assert page("after_id=org/fake:2b") == ([], False)
    for bad in ("limit=0", "limit=x", "limit=99999", "after_id=no"):
        answer = client.get(f"/v1/models?{bad}", headers=HEADERS)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, status, kind",
    [
        (errors.UsageError("no"), 400, "invalid_request_error"),
        (errors.BadTemplate("no"), 400, "invalid_request_error"),
        (errors.AccessDenied("no"), 403, "permission_error"),
        (errors.ModelNotFound("no"), 404, "not_found_error"),
        (errors.Overloaded("no", wait_s=2.2), 429, "rate_limit_error"),
        (errors.StepFailed("no"), 500, "api_error"),
        (errors.EngineLost("no"), 502, "api_error"),
        (errors.CapacityExceeded("no"), 529, "overloaded_error"),
        (errors.EngineClosed("no"), 529, "overloaded_error"),
        (errors.DeadlineExceeded("no"), 504, "timeout_error"),
        (RuntimeError("secret /etc/passwd"), 500, "api_error"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else None,
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_has_anthropics_status_and_body(serving, error, status, kind, stream):
    server = serving(failing("start", error))
    answer = server.client.post(URL, json={**CHAT, "stream": stream})
    body = answer.json()
    assert answer.status_code == status and body["error"]["type"] == kind and body["error"]["message"]
    assert body["type"] == "error" and body["request_id"] == answer.headers["request-id"]
    assert "secret" not in answer.text and server.models.in_flight == 0


def test_a_stream_that_fails_midway_ends_with_the_error_event(serving):
    server = serving(failing(2, errors.EngineLost("it died")))
    answer = server.client.post(URL, json={**CHAT, "stream": True})
    name, last = events(answer.text)[-1]
    assert name == "error" and last["error"] == {"type": "api_error", "message": "it died"}
    assert last["request_id"] == answer.headers["request-id"]


def test_a_prompt_too_long_is_told_in_the_words_that_clients_look_for():
    said = "prompt has 9,120 tokens; m:1b is loaded with a context of 8,192"
    body = json.loads(anthropic_error(problem(errors.ContextOverflow(said, "shorten it"))))
    assert body["error"]["message"] == f"prompt is too long: 9120 tokens > 8192 maximum; {said}; shorten it"
    other = json.loads(anthropic_error(problem(errors.ContextOverflow("it cannot fit"))))
    assert other["error"]["message"] == "prompt is too long: it cannot fit"


@pytest.mark.parametrize(
    "method, path, status, kind",
    [
        ("GET", URL, 405, "invalid_request_error"),
        ("POST", f"{URL}/batches", 404, "not_found_error"),
        ("POST", "/v1/complete", 404, "not_found_error"),
        ("GET", "/v1/models/none", 404, "not_found_error"),
    ],
)
def test_the_routers_own_refusals_come_in_anthropics_shape(serving, method, path, status, kind):
    answer = serving().client.request(method, path, headers=HEADERS)
    assert answer.status_code == status and answer.json()["error"]["type"] == kind


def test_a_body_that_is_no_json_is_refused_in_shape(serving):
    answer = serving().client.post(URL, content=b"{", headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_a_key_is_taken_from_either_header(serving):
    from freehold.serve.http.core.keys import Ring, key_of

    server = serving(keys=Ring([key_of("ann", "a" * 20)]))
    for headers in ({"x-api-key": "a" * 20}, {"authorization": f"Bearer {'a' * 20}"}):
        assert server.client.post(URL, json=CHAT, headers=headers).status_code == 200


def test_a_turn_of_twenty_thousand_results_is_read_in_one_pass():
    ids = [f"t{i}" for i in range(20_000)]
    uses = [Block(type="tool_use", id=id, name="weather") for id in ids]
    results = [Block(type="tool_result", tool_use_id=id) for id in ids]
    turns = [("user", "hi"), ("assistant", uses), ("user", results)]
    began = time.process_time()
    chat = read_chat(None, [InputMessage(role=r, content=c) for r, c in turns], [], Pictures())  # type: ignore[arg-type]
    assert len(chat) == 20_002 and time.process_time() - began < 3  # seconds; one pass for each took 15


def test_a_system_text_is_not_visited_by_its_characters():
    """Three million of them took half a second, in which no other client was answered."""

    class Text(str):
        def __iter__(self):
            raise AssertionError("visited by its characters")

    turns = [InputMessage(role="user", content="hi")]
    chat = read_chat(Text("Be brief."), turns, [], Pictures())
    assert [(m.role, m.content) for m in chat] == [("system", "Be brief."), ("user", "hi")]
