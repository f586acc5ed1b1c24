"""Every text of a request that a provider could receive, for whatever has to read all of them.

Knows the fields of Job and EmbedJob; tests/providers/test_texts.py fails when one is added that is not read here.
Pictures are not read: what a bitmap shows is beyond patterns. Bytes that only claim to be a picture are.
Path: router/labels.py -> texts_of -> detect/, classifier.py; upstream.py -> cleaning.py
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import unquote_to_bytes

from freehold.serving import EmbedJob, Job
from freehold.types import Image, Message, Tool, ToolCall

# First bytes of the pictures that doors take, whose content is pixels: PNG, JPEG, GIF, WebP. Two of them are letters,
# with which a text may begin as well. Whatever else there is, is read.
BITMAPS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


def texts_of(work: Job | EmbedJob) -> Iterator[str]:
    """Yield every text, field by field. Token ids are no text: see has_tokens."""
    if isinstance(work, EmbedJob):
        yield from (text for text in work.texts if isinstance(text, str))
        return
    for message in work.messages or ():
        yield from _message(message)
    for text in (work.prompt, work.suffix, work.effort, work.template, work.tool_name, *work.stop):
        if text and isinstance(text, str):
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
    """Yield every string in a JSON value, names of members too."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def _message(message: Message) -> Iterator[str]:
    yield message.content
    if message.thinking:
        yield message.thinking
    for call in message.tool_calls:
        yield from _call(call)
    if message.tool_call_id or message.name:
        yield message.tool_call_id
        yield message.name
    for part in message.parts:
        if isinstance(part, str):
            yield part
        else:
            yield from _image(part)
    for block in message.signed:
        yield from (block.text, block.signature, block.redacted)


def _call(call: ToolCall) -> Iterator[str]:
    yield from (call.id, call.name, call.arguments, call.signature)
    if "\\" in call.arguments:  # JSON escapes hide characters: \u0040 is an @
        with suppress(ValueError, RecursionError):  # no JSON: the text itself was yielded
            yield from strings_in(json.loads(call.arguments))


def _tool(tool: Tool) -> Iterator[str]:
    yield tool.name
    yield tool.description
    yield from strings_in(tool.parameters)


def _image(image: Image) -> Iterator[str]:
    yield from (image.media_type, image.detail)
    if image.url[:5].lower() == "data:":
        head, _, body = image.url.partition(",")
        yield head
        yield from _bytes(body, ";base64" in head.lower())
    else:
        yield image.url
    if image.data:
        yield from _bytes(image.data, True)


def _bytes(body: str, in_base64: bool) -> Iterator[str]:
    """Yield the content of a data: URL or of a part in base64, unless it is a bitmap."""
    if not in_base64:
        yield unquote_to_bytes(body).decode("utf-8", "replace")
        return
    try:
        begins = base64.b64decode(body[:32])
        if begins.startswith(BITMAPS) and not begins.isascii():
            return
        content = base64.b64decode(body)
    except (binascii.Error, ValueError):
        yield body
        return
    if not begins.startswith(BITMAPS) or b"\0" not in content:
        yield content.decode("utf-8", "replace")
