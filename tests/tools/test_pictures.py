"""Pictures in a tool's result: carried as data URLs where a model could see them, named in the text in any case."""

from __future__ import annotations

import base64

import pytest

from freehold.base.types import Image, Message
from freehold.serve.tools.mcp.connection import MAX_PICTURES, pictures, shown
from freehold.serve.tools.pictures import shown_to, tool_message, usable
from tests.tools.hostile import png

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(22)).decode()
TEXT = {"type": "text", "text": "a cat"}


def image(data: object = PNG, kind: object = "image/png") -> dict[str, object]:
    return {"type": "image", "data": data, "mimeType": kind}


def test_a_picture_is_carried_and_named_in_its_place():
    result = {"content": [TEXT, image()]}
    assert pictures(result) == [f"data:image/png;base64,{PNG}"]
    assert shown(result) == "a cat\n[image of type image/png, 30 bytes]"


def test_a_file_of_a_result_that_is_a_picture_is_carried():
    inside = {"uri": "file:///a.png", "blob": PNG, "mimeType": "image/png"}
    result = {"content": [{"type": "resource", "resource": inside}]}
    assert pictures(result) == [f"data:image/png;base64,{PNG}"]
    assert shown(result) == "[file:///a.png, 30 bytes]"
    inside["blob"] = base64.b64encode(b"PK").decode()
    assert pictures(result) == [] and shown(result).endswith("not shown]")


def test_its_first_bytes_say_what_it_is():
    assert pictures({"content": [image(kind="image/jpeg")]}) == [f"data:image/png;base64,{PNG}"]


@pytest.mark.parametrize("data", ["", "!!", base64.b64encode(b"<svg/>").decode(), None, 7])
def test_what_is_no_picture_is_named_alone(data):
    result = {"content": [image(data)]} if data != 7 else {"content": [image(str(data))]}
    assert pictures(result) == [] and shown(result).endswith("bytes: not shown]")


def test_sound_is_named_and_pictures_are_counted():
    sound = {"type": "audio", "data": PNG, "mimeType": "audio/wav"}
    assert shown({"content": [sound]}) == "[audio of type audio/wav, 30 bytes: not shown]"
    many = {"content": [image()] * (MAX_PICTURES + 5)}
    assert len(pictures(many)) == MAX_PICTURES and shown(many).count("not shown") == 5
    assert pictures({}) == pictures({"structuredContent": {}}) == []


# --- what of them a model is shown ------------------------------------------------------------------

CAT = Image.of(png())


def results(*counts: int) -> list[Message]:
    return [tool_message(f"r{i}", f"c{i}", "look", [CAT] * count) for i, count in enumerate(counts)]


def test_what_cannot_be_opened_is_left_out_with_a_line():
    pytest.importorskip("PIL")
    whole, half = CAT.as_url, Image.of(png()[:40]).as_url
    kept, (line,) = usable([half, whole])
    assert kept == (whole,) and line.startswith("[A picture is left out here: ") and line.endswith(".]")


def test_a_model_that_sees_gets_them_behind_the_text():
    chat = results(2)
    assert shown_to(chat, True, 1 << 20) == tuple(chat) and chat[0].parts == ("r0", CAT, CAT)


def test_a_text_model_gets_a_sentence_and_the_user_s_pictures_stay_to_be_refused():
    user = Message("user", "x", parts=(CAT, "x"))
    mine, tools = shown_to([user, *results(2)], False, 1 << 20, ["a:1b", "b:2b"])
    assert mine is user and tools.parts == ()
    left_out = "[2 pictures are left out here: this model reads text only. a:1b, b:2b can see pictures.]"
    assert tools.content == f"r0\n{left_out}"


def test_beyond_the_bytes_of_a_request_the_oldest_go_and_the_user_s_come_first():
    user = Message("user", "x", parts=(CAT, "x"))
    shown = shown_to([user, *results(2, 1)], True, 3 * CAT.size)
    assert [len(m.parts) for m in shown] == [2, 2, 2] and shown[0] is user
    assert "A picture is left out here: a request holds at most 100 pictures" in shown[1].content
    assert shown[1].parts == (shown[1].content, CAT)
    assert shown_to(shown, True, 3 * CAT.size) == shown  # once more, the same


def test_beyond_the_number_of_a_request_the_oldest_go():
    old, new = shown_to(results(60, 60), True, 1 << 30)
    assert len(new.parts) == 61 and len(old.parts) == 41 and "20 pictures are left out" in old.content
