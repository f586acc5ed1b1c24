"""The real `anthropic` package against a real server and a real model, as its users call it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.server_clients.conftest import CONTEXT, Served

pytestmark = pytest.mark.model

MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]
BILLING = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={};"


@pytest.fixture
def client(served: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=served.url.removesuffix("/v1"), api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture
def asked(served: Served) -> dict[str, Any]:
    return {"model": served.model, "max_tokens": 20, "messages": MESSAGES, "extra_body": {"temperature": 0}}


def test_a_chat_streams_to_the_whole_answer(client, asked):
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == whole.content[0].text and text
    assert streamed.content[0].text == text and streamed.stop_reason == whole.stop_reason
    assert whole.usage.output_tokens <= 20


def test_the_stop_sequence_that_came_is_named(client, asked):
    text = client.messages.create(**asked).content[0].text
    stop = text[5:9]
    message = client.messages.create(**asked, stop_sequences=["never so", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_tokens_are_counted_as_the_answer_counts_them(client, asked):
    counted = client.messages.count_tokens(model=asked["model"], messages=MESSAGES, system="Be brief.")
    usage = client.messages.create(**asked, system="Be brief.").usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_a_prompt_too_long_is_counted_and_refused_with_the_numbers(client, asked):
    asked["messages"] = [{"role": "user", "content": "word " * 2000}]
    counted = client.messages.count_tokens(model=asked["model"], messages=asked["messages"]).input_tokens
    assert counted > 2000
    with pytest.raises(anthropic.BadRequestError, match=f"too long: {counted} tokens > {CONTEXT} maximum"):
        client.messages.create(**asked)


def test_requests_that_differ_in_the_billing_line_share_the_cache(client, asked):
    facts = " ".join(f"Fact {i}: {i} is a number." for i in range(40))

    def ask(mark: str) -> Any:
        system = [{"type": "text", "text": BILLING.format(mark)}, {"type": "text", "text": facts}]
        return client.messages.create(**asked, system=system)

    first, second = ask("fa690"), ask("0aaa9")
    assert second.usage.cache_read_input_tokens > 200
    assert second.content == first.content
    assert any("billing" in told for told in second.freehold["warnings"])


SCHEMA = {
    "type": "object",
    "properties": {"colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3}},
    "required": ["colours"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_the_text_follows_a_schema(client, asked, stream):
    asked |= {"max_tokens": 200, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    if stream:
        with client.messages.stream(**asked) as answer:
            message = answer.get_final_message()
    else:
        message = client.messages.create(**asked)
    assert message.stop_reason == "end_turn"
    assert set(json.loads(message.content[0].text)["colours"]) <= {"red", "blue"}


def test_a_bad_schema_is_refused(client, asked):
    format = {"type": "json_schema", "schema": {"type": "no such type"}}
    with pytest.raises(anthropic.BadRequestError, match="no such type"):
        client.messages.create(**asked, output_config={"format": format})


def test_models_are_listed_with_their_context(client, served):
    (found,) = [m for m in client.models.list() if m.id == served.model]
    assert found.type == "model" and found.max_input_tokens == CONTEXT


def test_an_unknown_model_is_not_found(client, asked):
    with pytest.raises(anthropic.NotFoundError, match="no-such-model"):
        client.messages.create(**{**asked, "model": "no-such-model"})


WEATHER: Any = {
    "name": "get_weather",
    "description": "Say what the weather is in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
    },
}


@pytest.mark.heavy
def test_a_tool_is_called_streamed_as_whole_and_its_result_read(coder: Served):
    url = coder.url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        _check_round(client, coder.model)


def _check_round(client: anthropic.Anthropic, model: str) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Rome, in Celsius?"}]
    asked: Any = {"model": model, "max_tokens": 100, "tools": [WEATHER]}
    asked |= {"extra_body": {"temperature": 0}, "messages": messages}
    forced: Any = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    whole = client.messages.create(**asked, tool_choice=forced)
    with client.messages.stream(**asked, tool_choice=forced) as stream:
        streamed = stream.get_final_message()
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    (call,) = [b for b in whole.content if b.type == "tool_use"]
    assert call.name == "get_weather" and set(call.input) >= {"city", "unit"}
    assert [b.input for b in streamed.content if b.type == "tool_use"] == [call.input]
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "31 degrees, sunny"}
    asked["messages"] = [
        *messages,
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [result]},
    ]
    counted = client.messages.count_tokens(
        model=asked["model"], messages=asked["messages"], tools=[WEATHER], tool_choice={"type": "none"}
    )
    plain = client.messages.count_tokens(model=asked["model"], messages=asked["messages"])
    answer = client.messages.create(**asked)
    used = answer.usage
    assert used.input_tokens + used.cache_read_input_tokens > counted.input_tokens == plain.input_tokens
    assert used.cache_read_input_tokens > 50
