"""Pictures the whole way: HTTP, the socket, an engine process with a tiny model that sees, and back."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest
from PIL import Image as Drawing

from freehold.run.models.tiny import make
from freehold.run.store import ModelRef
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import EngineModels
from tests.http.conftest import Running, start

pytestmark = pytest.mark.heavy
MODEL = "sees"


def drawn(colour: str, width: int = 320, height: int = 240) -> bytes:
    file = io.BytesIO()
    Drawing.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


RED, TORN = drawn("red"), drawn("red")[:60]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("seeing")
    folder = make.write_safetensors(make.config("qwen3_vl"), home / "tiny")
    files = tuple(sorted(folder.iterdir()))
    size = sum(file.stat().st_size for file in files)
    ref = ModelRef(MODEL, folder, "safetensors", "", size, "user", "", "", files)
    options = EngineOptions(threads=1, cache_bytes=8 << 20)

    def engines(fakes: Any) -> EngineModels:
        from freehold.base.config import Settings
        from freehold.run.store import Store

        return EngineModels(Store(Settings(home)), options, paths={MODEL: ref})

    running = start(home / "server", around=engines, offline=True)
    yield running
    running.end()


def asked(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    chat = [{"role": "user", "content": list(parts)}]
    return {"model": MODEL, "messages": chat, "max_tokens": 6, "temperature": 0, **more}


def shown(data: bytes, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded(data)}", **more}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_clients_of_every_protocol_get_the_same_answer(real: Running):
    chat = openai.OpenAI(base_url=f"{real.url}/v1", api_key="-", max_retries=0)
    first = chat.chat.completions.create(**asked(shown(RED), said("What?")))
    told = first.choices[0].message.content
    items: Any = [{"role": "user", "content": [
        {"type": "input_image", "image_url": f"data:image/png;base64,{coded(RED)}"},
        {"type": "input_text", "text": "What?"}]}]  # fmt: skip
    response = chat.responses.create(model=MODEL, input=items, max_output_tokens=6, temperature=0)
    source = {"type": "base64", "media_type": "image/png", "data": coded(RED)}
    claude = anthropic.Anthropic(base_url=real.url, api_key="-", max_retries=0)
    turns: Any = [{"role": "user", "content": [{"type": "image", "source": source}, said("What?")]}]
    greedy = {"temperature": 0}
    message = claude.messages.create(model=MODEL, messages=turns, max_tokens=6, extra_body=greedy)
    assert response.output_text == told == message.content[0].text  # type: ignore[union-attr]
    assert first.usage is not None and response.usage is not None
    tokens = first.usage.prompt_tokens
    assert tokens > 20 and response.usage.input_tokens == tokens
    assert claude.messages.count_tokens(model=MODEL, messages=turns).input_tokens == tokens
    with ollama.Client(real.url) as llama:
        turn = {"role": "user", "content": "What?", "images": [RED]}
        behind = llama.chat(MODEL, [turn], options={"num_predict": 6, "temperature": 0})
    before = chat.chat.completions.create(**asked(said("What?"), shown(RED)))
    assert behind.message.content == before.choices[0].message.content
    assert behind.prompt_eval_count == tokens
    for client in (chat, claude):
        client.close()


def test_a_picture_in_a_tool_s_result_is_seen(real: Running):
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    source = {"type": "base64", "media_type": "image/png", "data": coded(RED)}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "image", "source": source}]}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [use]}]
    body = {"model": MODEL, "max_tokens": 2, "messages": [*turns, {"role": "user", "content": [result]}]}
    answer = real.client.post("/v1/messages", json=body)
    if answer.status_code == 200:
        assert answer.json()["freehold"]["context"]["used"] > 20
    else:  # a template without tools says so
        assert answer.status_code == 400 and "tool" in answer.text


def test_a_second_turn_finds_the_first_in_the_cache(real: Running):
    picture = drawn("blue", 640, 480)
    body = asked(shown(picture), said("What is to be seen here, and what is it for?"))
    first = real.client.post("/v1/chat/completions", json=body).json()
    body["messages"] += [{"role": "assistant", "content": "Blue."}, {"role": "user", "content": "Why?"}]
    second = real.client.post("/v1/chat/completions", json=body).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert first["usage"]["prompt_tokens"] - 16 <= cached < second["usage"]["prompt_tokens"]
    other = real.client.post(
        "/v1/chat/completions", json=asked(shown(drawn("green", 640, 480)), said("What?"))
    )
    assert other.json()["usage"]["prompt_tokens_details"]["cached_tokens"] < 16


def test_a_bad_picture_has_its_place_in_each_protocol(real: Running):
    source = {"type": "base64", "media_type": "image/png", "data": coded(TORN)}
    before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    turns = [*before, {"role": "user", "content": [said("a"), shown(RED), shown(TORN)]}]
    pictured = {"role": "user", "content": [said("a"), {"type": "image", "source": source}]}
    item = {"type": "input_image", "image_url": f"data:image/png;base64,{coded(TORN)}"}
    asks = [
        ("/v1/chat/completions", {"messages": turns}, "messages[2].content[2]"),
        ("/v1/messages", {"messages": [*before, pictured], "max_tokens": 2}, "messages[2].content[1]"),
        ("/v1/messages/count_tokens", {"messages": [pictured]}, "messages[0].content[1]"),
        ("/v1/responses", {"input": [*before, {"role": "user", "content": [item]}]}, "input[2].content[0]"),
        ("/api/chat", {"messages": [{"role": "user", "images": [coded(RED), coded(TORN)]}]}, "messages[0].images[1]"),
        ("/api/generate", {"prompt": "a", "images": [coded(TORN)]}, "images[0]"),
        ("/tokenize", {"messages": turns}, "messages[2].content[2]"),
    ]  # fmt: skip
    for route, body, where in asks:
        answer = real.client.post(route, json={"model": MODEL, **body})
        if answer.status_code == 200:  # counting reads the header alone, which is whole
            assert route in ("/v1/messages/count_tokens", "/tokenize")
            continue
        assert answer.status_code == 400, (route, answer.text)
        assert f"{where}: the PNG" in answer.text, (route, answer.text)


@pytest.mark.parametrize("data", [b"<html><body>", b"<svg xmlns='x'/>", b"%!PS-Adobe", b"MZ" + bytes(200)])
def test_other_files_under_a_picture_s_name_are_refused(real: Running, data: bytes):
    answer = real.client.post("/v1/chat/completions", json=asked(shown(data)))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content[0]")
    assert real.client.post("/v1/chat/completions", json=asked(said("a"))).status_code == 200


def test_tokens_of_a_chat_with_a_picture_are_ids_of_the_vocabulary(real: Running):
    chat = [{"role": "user", "content": [shown(RED), said("What?")]}]
    answer = real.client.post("/tokenize", json={"model": MODEL, "messages": chat, "return_token_strs": True})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["count"] == len(body["tokens"]) > 20 and max(body["tokens"]) < 1 << 20


def test_an_ollama_prompt_with_a_picture_gives_no_context(real: Running):
    body = {"model": MODEL, "prompt": "What?", "stream": False, "options": {"num_predict": 2}}
    plain = real.client.post("/api/generate", json=body).json()
    pictured = real.client.post("/api/generate", json={**body, "images": [coded(RED)]}).json()
    assert plain["context"] and "context" not in pictured
    assert "the answer has no context" in pictured["freehold"]["warnings"][0]


def test_addresses_and_paths_are_not_followed(real: Running, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(RED)
    for url in ("http://127.0.0.1:9/a.png", "https://169.254.169.254/", f"file://{tmp_path}/a.png"):
        part = {"type": "image_url", "image_url": {"url": url}}
        answer = real.client.post("/v1/chat/completions", json=asked(part))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[0].content[0]"


def test_a_stream_ends_with_an_error_where_a_picture_is_bad(real: Running):
    with real.client.stream("POST", "/v1/chat/completions", json=asked(shown(TORN), stream=True)) as answer:
        assert isinstance(answer, httpx2.Response) and answer.status_code == 400
        assert "messages[0].content[0]" in answer.read().decode()
