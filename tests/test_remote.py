"""A model behind HTTP: what its events become, and what every way of failing is called."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from freehold.base import errors
from freehold.base.errors import (
    AccessDenied,
    ContextOverflow,
    EngineClosed,
    FreeholdError,
    ModelNotFound,
    Overloaded,
    ServerUnreachable,
    UpstreamFailed,
    UsageError,
)
from freehold.base.serving import ModelInfo
from freehold.base.types import (
    ChatModel,
    Chunk,
    Format,
    FormatLike,
    Image,
    Message,
    SamplingParams,
    TokenLogprob,
    Usage,
    as_format,
)
from freehold.serve.http.core.answering import PREFILL
from freehold.serve.http.openai.fields.generating import Structured, format_of
from freehold.serve.remote import Api
from freehold.serve.remote.openai import HttpModel

INFO = ModelInfo("m", "Q8_0", 128, 256, 1024, 2, 0.1, 1000, 96, True, False, SamplingParams(top_k=40))
HI = [Message("user", "Hi")]


class Script:
    """A server that answers whatever is asked with the next of `answers`; `asked` holds path, body, headers.

    An answer is a list (events, or bytes to send as they are), a Response, or an exception to break off with.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.gone = threading.Event()  # a client left in the middle of a stream

    async def answer(self, request: Request) -> Response:
        body = json.loads(await request.body() or b"null")
        self.asked.append((request.url.path, body, dict(request.headers)))
        answer = self.answers.pop(0)
        if isinstance(answer, list):
            return StreamingResponse(self._events(answer), media_type="text/event-stream")
        return answer

    async def _events(self, events: list[Any]):
        try:
            for event in events:
                if isinstance(event, BaseException):
                    raise event
                if event is None:  # wait for ever, as a model that thinks
                    await asyncio.sleep(3600)
                yield event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
        except asyncio.CancelledError:
            self.gone.set()
            raise


@contextmanager
def serving(script: Script, listener: socket.socket) -> Iterator[None]:
    app = Starlette(routes=[Route("/{path:path}", script.answer, methods=["GET", "POST"])])
    config = uvicorn.Config(app, log_level="critical", ws="none", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener.listen()  # so that no client is refused before the thread runs
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Script, Path]]:
    path = tmp_path_factory.mktemp("s") / "s.sock"
    script = Script()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        with serving(script, listener):
            yield script, path


@pytest.fixture
def script(place: tuple[Script, Path]) -> Script:
    script, _ = place
    script.answers, script.asked = [], []
    script.gone.clear()
    return script


@pytest.fixture
def api(place: tuple[Script, Path]) -> Iterator[Api]:
    with closing(Api(socket=place[1])) as api:
        yield api


@pytest.fixture
def model(api: Api) -> HttpModel:
    return HttpModel(api, "m", INFO)


