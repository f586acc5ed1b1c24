"""Tools in OpenAI's chats: what is offered and chosen, calls whole and streamed, and calls in history."""

from __future__ import annotations

import pytest

from freehold.base.types import Message, Tool, ToolCall
from tests.http.fakes import Script
from tests.http.test_chat import CHAT, events, job_of, refusal

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
OFFER = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}}
GRAMMAR = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x+/"}}
PATCH = {"type": "custom", "custom": {"name": "apply_patch", "description": "d", "format": GRAMMAR}}
CALLING = Script("Let me see.", calls=(("get_weather", '{"city": "Rome"}'),))
ASKED = {**CHAT, "tools": [OFFER]}


def allowed(mode: str, *names: str) -> dict[str, object]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "get_weather", "arguments": "{}"}}],
}
CALLS = {**CALL, "tool_calls": [{"id": id, "function": {"name": "get_weather"}} for id in ("c1", "c2")]}
RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    "messages, status",
    [
        ([{"role": "tool", "content": "sunny", "tool_call_id": "c1"}], 400),
        ([{"role": "tool", "content": "sunny", "tool_call_id": "c1"}, CALL], 400),
        ([CALL, {"role": "tool", "content": "sunny", "tool_call_id": "c2"}], 400),
        ([CALL, {"role": "tool", "content": "sunny"}], 200),
        ([CALL, {"role": "tool", "content": "sunny", "tool_call_id": "c1"}], 200),
        ([CALL, RESULT, RESULT], 200),
        ([CALL], 400),
        ([CALL, {"role": "user", "content": "x"}], 400),
        ([CALL, {"role": "user", "content": "x"}, RESULT], 400),
        ([CALL, RESULT, {"role": "user", "content": "x"}, RESULT], 400),
        ([CALL, RESULT, CALL], 400),
        ([CALLS, RESULT], 400),
        ([CALLS, {**RESULT, "tool_call_id": "c2"}, RESULT, {"role": "user", "content": "x"}], 200),
        ([CALLS, {"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}], 200),
        ([{**CALL, "tool_calls": [{"function": {"name": "f"}}]}, RESULT], 200),
    ],
)
def test_a_result_stands_behind_its_call_and_each_call_has_one(serving, messages, status):
    answer = serving().client.post("/v1/chat/completions", json={**CHAT, "messages": messages})
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["param"].endswith((".tool_call_id", ".role"))


def test_tools_and_the_choice_among_them_reach_the_engine(serving):
    job = job_of(serving(), tools=[OFFER])
    assert job.tools == (Tool("get_weather", "d", SCHEMA),)
    assert (job.tool_choice, job.tool_name, job.parallel_tool_calls) == ("auto", "", True)
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice, expected in [
        ("none", ("none", "")),
        ("required", ("required", "")),
        (named, ("required", "get_weather")),
    ]:
        job = job_of(serving(), tools=[OFFER], tool_choice=choice, parallel_tool_calls=False)
        assert (job.tool_choice, job.tool_name) == expected and not job.parallel_tool_calls


@pytest.mark.parametrize(
    "choice, mode, name, offered",
    [
        ({"type": "custom", "custom": {"name": "apply_patch"}}, "required", "apply_patch", 2),
        (allowed("auto", "get_weather"), "auto", "", 1),
        (allowed("required", "apply_patch", "get_weather"), "required", "", 2),
    ],
)
def test_choice_of_tools_is_read_as_in_responses(serving, choice, mode, name, offered):
    job = job_of(serving(), tools=[OFFER, PATCH], tool_choice=choice)
    assert (job.tool_choice, job.tool_name, len(job.tools)) == (mode, name, offered)


def test_free_form_tool_is_told_of_as_a_function_of_one_text(serving):
    server = serving()
    (tool,) = job_of(server, tools=[PATCH]).tools
    assert tool.parameters["required"] == ["input"] and "lark grammar:\nstart: /x+/" in tool.description
    body = server.client.post("/v1/chat/completions", json={**CHAT, "tools": [PATCH]}).json()
    assert body["freehold"]["warnings"] == [
        "the grammar of 'apply_patch' is shown to the model and not enforced"
    ]


def test_call_of_a_free_form_tool_comes_as_its_text(serving):
    script = Script("", calls=(("apply_patch", '{"input": "a\\nb"}'), *CALLING.calls))
    asked = {**CHAT, "tools": [OFFER, PATCH]}
    body = serving(script).client.post("/v1/chat/completions", json=asked).json()
    custom, function = body["choices"][0]["message"]["tool_calls"]
    assert custom == {"id": "call_0", "type": "custom", "custom": {"name": "apply_patch", "input": "a\nb"}}
    assert function["function"]["arguments"] == '{"city": "Rome"}'
    told = events(serving(script).client.post("/v1/chat/completions", json={**asked, "stream": True}).text)
    deltas = [c for e in told for choice in e["choices"] for c in choice["delta"].get("tool_calls", ())]
    begun, *_, ended = [delta for delta in deltas if delta["index"] == 0]
    assert begun == {"index": 0, **custom, "custom": {"name": "apply_patch", "input": ""}}
    assert ended == {"index": 0, "custom": {"input": "a\nb"}}


def test_calls_come_with_the_message_and_end_it(serving):
    body = serving(CALLING).client.post("/v1/chat/completions", json=ASKED).json()
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    function = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert choice["message"]["tool_calls"] == [{"id": "call_0", "type": "function", "function": function}]


def test_message_of_calls_alone_has_no_content(serving):
    script = Script("", calls=CALLING.calls)
    body = serving(script).client.post("/v1/chat/completions", json=ASKED).json()
    assert body["choices"][0]["message"]["content"] is None


def test_streamed_call_says_id_and_name_once(serving):
    server = serving(Script("Hm.", calls=(*CALLING.calls, ("clock", "{}"))))
    told = events(server.client.post("/v1/chat/completions", json={**ASKED, "stream": True}).text)
    deltas = [c for e in told for choice in e["choices"] for c in choice["delta"].get("tool_calls", ())]
    begun = {"type": "function", "id": "call_0", "function": {"name": "get_weather", "arguments": ""}}
    assert deltas[0] == {"index": 0, **begun}
    assert [d["index"] for d in deltas] == [0, 0, 0, 1, 1, 1]
    assert all(d.keys() == {"index", "function"} and "name" not in d["function"] for d in deltas[1:3])
    assert "".join(d["function"]["arguments"] for d in deltas[:3]) == '{"city": "Rome"}'
    assert [c["finish_reason"] for e in told for c in e["choices"]][-1] == "tool_calls"


def test_calls_results_and_refusals_in_history_are_read(serving):
    use = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    patch = {"id": "call_2", "type": "custom", "custom": {"name": "apply_patch", "input": "p"}}
    chat = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [use, patch]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny", "name": "get_weather"},
        {"role": "tool", "tool_call_id": "call_2", "content": "done"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": None, "refusal": "No, no."},
    ]
    assert job_of(serving(), messages=chat).messages == (
        Message("user", "x"),
        Message(
            "assistant",
            "",
            tool_calls=(
                ToolCall("call_1", "get_weather", "{}"),
                ToolCall("call_2", "apply_patch", '{"input":"p"}'),
            ),
        ),
        Message("tool", "sunny", tool_call_id="call_1", name="get_weather"),
        Message("tool", "done", tool_call_id="call_2"),
        Message("assistant", "No."),
        Message("assistant", "No, no."),
    )


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [OFFER, OFFER]}, "tools[1].name"),
        ({"tools": [PATCH], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [PATCH], "tool_choice": {"type": "custom"}}, "tool_choice.custom"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]},
            "messages[0].tool_calls[0].custom",
        ),
        ({"tools": [OFFER] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "required"}, "function_call"),
    ],
)
def test_tools_that_are_none_are_refused_by_name(serving, fields, param):
    assert refusal(serving(), **fields)["param"] == param


def test_older_names_say_what_to_send(serving):
    assert "send tools" in refusal(serving(), functions=[{"name": "f"}])["message"]


def test_unknown_fields_of_tools_and_the_engine_s_own_are_warnings(serving):
    server = serving(Script(warnings=("effort 'high' was left out",)))
    offer = {**OFFER, "cache_control": {}, "function": {**OFFER["function"], "colour": 1}}
    body = server.client.post("/v1/chat/completions", json={**CHAT, "tools": [offer]}).json()
    assert set(body["freehold"]["warnings"]) == {
        "field 'cache_control' of tools was ignored",
        "field 'colour' of tools was ignored",
        "effort 'high' was left out",
    }


@pytest.mark.parametrize(
    "level, effort", [("minimal", "low"), ("medium", "medium"), ("max", "high"), ("none", None)]
)
def test_effort_is_one_of_three(serving, level, effort):
    assert job_of(serving(), reasoning_effort=level).effort == effort
