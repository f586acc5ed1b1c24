"""Messages with pictures, in every form that a Python caller may give them."""

from __future__ import annotations

import pytest

from freehold.base.errors import BadPrompt, UsageError
from freehold.base.types import Image, Message
from freehold.run.local.jobs import as_messages

SEEN = Image.of(b"\x89PNG\r\n\x1a\n" + bytes(20))
WHOLE = Message("user", "What is it?", parts=(SEEN, "What is it?"))


@pytest.mark.parametrize(
    "message",
    [
        Message("user", parts=(SEEN, "What is it?")),
        Message("user", "What is it?", parts=(SEEN, "What is it?")),
        Message("user", "What is it?", parts=(SEEN,)),
        {"role": "user", "content": [SEEN, "What is it?"]},
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": SEEN.as_url}}, {"type": "text", "text": "What is it?"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": SEEN.as_url}, "What is it?"]},
    ],
)  # fmt: skip
def test_pictures_come_in_many_forms(message):
    assert as_messages([message]) == [WHOLE]


def test_picture_without_a_text_is_a_message():
    assert as_messages([Message("user", parts=(SEEN,))]) == [Message("user", "", parts=(SEEN,))]
    with pytest.raises(BadPrompt):
        as_messages([{"role": "user", "content": []}])


def test_list_of_texts_is_a_text():
    parts = [{"type": "text", "text": "a"}, "b"]
    assert as_messages([{"role": "user", "content": parts}]) == [Message("user", "ab")]


def test_content_that_the_parts_lack_is_not_dropped_in_silence():
    with pytest.raises(UsageError, match="its parts have another text"):
        as_messages([Message("user", "What?", parts=(SEEN, "Why?"))])
    apart = Message("user", "a\nb", parts=("a", SEEN, "b"))
    assert as_messages([apart]) == [apart]


@pytest.mark.parametrize("part", [7, None, {"type": "input_audio"}, {"type": "text"}, {"type": "image_url"}])
def test_part_that_is_none_is_refused(part):
    with pytest.raises(UsageError, match="a part of a message is a"):
        as_messages([{"role": "user", "content": [part]}])
