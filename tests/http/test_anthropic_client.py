"""The real `anthropic` client against a server on loopback: what it reads, and what it raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest

from freehold.base import errors
from tests.http.fakes import Script, failing

ASKED: Any = {
    "model": "fake:1b",
    "max_tokens": 2000,
    "messages": [{"role": "user", "content": "hi"}],
}
TOOLS: Any = [
    {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
]
CALLED = Script(text="I look.", thinking="hm", calls=(("weather", '{"city": "Rome"}'), ("weather", "{}")))


def plain(message: Any) -> list[dict[str, Any]]:
    """Return a message's blocks as they were sent: a stream's helper adds a field of its own."""
    return [block.model_dump(exclude={"parsed_output"}) for block in message.content]


@pytest.fixture
def client(serving) -> Iterator[Callable[..., anthropic.Anthropic]]:
    made = []

    def make(script: Script | None = None, **settings: Any) -> anthropic.Anthropic:
        server = serving(script, **settings)
        made.append(anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_chat_is_answered(client):
    message = client(Script(thinking="hm", cached=1)).messages.create(**ASKED)
    thought, text = message.content
    assert (thought.type, thought.thinking) == ("thinking", "hm") and thought.signature
    assert (text.type, text.text) == ("text", "Hello there, world.")
    assert message.stop_reason == "end_turn" and message.model == "fake:1b"
    assert message.usage.cache_read_input_tokens == 1 and message.usage.output_tokens == 4
    assert message.freehold["context"]["limit"] == 4096
    assert message._request_id


def test_a_picture_is_answered_and_the_list_of_models_says_who_sees(client):
    c = client(Script(sees=True))
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    picture: Any = {"role": "user", "content": [{"type": "image", "source": source}]}
    assert c.messages.create(**{**ASKED, "messages": [picture]}).content
    able = c.models.retrieve("fake:1b").capabilities
    assert able is not None and able.image_input.supported and not able.pdf_input.supported
    assert able.thinking.types.enabled.supported and not able.effort.supported


def test_a_chat_streams_to_the_whole_message(client):
    c = client(CALLED)
    whole = c.messages.create(**ASKED, tools=TOOLS)
    with c.messages.stream(**ASKED, tools=TOOLS) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_message()
    assert kinds >= {"message_start", "thinking", "signature", "text", "input_json", "message_stop"}
    assert plain(streamed) == plain(whole) and streamed.stop_reason == whole.stop_reason == "tool_use"
    assert streamed.usage == whole.usage
    assert [b.input for b in streamed.content if b.type == "tool_use"] == [{"city": "Rome"}, {}]


def test_raw_events_have_their_types(client):
    got = list(client(Script(text="a b")).messages.create(**ASKED, stream=True))
    assert [e.type for e in got] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert got[5].delta.stop_reason == "end_turn"


def test_a_round_of_tools_goes_back_as_it_came(shared, client):
    c = client(CALLED)
    messages = list(ASKED["messages"])
    first = c.messages.create(**ASKED, tools=TOOLS, tool_choice={"type": "any"})
    results = [
        {"type": "tool_result", "tool_use_id": b.id, "content": "sunny"}
        for b in first.content
        if b.type == "tool_use"
    ]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = c.messages.create(**{**ASKED, "messages": messages}, tools=TOOLS)
    assert second.freehold["warnings"] == []
    said = shared.models.served["fake:1b"].jobs[-1].messages[1]
    assert (said.content, said.thinking) == ("I look.", "hm")
    assert [c.arguments for c in said.tool_calls] == ['{"city":"Rome"}', "{}"]


def test_a_stop_sequence_is_named(client):
    message = client(Script(stop="END")).messages.create(**ASKED, stop_sequences=["END"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


def test_the_beta_client_is_answered_too(client):
    message = client(Script(thinking="hm")).beta.messages.create(
        **ASKED,
        betas=["interleaved-thinking-2025-05-14"],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert [b.type for b in message.content] == ["thinking", "text"]


def test_tokens_are_counted(client):
    c = client()
    messages = [{"role": "user", "content": "a b c"}]
    assert c.messages.count_tokens(model="fake:1b", messages=messages, tools=TOOLS).input_tokens == 3


def test_models_are_listed_and_found(client):
    c = client()
    assert [m.id for m in c.models.list()] == ["fake:1b", "org/fake:2b"]
    assert [m.id for m in c.models.list(limit=1)] == ["fake:1b", "org/fake:2b"]
    assert c.models.retrieve("fake:1b").created_at.year == 2023
    assert c.models.retrieve("org/fake:2b").lifecycle == "active"


def test_the_async_client_is_answered(serving):
    server = serving(CALLED)

    async def work() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as c:
            whole = await c.messages.create(**ASKED, tools=TOOLS)
            async with c.messages.stream(**ASKED, tools=TOOLS) as stream:
                text = "".join([t async for t in stream.text_stream])
                assert plain(await stream.get_final_message()) == plain(whole)
            assert text == "I look."
            counted = await c.messages.count_tokens(model="fake:1b", messages=ASKED["messages"])
            assert counted.input_tokens == 1
            assert [m.id async for m in c.models.list()] == ["fake:1b", "org/fake:2b"]

    asyncio.run(work())


@pytest.mark.parametrize(
    "error, raised",
    [
        (errors.ContextOverflow("too long"), anthropic.BadRequestError),
        (errors.AccessDenied("not yours"), anthropic.PermissionDeniedError),
        (errors.ModelNotFound("no model"), anthropic.NotFoundError),
        (errors.Overloaded("full", wait_s=1), anthropic.RateLimitError),
        (errors.StepFailed("broken"), anthropic.InternalServerError),
    ],
)
def test_errors_are_the_clients_own(client, error, raised):
    with pytest.raises(raised, match=error.message) as caught:
        client(failing("start", error)).messages.create(**ASKED)
    assert caught.value.request_id == caught.value.body["request_id"]


def test_a_full_server_is_overloaded(client):
    with pytest.raises(anthropic.APIStatusError) as caught:
        client(failing("use", errors.CapacityExceeded("no room"))).messages.create(**ASKED)
    assert caught.value.status_code == 529 and caught.value.body["error"]["type"] == "overloaded_error"


def test_a_wrong_key_and_a_long_body_are_named(client, serving):
    from freehold.serve.http.core.keys import Ring, key_of
    from freehold.serve.http.core.limits import ServerLimits

    with pytest.raises(anthropic.AuthenticationError):
        client(keys=Ring([key_of("ann", "a" * 20)])).messages.create(**ASKED)
    with pytest.raises(anthropic.APIStatusError) as caught:
        client(limits=ServerLimits(body_bytes=100)).messages.create(**ASKED, system="x" * 200)
    assert caught.value.status_code == 413 and caught.value.body["error"]["type"] == "request_too_large"


def test_an_error_midstream_is_raised_with_its_text(client):
    stream = client(failing(1, errors.EngineLost("it died"))).messages.create(**ASKED, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="it died"):
        list(stream)
