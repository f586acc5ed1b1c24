"""Ollama's protocol the whole way with real weights, by the real client. Marked `model`."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import pytest

from tests.http.conftest import TOKEN
from tests.http.test_real import MODEL, Real, real

pytestmark = pytest.mark.model
__all__ = ["real"]
GREEDY = {"temperature": 0, "num_predict": 12}
USER = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def client(real: Real) -> Iterator[ollama.Client]:
    with ollama.Client(real.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.mark.heavy
def test_both_protocols_say_the_same(real, client):
    ours = real.ask("/v1/chat/completions", messages=USER, temperature=0, max_tokens=12)
    whole = client.chat(MODEL, USER, options=GREEDY)
    pieces = list(client.chat(MODEL, USER, options=GREEDY, stream=True))
    assert whole.message.content == ours["choices"][0]["message"]["content"]
    assert "".join(p.message.content for p in pieces) == whole.message.content
    assert whole.eval_count == ours["usage"]["completion_tokens"] and whole.eval_duration > 0
    assert whole.prompt_eval_count == ours["usage"]["prompt_tokens"]


@pytest.mark.heavy
def test_a_model_made_from_another_answers_by_the_same_engine(real, client):
    told = {"system": "You are a pirate.", "parameters": {**GREEDY, "seed": 1}}
    client.create("freehold-test-pirate", from_=MODEL, **told)
    try:
        made = client.chat("freehold-test-pirate:latest", USER)
        system = {"role": "system", "content": told["system"]}
        assert made.message.content == client.chat(MODEL, [system, *USER], options=GREEDY).message.content
        assert made.eval_count <= 12
        by_openai = real.ask("/v1/chat/completions", messages=USER, model="freehold-test-pirate")
        assert by_openai["choices"][0]["message"]["content"] == made.message.content
        assert [m.model for m in client.ps().models] == [MODEL]
        assert client.show("freehold-test-pirate").details.parent_model == MODEL
    finally:
        client.delete("freehold-test-pirate")


def test_a_template_of_its_own_is_what_the_model_reads(real, client):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    client.create("freehold-test-bare", from_=MODEL, template=template, parameters=GREEDY)
    try:
        made = client.chat("freehold-test-bare", USER)
        raw = client.generate(MODEL, USER[0]["content"], raw=True, options=GREEDY)
        assert made.message.content.strip() == raw.response.strip()
    finally:
        client.delete("freehold-test-bare")
    client.generate(MODEL, keep_alive="5m")  # as the next test expects it


def test_a_talk_goes_on_from_its_ids(client):
    first = client.generate(MODEL, "My name is Ada.", options=GREEDY)
    second = client.generate(MODEL, "Who am I?", context=first.context, options=GREEDY)
    assert (
        second.prompt_eval_count > len(first.context)
        and second.context[: len(first.context)] == first.context
    )


def test_show_and_tags_tell_the_file(client):
    shown = client.show(MODEL)
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192 or shown.modelinfo["llama.context_length"] == 2048
    row = next(m for m in client.list().models if m.model == MODEL)
    assert row.digest and row.details.parameter_size == "134.5M" and row.details.family == "llama"


def test_a_prompt_too_long_is_refused_with_both_numbers_unless_cut(client):
    old = [{"role": r, "content": "word " * 600} for _ in range(3) for r in ("user", "assistant")]
    with pytest.raises(ollama.ResponseError, match=r"context of 2,048.*truncate") as raised:
        client.chat(MODEL, [*old, *USER], options=GREEDY)
    assert raised.value.status_code == 400


@pytest.mark.heavy
def test_a_chat_is_cut_when_asked_and_it_is_told(real):
    old = [{"role": r, "content": "word " * 600} for _ in range(3) for r in ("user", "assistant")]
    body = {"model": MODEL, "messages": [*old, *USER], "truncate": True, "options": GREEDY, "stream": False}
    answer = real.client.post("/api/chat", json=body).json()
    assert answer["freehold"]["context"]["dropped_messages"] >= 2