def delta(text: str | None = None, *, end: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": end}
    return {"choices": [choice | more]}


DONE = b"data: [DONE]\n\n"
WHOLE = [delta("Hello"), delta(" you"), delta(end="stop"), DONE]


def test_comments_of_our_server_tell_how_much_of_the_prompt_is_read(script: Script, model: HttpModel):
    seen: list[tuple[int, int]] = []
    script.answers = [
        [b": keep-alive\n\n", PREFILL % (10, 100), b": other 1 2\n\n", PREFILL % (90, 100), *WHOLE]
    ]
    answer = model.stream([Message("user", "Hi")], on_prefill=lambda *read: seen.append(read))
    assert "".join(chunk.text for chunk in answer) == "Hello you"
    assert seen == [(10, 100), (90, 100)]


def test_it_is_a_chat_model(model: HttpModel):
    assert isinstance(model, ChatModel)


def test_events_become_chunks_and_the_last_one_tells_the_counts(script: Script, model: HttpModel):
    counted = {
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
        "freehold": {
            "timings": {
                "prefill_s": 0.5,
                "decode_s": 0.25,
                "drafted_tokens": 3,
                "accepted_tokens": 1,
                "resumed_tokens": 1,
            }
        },
    }
    script.answers = [[*WHOLE[:3], counted, DONE]]
    assert list(model.stream(HI)) == [
        Chunk("Hello"),
        Chunk(" you"),
        Chunk(finish_reason="stop", usage=Usage(9, 2, 4, 0.5, 0.25, 3, 1, resumed_tokens=1)),
    ]


def test_comments_and_odd_line_ends_are_no_part_of_an_answer(script: Script, model: HttpModel):
    first = b": keep-alive\n\ndata: " + json.dumps(delta("Hel")).encode() + b"\r\n\r\n: again\r\n"
    script.answers = [[b"retry: 5\n\n", first[:30], first[30:], *WHOLE[1:]]]
    assert "".join(c.text for c in model.stream(HI)) == "Hel you"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_comes_under_either_name(script: Script, model: HttpModel, field: str):
    script.answers = [[delta(delta={field: "hm"}), *WHOLE]]
    assert [c.thinking for c in model.stream(HI)] == ["hm", "", "", ""]


def test_token_ids_and_logprobs_come_with_the_bytes_of_their_tokens(script: Script, model: HttpModel):
    half = {"token": "\ufffd", "bytes": [0xC3], "logprob": -0.5, "id": 7}
    other = {"token": "b", "bytes": None, "logprob": -1.5, "id": 8}
    told = {"content": [{**half, "top_logprobs": [half, other]}]}
    script.answers = [[delta("", token_ids=[7], logprobs=told), *WHOLE]]
    first = next(iter(model.stream(HI, logprobs=2)))
    wanted = TokenLogprob(7, -0.5, ((7, -0.5), (8, -1.5)), b"\xc3", (b"\xc3", b"b"))
    assert first == Chunk(token_ids=(7,), logprobs=(wanted,))
    assert script.asked[0][1]["logprobs"] is True and script.asked[0][1]["top_logprobs"] == 2


def test_dropped_messages_are_told_once(script: Script, model: HttpModel):
    receipt = {"freehold": {"context": {"limit": 10, "used": 5, "dropped_messages": 3}}}
    script.answers = [[delta("a") | receipt, delta("b"), delta(end="length") | receipt, DONE]]
    chunks = list(model.stream(HI, overflow="drop-oldest"))
    assert [c.dropped_messages for c in chunks] == [3, 0, 0] and chunks[-1].finish_reason == "length"
    assert script.asked[0][1]["overflow"] == "drop-oldest"


def test_our_server_gets_every_sampling_field_so_that_neutral_ones_win_over_its_defaults(
    script: Script, model: HttpModel
):
    script.answers = [WHOLE]
    list(model.stream(HI, sampling=SamplingParams(top_k=0, seed=5, logit_bias={3: -1.0}), max_tokens=4))
    path, body, _ = script.asked[0]
    assert path == "/v1/chat/completions" and body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["top_k"], body["penalty_window"], body["seed"], body["max_tokens"]) == (0, 64, 5, 4)
    assert body["logit_bias"] == {"3": -1.0} and body["stream_options"] == {"include_usage": True}


def test_another_s_api_is_sent_only_what_it_knows_or_what_was_asked_for(script: Script, api: Api):
    script.answers = [WHOLE, WHOLE]
    list(HttpModel(api, "gpt").stream(HI, sampling=SamplingParams(temperature=0.5, min_p=0.1)))
    asked = script.asked[0][1].keys()
    assert {"temperature", "top_p", "min_p"} < asked
    assert not {"top_k", "penalty_window", "return_token_ids", "seed", "logit_bias", "max_tokens"} & asked
    list(HttpModel(api, "gpt").stream(HI))
    assert script.asked[1][1].keys() == {"messages", "model", "stream", "stream_options"}


def test_thinking_of_earlier_turns_goes_back(script: Script, model: HttpModel):
    script.answers = [WHOLE]
    list(model.stream([*HI, Message("assistant", "4", "2+2"), *HI], think=False))
    assert script.asked[0][1]["messages"][1] == {
        "role": "assistant", "content": "4", "reasoning_content": "2+2"
    }  # fmt: skip
    assert script.asked[0][1]["think"] is False


