"""A real server with tiny models that hear: sounds in chats and Responses, refusals by name, caches and order."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import EngineModels
from tests.http.conftest import Running, start
from tests.http.test_eyes_real import drawn, metric
from tests.vectors.ears import recording

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a model that hears and sees, and one that sees alone."""
    folder = tmp_path_factory.mktemp("hearing")
    refs = {}
    for name, tiny in (("hears", "gemma4-ears"), ("deaf", "gemma4-clipped")):
        path = make.write_safetensors(make.config(tiny), folder / name)
        files = tuple(sorted(path.iterdir()))
        size = sum(file.stat().st_size for file in files)
        refs[name] = ModelRef(name, path, "safetensors", name[0] * 64, size, "user", "", "", files)

    def engines(_: Any) -> EngineModels:
        from freehold.base.config import Settings

        return EngineModels(
            Store(Settings(folder)), EngineOptions(threads=1, cache_bytes=8 << 20), paths=refs
        )

    running = start(folder / "server", around=engines, offline=True)
    yield running
    running.end()


def part(data: bytes, format: str = "wav") -> dict[str, Any]:
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(data).decode(), "format": format},
    }


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def chat(server: Running, *parts: dict[str, Any], model: str = "hears", **more: Any) -> Any:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": [*parts]}],
        "max_tokens": 6,
        "temperature": 0,
    }
    return server.client.post("/v1/chat/completions", json=body | more, timeout=120)


def test_a_sound_is_heard_and_computed_once(server: Running):
    before = metric(server, "freehold_sounds_encoded_total")
    one = chat(server, text("hear "), part(recording(2)), text("?"))
    assert one.status_code == 200, one.text
    usage = one.json()["usage"]
    without = chat(server, text("hear "), text("?")).json()["usage"]["prompt_tokens"]
    assert usage["prompt_tokens"] == without + 25 + 2  # rows, and the marks around them
    two = chat(server, text("hear "), part(recording(2)), text("?"))
    assert two.json()["choices"] == one.json()["choices"]
    assert metric(server, "freehold_sounds_encoded_total") == before + 1
    other = chat(server, text("hear "), part(recording(1)), text("?"))
    assert other.json()["usage"]["prompt_tokens"] == without + 20 + 2


def test_responses_hear_too_and_streams(server: Running):
    content = [
        {"type": "input_text", "text": "hear "},
        part(recording(2)),
        {"type": "input_text", "text": "?"},
    ]
    body = {
        "model": "hears",
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": 6,
        "temperature": 0,
    }
    answer = server.client.post("/v1/responses", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    of_chat = chat(server, text("hear "), part(recording(2)), text("?")).json()
    assert answer.json()["usage"]["input_tokens"] == of_chat["usage"]["prompt_tokens"]
    written = "".join(
        piece["text"]
        for item in answer.json()["output"]
        if item["type"] == "message"
        for piece in item["content"]
    )
    assert written == of_chat["choices"][0]["message"]["content"]
    stream = chat(server, text("hear "), part(recording(2)), text("?"), stream=True)
    assert stream.status_code == 200 and stream.text.rstrip().endswith("data: [DONE]")


def test_openais_own_client_sends_a_sound(server: Running):
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
    content: Any = [text("hear "), part(recording(2)), text("?")]
    answer = client.chat.completions.create(
        model="hears", messages=[{"role": "user", "content": content}], max_tokens=6, temperature=0
    )
    of_chat = chat(server, *content).json()
    assert answer.choices[0].message.content == of_chat["choices"][0]["message"]["content"]
    assert answer.usage is not None and answer.usage.prompt_tokens == of_chat["usage"]["prompt_tokens"]


def test_sounds_and_pictures_keep_their_order(server: Running):
    shown, heard = drawn(1, 64, 64), part(recording(0))
    first = chat(server, text("a"), shown, text("b"), heard, text("c"), logprobs=True)
    second = chat(server, text("a"), heard, text("b"), shown, text("c"), logprobs=True)
    assert first.status_code == second.status_code == 200, first.text + second.text
    assert first.json()["usage"]["prompt_tokens"] == second.json()["usage"]["prompt_tokens"]
    values = [
        [each["logprob"] for each in answer.json()["choices"][0]["logprobs"]["content"]]
        for answer in (first, second)
    ]
    assert values[0] != values[1]
    again = chat(server, text("a"), shown, text("b"), heard, text("c"), logprobs=True)
    assert again.json()["choices"] == first.json()["choices"]


def test_a_long_body_of_sounds_is_passed_whole(server: Running):
    """Beyond what is packed in one piece: the file's bytes travel apart."""
    loud = np.zeros(16_000 * 10, np.int16)
    loud[::7] = 9000
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(loud.tobytes())
    answer = chat(server, part(file.getvalue()), text("?"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] > 250


def error(answer: Any) -> tuple[int, str, str]:
    body = answer.json()["error"]
    return answer.status_code, body["message"], body.get("param") or ""


def hours() -> bytes:
    """A WAV file of three megabytes that lasts for fifty minutes."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(1)
        out.setframerate(1000)
        out.writeframes(bytes(3_000_000))
    return file.getvalue()


def test_what_is_not_heard_is_refused_by_name(server: Running):
    place = "messages[0].content[1]"
    status, message, param = error(chat(server, text("x"), part(recording(0)), model="deaf"))
    assert status == 400 and param == place
    assert "deaf cannot process audio" in message and "/v1/audio/transcriptions" in message
    chat(server, text("loads it"))
    assert (
        "of the models in memory, hears can"
        in error(chat(server, text("x"), part(recording(0)), model="deaf"))[1]
    )
    silence = np.zeros(16_000 * 31, np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(silence.tobytes())
    for data, why in (
        (file.getvalue(), "lasts 31.00 s; this model accepts 0.01 to 30 s"),
        (recording(0)[:46], "lasts 0.00 s"),
        (hours(), "the limit is 120"),
        (b"no sound at all", "not in a known audio format"),
        (b"", "0 bytes"),
        (b"RIFF" + bytes(10 << 20), "more than 10,485,760 bytes"),
    ):
        status, message, param = error(chat(server, text("x"), part(data)))
        assert (status, param) == (400, place) and why in message, (status, message, param)
    wrong = {"type": "input_audio", "input_audio": {"data": "https://example.com/a.wav", "format": "wav"}}
    assert "is not base64" in error(chat(server, text("x"), wrong))[1]
    many = [part(recording(3)) for _ in range(33)]
    assert "is recording 33; expected at most 32" in error(chat(server, *many))[1]


def test_what_is_wrong_with_one_part_is_said_of_it(server: Running):
    shown, heard = drawn(3, 64, 64), part(recording(1))
    head, _, data = shown["image_url"]["url"].partition(",")
    broken = {"type": "image_url", "image_url": {"url": f"{head},{data[: len(data) // 8 * 4]}"}}
    status, message, param = error(chat(server, heard, broken))
    assert (status, param) == (400, "messages[0].content[1]") and "messages[0].content[1]: " in message
    status, message, param = error(chat(server, shown, part(recording(1)[:46])))
    assert (status, param) == (400, "messages[0].content[1]") and "lasts 0.00 s" in message
    assert chat(server, shown, heard).status_code == 200


def test_models_say_that_they_hear(server: Running):
    chat(server, text("loads it"))
    chat(server, text("loads it"), model="deaf")
    able = {
        each["name"].removesuffix(":latest"): each["capabilities"]
        for each in server.client.get("/api/tags").json()["models"]
    }
    assert "audio" in able["hears"] and "vision" in able["hears"]
    assert "audio" not in able["deaf"]
