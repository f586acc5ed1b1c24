"""Whatever a body holds, the answer has a documented status and the server lives on."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.serve.http.anthropic.fields import CountRequest, MessagesRequest
from freehold.serve.http.openai.completions import CompletionRequest
from freehold.serve.http.openai.fields.chat import ChatRequest
from freehold.serve.http.openai.models import DetokenizeRequest, TokenizeRequest
from freehold.serve.http.openai.responses.fields import ResponseRequest
from tests.http.conftest import JSON
from tests.http.fakes import Script
from tests.http.test_streams import eventually

DOCUMENTED = {200, 400, 404, 413}
ROUTES = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/v1/responses": ResponseRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
BASES = {
    "/v1/chat/completions": {"model": "fake:1b", "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": "fake:1b", "prompt": "x"},
    "/v1/messages": {"model": "fake:1b", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
    "/v1/messages/count_tokens": {"model": "fake:1b", "messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"model": "fake:1b", "input": "x"},
    "/tokenize": {"model": "fake:1b", "prompt": "x"},
    "/detokenize": {"model": "fake:1b", "tokens": [1]},
}
ENDS = ("data: [DONE]", 'event: message_stop\ndata: {"type":"message_stop"}')
numbers = st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=20)
values = st.recursive(
    leaves,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4),
    max_leaves=8,
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True, scope="module")
def _usual(shared):
    """Whatever other tests had the models do, here they answer."""
    shared.models.play(Script())


def check(server, route: str, body: bytes) -> None:
    answer = server.client.post(route, content=body, headers=JSON)
    assert answer.status_code in DOCUMENTED, (answer.status_code, answer.text)
    if answer.headers["content-type"].startswith("text/event-stream"):
        last = answer.text.rstrip().rsplit("\n\n", 1)[-1]
        assert last in ENDS or last.startswith(("event: response.completed", "event: response.incomplete"))
    else:
        decoded = json.loads(answer.content)
        assert (answer.status_code == 200) is (decoded.get("error") is None)
        assert ("request_id" in decoded) is (answer.status_code != 200 and route.startswith("/v1/messages"))
    assert eventually(lambda: not server.doors.server.calls) and server.models.in_flight == 0


@pytest.mark.parametrize("route", ROUTES)
@given(data=st.data())
@few
def test_any_value_of_any_field_is_answered(shared, route, data):
    known = list(ROUTES[route].__struct_fields__)
    names = st.sampled_from(known) | st.text(max_size=12)
    changes = data.draw(st.dictionaries(names, values, max_size=4))
    check(shared, route, json.dumps({**BASES[route], **changes}).encode())


@pytest.mark.parametrize("route", ROUTES)
@given(body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@few
def test_any_bytes_are_answered(shared, route, body):
    check(shared, route, body)


@given(
    messages=st.lists(st.dictionaries(st.sampled_from(["role", "content", "name", "x"]), values), max_size=3)
)
@few
def test_any_messages_are_answered(shared, messages):
    check(shared, "/v1/chat/completions", json.dumps({"model": "fake:1b", "messages": messages}).encode())


kinds = [
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "item_reference",
]
parts = st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image"])},
                              optional={"text": values, "refusal": values})  # fmt: skip
items = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(kinds) | values,
        "role": st.sampled_from(["user", "assistant", "developer"]) | values,
        "content": st.text(max_size=9) | st.lists(parts, max_size=3) | values,
        "summary": st.lists(parts, max_size=2) | values,
        "call_id": st.sampled_from(["1", "2"]) | values,
        "name": st.text(max_size=5) | values,
        "arguments": st.text(max_size=9) | values,
        "input": st.text(max_size=9) | values,
        "output": st.text(max_size=9) | st.lists(parts, max_size=2) | values,
        "id": st.text(max_size=5) | values,
    },
)
tools = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["function", "custom", "web_search"]) | values,
        "name": st.text(max_size=5) | values,
        "parameters": values,
        "function": values,
        "format": values,
    },
)


@pytest.mark.heavy
@given(
    items=st.lists(items | values, max_size=4),
    more=st.fixed_dictionaries({}, optional={"tools": st.lists(tools | values, max_size=3),
                                             "tool_choice": tools | values, "text": values,
                                             "stream": st.booleans()}),
)  # fmt: skip
@few
def test_any_items_and_tools_are_answered(shared, items, more):
    body = {"model": "fake:1b", "input": items, **more}
    check(shared, "/v1/responses", json.dumps(body).encode())


@given(cut=st.integers(0, 120), flip=st.integers(0, 7))
@few
def test_a_damaged_body_is_answered(shared, cut, flip):
    body = bytearray(json.dumps({**BASES["/v1/completions"], "stream": True, "logprobs": 2, "n": 2}).encode())
    body[cut % len(body)] ^= 1 << flip
    check(shared, "/v1/completions", bytes(body))


@given(keep=st.text(max_size=12) | st.floats() | st.integers())
@few
def test_any_keep_alive_is_answered(shared, keep):
    body = json.dumps({**BASES["/v1/completions"], "keep_alive": keep})
    check(shared, "/v1/completions", body.encode())


kinds = st.sampled_from(
    ["text", "thinking", "tool_use", "tool_result", "document", "search_result", "mid_conv_system", "image"]
)
block_fields = st.fixed_dictionaries(
    {"type": kinds | st.text(max_size=6)},
    optional={
        **dict.fromkeys(["text", "thinking", "title", "context"], st.text(max_size=6) | values),
        **dict.fromkeys(["id", "tool_use_id", "name"], st.sampled_from(["t1", "t2"]) | values),
        **dict.fromkeys(["input", "source", "content", "is_error", "cache_control"], values),
    },
)
blocks = block_fields | st.builds(
    lambda block, inner: {**block, "content": inner}, block_fields, st.lists(block_fields, max_size=3)
)
turns = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]) | values,
        "content": st.text(max_size=6) | st.lists(blocks, max_size=4) | values,
    }
)


@given(
    route=st.sampled_from(["/v1/messages", "/v1/messages/count_tokens"]),
    messages=st.lists(turns, min_size=1, max_size=4),
    system=st.lists(blocks, max_size=1) | values,
)
@few
def test_any_blocks_are_answered(shared, route, messages, system):
    check(shared, route, json.dumps({**BASES[route], "messages": messages, "system": system}).encode())


@pytest.mark.heavy
@given(
    tools=st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["a", "b"]) | values},
            optional={"type": kinds | values, "input_schema": values, "description": values},
        ),
        max_size=3,
    ),
    choice=st.fixed_dictionaries(
        {"type": st.sampled_from(["auto", "any", "tool", "none"]) | values}, optional={"name": values}
    ),
    thinking=st.fixed_dictionaries(
        {"type": st.sampled_from(["enabled", "disabled", "adaptive"])}, optional={"budget_tokens": values}
    ),
    stream=st.booleans(),
)
@few
def test_any_tools_are_answered(shared, tools, choice, thinking, stream):
    asked = {"tools": tools, "tool_choice": choice, "thinking": thinking, "stream": stream}
    check(shared, "/v1/messages", json.dumps({**BASES["/v1/messages"], **asked}).encode())
