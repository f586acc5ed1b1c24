"""Pictures of a user's cases: data: URLs, or files in the folder of the data file, as parts of a message.

    {"prompt": "What is the total?", "images": ["receipt.jpg"], "contains": "42.50"}
    {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "receipt.jpg"}}, {"type": "text", "text": "..."}]}], ...}

Knows files and parts of messages; opens no picture and knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.types import MAX_PICTURES, Audio, Image, Message

MOST_BYTES = 256 << 20  # of all pictures of a file of cases


class CasePictures:
    """Reads the pictures of one file of cases, each file once. `folder`: of the data file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, Image] = {}
        self._bytes = 0

    def read(self, name: Any) -> Image:
        """Return a picture by a data: URL or a path below the folder. Raises UsageError."""
        if not isinstance(name, str) or not name:
            raise UsageError("a picture is neither a data: URL nor the name of a file")
        if name.startswith("data:"):
            image = Image.at(name)
            self._count(image)
            return image
        if name.startswith(("http:", "https:", "file:")):
            raise UsageError(
                f"the picture {name[:60]!r} is an address, and addresses are not fetched",
                "name a file beside the data",
            )
        path = self._path(name)
        if path not in self._read:
            image = Image.open(path)
            self._count(image)
            self._read[path] = image
        return self._read[path]

    def _path(self, name: str) -> Path:
        try:
            folder, path = self._folder.resolve(), (self._folder / name).resolve()
        except (OSError, ValueError) as e:
            raise UsageError(f"the picture {name[:60]!r} has no valid path: {e}") from None
        if not path.is_relative_to(folder):
            raise UsageError(
                f"the picture {name[:60]!r} is outside the folder of the data file", "put it beside that file"
            )
        return path

    def _count(self, image: Image) -> None:
        self._bytes += image.size
        if self._bytes > MOST_BYTES:
            raise UsageError(
                f"the pictures of the cases have more than {MOST_BYTES:,} bytes",
                "use fewer cases, or smaller pictures",
            )


def prompt_of(text: str, images: Any, pictures: CasePictures) -> Message:
    """Return the message of a prompt, its pictures before it. Raises UsageError."""
    if not isinstance(images, list) or not 1 <= len(images) <= MAX_PICTURES:
        raise UsageError(f"images is not a list of 1 to {MAX_PICTURES} pictures")
    return Message("user", text, parts=(*map(pictures.read, images), text))


def content_of(
    content: Any, pictures: CasePictures, text: Callable[[Any, str], str]
) -> tuple[str, tuple[str | Image, ...]]:
    """Return the text of a message's content, and its parts if it has pictures. Raises UsageError."""
    if not isinstance(content, list):
        return text(content, "content"), ()
    parts = tuple(_part(part, pictures, text) for part in content)
    if not parts:
        raise UsageError("content is an empty list")
    if sum(isinstance(part, Image) for part in parts) > MAX_PICTURES:
        raise UsageError(f"a message has more than {MAX_PICTURES} pictures")
    texts = "".join(part for part in parts if isinstance(part, str))
    return texts, parts if any(isinstance(part, Image) for part in parts) else ()


def _part(part: Any, pictures: CasePictures, text: Callable[[Any, str], str]) -> str | Image:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return text(part.get("text"), "a part of type text")
    if kind != "image_url":
        raise UsageError(f"a part of content is of type {str(kind)[:40]!r}; expected text or image_url")
    named = part.get("image_url")
    url, detail = (named.get("url"), named.get("detail", "")) if isinstance(named, dict) else (named, "")
    image = pictures.read(url)
    if detail not in ("", "low", "high", "auto"):
        raise UsageError(f"detail is {str(detail)[:40]!r}; expected low, high or auto")
    return replace(image, detail=detail) if detail else image


def images_of(messages: Iterable[Message]) -> list[Image]:
    """Return the pictures of a chat, in their order."""
    return [part for message in messages for part in message.parts if isinstance(part, Image)]


def identity(message: Message) -> list[Any]:
    """Return what tells a message from others: role and text, and of one with pictures its parts."""
    own = [message.role, message.content]
    if not message.parts:
        return own
    parts = [
        ["text", p] if isinstance(p, str) else [digest_of(p), getattr(p, "detail", "")] for p in message.parts
    ]
    return [*own, parts]


def digest_of(part: Image | Audio) -> str:
    """Return the SHA-256 of the file of a picture or a sound."""
    return hashlib.sha256(part.decoded()).hexdigest()


def without_data(value: Any) -> Any:
    """Return a line of a data file with digests in place of data: URLs, as results name it."""
    if isinstance(value, str) and value.startswith("data:image/"):
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    if isinstance(value, Mapping):
        return {key: without_data(each) for key, each in value.items()}
    return [without_data(each) for each in value] if isinstance(value, list) else value
