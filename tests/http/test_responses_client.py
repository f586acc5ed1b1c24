"""The real `openai` client against /v1/responses: sync and async, whole and streamed, parsed, stored, failing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import openai
import pytest
from pydantic import BaseModel

from freehold.base.errors import ContextOverflow, EngineLost
from tests.http.fakes import Script, failing

MODEL = "fake:1b"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
PATCH = {"type": "custom", "name": "apply_patch"}


class Fruit(BaseModel):
    name: str
    seeds: int


APPLE = Script(text='{"name": "apple", "seeds": 8}')


@pytest.fixture
def client(serving) -> Iterator[Callable[..., openai.OpenAI]]:
    made = []

    def make(script: Script | None = None, **settings: object) -> openai.OpenAI:
        server = serving(script, **settings)
        made.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_response_is_created_stored_and_continued(client):
    c = client(Script(text="Yes.", thinking="hm"))
    first = c.responses.create(model=MODEL, input="hi", instructions="be brief")
    assert first.output_text == "Yes." and first.status == "completed" and first.usage.total_tokens == 5
    assert first.output[0].content[0].text == "hm"
    second = c.responses.create(model=MODEL, input="and?", previous_response_id=first.id)
    assert c.responses.retrieve(second.id).output_text == "Yes."
    asked = list(c.responses.input_items.list(second.id, order="asc"))
    assert [item.type for item in asked] == ["message", "reasoning", "message", "message"]
    assert asked[0].content[0].text == "hi" and asked[-1].content[0].text == "and?"
    c.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        c.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="not kept"):
        c.responses.create(model=MODEL, input="x", previous_response_id=second.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        c.responses.cancel(second.id)


def test_a_stream_is_accumulated_to_the_final_response(client):
    c = client(
        Script(
            text="One two.",
            thinking="hm so",
            calls=(("weather", '{"a": 1}'), ("apply_patch", '{"input": "p"}')),
        )
    )
    with c.responses.stream(model=MODEL, input="hi", tools=[WEATHER, PATCH]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_text == "One two."
    assert [item.type for item in final.output] == [
        "reasoning",
        "message",
        "function_call",
        "custom_tool_call",
    ]
    assert json.loads(final.output[2].arguments) == {"a": 1} and final.output[3].input == "p"


def test_a_schema_is_sent_and_the_answer_parsed(client):
    c = client(APPLE)
    answer = c.responses.parse(model=MODEL, input="a fruit", text_format=Fruit)
    assert answer.output_parsed == Fruit(name="apple", seeds=8)
    with c.responses.stream(model=MODEL, input="a fruit", text_format=Fruit) as stream:
        done = [e for e in stream if e.type == "response.output_text.done"]
    assert done[0].parsed == Fruit(name="apple", seeds=8)


def test_tools_are_called_and_their_results_given_back(client):
    c = client(Script(text="", calls=(("weather", '{"city": "Ulm"}'),)))
    chat: list = [{"role": "user", "content": "weather?"}]
    answer = c.responses.create(model=MODEL, input=chat, tools=[WEATHER], tool_choice="required")
    (call,) = answer.output
    chat += [*answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}]
    assert c.responses.create(model=MODEL, input=chat, tools=[WEATHER]).status == "completed"


def test_everything_async(client):
    c = client(APPLE)

    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=str(c.base_url), api_key="none", max_retries=0) as a:
            answer = await a.responses.create(model=MODEL, input="a fruit")
            assert Fruit.model_validate_json(answer.output_text).seeds == 8
            assert (
                await a.responses.parse(model=MODEL, input="x", text_format=Fruit)
            ).output_parsed.seeds == 8
            stream = await a.responses.create(model=MODEL, input="a fruit", stream=True)
            kinds = [event.type async for event in stream]
            assert kinds[-1] == "response.completed" and kinds.count("response.completed") == 1
            async with a.responses.stream(model=MODEL, input="x", text_format=Fruit) as events:
                assert (await events.get_final_response()).output_parsed.name == "apple"
            assert (await a.responses.retrieve(answer.id)).id == answer.id
            with pytest.raises(openai.NotFoundError):
                await a.responses.create(model="nix", input="x")

    asyncio.run(main())


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_stream_of_an_engine_that_dies_ends_once_with_failed(client, at):
    script = Script(text="a b c d", fail=EngineLost("it died"), fail_at=at, start_delay=0.15)
    stream = client(script, keep_alive_s=0.05).responses.create(model=MODEL, input="x", stream=True)
    ends = [e for e in stream if e.type.split(".")[-1] in ("completed", "incomplete", "failed")]
    assert [e.type for e in ends] == ["response.failed"] and "it died" in ends[0].response.error.message


def test_an_answer_that_is_cut_is_incomplete(client):
    c = client(Script(text="a b c d"))
    assert c.responses.create(model=MODEL, input="x", max_output_tokens=2).status == "incomplete"
    stream = list(c.responses.create(model=MODEL, input="x", max_output_tokens=2, stream=True))
    assert stream[-1].type == "response.incomplete"
    assert stream[-1].response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("streamed", [False, True])
def test_errors_before_the_first_event_are_the_clients_own(client, streamed):
    with pytest.raises(openai.BadRequestError, match="9,000 tokens") as e:
        client(failing("start", ContextOverflow("9,000 tokens, room for 4,096"))).responses.create(
            model=MODEL, input="x", stream=streamed
        )
    assert e.value.code == "context_length_exceeded"
