"""Packed files: a model's matrices as panels on disk, so that loading again maps them instead of re-laying.

Knows panels and files; knows no architecture and no store (the caller says where packs lie and which digest a
model has). A pack is only ever a copy: a damaged or foreign one is ignored and written anew.

Layout, little-endian: `FREEHOLD` (8 bytes), header length (u32), SHA-256 of the header (32 bytes), header (JSON:
layout version, model digest, matrices with kind, rows, columns, offset, bytes), then panels at 4096-byte offsets.
Panels are the same for every ISA, so the key is the model's digest and the layout version alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from freehold._native import LAYOUT, Matrix, prefault
from freehold.errors import CapacityExceeded, StoreError
from freehold.machine import available_bytes, show_bytes

MAGIC = b"FREEHOLD"
ALIGN = 4096
# Files written and read in pieces of whole huge pages lie in the page cache as huge pages, and are mapped so (Linux
# 6.x on ext4): a decoded token of a 0.5b takes 14.5 ms from huge pages and 16.8 from pages of 4 KB.
CHUNK = 16 << 20
MAX_HEADER = 16 << 20  # 100,000 matrices at 160 bytes each
_COST = "free some space: freehold list shows what packs take"
RACY_S = 2.0  # the coarsest clock of a file system in use (FAT)
DEFAULT_BUDGET = 64 << 30  # bytes all packs may take together


def pack_path(folder: Path, digest: str) -> Path:
    """Name the pack of a model: by its digest and the panels' layout."""
    return folder / f"{digest}-v{LAYOUT}.pack"


def file_identity(paths: Iterable[Path], before: float) -> str:
    """Name files nobody has hashed by device, inode, size and times of change; "" if that could be wrong.

    Any write, rename or replacement moves the time of change (ctime), which no program can set back. What is not
    seen: other bytes written within the clock's grain of an old write. So files that changed less than
    RACY_S before `before`, the time at which reading them began, have no identity yet and are packed at each load.
    """
    facts = []
    for path in paths:
        info = path.stat()
        if max(info.st_mtime, info.st_ctime) > before - RACY_S:
            return ""
        facts.append((info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
    return hashlib.sha256(f"freehold file identity {facts}".encode()).hexdigest()


def open_pack(path: Path, digest: str) -> dict[str, Matrix] | None:
    """Map a pack's matrices by name; None when there is none, or it is damaged or for another model."""
    try:
        with path.open("rb") as file:
            prefix = file.read(len(MAGIC) + 4 + 32)
            magic, length, checksum = struct.unpack("<8sI32s", prefix)
            if magic != MAGIC or length > MAX_HEADER:
                return None
            header = file.read(length)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hashlib.sha256(header).digest() != checksum:
            return None
        facts = json.loads(header)
        if facts["layout"] != LAYOUT or facts["digest"] != digest or facts["bytes"] != path.stat().st_size:
            return None
        with contextlib.suppress(AttributeError, OSError):  # where the system knows no huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
        panels = np.frombuffer(mapped, np.uint8)
        if panels.size < available_bytes() // 2:  # else the kernel had better choose what stays
            threading.Thread(target=_touch, args=(panels,), name="freehold-pages").start()
        os.utime(path)  # the budget drops the least recently used
        return {
            m["name"]: Matrix.view(panels[m["at"] : m["at"] + m["bytes"]], m["kind"], m["rows"], m["cols"])
            for m in facts["matrices"]
        }
    except (OSError, struct.error):
        return None


def _touch(panels: np.ndarray) -> None:
    """Bring pages in until all are there or the program ends, which waits for one chunk.

    A daemon would still be in native code then, and the interpreter ends such threads by aborting the process.
    """
    for at in range(0, panels.size, CHUNK):
        if not threading.main_thread().is_alive():
            return
        prefault(panels[at : at + CHUNK])


def write_pack(path: Path, digest: str, matrices: Mapping[str, Matrix], budget: int = DEFAULT_BUDGET) -> None:
    """Write a pack beside its place and rename it there.

    Raises CapacityExceeded when the budget or the disk has no room, StoreError when it cannot be written.
    """
    header, end = _header(digest, matrices)
    try:
        _check_room(path.parent, end, budget)
        _write(path, header, end, matrices)
    except OSError as e:
        raise StoreError(f"packed weights are not kept in {path.parent}: {e.strerror or e}", _COST) from e


def _write(path: Path, header: bytes, end: int, matrices: Mapping[str, Matrix]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            for chunk in _chunks(_pieces(header, matrices), end):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pieces(header: bytes, matrices: Mapping[str, Matrix]) -> Iterator[tuple[int, memoryview]]:
    """Yield what a pack holds and where it lies, in order; zeros lie between."""
    yield 0, memoryview(struct.pack("<8sI32s", MAGIC, len(header), hashlib.sha256(header).digest()) + header)
    for entry, matrix in zip(json.loads(header)["matrices"], matrices.values(), strict=True):
        yield entry["at"], matrix.panels().data


def _chunks(pieces: Iterable[tuple[int, memoryview]], end: int) -> Iterator[memoryview]:
    """Yield a file of `end` bytes in CHUNKs."""
    chunk, begin = np.zeros(CHUNK, np.uint8), 0
    for at, piece in [*pieces, (end, memoryview(b""))]:
        data = np.asarray(piece)
        while at + len(data) > begin + CHUNK:
            room = max(0, begin + CHUNK - at)
            chunk[at - begin :][:room] = data[:room]
            yield chunk.data
            chunk[:] = 0
            at, begin, data = at + room, begin + CHUNK, data[room:]
        chunk[at - begin :][: len(data)] = data
    yield chunk[: end - begin].data


def _check_room(folder: Path, want: int, budget: int) -> None:
    if want > budget:
        limit = f"the budget of all packs is {show_bytes(budget)}"
    elif (free := _make_room(folder, want, budget)) < want + want // 20:
        limit = f"{folder} has {show_bytes(free)} free"
    else:
        return
    raise CapacityExceeded(
        f"packed weights of {show_bytes(want)} are not kept, so each load re-lays them: {limit}", _COST
    )


def _header(digest: str, matrices: Mapping[str, Matrix]) -> tuple[bytes, int]:
    """Lay the file out: the header's bytes and the file's length. Offsets leave room for the longest header."""
    at = _aligned(len(MAGIC) + 36 + 512 + sum(len(json.dumps(name)) + 160 for name in matrices))
    entries = []
    for name, m in matrices.items():
        entries.append(
            {"name": name, "kind": m.kind, "rows": m.rows, "cols": m.cols, "at": at, "bytes": m.nbytes}
        )
        at = _aligned(at + m.nbytes)
    facts = {"layout": LAYOUT, "digest": digest, "bytes": at, "matrices": entries}
    return json.dumps(facts).encode(), at


def _aligned(n: int) -> int:
    return (n + ALIGN - 1) // ALIGN * ALIGN


def _make_room(folder: Path, want: int, budget: int) -> int:
    """Drop packs of other layouts, then the least recently used, until `want` fits; return the disk's free bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    packs = []
    for p in folder.glob("*.pack"):
        if not p.stem.endswith(f"-v{LAYOUT}"):
            p.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):  # another process removed it first
            packs.append((p.stat().st_mtime, p.stat().st_size, p))
    held = sum(size for _, size, _ in packs)
    for _, size, old in sorted(packs):
        if held + want <= budget:
            break
        old.unlink(missing_ok=True)  # a process that mapped it keeps its pages
        held -= size
    return shutil.disk_usage(folder).free
