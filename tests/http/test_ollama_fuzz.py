"""Whatever a body of Ollama's routes holds, the answer has a documented status and shape, and the server lives on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.run.store.parameters import HONOURED
from freehold.serve.http.ollama.fields import GenerateRequest, OllamaChatRequest
from freehold.serve.http.ollama.models import ShowRequest
from freehold.serve.http.ollama.store import CopyRequest, CreateRequest, DeleteRequest, PullRequest
from tests.http.conftest import JSON
from tests.http.test_fuzz import few, values
from tests.http.test_streams import eventually

BASES = {
    "/api/chat": (OllamaChatRequest, {"model": "fake:1b", "messages": [{"role": "user", "content": "x"}]}),
    "/api/generate": (GenerateRequest, {"model": "fake:1b", "prompt": "x"}),
    "/api/show": (ShowRequest, {"model": "x"}),
    "/api/create": (CreateRequest, {"model": "x", "from": "nowhere"}),
    "/api/copy": (CopyRequest, {"source": "x", "destination": "y"}),
    "/api/delete": (DeleteRequest, {"model": "x"}),
    "/api/pull": (PullRequest, {"model": "nowhere"}),
}
DOCUMENTED = {200, 400, 404, 413}
FETCHING = {"/api/pull", "/api/create"}  # the server of these tests is offline: 503


def check(server, route: str, body: bytes) -> None:
    method = "DELETE" if route.endswith("delete") else "POST"
    answer = server.owner.request(method, route, content=body, headers=JSON)
    documented = DOCUMENTED | ({503} if route in FETCHING else set())
    assert answer.status_code in documented, (answer.status_code, answer.text)
    objects = [json.loads(line) for line in answer.text.splitlines()]
    if answer.status_code != 200:
        assert [list(o) for o in objects] == [["error"]]
    elif answer.headers["content-type"] == "application/x-ndjson":
        assert objects[-1].get("done") or objects[-1].get("status") == "success" or "error" in objects[-1]
    assert eventually(lambda: not server.doors.server.calls) and server.models.in_flight == 0


@pytest.mark.parametrize("route", BASES)
@given(data=st.data())
@few
def test_any_value_of_any_field_is_answered(shared, route, data):
    kind, base = BASES[route]
    names = st.sampled_from(kind.__struct_encode_fields__) | st.text(max_size=12)
    changes = data.draw(st.dictionaries(names, values, max_size=4))
    check(shared, route, json.dumps({**base, **changes}).encode())


@given(options=st.dictionaries(st.sampled_from(HONOURED) | st.text(max_size=12), values, max_size=4))
@few
def test_any_options_are_answered(shared, options):
    check(shared, "/api/chat", json.dumps({**BASES["/api/chat"][1], "options": options}).encode())


messages = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "tool_name", "images", "x"]), values),
    max_size=3,
)


@given(messages=messages, tools=values)
@few
def test_any_messages_and_tools_are_answered(shared, messages, tools):
    body = {"model": "fake:1b", "messages": messages, "tools": tools}
    check(shared, "/api/chat", json.dumps(body).encode())


@pytest.mark.parametrize("route", BASES)
@given(body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@few
def test_any_bytes_are_answered(shared, route, body):
    check(shared, route, body)
