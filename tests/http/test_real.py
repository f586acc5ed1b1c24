"""The whole way with real weights: HTTP, the socket, an engine process, and back. Marked `model`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx2
import openai
import pytest

from tests.http.conftest import TOKEN
from tests.http.test_chat import events
from tests.http.test_streams import eventually, request, until

pytestmark = pytest.mark.model
MODEL = "smollm2:135m"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@dataclass
class Real:
    """A running server with the model in memory."""

    url: str
    models: Any

    @cached_property
    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=120)

    def ask(self, route: str, **fields: Any) -> dict[str, Any]:
        answer = self.client.post(route, json={"model": MODEL, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def text(self, prompt: str, **fields: Any) -> str:
        return self.ask(TEXT, prompt=prompt, temperature=0, **fields)["choices"][0]["text"]

    @property
    def row(self) -> Any:
        return next(each for each in self.models.loaded() if each.name == MODEL)


@pytest.fixture(scope="module")
def real(model_path) -> Iterator[Real]:
    from freehold.base.config import load_settings
    from freehold.run.store import Store
    from freehold.serve.http.core.sockets import bind_tcp
    from freehold.serve.http.serve import Doors, ServerSettings
    from freehold.serve.worker.client import EngineOptions
    from freehold.serve.worker.models import EngineModels

    model_path(MODEL)
    up, made = threading.Event(), []

    async def main() -> None:
        store = Store(load_settings())
        models = EngineModels(store, EngineOptions(context=2048, max_models=1))
        doors = Doors(models, ServerSettings(drain_s=0.5, owner=TOKEN), preload=[MODEL], store=store)
        made.extend((doors, models, asyncio.get_running_loop()))
        await doors.open(bind_tcp("127.0.0.1", 0), opened=up.set)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert up.wait(60)
    doors, models, loop = made
    running = Real(doors.url, models)
    assert eventually(lambda: running.client.get("/ready").status_code == 200, 120)
    yield running
    running.client.close()
    loop.call_soon_threadsafe(lambda: doors.stop(now=True))
    thread.join(60)
    assert not thread.is_alive()


def test_sixteen_streams_at_once_are_what_each_is_alone(real):
    prompts = [f"{i} reasons to learn about number {i * 7}:" for i in range(16)]
    alone = [real.text(p, max_tokens=24) for p in prompts]

    def streamed(prompt: str) -> str:
        body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 24, "stream": True}
        got = events(real.client.post(TEXT, json=body).text)
        return "".join(e["choices"][0]["text"] for e in got)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(streamed, prompts)) == alone


def test_a_chat_streams_to_the_whole_answer(real):
    fields = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 20, "seed": 5}
    whole = real.ask(CHAT, **fields)
    got = events(real.client.post(CHAT, json={"model": MODEL, **fields, "stream": True}).text)
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in got)
    assert text == whole["choices"][0]["message"]["content"]
    assert got[-1]["freehold"]["sampling"] == whole["freehold"]["sampling"]


def test_answer_i_of_n_is_that_of_seed_plus_i(real):
    asked = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.0}
    many = real.ask(TEXT, **asked, n=3, seed=40)["choices"]
    assert [c["text"] for c in many] == [
        real.ask(TEXT, **asked, seed=40 + i)["choices"][0]["text"] for i in range(3)
    ]


def test_a_greedy_answer_scored_by_echo_is_greedy_as_lm_eval_sees_it(real):
    prompt = "The capital of France is"
    text = prompt + real.text(prompt, max_tokens=8)
    ids = real.ask("/tokenize", prompt=text)["tokens"]
    begun = len(real.ask("/tokenize", prompt=prompt)["tokens"])
    body = real.ask(TEXT, prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0)
    logprobs = body["choices"][0]["logprobs"]
    assert body["choices"][0]["text"].startswith(text) and len(logprobs["tokens"]) == len(ids) + 1
    for token, top in list(zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[begun:]:
        assert token == max(top.values())


def test_a_second_prompt_with_the_same_beginning_is_cached_and_answers_the_same(real):
    prefix = "You know these facts. " + " ".join(f"Fact {i}: {i} is a number." for i in range(60))
    first = real.ask(TEXT, prompt=prefix + " So", max_tokens=8, temperature=0)
    again = real.ask(TEXT, prompt=prefix + " So", max_tokens=8, temperature=0)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 200
    assert again["choices"] == first["choices"]


def test_a_client_that_goes_leaves_no_block_held(real):
    import socket

    port = int(real.url.rsplit(":", 1)[1])
    body = {"model": MODEL, "prompt": "Count:", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(request(TEXT, body))
        until(sock, b'"finish_reason":null}]}\n\n')
        assert real.row.in_flight == 1
    assert eventually(lambda: real.row.in_flight == 0)
    real.text("x", max_tokens=1)  # a step, which brings the engine's numbers up to date
    assert eventually(lambda: real.row.stats.blocks_live == 0)


def test_a_stream_goes_on_when_its_engine_is_killed(real):
    prompt, tokens = "The story of a fox who", 60
    alone = real.text(prompt, max_tokens=tokens, ignore_eos=True)
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    restarts, text, killed = real.row.restarts, "", False
    with real.client.stream("POST", TEXT, json={**body, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += "".join(
                    c["text"] for e in events(f"{line}\n\ndata: [DONE]\n\n") for c in e["choices"]
                )
            if len(text) > 40 and not killed:
                os.kill(real.row.pid, signal.SIGKILL)
                killed = True
    assert killed and text == alone
    assert real.row.restarts == restarts + 1


def test_a_prompt_too_long_is_refused_with_the_numbers(real):
    answer = real.client.post(TEXT, json={"model": MODEL, "prompt": "word " * 5000})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded" and "2,048" in error["message"]


def test_the_openai_client_chats(real):
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Say hello."}],
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert chunks[-1].usage.completion_tokens == 8 or chunks[-2].choices[0].finish_reason == "stop"


def test_every_protocol_goes_on_from_the_same_beginning(real):
    chat = [
        {"role": "user", "content": "Count from one to ten in words."},
        {"role": "assistant", "content": "one, two, three,"},
    ]
    vllm = {"continue_final_message": True, "add_generation_prompt": False}
    openai = real.ask(CHAT, messages=chat, temperature=0, max_tokens=8, **vllm)
    claude = real.ask("/v1/messages", messages=chat, temperature=0, max_tokens=8)
    options = {"temperature": 0, "num_predict": 8}
    ollama = real.ask("/api/chat", messages=chat, stream=False, options=options)
    said = openai["choices"][0]["message"]["content"]
    assert said.startswith(" four, five") and "one, two" not in said
    assert claude["content"] == [{"type": "text", "text": said}] and ollama["message"]["content"] == said
    again = real.ask("/tokenize", messages=chat, **vllm)["count"]
    assert openai["usage"]["prompt_tokens"] == again
    assert real.ask(CHAT, messages=chat, temperature=0, max_tokens=8)["usage"]["prompt_tokens"] > again
