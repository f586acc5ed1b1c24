"""The routes of pictures in chats: stored before a message names them, read back, and counted in tokens beforehand.

A picture is counted by its size alone: what is counted is a blank one, and by no provider, so that nothing goes
anywhere before its message is sent. Knows folders, models and JSON; knows no run.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Annotated, TypedDict

from msgspec import Meta, Struct

from freehold.base.errors import StoreError
from freehold.base.serving import EstimatedCount, Job, ModelHandle
from freehold.base.types import Image, Message, media_type_of
from freehold.run.pictures.limits import MAX_PIXELS, MAX_SIDE
from freehold.serve.chats.pictures import is_reference
from freehold.serve.http.console.chats import chat_id, folder_of
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.problems import Refused

# A stranger's file: no browser may take it for a page, keep it unasked, or show it in a page of another's.
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"private, no-cache"),
)
_ROWS = 1024  # of a blank picture that are packed at a time


class SentPicture(Struct, kw_only=True):
    """A picture as a data: URL."""

    image: str


class PictureSizes(Struct, kw_only=True):
    """A picture's size in pixels, and the model that shall see it."""

    model: str
    width: Annotated[int, Meta(ge=1, le=MAX_SIDE)]
    height: Annotated[int, Meta(ge=1, le=MAX_SIDE)]


class StoredPicture(TypedDict):
    """A picture that a message may name."""

    picture: str  # what it is named by


class PictureTokens(TypedDict):
    """What a picture adds to a prompt."""

    tokens: int | None  # None: the model does not see, or cannot tell


async def store(call: HttpCall) -> None:
    """Store a picture in a chat, for a message that refers to it."""
    request, _ = await call.struct(SentPicture)
    reference = await call.in_thread(folder_of(call).add_picture, chat_id(call), request.image)
    stored: StoredPicture = {"picture": reference}
    await call.answer(stored, 201)


async def picture(call: HttpCall) -> None:
    """Return the file of a picture in a chat."""
    reference = f"sha256:{call.scope['path_params']['digest']}"
    pictures = folder_of(call).pictures(chat_id(call))
    if not is_reference(reference):
        raise _no_picture()
    tag = b'"%b"' % reference.encode()
    try:
        if call.headers.get(b"if-none-match") == tag:
            await call.in_thread(pictures.size, reference)
            await call.answer(b"", 304, [*HEADERS, (b"etag", tag)])
            return
        data = await call.in_thread(pictures.read, reference)
    except StoreError:
        raise _no_picture() from None
    kind = media_type_of(data[:32]) or "application/octet-stream"
    await call.answer(data, 200, [*HEADERS, (b"etag", tag)], kind.encode())


def _no_picture() -> Refused:
    return Refused(404, "the chat has no such picture", code="no_picture")


async def tokens(call: HttpCall) -> None:
    """Count the tokens of a picture by its size."""
    request, _ = await call.struct(PictureSizes)
    if (pixels := request.width * request.height) > MAX_PIXELS:
        message = f"the picture has {pixels:,} pixels; the limit is {MAX_PIXELS:,}"
        raise Refused(400, message, param="width")
    call.work.model = request.model

    async def work() -> None:
        served = await call.models.use(request.model)
        here = served.info.can_see and not served.info.can_fetch  # else a provider would be asked
        counted = await _tokens(call, served, request) if here else None
        answer: PictureTokens = {"tokens": counted}
        await call.answer(answer)

    await call.while_here(work())


async def _tokens(call: HttpCall, served: ModelHandle, request: PictureSizes) -> int | None:
    """Return by how much a blank picture makes a prompt longer; None where its model's count is a guess."""
    blank = await call.in_thread(_blank, request.width, request.height)
    words = Message("user", "x")
    counts: list[int] = []
    for message in (words, replace(words, parts=(blank, "x"))):
        count = await served.count(Job(messages=(message,), client=call.caller))
        if isinstance(count, EstimatedCount):
            return None
        counts.append(int(count))
    return counts[1] - counts[0]


def _blank(width: int, height: int) -> Image:
    """Return a black PNG of one bit a pixel."""
    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(1)
    packed = [packer.compress(row * min(_ROWS, height - at)) for at in range(0, height, _ROWS)]
    head = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    chunks = [(b"IHDR", head), (b"IDAT", b"".join([*packed, packer.flush()])), (b"IEND", b"")]
    data = b"".join(
        len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4) for name, body in chunks
    )
    return Image.of(b"\x89PNG\r\n\x1a\n" + data)
