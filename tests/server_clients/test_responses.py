"""The Responses API and batches on real weights, by the real `openai` package."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server_clients.conftest import Served

pytestmark = pytest.mark.model

ASKED: dict[str, Any] = {"input": "Name three colours.", "max_output_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    """Speak to it without retries."""
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as made:
        yield made


def test_a_response_says_what_a_chat_says_streamed_and_whole(client: openai.OpenAI, served: Served):
    whole = client.responses.create(model=served.model, **ASKED)
    chat = client.chat.completions.create(
        model=served.model,
        messages=[{"role": "user", "content": ASKED["input"]}],
        max_tokens=24,
        temperature=0,
    )
    assert whole.output_text == chat.choices[0].message.content and whole.usage
    assert whole.usage.output_tokens == chat.usage.completion_tokens  # type: ignore[union-attr]
    events = list(client.responses.create(model=served.model, stream=True, **ASKED))
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == whole.output_text
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_a_chat_goes_on_from_a_stored_response(client: openai.OpenAI, served: Served):
    first = client.responses.create(model=served.model, **ASKED)
    asked = {**ASKED, "input": "Name another one."}
    second = client.responses.create(model=served.model, previous_response_id=first.id, **asked)
    assert second.usage and first.usage and second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_context_that_is_too_long_is_refused_with_the_counts(client: openai.OpenAI, served: Served):
    with pytest.raises(openai.BadRequestError) as e:
        client.responses.create(model=served.model, input="word " * 3000)
    assert e.value.code == "context_length_exceeded" and "1,024" in str(e.value)
    turns: Any = [{"role": "user", "content": "word " * 600}, {"role": "assistant", "content": "Yes."}]
    turns = [*turns, *turns, {"role": "user", "content": "Hi"}]
    answer = client.responses.create(
        model=served.model, input=turns, truncation="auto", max_output_tokens=4, temperature=0
    )
    assert answer.to_dict()["freehold"]["context"]["dropped_messages"] > 0  # type: ignore[index]


def test_a_batch_gives_the_answers_that_any_client_gets(client: openai.OpenAI, served: Served):
    prompts = [f"{n} plus one is" for n in ("one", "two", "three", "four")]
    bodies = [{"model": served.model, "prompt": p, "max_tokens": 6, "temperature": 0} for p in prompts]
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    file = client.files.create(file="\n".join(map(json.dumps, lines)).encode(), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    until = time.monotonic() + 60
    while batch.status != "completed" and time.monotonic() < until:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.output_file_id
    text = client.files.content(batch.output_file_id).text
    results = {r["custom_id"]: r["response"]["body"] for r in map(json.loads, text.splitlines())}
    for i, body in enumerate(bodies):
        asked: Any = body
        expected = client.completions.create(**asked).choices[0].text
        assert results[str(i)]["choices"][0]["text"] == expected
