"""Every text of a request that a provider could receive, for whatever has to read all of them.

Knows the fields of Job and EmbedJob; tests/providers/test_texts.py fails when one is added that is not read here.
Pictures are not read: what a bitmap shows is beyond patterns. Bytes that only claim to be a picture are.
Texts come in two steps, so that what takes long can be done in another process: `parts_of` only walks the fields, and
`unpacked` decodes base64, percent signs and JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Literal
from urllib.parse import unquote_to_bytes

from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Image, Message, Tool, ToolCall

LONG_NUMBER = 10_000_000  # from here on it may be of a card or a person; smaller ones are sizes and limits


@dataclass(frozen=True, slots=True)
class Packed:
    """A text that has to be decoded before it can be read."""

    kind: Literal["json", "url", "base64"]
    body: str


Part = str | Packed


def texts_of(work: Job | EmbedJob) -> Iterator[str]:
    """Yield every text, field by field. Token ids are no text: see has_tokens."""
    for part in parts_of(work):
        yield from unpacked(part)


def unpacked(part: Part) -> Iterator[str]:
    """Yield the texts of a part."""
    if isinstance(part, str):
        yield part
    elif part.kind == "json":
        with suppress(ValueError, RecursionError):  # not JSON: the text itself is a part of its own
            yield from strings_in(json.loads(part.body))
    elif part.kind == "url":
        yield unquote_to_bytes(part.body).decode("utf-8", "replace")
    else:
        yield from _from_base64(part.body)


def parts_of(work: Job | EmbedJob) -> Iterator[Part]:
    """Yield every text as it is in the request. A step takes some microseconds, whatever the length of its text."""
    if isinstance(work, EmbedJob):
        yield from (text for text in work.texts if isinstance(text, str))
        return
    for message in work.messages or ():
        yield from _message(message)
    for text in (work.prompt, work.suffix, work.effort, work.template, work.tool_name, *work.stop):
        if text and isinstance(text, str):
            yield text
    for name, text in work.beside:
        yield name
        yield text
    for tool in work.tools:
        yield from _tool(tool)
    if work.format is not None:
        yield from strings_in(work.format.source)
    if work.sampling:
        yield from strings_in(work.sampling)


def has_tokens(work: Job | EmbedJob) -> bool:
    """Return whether a part of the request is token ids, whose text nothing here can read."""
    if isinstance(work, EmbedJob):
        return any(not isinstance(text, str) for text in work.texts)
    return isinstance(work.prompt, tuple)


def strings_in(value: object) -> Iterator[str]:
    """Yield every string in a JSON value, names of members too, and every number from LONG_NUMBER on as digits."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, int | float) and abs(value) >= LONG_NUMBER and isfinite(value):
            yield _digits(value)


def _digits(number: float) -> str:
    try:
        return str(number) if isinstance(number, int) else f"{number:.0f}"
    except ValueError:  # it has more digits than Python writes: too many for a card
        return ""


def _message(message: Message) -> Iterator[Part]:
    yield message.content
    if message.thinking:
        yield message.thinking
    for call in message.tool_calls:
        yield from _call(call)
    if message.tool_call_id or message.name:
        yield message.tool_call_id
        yield message.name
    for part in message.parts:
        if isinstance(part, Image):
            yield from _image(part)
        else:
            yield part if isinstance(part, str) else part.format
    for block in message.signed:
        yield from (block.text, block.signature, block.redacted)


def _call(call: ToolCall) -> Iterator[Part]:
    yield from (call.id, call.name, call.arguments, call.signature)
    if "\\" in call.arguments:  # JSON escapes hide characters: \u0040 is an @
        yield Packed("json", call.arguments)


def _tool(tool: Tool) -> Iterator[str]:
    yield tool.name
    yield tool.description
    yield from strings_in(tool.parameters)


def _image(image: Image) -> Iterator[Part]:
    yield from (image.media_type, image.detail)
    if image.url[:5].lower() == "data:":
        head, _, body = image.url.partition(",")
        yield head
        in_base64 = ";base64" in head.lower()
        if not (in_base64 and _is_bitmap(body)):
            yield Packed("base64" if in_base64 else "url", body)
    else:
        yield image.url
    if image.data and not _is_bitmap(image.data):
        yield Packed("base64", image.data)


_JPEG_SEGMENT = 1 << 16  # bytes: its length has 16 bits


def _is_bitmap(body: str) -> bool:
    """Return whether a text in base64 begins as the pictures do that routes take: PNG, JPEG, GIF, WebP.

    First bytes alone say little: a text may follow them. So their first block is looked at as well.
    """
    try:
        begins = base64.b64decode(body[:44])
        if begins.startswith(b"\xff\xd8\xff"):
            begins = base64.b64decode(body[: 4 * _JPEG_SEGMENT // 3 // 4 * 4 + 8])
    except (binascii.Error, ValueError):
        return False
    if begins.startswith(b"\x89PNG\r\n\x1a\n"):
        return begins[8:16] == b"\0\0\0\rIHDR"
    if begins.startswith(b"\xff\xd8\xff"):  # a segment with its length, and the next one's mark
        size = int.from_bytes(begins[4:6], "big")
        return begins[3:4] >= b"\xc0" and size >= 2 and begins[4 + size : 5 + size] == b"\xff"
    if begins.startswith((b"GIF87a", b"GIF89a")):
        return begins[12:13] == b"\0"  # the pixels' aspect ratio
    return begins.startswith(b"RIFF") and begins[8:15] == b"WEBPVP8"


def _from_base64(body: str) -> Iterator[str]:
    try:
        yield base64.b64decode(body).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        yield body
