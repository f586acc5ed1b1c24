"""Files that clients leave with the server: on disk, each tenant's in a folder of its own.

A file is data and a record beside it; it exists once its record does, so a crash leaves all of it or nothing, and
`sweep` removes what has no record. Knows folders, bounds and seconds; knows no form and no batch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from freehold.base import private
from freehold.run.store import space
from freehold.run.store.manifest import sync_folder, write_json
from freehold.serve.http.core.problems import Refused

_ID = re.compile(r"file-[0-9a-f]{24}")
STEP = 16 << 20  # bytes that a file which grows takes at a time of its tenant's room


@dataclass(frozen=True, slots=True)
class FileBounds:
    """What one tenant may leave here."""

    files: int = 1000
    bytes: int = 4 << 30


@dataclass(slots=True)
class _Coming:
    """Bytes that may still be written for a tenant."""

    tenant: str
    bytes: int


class FileRecord(Struct, frozen=True):
    """What is known of a file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    labels: tuple[str, ...] = ()  # that its upload asked for: a batch that reads it has them

    def shown(self) -> dict[str, object]:
        """Return it in OpenAI's words."""
        own = {name: value for name, value in msgspec.to_builtins(self).items() if name != "labels"}
        return {**own, "object": "file", "status": "processed", "status_details": None}


