"""The real `openai` package against a real server, as its users call it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from benches.server.own_server import names_of, own_server
from tests.server_clients.conftest import CONTEXT, Served

pytestmark = pytest.mark.model

MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    """Speak to it without retries."""
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, served: Served, **fields: Any) -> Any:
    """Ask for a short greedy answer."""
    asked = {"model": served.model, "messages": MESSAGES, "max_tokens": 24, "temperature": 0, **fields}
    return client.chat.completions.create(**asked)


def complete(client: openai.OpenAI, served: Served, prompt: Any, **fields: Any) -> Any:
    """Continue a text greedily."""
    asked = {"model": served.model, "prompt": prompt, "max_tokens": 12, "temperature": 0, **fields}
    return client.completions.create(**asked)


def test_model_list_names_what_is_served(client: openai.OpenAI, served: Served):
    assert served.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(served.model).id == served.model


def test_chat_answers_and_counts_its_tokens(client: openai.OpenAI, served: Served):
    answer = chat(client, served)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_streamed_chat_says_what_a_whole_one_says_and_ends_with_usage(client: openai.OpenAI, served: Served):
    whole = chat(client, served)
    chunks = list(chat(client, served, stream=True, stream_options={"include_usage": True}))
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices


def test_stream_helper_of_the_client_follows_a_chat(client: openai.OpenAI, served: Served):
    with client.chat.completions.stream(
        model=served.model, messages=MESSAGES, max_tokens=24, temperature=0
    ) as stream:
        for _ in stream:
            pass
        final = stream.current_completion_snapshot
    assert final.choices[0].message.content == chat(client, served).choices[0].message.content


def test_async_client_reads_several_streams_at_once(client: openai.OpenAI, served: Served):
    alone = chat(client, served).choices[0].message.content

    async def one(made: openai.AsyncOpenAI) -> str:
        stream = await made.chat.completions.create(
            model=served.model, messages=MESSAGES, max_tokens=24, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as made:
            return await asyncio.gather(*(one(made) for _ in range(6)))

    assert asyncio.run(run()) == [alone] * 6


def test_n_answers_differ_and_come_again_with_the_same_seed(client: openai.OpenAI, served: Served):
    first, second = (
        [c.message.content for c in chat(client, served, n=3, temperature=1.0, seed=11).choices]
        for _ in range(2)
    )
    assert first == second and len(set(first)) == 3


def test_chat_logprobs_spell_the_answer(client: openai.OpenAI, served: Served):
    answer = chat(client, served, logprobs=True, top_logprobs=4)
    entries = answer.choices[0].logprobs.content
    assert b"".join(bytes(e.bytes) for e in entries).decode() == answer.choices[0].message.content
    for entry in entries:
        assert (
            entry.logprob == max(top.logprob for top in entry.top_logprobs) and len(entry.top_logprobs) == 4
        )


def test_echo_scores_the_prompt(client: openai.OpenAI, served: Served):
    answer = complete(client, served, "The capital of France is Paris.", echo=True, logprobs=1, max_tokens=0)
    scored = answer.choices[0].logprobs
    assert answer.choices[0].text == "The capital of France is Paris." == "".join(scored.tokens)
    assert scored.token_logprobs[0] is None and all(value < 0 for value in scored.token_logprobs[1:])
    assert scored.text_offset[0] == 0 and len(scored.text_offset) == len(scored.tokens)


def test_prompt_may_be_token_ids_or_several(client: openai.OpenAI, served: Served):
    text = "Once upon a time"
    ids: Any = client.post(f"http://127.0.0.1:{served.port}/tokenize", cast_to=object, body={"prompt": text})
    alone = complete(client, served, text).choices[0].text
    assert complete(client, served, ids["tokens"]).choices[0].text == alone
    both = complete(client, served, [text, "Two and two make"])
    assert [choice.index for choice in both.choices] == [0, 1] and both.choices[0].text == alone


def test_stop_string_ends_the_answer_before_itself(client: openai.OpenAI, served: Served):
    free = complete(client, served, "Once upon a time", max_tokens=24).choices[0].text
    stop = free.split()[3]
    held = complete(client, served, "Once upon a time", max_tokens=24, stop=[stop]).choices[0]
    assert held.finish_reason == "stop" and held.text == free[: free.index(stop)]


def test_bias_forbids_a_token(client: openai.OpenAI, served: Served):
    entry = complete(
        client, served, "Once upon a time", logprobs=2, max_tokens=1, extra_body={"return_token_ids": True}
    )
    (token,) = entry.choices[0].token_ids
    other = complete(client, served, "Once upon a time", max_tokens=1, logit_bias={str(token): -100})
    assert other.choices[0].text != entry.choices[0].text


@pytest.mark.parametrize(
    "fields, error, said",
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "no-such-model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        (
            {"messages": [{"role": "user", "content": "word " * 2 * CONTEXT}]},
            openai.BadRequestError,
            f"{CONTEXT:,}",
        ),
    ],
)
def test_error_is_the_class_that_the_client_has_for_it(
    client: openai.OpenAI,
    served: Served,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    said: str,
):
    with pytest.raises(error) as caught:
        chat(client, served, **fields)
    assert said in caught.value.message and caught.value.type


@pytest.mark.heavy
def test_full_queue_is_a_rate_limit_that_the_clients_retries_outlast(served: Served):
    with own_server(served.path, context=CONTEXT, options=("--max-queued", "1")) as server:
        url, model = f"http://127.0.0.1:{server.port}/v1", names_of(server)[0]

        async def together(retries: int) -> list[Any]:
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=retries) as made:
                asked = [
                    made.completions.create(model=model, prompt=f"{i} sheep", max_tokens=32)
                    for i in range(12)
                ]
                return await asyncio.gather(*asked, return_exceptions=True)

        refused = [answer for answer in asyncio.run(together(0)) if isinstance(answer, Exception)]
        assert refused and all(isinstance(error, openai.RateLimitError) for error in refused)
        assert all(float(error.response.headers["retry-after"]) > 0 for error in refused)
        assert not [answer for answer in asyncio.run(together(12)) if isinstance(answer, Exception)]


def test_unknown_field_is_served_with_a_warning(client: openai.OpenAI, served: Served):
    answer = chat(client, served, extra_body={"sparkle": 3})
    assert any("sparkle" in warning for warning in answer.model_extra["freehold"]["warnings"])


def test_receipt_tells_the_context_and_what_was_cached(client: openai.OpenAI, served: Served):
    chat(client, served)
    receipt = chat(client, served).model_extra["freehold"]
    assert receipt["context"]["limit"] == CONTEXT and receipt["context"]["cached"] > 0
    assert receipt["sampling"]["temperature"] == 0


def test_client_that_closes_its_stream_leaves_nothing_running(client: openai.OpenAI, served: Served):
    stream = chat(client, served, stream=True, max_tokens=900)
    next(iter(stream))
    stream.close()
    assert chat(client, served).choices[0].message.content
