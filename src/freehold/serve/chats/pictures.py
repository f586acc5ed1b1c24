"""The pictures of chats: each is stored once a chat, as the file that it is, under the SHA-256 of its bytes.

A message names a picture by its reference, `sha256:` and 64 digits; the bytes are in `.pictures/CHAT/DIGITS` beside
the chats' files. A chat of an earlier version has data: URLs in its lines, which stay as they are.
Knows files; knows no line, no model and no decoder: what is in a picture's file is its sender's.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from freehold.base import private
from freehold.base.errors import StoreError, UsageError
from freehold.base.regular import open_regular
from freehold.base.types import MAX_PICTURE_BYTES, Image, media_type_of

FOLDER = ".pictures"
UNSENT_S = 3600.0  # a picture that no message names is kept so long: its message is still being written
_PREFIX = "sha256:"
_REFERENCE = re.compile(_PREFIX + "[0-9a-f]{64}")


def is_reference(text: str) -> bool:
    """Return whether a message's picture is named by its digest, and not a data: URL."""
    return _REFERENCE.fullmatch(text) is not None


def reference_of(data: bytes) -> str:
    """Return the name of a picture in a chat."""
    return _PREFIX + hashlib.sha256(data).hexdigest()


def decoded_url(url: str, place: str = "") -> bytes:
    """Return the bytes of a data: URL. Raises UsageError for an address, and for what begins as no picture.

    `place`: where it is, for errors.
    """
    called = place or "the picture"
    if not url.startswith("data:"):
        raise UsageError(f"{called} is not a data: URL", "send the picture itself", place)
    data = Image.at(url, place=place).decoded()
    if not media_type_of(data[:32]):
        raise UsageError(f"{called} begins as no picture that is known here", "save it as PNG or JPEG", place)
    return data


class ChatPictures:
    """The pictures of the chat whose file is `path`. Methods block; `put` raises what the system refuses as OSError."""

    def __init__(self, path: Path) -> None:
        self.folder = folder_of(path)
        self._chat = path.stem

    def put(self, data: bytes) -> str:
        """Store a picture that is not stored yet, and return its reference."""
        reference = reference_of(data)
        path = self.file(reference)
        with suppress(FileNotFoundError):
            os.utime(path)  # it is about to be named by a message
            return reference
        private.folder(self.folder, self.folder.parent.parent)
        write_picture(path, data)
        return reference

    def size(self, reference: str) -> int:
        """Return how many bytes a picture has. Raises StoreError where it is not there."""
        with self._there(reference):
            return self.file(reference).stat().st_size

    def read(self, reference: str) -> bytes:
        """Return the bytes of a picture. Raises StoreError where it is not there."""
        with self._there(reference), open_regular(self.file(reference)) as file:
            return file.read(MAX_PICTURE_BYTES + 1)

    def url(self, reference: str) -> str:
        """Return a picture as a data: URL; what is one already, as it is. Raises StoreError as `read`."""
        return Image.of(self.read(reference)).as_url if is_reference(reference) else reference

    def tidy(self, named: Collection[str]) -> None:
        """Remove the pictures that no message names, once they are older than UNSENT_S."""
        before = time.time() - UNSENT_S
        for name, status in _files(self.folder):
            if _PREFIX + name not in named and status.st_mtime < before:
                with suppress(OSError):
                    (self.folder / name).unlink()

    def file(self, reference: str) -> Path:
        """Return where a picture lies; UsageError for another word than a reference."""
        if not is_reference(reference):
            raise UsageError(f"{reference[:80]!r} names no picture of a chat", field="picture")
        return self.folder / reference.removeprefix(_PREFIX)

    @contextmanager
    def _there(self, reference: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise StoreError(
                f"chat {self._chat} has lost the picture {reference[:23]}",
                "remove its message, or send it again",
            ) from None
        except OSError as e:
            raise StoreError(f"a picture of chat {self._chat} cannot be read: {e.strerror}") from e


def folder_of(path: Path) -> Path:
    """Return where the pictures of a chat lie, by the path of its file."""
    return path.parent / FOLDER / path.stem


def write_picture(path: Path, data: bytes) -> None:
    """Make a picture's file, whole or not at all."""
    aside = path.with_name(f".new-{secrets.token_hex(8)}")
    try:
        with open(aside, "wb", opener=private.opener) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def filled(path: Path, home: Path, pictures: Mapping[str, bytes | Path]) -> Path:
    """Make a folder of pictures for a chat that has no name yet. `path`: the folder of chats.

    A picture is bytes, or the file of another chat's, which both have from then on.
    """
    aside = path / FOLDER / f".new-{secrets.token_hex(8)}"
    private.folder(aside, home)
    for reference, source in pictures.items():
        to = aside / reference.removeprefix(_PREFIX)
        if isinstance(source, Path):
            _share(source, to)
        else:
            write_picture(to, source)
    return aside


def _share(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except FileNotFoundError:  # the chat has lost it
        return
    except OSError:  # a disk without hard links
        shutil.copyfile(source, to)
        to.chmod(private.FILE)


def bytes_of(folder: Path) -> Iterator[int]:
    """Yield the sizes of the pictures of all chats in a folder, or of those that were deleted."""
    for each in _folders(folder):
        yield from (status.st_size for _, status in _files(each))


def abandoned(folder: Path, ids: Collection[str]) -> Iterator[Path]:
    """Yield the folders of pictures without a chat: what a program left that was killed at the wrong moment."""
    before = time.time() - UNSENT_S
    for each in _folders(folder):
        with suppress(OSError):
            if each.name not in ids and each.stat().st_mtime < before:
                yield each


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.stat(follow_symlinks=False)
