"""/console/api/.../pictures: stored and read back by the caller alone, counted without being sent, given to runs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from freehold.base.types import Image, Tool, ToolCall
from freehold.run.pictures.limits import MAX_PIXELS
from freehold.serve.chats.pictures import reference_of
from freehold.serve.chats.types import ToolDesk, ToolResult
from freehold.serve.http.console import pictures as routes
from freehold.serve.http.console.runs import handlers, jobs
from freehold.serve.http.core.keys import Ring, made
from tests.http.fakes import Script
from tests.http.test_console_runs import Chats

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(100))
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
DIGITS = reference_of(PNG).removeprefix("sha256:")
TOKENS = "/console/api/pictures/tokens"


@pytest.fixture
def chats(serving):
    return lambda script=None, **settings: Chats(serving(script, **settings))


def store(mine: Chats, image: str = URL) -> Any:
    return mine.client.post(f"/console/api/chats/{mine.id}/pictures", json={"image": image})


def path_of(mine: Chats, digits: str = DIGITS) -> str:
    return f"/console/api/chats/{mine.id}/pictures/{digits}"


def test_a_picture_is_stored_once_and_read_back_as_a_file_that_no_page_obeys(chats):
    mine = chats()
    assert [store(mine).json() for _ in range(2)] == [{"picture": reference_of(PNG)}] * 2
    answer = mine.client.get(path_of(mine))
    assert answer.content == PNG and answer.headers["content-type"] == "image/png"
    for name, value in routes.HEADERS:
        assert answer.headers[name.decode()] == value.decode()
    again = mine.client.get(path_of(mine), headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content


@pytest.mark.parametrize("digits", ["0" * 64, "..%2f..%2fconfig.toml", DIGITS.upper(), DIGITS[:-1], "%00"])
def test_what_the_chat_does_not_have_is_404(chats, digits):
    mine = chats()
    store(mine)
    assert mine.client.get(path_of(mine, digits)).status_code == 404
    tag = {"If-None-Match": f'"sha256:{digits}"'}
    assert mine.client.get(path_of(mine, digits), headers=tag).status_code == 404


def test_a_stored_page_is_not_taken_for_one(chats):
    """A program that can write to the folder could put one there."""
    mine = chats()
    store(mine)
    mine.folder.pictures(mine.id).file(reference_of(PNG)).write_bytes(b"<script>alert(1)</script>")
    assert mine.client.get(path_of(mine)).headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    "image, said",
    [
        ("https://evil.example/a.png", "is not a data: URL"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "media type 'image/svg+xml'"),
        ("data:image/png;base64,PHN2Zz4=", "begins as no picture"),
        ("", "is not a data: URL"),
    ],
)
def test_what_is_no_picture_is_refused(chats, image, said):
    answer = store(chats(), image)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_another_caller_finds_neither_the_chat_nor_its_pictures(serving, tmp_path: Path):
    keys = [made(name, name * 7, admin=False, models=(), rate="", tokens="") for name in ("ann", "bob")]
    server = serving(home=tmp_path / "mine", keys=Ring(keys))
    ann, bob = ({"Authorization": f"Bearer {name * 7}"} for name in ("ann", "bob"))
    id = server.client.post("/console/api/chats", json={}, headers=ann).json()["id"]
    at = f"/console/api/chats/{id}/pictures"
    assert server.client.post(at, json={"image": URL}, headers=ann).status_code == 201
    assert server.client.get(f"{at}/{DIGITS}", headers=ann).status_code == 200
    assert server.client.get(f"{at}/{DIGITS}", headers=bob).status_code == 404
    assert server.client.post(at, json={"image": URL}, headers=bob).status_code == 404
    assert server.client.get(f"{at}/{DIGITS}").status_code == 401
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", **ann}
    assert server.client.get(f"{at}/{DIGITS}", headers=foreign).status_code == 403


# --- counted by their size --------------------------------------------------------------------------


def count(mine: Chats, width: int, height: int, model: str = "fake:1b") -> Any:
    return mine.client.post(TOKENS, json={"model": model, "width": width, "height": height})


@pytest.mark.parametrize("width, height", [(1, 1), (9, 1), (640, 480), (3000, 40), (1, 32_768), (8192, 8192)])
def test_what_is_counted_is_a_blank_picture_of_that_size(chats, width, height):
    mine = chats(Script(sees=True))
    assert count(mine, width, height).json() == {"tokens": 0}  # the script counts words
    words, seen = mine.server.models.served["fake:1b"].counted[-2:]
    assert words.messages[0].content == seen.messages[0].content == "x" and not words.messages[0].parts
    (blank, _) = seen.messages[0].parts
    with Picture.open(io.BytesIO(blank.decoded())) as opened:
        assert opened.size == (width, height) and not opened.getbbox()
    assert blank.size < 40_000


@pytest.mark.parametrize(
    "script", [Script(), Script(sees=True, fetches=True), Script(sees=True, remote=True)], ids=str
)
def test_nothing_is_said_where_the_model_cannot_tell_or_a_provider_would_be_asked(chats, script):
    mine = chats(script)
    assert count(mine, 640, 480).json() == {"tokens": None}
    served = mine.server.models.served["fake:1b"]
    assert not any(part for job in served.counted for m in job.messages for part in m.parts if script.fetches)


@pytest.mark.parametrize("width, height", [(0, 1), (32_769, 1), (32_768, 32_768), (-1, 5)])
def test_a_size_beyond_the_limits_is_refused(chats, width, height):
    answer = count(chats(Script(sees=True)), width, height)
    assert answer.status_code == 400
    if width == height:
        assert f"the limit is {MAX_PIXELS:,}" in answer.json()["error"]["message"]


def test_a_model_that_is_not_there_is_said(chats):
    assert count(chats(), 5, 5, "nope:1b").status_code == 404


def test_the_page_is_told_the_limits(chats):
    said = chats().client.get("/console/api/me").json()["pictures"]
    assert said == {"most": 100, "bytes": 10 << 20, "together": 40 << 20, "pixels": 64 << 20, "side": 32_768}


# --- in runs ----------------------------------------------------------------------------------------


def last_job(mine: Chats) -> Any:
    return mine.server.models.served["fake:1b"].jobs[-1]


def test_a_message_names_a_stored_picture_and_its_model_sees_it_in_every_turn(chats):
    mine = chats(Script(sees=True))
    reference = store(mine).json()["picture"]
    first = mine.run(message={"content": "what is it?", "images": [reference]})
    assert first["user"]["images"] == [reference]
    mine.follow(first["run"])
    mine.follow(mine.run("and?", parent=first["answer"]["id"])["run"])
    assert last_job(mine).messages[0].parts == (Image("image/png", URL.partition(",")[2]), "what is it?")
    opened = mine.client.get(f"/console/api/chats/{mine.id}").json()
    assert opened["messages"][0]["images"] == [reference] and len(str(opened)) < 6000


def test_a_data_url_in_a_message_is_stored_and_named(chats):
    mine = chats(Script(sees=True))
    started = mine.run(message={"content": "x", "images": [URL]})
    assert started["user"]["images"] == [reference_of(PNG)]
    mine.follow(started["run"])
    assert mine.client.get(path_of(mine)).content == PNG


def test_a_picture_that_the_chat_does_not_have_starts_nothing(chats):
    mine = chats(Script(sees=True))
    answer = mine.start(message={"content": "x", "images": [reference_of(PNG)]})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "no_picture"
    assert "messages[0].images[0]" in answer.json()["error"]["message"]
    assert not mine.folder.read(mine.id).messages


def test_pictures_of_a_branch_beyond_one_request_s_limit_start_nothing(chats, monkeypatch):
    mine = chats(Script(sees=True))
    started = mine.run(message={"content": "x", "images": [URL]})
    mine.follow(started["run"])
    monkeypatch.setattr(jobs, "MAX_PICTURES_BYTES", 2 * len(PNG) - 1)
    answer = mine.start(parent=started["answer"]["id"], message={"content": "y", "images": [URL]})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "pictures_too_large"
    assert "start another chat" in answer.json()["error"]["message"]


def test_a_message_has_at_most_a_hundred(chats):
    answer = chats(Script(sees=True)).start(message={"content": "x", "images": [reference_of(PNG)] * 101})
    assert answer.status_code == 400 and "100" in answer.json()["error"]["message"]


def test_a_fork_an_export_and_an_import_have_the_pictures(chats):
    mine = chats(Script(sees=True))
    started = mine.run(message={"content": "x", "images": [URL]})
    mine.follow(started["run"])
    one = mine.post(f"chats/{mine.id}/fork", message=started["answer"]["id"]).json()["id"]
    whole = mine.client.get(f"/console/api/chats/{mine.id}/export").json()
    assert whole["pictures"] == {reference_of(PNG): URL}
    other = mine.post("import", chat=whole).json()["id"]
    for id in (one, other):
        assert mine.client.get(f"/console/api/chats/{id}/pictures/{DIGITS}").content == PNG


def test_the_same_bits_are_computed_from_the_stored_picture(chats):
    mine = chats(Script(sees=True))
    started = mine.run(message={"content": "x", "images": [URL]})
    mine.follow(started["run"])
    again = mine.post(f"chats/{mine.id}/again", message=started["answer"]["id"])
    assert mine.follow(again.json()["run"]).of("again")[0]["equal"] is True
    assert last_job(mine).messages[0].parts[0].as_url == URL


# --- a tool's pictures ------------------------------------------------------------------------------


CAMERA = {"tools": ["camera"]}


class Camera:
    """A ToolRunner whose tool answers with pictures; then the model says `after`."""

    def __init__(self, mine: Chats, images: tuple[str, ...], after: Script) -> None:
        self._mine, self._images, self._after = mine, images, after

    async def offer(self) -> tuple[Tool, ...]:
        return (Tool("look"),)

    def server_of(self, name: str) -> str:
        return "camera"

    async def use(self, call: ToolCall, desk: ToolDesk) -> ToolResult:
        self._mine.server.models.play(self._after)
        return ToolResult(content="[image of type image/png]", images=self._images)

    async def aclose(self) -> None: ...


@pytest.fixture
def looked(chats, monkeypatch):
    """Return a chat whose model has called a camera, and what a reader of its run got."""

    def run(*images: str, sees: bool = True) -> tuple[Chats, Any]:
        mine = chats(Script(text="I look.", calls=(("look", "{}"),), sees=sees))
        camera = Camera(mine, images, Script(text="A cat.", sees=sees))
        monkeypatch.setattr(handlers, "_tools", lambda call, chat, names: camera if names else None)
        return mine, mine.follow(mine.run("look", settings={"tools": ["camera"]})["run"])

    return run


def test_a_tool_s_picture_is_in_the_chat_in_the_events_and_before_a_model_that_sees(looked):
    mine, seen = looked(URL)
    assert seen.end["finish"] == "stop", seen.end
    assert [result["images"] for result in seen.of("result")] == [[reference_of(PNG)]]
    (result,) = [m for m in mine.folder.read(mine.id).branch() if m.role == "tool"]
    assert result.images == (reference_of(PNG),) and mine.client.get(path_of(mine)).content == PNG
    shown = next(m for m in last_job(mine).messages if m.role == "tool")
    assert shown.parts == ("[image of type image/png]", Image("image/png", URL.partition(",")[2]))
    mine.follow(mine.run("and?", parent=mine.folder.read(mine.id).leaf)["run"])
    assert next(m for m in last_job(mine).messages if m.role == "tool").parts == shown.parts


def test_a_model_that_reads_text_is_told_of_a_tool_s_picture_and_answers(looked):
    mine, seen = looked(URL, sees=False)
    assert seen.end["finish"] == "stop", seen.end
    (warning,) = seen.end["receipt"]["warnings"]
    assert warning == "pictures of tools were left out: fake:1b reads text only"
    left_out = "\n[A picture is left out here: this model reads text only.]"  # computed again, the same
    for _ in range(2):
        shown = next(m for m in last_job(mine).messages if m.role == "tool")
        assert not shown.parts and shown.content == "[image of type image/png]" + left_out
        mine.follow(mine.run("and?", parent=mine.folder.read(mine.id).leaf)["run"])


def test_what_a_tool_calls_a_picture_and_is_none_is_left_out_with_a_note(looked):
    _, seen = looked("data:image/png;base64,PHN2Zz4=", URL)
    assert [result["images"] for result in seen.of("result")] == [[reference_of(PNG)]]
    (note,) = seen.of("note")
    assert "left out" in note["text"] and "begins as no picture" in note["text"]


def test_a_tool_s_picture_that_was_lost_stops_no_answer(looked):
    mine, _ = looked(URL)
    mine.folder.pictures(mine.id).file(reference_of(PNG)).unlink()
    end = mine.follow(mine.run("and?", parent=mine.folder.read(mine.id).leaf)["run"]).end
    assert end["finish"] == "stop"
    result = next(m for m in last_job(mine).messages if m.role == "tool")
    assert not result.parts and "A picture is left out here: lost" in result.content


def test_of_too_many_pictures_of_tools_the_newest_are_shown_and_no_chat_ends(looked, monkeypatch):
    mine, _ = looked(URL)
    monkeypatch.setattr(jobs, "MAX_PICTURES_BYTES", len(PNG) + 4)
    mine.server.models.play(Script(text="Again.", calls=(("look", "{}"),), sees=True))
    end = mine.follow(mine.run("look again", parent=mine.folder.read(mine.id).leaf, settings=CAMERA)["run"])
    mine.follow(mine.run("and?", parent=mine.folder.read(mine.id).leaf)["run"])
    old, new = (m for m in last_job(mine).messages if m.role == "tool")
    assert end.end["finish"] == "stop" and not old.parts and len(new.parts) == 2
    assert "too much for one request" in old.content
