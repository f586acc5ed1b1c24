"""The real `openai` client against a server on loopback: what it reads, and what it raises."""

from __future__ import annotations

import openai
import pytest

from freehold.base import errors
from tests.http.fakes import Script, failing

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(serving):
    made = []

    def make(script: Script | None = None) -> openai.OpenAI:
        server = serving(script)
        made.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_chat_is_answered(client):
    answer = client(Script(thinking="hm")).chat.completions.create(model="fake:1b", messages=USER)
    assert answer.choices[0].message.content == "Hello there, world."
    assert answer.choices[0].message.reasoning_content == "hm"
    assert answer.usage.total_tokens == 5


def test_a_chat_streams(client):
    stream = client().chat.completions.create(
        model="fake:1b", messages=USER, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello there, world." and chunks[-1].usage.completion_tokens == 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_a_text_is_continued(client):
    answer = client().completions.create(model="fake:1b", prompt="a", echo=True, logprobs=1, max_tokens=2)
    assert answer.choices[0].text == "aHello there,"
    assert answer.choices[0].logprobs.tokens == ["a", "Hello", " there,"]


def test_models_are_listed_and_found(client):
    c = client()
    assert [m.id for m in c.models.list()] == ["fake:1b", "org/fake:2b"]
    assert c.models.retrieve("org/fake:2b").id == "org/fake:2b"


@pytest.mark.parametrize(
    "error, raised",
    [
        (errors.ContextOverflow("too long"), openai.BadRequestError),
        (errors.ModelNotFound("no model"), openai.NotFoundError),
        (errors.Overloaded("full", wait_s=1), openai.RateLimitError),
        (errors.CapacityExceeded("no room"), openai.InternalServerError),
    ],
)
def test_errors_are_the_clients_own(client, error, raised):
    with pytest.raises(raised, match=error.message):
        client(failing("start", error)).chat.completions.create(model="fake:1b", messages=USER)


def test_an_error_midstream_is_raised_with_its_text(client):
    stream = client(failing(1, errors.EngineLost("it died"))).chat.completions.create(
        model="fake:1b", messages=USER, stream=True
    )
    with pytest.raises(openai.APIError, match="it died"):
        list(stream)
