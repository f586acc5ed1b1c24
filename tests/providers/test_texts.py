"""Every text of a request is read: the fields of Job and EmbedJob are walked, and a new one must be read or excused."""

from __future__ import annotations

import base64
import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Format, Image, Message, Tool, ToolCall
from freehold.route.providers.texts import has_tokens, texts_of

CANARY = "canary-7141"
# Texts that are one of a few words, or that no wire sends.
STAYS = {
    "Job.tenant": "the key's name; wires do not know it",
    "Job.client": "the key's name, as Job.tenant",
    "EmbedJob.client": "as Job.client",
    "Job.adapter": "a name of our store, checked against it",
    "EmbedJob.tenant": "as Job.tenant",
    "EmbedJob.adapter": "as Job.adapter",
    "EmbedJob.pooling": "one of three words; for our engine",
    "Format.kind": "one of five words",
    "Image.place": "names of fields and numbers; no wire sends it",
}


def plant(kind: Any) -> Iterator[tuple[str, Any]]:
    """Yield (field, value) for every way to put the canary into a value of a type."""
    if kind is str or kind is Any or kind is object:
        yield "", CANARY
    origin = get_origin(kind)
    if origin is Literal:
        return
    if origin in (Union, types.UnionType):
        for part in get_args(kind):
            yield from plant(part)
    elif origin is tuple:
        parts = get_args(kind)
        for at, part in enumerate(parts):
            if part is not Ellipsis:
                for name, value in plant(part):  # of a pair, the other is empty
                    whole = (
                        (value,)
                        if Ellipsis in parts
                        else tuple("" if i != at else value for i in range(len(parts)))
                    )
                    yield name, whole
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield "", {"a": {"b": ["c", CANARY]}}
        yield "", {CANARY: 1}
    elif dataclasses.is_dataclass(kind):
        yield from fields_of(typing.cast(type, kind))


def blank(kind: Any) -> Any:
    if kind is Message:
        return Message("user", "")
    if kind is ToolCall:
        return ToolCall("", "", "")
    if kind is Format:
        return Format("regex")
    if kind is EmbedJob:
        return EmbedJob(())
    needed = {f.name: "" for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    return kind(**needed)


def fields_of(kind: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        for inner, value in plant(hints[field.name]):
            yield (
                f"{kind.__name__}.{field.name}" + (f" > {inner}" if inner else ""),
                dataclasses.replace(blank(kind), **{field.name: value}),
            )


CASES = [*fields_of(Job), *fields_of(EmbedJob)]


def test_the_walk_reaches_every_dataclass_of_a_job():
    names = {name.split(" > ")[-1] for name, _ in CASES}
    assert {
        "Job.prompt",
        "Message.content",
        "Message.parts",
        "Image.url",
        "SignedThinking.redacted",
        "ToolCall.arguments",
        "Tool.parameters",
        "Format.source",
        "EmbedJob.texts",
    } <= names


@pytest.mark.parametrize("name, work", CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)])
def test_a_text_in_any_field_is_read(name: str, work: Job | EmbedJob):
    read = any(CANARY in text for text in texts_of(work))
    excused = name.split(" > ")[-1] in STAYS
    assert read != excused, f"{name}: read it in providers/texts.py, or say in STAYS why it never leaves"


def test_escapes_in_arguments_do_not_hide_their_characters():
    call = ToolCall("1", "send", '{"to": "jane\\u0040example.org"}')
    job = Job((Message("assistant", "", tool_calls=(call,)),))
    assert "jane@example.org" in texts_of(job)


def test_arguments_that_are_no_json_are_read_as_they_are():
    job = Job((Message("assistant", "", tool_calls=(ToolCall("1", "f", '{"a\\'),)),))
    assert '{"a\\' in texts_of(job)


@pytest.mark.parametrize("media", ["text/plain", "image/svg+xml", "image/png"])
@pytest.mark.parametrize("way", ["data", "url", "url plain"])
def test_a_text_that_claims_to_be_a_picture_is_read(media: str, way: str):
    body = base64.b64encode(f"<text>{CANARY} and more of it</text>".encode()).decode()
    image = {
        "data": Image(media, body),
        "url": Image(url=f"data:{media};base64,{body}"),
        "url plain": Image(url=f"DATA:{media},<text>canary%2D7141</text>"),
    }[way]
    assert any(CANARY in text for text in texts_of(Job((Message("user", "", parts=(image,)),))))


PICTURES = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 100,
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\1" * 9 + b"\xff\xdb" + b"\0" * 100,
    "gif": b"GIF89a\2\0\2\0\x80\0\0" + b"\0" * 100,
    "webp": b"RIFF\x68\0\0\0WEBPVP8 " + b"\0" * 100,
}


@pytest.mark.parametrize("kind", PICTURES)
def test_bitmaps_are_not_read(kind: str):
    body = base64.b64encode(PICTURES[kind]).decode()
    parts = Image("image/png", body), Image(url=f"data:image/png;base64,{body}")
    assert [text for text in texts_of(Job((Message("user", "", parts=parts),))) if len(text) > 30] == []


MAGIC = [
    b"\x89PNG\r\n\x1a\n",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"RIFF\x10\x20\0\0WEBP",
]


@pytest.mark.parametrize("magic", MAGIC)
def test_a_text_behind_a_pictures_first_bytes_is_read(magic: bytes):
    body = base64.b64encode(magic + b"my card is 4111 1111 1111 1111, " * 40).decode()
    for image in (Image("image/png", body), Image(url=f"data:image/png;base64,{body}")):
        texts = texts_of(Job((Message("user", "", parts=(image,)),)))
        assert any("4111 1111" in text for text in texts)


def test_long_numbers_of_tools_and_formats_are_read():
    tool = Tool(
        "pay", "", {"properties": {"card": {"enum": [4539148803436467, 4539148803436467.0, True, 7]}}}
    )
    job = Job(
        (Message("user", ""),), tools=(tool,), format=Format("json_schema", {"const": 4111111111111111})
    )
    texts = list(texts_of(job))
    assert texts.count("4539148803436467") == 2 and "4111111111111111" in texts and "7" not in texts


@pytest.mark.parametrize("begins", ["BMW of ", "GIF8 ", "RIFF ", "II*", "12345ftyp"])
def test_a_text_that_begins_as_a_bitmap_does_is_read(begins: str):
    body = base64.b64encode(f"{begins}{CANARY}, and more of it".encode()).decode()
    for image in (Image("image/png", body), Image(url=f"data:image/gif;base64,{body}")):
        assert any(CANARY in text for text in texts_of(Job((Message("user", "", parts=(image,)),))))


def test_token_ids_are_told_from_text():
    assert has_tokens(Job(prompt=(1, 2))) and has_tokens(EmbedJob(("a", (1, 2))))
    assert not has_tokens(Job(prompt="a")) and not has_tokens(EmbedJob(("a",)))
    assert not has_tokens(Job((Message("user", json.dumps([1, 2])),)))