def test_pictures_go_as_data_urls_in_their_order(script: Script, model: HttpModel):
    image = Image.of(b"\x89PNG\r\n\x1a\n" + bytes(9), "low")
    script.answers = [WHOLE]
    list(model.stream([Message("user", parts=("Left:", image, "What?"))]))
    url = {"url": f"data:image/png;base64,{image.data}", "detail": "low"}
    assert script.asked[0][1]["messages"][0]["content"] == [
        {"type": "text", "text": "Left:"},
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "What?"},
    ]


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize(
    "format, source",
    [
        (Format("json"), ""),
        ({"type": "object"}, {"type": "object"}),
        (Format("regex", "a+"), "a+"),
        (Format("lark", 'start: "a"'), 'start: "a"'),
        (Format("choice", '["é"]'), ["é"]),
    ],
)
def test_our_server_reads_the_format_that_was_meant(
    script: Script, model: HttpModel, kind: str, format: FormatLike, source: object
):
    script.answers = [WHOLE]
    ask = model.stream if kind == "chat" else model.stream_text
    list(ask(HI if kind == "chat" else "Hi", format=format))
    body = script.asked[0][1]
    given = {name: body[name] for name in ("response_format", "structured_outputs") if name in body}
    read = format_of(msgspec.convert(given, Structured))
    wanted = as_format(format)
    assert read is not None and wanted is not None and read.kind == wanted.kind
    assert read.source == source


def test_text_is_continued_without_a_chat(script: Script, model: HttpModel):
    script.answers = [[{"choices": [{"text": "is"}]}, {"choices": [{"text": "", "finish_reason": "length"}]}]]
    assert [c.text for c in model.stream_text("Paris", logprobs=0, stop=["."])] == ["is", ""]
    path, body, _ = script.asked[0]
    assert (path, body["prompt"], body["logprobs"], body["stop"]) == ("/v1/completions", "Paris", 0, ["."])


@pytest.mark.parametrize(
    "events",
    [
        [delta("Hel")],  # a polite end that ends nothing
        [delta("Hel"), DONE],
        [delta("Hel"), ConnectionError("torn")],
        [delta("Hel"), b"data: {not json}\n\n"],
        [delta("Hel"), b'data: {"choices": 3}\n\n'],
        [delta("Hel"), b"data: \xff\xfe\n\n"],
        [delta("Hel", end="because"), DONE],
    ],
    ids=["end", "done", "torn", "no json", "wrong type", "no text", "unknown reason"],
)
def test_an_answer_that_is_not_whole_is_an_error_and_never_asked_for_again(
    script: Script, model: HttpModel, events: list[Any]
):
    script.answers = [events, WHOLE]
    stream = model.stream(HI)
    with pytest.raises(UpstreamFailed):
        list(stream)
    assert len(script.asked) == 1


def test_an_error_in_the_stream_is_raised_by_its_own_name(script: Script, model: HttpModel):
    lost = {
        "message": "the engine died",
        "type": "server_error",
        "code": 500,
        "name": "EngineLost",
        "hint": "h",
    }
    script.answers = [[delta("Hel"), {"error": lost}, DONE]]
    stream = model.stream(HI)
    assert next(stream).text == "Hel"
    with pytest.raises(errors.EngineLost, match="the engine died") as e:
        list(stream)
    assert e.value.hint == "h"


@pytest.mark.parametrize("name", [k.__name__ for k in FreeholdError.__subclasses__()])
def test_every_error_of_ours_survives_the_way(script: Script, model: HttpModel, name: str):
    told = {"message": "why; way out", "hint": "way out", "name": name, "expected_wait_s": 2.5}
    script.answers = [JSONResponse({"error": told}, 418)]
    with pytest.raises(getattr(errors, name)) as e:
        list(model.stream(HI))
    assert (e.value.message, e.value.hint) == ("why", "way out")
    assert getattr(e.value, "wait_s", 2.5) == 2.5


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "m", "code": "context_length_exceeded"}}, ContextOverflow),
        (400, {"error": {"message": "m", "code": None, "param": "n"}}, UsageError),
        (400, {"error": {"message": "m", "name": "Exception"}}, UsageError),
        (401, {"error": {"message": "m", "code": "invalid_api_key"}}, AccessDenied),
        (404, {"error": "no such model"}, ModelNotFound),
        (500, {"detail": "m"}, UpstreamFailed),
        (502, "<html>", UpstreamFailed),
    ],
)
def test_another_server_s_refusal_is_told_by_its_status(
    script: Script, api: Api, status: int, body: Any, kind: type[FreeholdError]
):
    script.answers = [JSONResponse(body, status)]
    with pytest.raises(kind) as e:
        list(HttpModel(api, "x").stream(HI))
    assert type(e.value) is kind and e.value.message


