"""Pictures reach a model that sees, in all protocols and in their order; others refuse them before anything runs."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from freehold.base.errors import UsageError
from freehold.base.types import MAX_PICTURE_BYTES, Image
from freehold.serve.http.core.fields import MAX_PICTURES
from tests.http.fakes import Script

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
DATA, ADDRESS = f"data:image/png;base64,{PNG}", "https://example.com/cat.jpg"
CALL = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]}
SOURCE = {"type": "base64", "media_type": "image/png", "data": PNG}


def part(url: str, **more: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(said: str, kind: str = "text") -> dict:
    return {"type": kind, "text": said}


def user(*content: dict) -> dict:
    return {"role": "user", "content": list(content)}


def image(source: dict) -> dict:
    return {"type": "image", "source": source}


RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": [text("it"), image(SOURCE)]}
SEEN = Image("image/png", PNG)
# (route, body, index of the message, its parts, place and type of the first picture)
ASKED = [
    ("/v1/chat/completions", {"messages": [user(text("a"), part(DATA, detail="low"), text("b"))]}, 0,
     ("a", Image("image/png", PNG, detail="low"), "b"), "messages[0].content[1] is of type 'image_url'"),
    ("/v1/chat/completions", {"messages": [user(part(ADDRESS))]}, 0, (Image(url=ADDRESS),), "messages[0].content[0]"),
    ("/v1/responses", {"input": [user(text("a", "input_text"), {"type": "input_image", "image_url": DATA})]}, 0,
     ("a", SEEN), "input[0].content[1] is of type 'input_image'"),
    ("/v1/responses", {"input": [
        {"type": "function_call", "call_id": "t1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t1", "output": [{"type": "input_image", "image_url": DATA}]}]},
     1, (SEEN,), "input[1].output[0]"),
    ("/v1/messages", {"max_tokens": 9, "messages": [user(text("a"), image(SOURCE))]}, 0, ("a", SEEN),
     "messages[0].content[1] is of type 'image'"),
    ("/v1/messages", {"max_tokens": 9, "messages": [user(image({"type": "url", "url": ADDRESS}))]}, 0,
     (Image(url=ADDRESS),), "messages[0].content[0]"),
    ("/v1/messages", {"max_tokens": 9, "messages": [user(text("q")), USE, user(RESULT)]}, 2, ("it", SEEN),
     "messages[2].content[0].content[1]"),
    ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": [PNG]}]}, 0, ("a", SEEN),
     "messages[0].images[0] is of type 'image'"),
    ("/api/generate", {"prompt": "a", "images": [PNG]}, 0, ("a", SEEN), "images[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "at", "parts", "_where"), ASKED)
def test_a_model_that_sees_is_given_pictures_in_their_order(serving, route, body, at, parts, _where):
    server = serving(Script(sees=True, fetches=True))
    answer = server.client.post(route, json={"model": "fake:1b", "stream": False, **body})
    assert answer.status_code == 200, answer.text
    message = server.models.served["fake:1b"].jobs[-1].messages[at]
    assert message.parts == parts
    between = "\n" if route == "/v1/messages" else ""
    assert message.content == between.join(p for p in parts if isinstance(p, str))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("route", "body", "_at", "_parts", "where"), ASKED)
def test_a_model_that_reads_text_refuses_them_before_anything_runs(
    serving, route, body, _at, _parts, where, stream
):
    server = serving()
    answer = server.client.post(route, json={"model": "fake:1b", "stream": stream, **body})
    assert answer.status_code == 400
    assert where in answer.text and "fake:1b cannot read pictures" in answer.text
    assert server.models.served["fake:1b"].jobs == []
    if route.startswith("/v1/chat"):
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_content", where.partition(" ")[0])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/tiff;base64,aGk=", "media type 'image/tiff'"),
        ("data:image/png,hello", "expected one of image/png"),
        ("data:image/png;base64,a===", "is not base64"),
        ("data:image/png;base64,aGk\n=", "is not base64"),
        ("data:image/png;base64,aGk=" + "A" * (1 << 18), "is not base64"),
        ("data:image/png;base64,", "has no bytes"),
        ("file:///etc/passwd", "expected data:, https: or http:"),
        ("https://x/" + "y" * 9000, "expected 8,192"),
    ],
)
def test_a_picture_that_is_none_is_refused_by_its_place(serving, url, said):
    asked = {"model": "fake:1b", "messages": [user(part(url))]}
    answer = serving(Script(sees=True)).client.post("/v1/chat/completions", json=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_content")
    assert error["param"] == "messages[0].content[0]" and said in error["message"]


def test_pictures_are_counted_and_measured(serving):
    server = serving(Script(sees=True, fetches=True))
    many = {"model": "fake:1b", "messages": [user(*[part(ADDRESS)] * (MAX_PICTURES + 1))]}
    said = server.client.post("/v1/chat/completions", json=many).json()["error"]["message"]
    assert f"is picture {MAX_PICTURES + 1}" in said
    large = "A" * (MAX_PICTURE_BYTES * 4 // 3 + 8)
    one = {"model": "fake:1b", "messages": [user(part(f"data:image/png;base64,{large}"))]}
    said = server.client.post("/v1/chat/completions", json=one).json()["error"]["message"]
    assert f"expected at most {MAX_PICTURE_BYTES:,}" in said


def test_counting_refuses_what_the_model_cannot_see(serving):
    asked = {"model": "fake:1b", "messages": [user(image(SOURCE))]}
    answer = serving().client.post("/v1/messages/count_tokens", json=asked)
    assert answer.status_code == 400 and "cannot read pictures" in answer.text
    asked = {"model": "fake:1b", "messages": [user(part(DATA))]}
    answer = serving().client.post("/tokenize", json=asked)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported_content"


@pytest.mark.parametrize("more", [{"raw": True}, {"suffix": "x"}, {"context": [1, 2]}])
def test_a_text_without_a_chat_takes_no_pictures(serving, more):
    asked = {"model": "fake:1b", "prompt": "a", "images": [PNG], **more}
    answer = serving(Script(sees=True)).client.post("/api/generate", json=asked)
    assert answer.status_code == 400 and "images" in answer.text


ADDRESSED = [each for each in ASKED if any(isinstance(part, Image) and part.url for part in each[3])]


@pytest.mark.parametrize(("route", "body", "_at", "_parts", "where"), ADDRESSED)
def test_an_address_is_refused_by_its_place_where_no_provider_fetches_it(
    serving, route, body, _at, _parts, where
):
    server = serving(Script(sees=True))
    answer = server.client.post(route, json={"model": "fake:1b", **body})
    assert answer.status_code == 400
    assert f"{where.partition(' ')[0]} is an address, and none is fetched here" in answer.text
    assert server.models.served["fake:1b"].jobs == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\a.png", "file:///etc/passwd"])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"])
def test_no_protocol_reads_a_file_of_the_server(serving, route, name):
    bodies = {
        "/v1/chat/completions": {"messages": [user(part(name))]},
        "/v1/messages": {"max_tokens": 9, "messages": [user(image({"type": "url", "url": name}))]},
        "/v1/responses": {"input": [user({"type": "input_image", "image_url": name})]},
        "/api/chat": {"messages": [{"role": "user", "content": "a", "images": [name]}]},
    }
    server = serving(Script(sees=True, fetches=True))
    answer = server.client.post(route, json={"model": "fake:1b", **bodies[route]})
    assert answer.status_code == 400 and server.models.served["fake:1b"].jobs == []


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
def test_a_detail_that_openai_knows_goes_with_its_picture(serving, detail):
    server = serving(Script(sees=True))
    asked = {"model": "fake:1b", "messages": [user(part(DATA, detail=detail))]}
    assert server.client.post("/v1/chat/completions", json=asked).status_code == 200
    assert server.models.served["fake:1b"].jobs[-1].messages[0].parts[0].detail == detail


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": [user(part(DATA, detail="best"))]}),
        ("/v1/responses", {"input": [user({"type": "input_image", "image_url": DATA, "detail": "best"})]}),
    ],
)
def test_a_detail_that_is_none_is_refused(serving, route, body):
    answer = serving(Script(sees=True)).client.post(route, json={"model": "fake:1b", **body})
    assert answer.status_code == 400
    assert "has the detail 'best'; expected low, high, auto" in answer.text


def test_what_the_engine_finds_wrong_with_a_picture_has_its_place(serving):
    where = "messages[0].content[1]"
    wrong = UsageError(f"{where} is a PNG that ends in its middle", "send it again", where)
    for stream in (False, True):
        server = serving(Script(sees=True, fail=wrong))
        asked = {"model": "fake:1b", "stream": stream, "messages": [user(text("a"), part(DATA))]}
        answer = server.client.post("/v1/chat/completions", json=asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, where)
        assert "ends in its middle" in error["message"]
        seen = server.models.served["fake:1b"].jobs[-1].messages[0].parts[1]
        assert seen.place == where


def test_who_sees_is_told_where_a_model_in_memory_does(serving):
    server = serving()
    hi = {"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    assert server.client.post("/v1/chat/completions", json={"model": "org/fake:2b", **hi}).status_code == 200
    seeing = server.models.served["org/fake:2b"]
    seeing.loaded.info = replace(seeing.loaded.info, can_see=True)
    asked = {"model": "fake:1b", "messages": [user(part(DATA))]}
    said = server.client.post("/v1/chat/completions", json=asked).json()["error"]["message"]
    assert "of the models in memory, org/fake:2b can" in said
    seeing.loaded.info = replace(seeing.loaded.info, can_see=False)
    said = server.client.post("/v1/chat/completions", json=asked).json()["error"]["message"]
    assert "models with the capability vision in GET /api/tags can" in said


def test_instructions_are_text(serving):
    system = {"role": "system", "content": [{"type": "input_image", "image_url": DATA}]}
    asked = {"model": "fake:1b", "input": [system, user(text("a", "input_text"))]}
    answer = serving(Script(sees=True)).client.post("/v1/responses", json=asked)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "input[0].content"


@pytest.mark.parametrize("sees", [True, False])
def test_the_lists_of_models_say_who_sees(serving, sees):
    server, claude = serving(Script(sees=sees)), {"anthropic-version": "2023-06-01"}
    assert server.client.get("/v1/models/fake:1b", headers=claude).json()["capabilities"] is None
    hi = {"model": "fake:1b", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    assert server.client.post("/v1/chat/completions", json=hi).status_code == 200
    row = server.client.get("/v1/models/fake:1b").json()
    assert ("vision" in row["freehold"]["capabilities"]) is sees
    row = server.client.get("/v1/models/fake:1b", headers=claude).json()
    assert row["capabilities"]["image_input"] == {"supported": sees}