class Files:
    """All files under `root`. Methods touch the disk, so the loop's side calls those that may take long in a thread."""

    def __init__(
        self,
        root: Path,
        bounds: FileBounds | None = None,
        now: Callable[[], float] = time.time,
        beside: Callable[[str], Sequence[Path]] = lambda _: (),
    ) -> None:
        """`beside`: what else takes a tenant's room, such as a batch's input whose file was removed."""
        self._root, self._bounds, self._now, self._beside = root, bounds or FileBounds(), now, beside
        self._adding = threading.Lock()  # taken while a file's bytes are reserved
        self._coming: dict[Path, _Coming] = {}  # what is being written, by its path
        private.folder(root)

    def sweep(self) -> None:
        """Remove what a crash left: data without a record, and parts of uploads."""
        for folder in self._root.iterdir():
            if not folder.is_dir():
                continue
            records = {path.stem for path in folder.glob("*.json")}
            for path in folder.iterdir():
                if path.suffix in (".data", ".part", ".new") and path.stem not in records:
                    path.unlink(missing_ok=True)

    def check_room(self, tenant: str) -> None:
        """Raise Refused (400) where the tenant's files leave room for none more."""
        with self._adding:
            self._check_room(tenant, 1)

    def begin(self, tenant: str, most: int) -> Path:
        """Return where a new file's bytes are to be written, `most` at most, until `end`.

        400 where the tenant's files and what else is being written for it leave no room for as many.
        """
        with self._adding:
            self._check_room(tenant, most)
            part = self._folder(tenant) / f"{new_id()}.part"
            self._coming[part] = _Coming(tenant, most)
        return part

    def reserve(self, tenant: str, folder: Path, more: int) -> None:
        """Have room for `more` bytes that are written next to files beside, of `folder`, until `wrote` or `release`.

        STEP bytes are taken at a time, since each look reads all records. 400 where the tenant's files leave no room;
        OSError where the disk has none beside the reserve that uploads leave it.
        """
        if space.left_for_uploads(self._root) < more:
            raise OSError(errno.ENOSPC, "only its reserve is left")
        with self._adding:
            coming = self._coming.setdefault(folder, _Coming(tenant, 0))
            if coming.bytes < more:
                left = coming.bytes + self._left(tenant, self.all(tenant))
                if left < more:
                    raise self._too_many_bytes(more - left)
                coming.bytes = min(left, more + STEP)

    def wrote(self, folder: Path, size: int) -> None:
        """Count bytes that were reserved as written."""
        self._coming[folder].bytes -= size

    def release(self, folder: Path) -> None:
        """Give back what was reserved and not written."""
        self._coming.pop(folder, None)

    def end(self, part: Path) -> None:
        """Remove what `begin` named, if no file was made of it."""
        part.unlink(missing_ok=True)
        self._coming.pop(part, None)

    def add(
        self,
        tenant: str,
        part: Path,
        filename: str,
        purpose: str,
        seconds: int | None = None,
        labels: tuple[str, ...] = (),
    ) -> FileRecord:
        """Make a file of what was written to `part`, which `begin` named; 400 where others took the room since."""
        with self._adding:
            self._coming.pop(part, None)
            self._check_room(tenant, part.stat().st_size)
            return self._record(tenant, part, part.stem, filename, purpose, seconds, labels)

    def adopt(
        self, tenant: str, source: Path, id: str, filename: str, purpose: str, labels: tuple[str, ...] = ()
    ) -> FileRecord:
        """Make a file of `source`, which stays where it is. Does nothing where it was done before."""
        record = self._read(tenant, id)
        if record is not None:
            return record
        part = self._folder(tenant) / f"{id}.part"
        part.unlink(missing_ok=True)
        link(source, part)
        return self._record(tenant, part, id, filename, purpose, None, labels)

    def all(self, tenant: str) -> list[FileRecord]:
        """Return a tenant's files, the newest first; those whose time has come are removed."""
        records = [self._read(tenant, path.stem) for path in self._folder(tenant).glob("file-*.json")]
        return sorted((f for f in records if f is not None), key=lambda f: (f.created_at, f.id), reverse=True)

    def get(self, tenant: str, id: str) -> FileRecord:
        """Return one; 404 if this tenant has none by this id."""
        record = self._read(tenant, id) if _ID.fullmatch(id) else None
        if record is None:
            message = f"there is no file {id[:80]!r}; GET /v1/files lists them"
            raise Refused(404, message, param="file_id", code="no_file")
        return record

    def path(self, tenant: str, id: str) -> Path:
        """Return where a file's bytes lie."""
        return self._folder(tenant) / f"{self.get(tenant, id).id}.data"

    def delete(self, tenant: str, id: str) -> None:
        """Remove a file; 404 if there is none."""
        self._remove(tenant, self.get(tenant, id).id)

    def _check_room(self, tenant: str, more: int) -> None:
        held = self.all(tenant)
        files = len(held) + sum(each.tenant == tenant for each in self._coming.values())
        if files >= self._bounds.files:
            raise _full(f"there are {files:,} files; expected at most {self._bounds.files:,}")
        if (left := self._left(tenant, held)) < more:
            raise self._too_many_bytes(more - left)

    def _left(self, tenant: str, held: Sequence[FileRecord]) -> int:
        """Return the bytes that a tenant may still leave here, beside what is being written for it."""
        coming = sum(each.bytes for each in self._coming.values() if each.tenant == tenant)
        return self._bounds.bytes - self._bytes(tenant, held) - coming

    def _too_many_bytes(self, beyond: int) -> Refused:
        most = self._bounds.bytes
        return _full(f"files would hold {most + beyond:,} bytes; expected at most {most:,}")

    def _bytes(self, tenant: str, held: Sequence[FileRecord]) -> int:
        """Return the bytes of files and of what is beside them; what has two names is one."""
        paths = [*(self._folder(tenant) / f"{each.id}.data" for each in held), *self._beside(tenant)]
        sizes: dict[tuple[int, int], int] = {}
        for path in paths:
            with suppress(FileNotFoundError):
                status = path.stat()
                sizes[status.st_dev, status.st_ino] = status.st_size
        return sum(sizes.values())

    def _record(
        self,
        tenant: str,
        part: Path,
        id: str,
        filename: str,
        purpose: str,
        seconds: int | None,
        labels: tuple[str, ...],
    ) -> FileRecord:
        now = int(self._now())
        size, until = part.stat().st_size, None if seconds is None else now + seconds
        record = FileRecord(id, size, now, filename, purpose, until, labels)
        sync_file(part)
        os.replace(part, part.with_suffix(".data"))
        write_private(self._folder(tenant) / f"{id}.json", record)
        return record

    def _read(self, tenant: str, id: str) -> FileRecord | None:
        try:
            data = (self._folder(tenant) / f"{id}.json").read_bytes()
            record = msgspec.json.decode(data, type=FileRecord)
        except (OSError, msgspec.DecodeError):
            return None
        if record.expires_at is not None and record.expires_at <= self._now():
            self._remove(tenant, id)
            return None
        return record

    def _remove(self, tenant: str, id: str) -> None:
        for suffix in (".json", ".data"):
            with suppress(FileNotFoundError):
                (self._folder(tenant) / f"{id}{suffix}").unlink()

    def _folder(self, tenant: str) -> Path:
        return private.folder(self._root / tenant_folder(tenant))


def new_id() -> str:
    """Return the id of a new file."""
    return f"file-{secrets.token_hex(12)}"


def tenant_folder(tenant: str) -> str:
    """Return a folder's name for a tenant, whatever characters its own has."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


def write_private(path: Path, record: Struct) -> None:
    """Write a record durably, in a folder that is private already, for this user alone."""
    write_json(path, msgspec.to_builtins(record))
    path.chmod(0o600)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or where the disk knows no such thing a copy."""
    try:
        os.link(source, target)
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)
        target.chmod(0o600)
    sync_file(target)


def sync_file(path: Path) -> None:
    """Flush a file and its entry to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)


def _full(why: str) -> Refused:
    return Refused(400, f"{why}; delete some first", code="files_full")