def test_a_full_server_says_how_long_to_wait(script: Script, model: HttpModel):
    script.answers = [JSONResponse({"error": {"message": "full"}}, 429, headers={"Retry-After": "7"})]
    with pytest.raises(Overloaded) as e:
        list(model.stream(HI))
    assert e.value.wait_s == 7


def test_closing_the_stream_cancels_the_answer_at_the_server(script: Script, model: HttpModel):
    script.answers = [[delta("Hel"), None]]
    stream = model.stream(HI)
    assert next(stream).text == "Hel"
    assert isinstance(stream, Iterator) and hasattr(stream, "close")
    stream.close()
    assert script.gone.wait(60)


def test_closed_model_says_so(api: Api, model: HttpModel):
    model.close()
    with pytest.raises(EngineClosed):
        list(model.stream(HI))


# The HTTP library forgets to close a Unix socket that could not be connected.
LEAKS = pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning")


@LEAKS
def test_nobody_there_is_a_named_error(tmp_path: Path):
    with (
        closing(Api(socket=tmp_path / "none.sock")) as api,
        pytest.raises(ServerUnreachable, match=r"none\.sock"),
    ):
        api.call("GET", "/health")


@LEAKS
def test_a_socket_that_a_dead_server_left_is_nobody_there(tmp_path: Path):
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(tmp_path / "s"))
        left.listen()
    with closing(Api(socket=tmp_path / "s")) as api, pytest.raises(ServerUnreachable):
        api.call("GET", "/health")


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://[::"])
def test_an_address_that_is_none_is_wrong_usage(url: str):
    with pytest.raises(UsageError), closing(Api(url)) as api:
        api.call("GET", "/health")


def test_a_url_and_a_key_reach_a_server_over_the_network(script: Script):
    script.answers = [JSONResponse({"ok": True})]
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, serving(script, listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with closing(Api(url, key="s3cret")) as api:
            assert api.call("GET", "/v1/models", as_=dict) == {"ok": True}
            assert "s3cret" not in repr(api) and "s3cret" not in repr(vars(api))
    assert script.asked[0][2]["authorization"] == "Bearer s3cret"


def test_what_is_no_json_is_a_named_error(script: Script, api: Api):
    script.answers = [Response(b"<html>hello</html>")]
    with pytest.raises(UpstreamFailed, match="an unexpected answer"):
        api.call("GET", "/health")


deltas = st.dictionaries(
    st.sampled_from(["content", "reasoning", "tool_calls", "role", "x"]),
    st.none() | st.text(max_size=5) | st.lists(st.none()),
    max_size=3,
)
choices = st.fixed_dictionaries(
    {},
    optional={"index": st.integers(-1, 2), "delta": deltas, "finish_reason": st.none() | st.text(max_size=6)},
)
streamed = st.fixed_dictionaries(
    {},
    optional={"choices": st.lists(choices, max_size=2), "usage": deltas, "error": deltas, "freehold": deltas},
)
raw = st.binary(max_size=30) | st.sampled_from(
    [b": beat\n\n", b"data: [DONE]\n\n", b"data: {\n\n", b"data: []\n\n", b"event: x\n"]
)


@given(st.lists(streamed | raw, max_size=5))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_server_streams_is_an_answer_or_a_named_error(
    place: tuple[Script, Path], events: list[Any]
):
    script, path = place
    script.answers.append(events)
    with closing(HttpModel(Api(socket=path), "m", INFO)) as model:
        try:
            assert all(isinstance(chunk, Chunk) for chunk in model.stream(HI))
        except FreeholdError as e:
            assert len(e.message) < 5000
