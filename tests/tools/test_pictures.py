"""Pictures in a tool's result: carried as data URLs where a model could see them, named in the text in any case."""

from __future__ import annotations

import base64

import pytest

from freehold.tools.mcp.connection import MAX_PICTURES, pictures, shown

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(22)).decode()
TEXT = {"type": "text", "text": "a cat"}


def image(data: object = PNG, kind: object = "image/png") -> dict[str, object]:
    return {"type": "image", "data": data, "mimeType": kind}


def test_a_picture_is_carried_and_named_in_its_place():
    result = {"content": [TEXT, image()]}
    assert pictures(result) == [f"data:image/png;base64,{PNG}"]
    assert shown(result) == "a cat\n[image of type image/png, 30 bytes]"


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
