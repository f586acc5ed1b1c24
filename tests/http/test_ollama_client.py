"""The real `ollama` client, sync and async, against a server on loopback: what it reads, and what it raises."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import ollama
import pytest
from pydantic import BaseModel

from freehold.base import errors
from freehold.base.types import Format, Message, Tool
from tests.http.conftest import TOKEN
from tests.http.fakes import Script, failing
from tests.http.ollama_rig import with_tiny
from tests.store.standin import Standin
from tests.store.standin import serving as hub_serving
from tests.vectors.files import write_gguf

MODEL = "fake:1b"
USER = [{"role": "user", "content": "hi you"}]
CALLS = (("weather", '{"city": "Ulm"}'),)


class Client:
    """Asks by the sync client or by the async one, so that every test holds for both."""

    def __init__(self, url: str, kind: str) -> None:
        self._kind = kind
        self._client = ollama.Client(url) if kind == "sync" else None
        self._url = url

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._client is not None:
                got = getattr(self._client, method)(*args, **kwargs)
                return list(got) if kwargs.get("stream") else got
            return asyncio.run(self._asked(method, args, kwargs))

        return call

    async def _asked(self, method: str, args: Any, kwargs: Any) -> Any:
        async with ollama.AsyncClient(self._url) as client:
            got = await getattr(client, method)(*args, **kwargs)
            return [each async for each in got] if kwargs.get("stream") else got

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


@pytest.fixture(params=["sync", "async"])
def connect(request, monkeypatch):
    monkeypatch.setenv("OLLAMA_API_KEY", TOKEN)  # which the client sends as Authorization: Bearer
    made: list[Client] = []

    def to(server) -> Client:
        made.append(Client(server.url, request.param))
        return made[-1]

    yield to
    for each in made:
        each.close()


def weather(city: str) -> str:
    """Tell the weather.

    Args:
      city: Where.
    """
    return city


# --- answers -----------------------------------------------------------------------------------------------


def test_chat(connect, serving):
    answer = connect(serving(Script(thinking="hm"))).chat(MODEL, USER, think=True, options={"seed": 1})
    assert answer.message.content == "Hello there, world." and answer.message.thinking == "hm"
    assert answer.done and answer.done_reason == "stop" and answer.eval_count == 4


def test_chat_in_pieces(connect, serving):
    pieces = connect(serving()).chat(MODEL, USER, stream=True, logprobs=True, top_logprobs=1)
    assert "".join(p.message.content for p in pieces) == "Hello there, world."
    assert [p.done for p in pieces] == [False, False, False, True]
    assert pieces[0].logprobs[0].token == "Hello" and pieces[-1].total_duration > 0


def test_chat_with_tools_and_their_results(connect, serving):
    server = serving(Script(text="", calls=CALLS))
    client = connect(server)
    answer = client.chat(MODEL, USER, tools=[weather])
    (call,) = answer.message.tool_calls
    assert call.function.name == "weather" and call.function.arguments == {"city": "Ulm"}
    result = {"role": "tool", "tool_name": "weather", "content": "rain"}
    client.chat(MODEL, [*USER, answer.message, result], tools=[weather])
    first, second = server.models.served[MODEL].jobs
    assert isinstance(first.tools[0], Tool) and first.tools[0].parameters["required"] == ["city"]
    assert second.messages[1].tool_calls[0].arguments == '{"city":"Ulm"}'
    assert second.messages[2].tool_call_id == second.messages[1].tool_calls[0].id


def test_chat_with_a_schema(connect, serving):
    class Pet(BaseModel):
        name: str

    server = serving()
    connect(server).chat(MODEL, USER, format=Pet.model_json_schema())
    given = server.models.served[MODEL].jobs[-1].format
    assert isinstance(given, Format) and given.kind == "json_schema" and "name" in given.source["properties"]


def test_generate_and_going_on(connect, serving):
    server = serving()
    client = connect(server)
    first = client.generate(MODEL, "hi", system="Be brief.")
    assert first.response == "Hello there, world."
    assert server.models.served[MODEL].jobs[-1].messages[0] == Message("system", "Be brief.")
    client.generate(MODEL, "more", context=first.context)
    assert server.models.served[MODEL].jobs[-1].prompt[: len(first.context)] == tuple(first.context)


def test_generate_in_pieces(connect, serving):
    pieces = connect(serving()).generate(MODEL, "def f(", suffix="return", stream=True)
    assert "".join(p.response for p in pieces) == "Hello there, world." and pieces[-1].done


def test_beats_are_read_over(connect, serving):
    pieces = connect(serving(Script(use_delay=0.3), keep_alive_s=0.1)).chat(MODEL, USER, stream=True)
    assert "".join(p.message.content for p in pieces) == "Hello there, world."


def test_loading_and_unloading(connect, serving):
    server = serving()
    client = connect(server)
    assert client.generate(MODEL, keep_alive="5m").done_reason == "load"
    assert [m.model for m in client.ps().models] == [MODEL]
    assert client.generate(MODEL, keep_alive=0).done_reason == "unload"
    assert client.ps().models == []


# --- what it raises ----------------------------------------------------------------------------------------


def test_an_unknown_model_raises_404(connect, serving):
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as raised:
            connect(serving()).chat("nope", USER, stream=stream)
        assert raised.value.status_code == 404


def test_a_failure_midway_raises_its_words(connect, serving):
    server = serving(failing(1, errors.EngineLost("the engine died")))
    with pytest.raises(ollama.ResponseError, match="the engine died") as raised:
        connect(server).chat(MODEL, USER, stream=True)
    assert raised.value.status_code == -1


def test_push_is_refused_with_a_reason(connect, serving):
    with pytest.raises(ollama.ResponseError, match="push is refused") as raised:
        connect(serving()).push(MODEL)
    assert raised.value.status_code == 403


# --- what lies on the disk ---------------------------------------------------------------------------------


@pytest.fixture
def stocked(serving, tmp_path):
    """A server whose store holds a tiny model."""
    server = serving(drain_s=0.1)
    with_tiny(server.store, tmp_path / "files")
    return server


def test_list_and_show(connect, serving, stocked):
    client = connect(stocked)
    assert [m.model for m in client.list().models] == ["fake:1b", "org/fake:2b"]
    shown = client.show("tiny")
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] > 0 and "completion" in shown.capabilities
    assert shown.details.family == "llama" and shown.details.format == "gguf"
    assert "temperature" in shown.parameters and shown.modelfile.splitlines()[1] == "FROM tiny"


def test_create_copy_and_delete(connect, stocked):
    client = connect(stocked)
    told = client.create(
        "Mario",
        from_="tiny",
        system="You are Mario.",
        parameters={"temperature": 0.1, "stop": ["END"]},
        messages=[{"role": "user", "content": "hi"}],
        license="MIT",
        stream=True,
    )
    assert [t.status for t in told][-1] == "success"
    shown = client.show("mario:latest")
    assert shown.details.parent_model == "tiny" and shown.license == "MIT"
    assert "temperature                    0.1" in shown.parameters
    assert 'SYSTEM """You are Mario."""' in shown.modelfile
    assert client.copy("mario", "luigi").status == "success"
    assert client.delete("mario").status == "success"
    assert stocked.store.overlays.find("luigi").system == "You are Mario."
    with pytest.raises(ollama.ResponseError) as raised:
        client.show("mario")
    assert raised.value.status_code == 404


def test_a_file_that_was_sent_becomes_a_model(connect, stocked, tmp_path):
    client = connect(stocked)
    path = write_gguf("qwen2", tmp_path / "sent.gguf", dtype="Q8_0")
    digest = client.create_blob(path)
    assert digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert client.create("mine", files={"sent.gguf": digest}).status == "success"
    assert client.show("mine").details.family == "qwen2"
    assert client.create_blob(path) == digest  # known already
    client.delete("mine")
    assert [m.name for m in stocked.store.list()] == ["tiny"]


@pytest.mark.heavy
@pytest.mark.parametrize("stream", [False, True])
def test_pull(connect, serving, stream):
    body = b"GGUF" + bytes(300_000)
    with hub_serving(Standin(files={"tiny-Q4_K_M.gguf": body})) as hub:
        server = serving(hub=hub.url)
        told = connect(server).pull("org/tiny-GGUF", stream=stream)
    if stream:
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        progress = [t for t in told if t.digest]
        assert progress[-1].digest == digest and progress[-1].completed == progress[-1].total == len(body)
        assert (told[0].status, told[-1].status) == ("pulling manifest", "success")
    else:
        assert told.status == "success"
    assert server.store.resolve("org/tiny-GGUF:Q4_K_M").bytes == len(body)


@pytest.mark.heavy
@pytest.mark.parametrize("stream", [False, True])
def test_pull_of_what_is_nowhere_raises(connect, serving, stream):
    with pytest.raises(ollama.ResponseError, match="not found"):
        connect(serving(drain_s=0.1)).pull("no-such-model", stream=stream)


# --- embeddings --------------------------------------------------------------------------------------------


def test_embeddings_by_both_of_its_calls(connect, serving):
    client = connect(serving())
    made = client.embed(MODEL, ["aab b", "c"], truncate=True, dimensions=3, keep_alive="1m")
    assert made.embeddings[1] == [0, 0, 1] and made.prompt_eval_count == 3
    assert made.total_duration and made.load_duration is not None
    assert list(client.embeddings(MODEL, "c", options={"seed": 1}).embedding) == [0, 0, 1]
    with pytest.raises(ollama.ResponseError, match="2,049") as caught:
        client.embed(MODEL, ["a"] * 2049)
    assert caught.value.status_code == 400
