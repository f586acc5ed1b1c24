"""Uploads in progress leave the disk its reserve: accounts, sessions, chats and the ledger are written there too.

What uploads say they still have to write counts from their start, so that many at once fit together; of one that does
not say, and of a disk that others fill meanwhile, the room is looked at while it is written. Knows bytes and folders.
Path: openai/files.py, ollama/blobs.py -> Uploads.into -> Upload.came
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from freehold.server.core.problems import Refused
from freehold.store import space

EVERY = 4 << 20  # bytes of an upload between two looks at the disk


@dataclass(slots=True)
class Uploads:
    """Bytes that uploads in progress have announced and not yet sent."""

    coming: int = 0

    @contextmanager
    def into(self, folder: Path, headers: Mapping[bytes, bytes]) -> Iterator[Upload]:
        """Begin an upload to `folder`. Raises Refused (507) where it would leave the disk less than its reserve."""
        stated = headers.get(b"content-length", b"")
        upload = Upload(self, folder, int(stated[:20]) if stated.isdigit() else 0)
        self.coming += upload.coming
        try:
            upload.look()
            yield upload
        finally:
            self.coming -= upload.coming


@dataclass(slots=True)
class Upload:
    """One of them. `coming`: what it has announced and not yet sent."""

    _all: Uploads
    _folder: Path
    coming: int
    _since: int = 0  # bytes since the last look

    def came(self, size: int) -> None:
        """Count `size` bytes that are written next. Raises Refused (507) where the disk has no room for them."""
        known = min(size, self.coming)
        self.coming -= known
        self._all.coming -= known
        self._since += size
        if self._since >= EVERY:
            self.look()

    def look(self) -> None:
        """Raise Refused (507) unless the disk has room for what uploads announced, beside its reserve."""
        left = space.left_for_uploads(self._folder)
        if left < self._all.coming or left <= 0:
            raise Refused(
                507,
                f"the server's disk has {space.human(max(left, 0))} for uploads, and those in progress announced "
                f"{space.human(self._all.coming)} more; send less, or ask again when its owner has freed space",
                code="disk_full",
                headers=((b"connection", b"close"),),
            )
        self._since = 0
