"""Pictures in requests: counted and bounded here, whatever a protocol calls them; an address is never fetched.

A request with pictures is refused once its model is known, and only where that reads text alone. Knows base64 and the
beginnings of four formats; knows no protocol's fields.
Path: a protocol's fields -> Pictures -> Message.parts; Computing -> Pictures.check
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence

from freehold.server.core.problems import Refused
from freehold.serving import ModelInfo
from freehold.types import Image

MAX_PICTURES = 100  # of one request, as providers take
MAX_PICTURE_BYTES = 10 << 20  # of one; a body has at most 16 MiB, in which base64 leaves room for 12
MAX_ADDRESS = 8192  # characters of a URL
MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
# How base64 of each format begins. RIFF, WebP's, begins sound files too, which its provider refuses.
_MAGIC = (
    ("iVBORw0KGgo", "image/png"),
    ("/9j/", "image/jpeg"),
    ("R0lGOD", "image/gif"),
    ("UklGR", "image/webp"),
)


class Pictures:
    """The pictures of one request, as far as it was read."""

    def __init__(self) -> None:
        self._count = 0
        self._first = ""  # place of the first one, and what it is called there

    def at_url(self, url: str, where: str, kind: str, detail: str = "") -> Image:
        """Read a `data:` URL, or keep an address. Raises Refused for any other."""
        if url.startswith("data:"):
            head, _, data = url[5:].partition(",")
            media_type, _, coding = head.partition(";")
            if coding != "base64":
                types = ", ".join(MEDIA_TYPES)
                raise _unsupported(f"{where} has a data: URL; expected one of {types} in base64", where)
            return self._read(media_type, data, where, kind, detail)
        if not url.startswith(("https://", "http://")):
            raise _unsupported(f"{where} has the URL {url[:40]!r}; expected data:, https: or http:", where)
        if len(url) > MAX_ADDRESS:
            raise _unsupported(
                f"{where} has a URL of {len(url):,} characters; expected {MAX_ADDRESS:,}", where
            )
        self._add(where, kind)
        return Image(url=url, detail=detail)

    def in_base64(self, media_type: str, data: str, where: str, kind: str) -> Image:
        """Read base64; a `media_type` of "" is found by how the picture begins. Raises Refused."""
        kind_of_picture = media_type or next((name for magic, name in _MAGIC if data.startswith(magic)), "")
        return self._read(kind_of_picture, data, where, kind, "")

    def check(self, info: ModelInfo) -> None:
        """Raise Refused where there are pictures and the model reads text alone."""
        if self._count and not info.can_see:
            where = self._first.partition(" ")[0]
            raise _unsupported(f"{self._first}; {info.name} reads text so far", where)

    def _read(self, media_type: str, data: str, where: str, kind: str, detail: str) -> Image:
        if media_type not in MEDIA_TYPES:
            types = ", ".join(MEDIA_TYPES)
            raise _unsupported(f"{where} is of media type {media_type[:40]!r}; expected {types}", where)
        size = len(data) * 3 // 4
        if size > MAX_PICTURE_BYTES:
            raise _unsupported(f"{where} has {size:,} bytes; expected at most {MAX_PICTURE_BYTES:,}", where)
        try:
            binascii.a2b_base64(data, strict_mode=True)
        except ValueError:
            raise _unsupported(f"{where} is not base64", where) from None
        self._add(where, kind)
        return Image(media_type, data, detail=detail)

    def _add(self, where: str, kind: str) -> None:
        self._first = self._first or f"{where} is of type {kind!r}"
        self._count += 1
        if self._count > MAX_PICTURES:
            raise _unsupported(f"{where} is picture {self._count}; expected at most {MAX_PICTURES}", where)


def parts_of(pieces: Sequence[str | Image]) -> tuple[str | Image, ...]:
    """Return a message's parts; none where there is no picture among them."""
    return tuple(pieces) if any(isinstance(piece, Image) for piece in pieces) else ()


def _unsupported(message: str, where: str) -> Refused:
    return Refused(400, message, param=where, code="unsupported_content")
