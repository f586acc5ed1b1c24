"""Whatever a provider sends, the wires of Anthropic and Gemini raise one kind of fault and invent no end."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.serving import Job
from freehold.base.types import Image, Message, SignedThinking, Tool, ToolCall
from freehold.route.providers.anthropic.wire import fitted
from freehold.route.providers.contract import Kind, Provider, RemoteModel, UpstreamFault
from freehold.route.providers.gemini.wire import subset
from freehold.route.providers.upstream import wire_of
from tests.providers.standin.anthropic import AnthropicStandIn
from tests.providers.standin.gemini import GeminiStandIn
from tests.providers.test_recorded_signers import RECORDED

ASKED = Job(messages=(Message("user", "x"),))
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS: list[Kind] = ["anthropic", "gemini"]
EVENTS = [(kind, case["events"]) for kind, case in RECORDED if "events" in case]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, part in inner for path in paths(part, (*here, key)))]


def changed(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    if not path:
        return put
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], put)
    return copy


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_a_stream_with_a_changed_value_is_read_or_a_fault(kind: Kind, data: st.DataObject):
    events = data.draw(st.sampled_from([events for k, events in EVENTS if k == kind]))
    number = data.draw(st.integers(0, len(events) - 1))
    path = data.draw(st.sampled_from(paths(events[number])))
    reader = wire_of(kind).reader(ASKED)
    sent = [*events[:number], changed(events[number], path, data.draw(json_values)), *events[number + 1 :]]
    ends = 0
    try:
        for event in sent:
            name = event.get("type", "") if isinstance(event, dict) else ""
            pieces = reader.push(name if isinstance(name, str) else "", json.dumps(event).encode())
            ends += sum(chunk.finish_reason is not None for _, chunk in pieces)
            if reader.ended:
                break
    except UpstreamFault as fault:
        assert fault.cause in ("invalid", "broken", "server", "rate", "request", "auth", "context", "timeout")
        assert not ends
    assert ends == reader.ended


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(body=st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_answer_or_a_fault(kind: Kind, body: bytes):
    wire = wire_of(kind)
    for read in (lambda: wire.whole(body, ASKED), lambda: wire.counted(body)):
        with contextlib.suppress(UpstreamFault):
            read()
    assert wire.fault(500, {}, body).cause in ("server", "timeout", "request", "auth", "rate", "context")


texts = st.text(alphabet="ab \n", max_size=6)
blocks = st.builds(
    SignedThinking,
    text=texts,
    signature=st.just("S"),
    text_before=st.integers(0, 8),
    calls_before=st.integers(0, 3),
)


@st.composite
def chats(draw: st.DrawFn) -> Job:
    """Chats in the order that clients send them, with whatever else they may hold."""
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        picture = Image("image/png", "AA==")
        parts = draw(st.sampled_from([(), ("look", picture), (picture,)]))
        messages.append(
            Message("user", draw(texts), parts=parts, cache=draw(st.sampled_from(["", "5m", "1h"])))
        )
        calls = tuple(ToolCall(f"c{turn}_{i}", "f", '{"a": 1}') for i in range(draw(st.integers(0, 2))))
        said = Message(
            "assistant", draw(texts), tool_calls=calls, signed=tuple(draw(st.lists(blocks, max_size=2)))
        )
        messages.append(said)
        messages += [
            Message("tool", draw(texts), tool_call_id=c.id, failed=draw(st.booleans())) for c in calls
        ]
    return Job(
        messages=(*messages, Message("user", "And?")),
        tools=(Tool("f"),),
        max_tokens=2000,
        think=draw(st.booleans()),
    )


@pytest.mark.parametrize(
    "model", ["claude-haiku-4-5", "claude-sonnet-4-6", "gemini-2.5-flash", "gemini-3.8-flash"]
)
@QUICK
@given(job=chats())
def test_every_chat_is_refused_here_or_taken_by_the_provider(model: str, job: Job):
    kind: Kind = "gemini" if model.startswith("gemini") else "anthropic"
    try:
        sent = wire_of(kind).request(
            RemoteModel(Provider("p", kind, "https://p.example"), model), job, stream=True
        )
    except (UsageError, UnsupportedModel):
        return
    headers = {"x-api-key": "k", "x-goog-api-key": "k", "anthropic-version": "2023-06-01"}
    if kind == "anthropic":
        wrong = AnthropicStandIn().check("/anthropic/v1/messages", headers, sent.body)
    else:
        wrong = GeminiStandIn().check(f"/gemini/v1beta{sent.path.partition('?')[0]}", headers, sent.body)
    assert wrong == "" or "ignature" in wrong, wrong


@QUICK
@given(
    schema=st.dictionaries(
        st.sampled_from(["type", "properties", "items", "anyOf", "enum", "minimum", "$ref"]), json_values
    )
)
def test_any_schema_is_fitted_or_refused(schema: dict[str, Any]):
    fitted(schema, lambda: None)
    subset(schema)
