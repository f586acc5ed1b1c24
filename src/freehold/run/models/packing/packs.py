"""Packed files: a model's matrices as panels on disk, and in use, so that loading again maps them instead of re-laying.

Knows panels and files; knows no architecture and no store (the caller says where packs lie and which digest a
model has). A pack is only ever a copy: one that is foreign, or damaged at first sight, is ignored and written anew,
and damage of its panels is noticed in use. Packs and their folder are their owner's alone, whatever the umask.

Layout, little-endian: `FREEHOLD` (8 bytes), header length (u32), SHA-256 of the header (32 bytes), header (JSON:
layout version, model digest, matrices with kind, rows, columns, offset, bytes, XXH64), then panels at 4096-byte
offsets. Panels are the same for every ISA, so the key is the model's digest and the layout version alone; but T2 and T3
are expanded where kernels do not decode them, and a pack of the other kind is written anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from freehold._native import LAYOUT, Matrix, checksum, is_lost, map_file, prefault, type_routes
from freehold.base import private
from freehold.base.errors import CapacityExceeded, DamagedPack, FreeholdError, StoreError
from freehold.base.machine import show_bytes
from freehold.base.serving import PACKING_TURN_S

MAGIC = b"FREEHOLD"
ALIGN = 4096
MAX_HEADER = 20 << 20  # 100,000 matrices at 200 bytes each
_COST = "free some space: freehold list shows what packs take"
DEFAULT_BUDGET = 64 << 30  # bytes all packs may take together
LOOK_S = 0.05  # between two looks whether another process still packs the same model


class PackingTurn:
    """A process's turn to pack a model; others wait for its end and map the pack, whose memory they then share."""

    def __init__(self, fd: int) -> None:
        """`fd`: the model's file with our lock, which is ours from now on."""
        self._close = weakref.finalize(self, os.close, fd)

    def end(self) -> None:
        """Let the next process look for the pack; safe to call twice."""
        self._close()


def turn_to_pack(model: Path) -> PackingTurn | None:
    """Wait until no other process packs `model`, a file; None after PACKING_TURN_S, or where files cannot be locked."""
    try:
        fd = os.open(model, os.O_RDONLY)
    except OSError:
        return None
    turn, until = PackingTurn(fd), time.monotonic() + PACKING_TURN_S
    while time.monotonic() < until:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return turn
        except BlockingIOError:
            time.sleep(LOOK_S)
        except OSError:  # a file system without locks
            break
    turn.end()
    return None


def pack_path(folder: Path, digest: str) -> Path:
    """Name the pack of a model: by its digest and the panels' layout."""
    return folder / f"{digest}-v{LAYOUT}.pack"


def open_pack(path: Path, digest: str, paged: bool = False) -> Pack | None:
    """Map a pack; None when there is none, or it is for another model, of another layout, or damaged at first sight.

    Damage of its panels is found while they are read for the first time: see Pack.check. `paged`: memory may lack
    room for it.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        facts = _read_header(fd)
        if facts is None or facts["layout"] != LAYOUT or facts["digest"] != digest:
            return None
        # Kinds of panels that another machine would lay run here, and slowly.
        elsewhere = {"T2", "T3", "T8"} - {packed for _, packed, _, _, _ in type_routes()}
        if any(m["kind"] in elsewhere for m in facts["matrices"]):
            return None
        # The budget drops the least recently used. The time of reading alone: a new time of writing looks like damage.
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), os.fstat(fd).st_mtime_ns))
        return Pack(
            path, os.dup(fd), map_file(fd, huge=True), [Placed(**m) for m in facts["matrices"]], paged
        )
    except (OSError, TypeError, FreeholdError):  # a header of another version, panels of another size
        return None
    finally:
        os.close(fd)


def _read_header(fd: int) -> dict[str, Any] | None:
    """Return what an open pack says of itself, None unless its beginning and its length are as they were written."""
    prefix = os.pread(fd, len(MAGIC) + 4 + 32, 0)
    if len(prefix) < len(MAGIC) + 4 + 32:
        return None
    magic, length, digest = struct.unpack("<8sI32s", prefix)
    if magic != MAGIC or length > MAX_HEADER:
        return None
    header = os.pread(fd, length, len(prefix))
    if hashlib.sha256(header).digest() != digest:
        return None
    facts = json.loads(header)
    return facts if facts["bytes"] == os.fstat(fd).st_size else None


def damage_of(path: Path, seen: Callable[[int], None] = lambda _: None) -> str:
    """Say what of a pack is not as it was written, "" if all is; `seen` receives the number of bytes compared.

    A pack of another layout, or from before matrices had checksums, is sound: it is never used. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        facts = _read_header(fd)
        if facts is None:
            return "its header or its length is not what was written"
        if facts["layout"] != LAYOUT or "sum" not in (facts["matrices"] or [{}])[0]:
            return ""
        mapped = map_file(fd)
        for placed in (Placed(**m) for m in facts["matrices"]):
            if checksum(placed.panels(mapped)) != placed.sum:
                return f"{placed.name} is not what was written"
            seen(placed.bytes)
        return ""
    finally:
        os.close(fd)


def write_pack(path: Path, digest: str, matrices: Mapping[str, Matrix], budget: int = DEFAULT_BUDGET) -> None:
    """Write a pack beside its place and rename it there.

    Raises CapacityExceeded when the budget or the disk has no room, StoreError when it cannot be written.
    """
    header, end = _header(digest, matrices)
    try:
        _check_room(path.parent, end, budget)
        with _part_of(path) as file:
            for chunk in _chunks(_pieces(header, matrices), end):
                file.write(chunk)
    except OSError as e:
        raise StoreError(f"packed weights are not kept in {path.parent}: {e.strerror or e}", _COST) from e


def stream_pack(
    path: Path,
    digest: str,
    sizes: Mapping[str, int],
    matrices: Iterable[tuple[str, Matrix]],
    budget: int = DEFAULT_BUDGET,
) -> None:
    """Write a pack as its matrices come, of which memory holds one; `sizes` are estimates of their bytes, by name.

    The header, which tells checksums, is written last. Raises as write_pack does.
    """
    at = _first_panel(sizes)
    end = at + sum(sizes.values()) + ALIGN * len(sizes)
    try:
        _check_room(path.parent, end, max(budget, end))
        with _part_of(path) as file:
            entries = []
            for name, matrix in matrices:
                entries.append(_entry(name, matrix, at))
                file.seek(at)
                file.write(matrix.panels().data)
                at = _aligned(at + matrix.nbytes)
            file.truncate(at)
            file.seek(0)
            file.write(_beginning(_facts(digest, at, entries)))
    except OSError as e:
        raise StoreError(f"packed weights are not kept in {path.parent}: {e.strerror or e}", _COST) from e


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[BinaryIO]:
    """Open the file that becomes a pack once it is whole; its lock says that a process writes it. Raises OSError."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.unlink(missing_ok=True)  # of a process that had this id; its writer may still have it open
    try:
        with open(part, "xb", opener=private.opener) as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def drop_torn(folder: Path) -> None:
    """Delete what writers that were killed left of packs; what a process writes now is locked, and stays."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError), open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _pieces(header: bytes, matrices: Mapping[str, Matrix]) -> Iterator[tuple[int, memoryview]]:
    """Yield what a pack holds and where it lies, in order; zeros lie between."""
    yield 0, memoryview(_beginning(header))
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
    """Lay the file out: the header's bytes and the file's length."""
    at, entries = _first_panel(matrices), []
    for name, m in matrices.items():
        entries.append(_entry(name, m, at))
        at = _aligned(at + m.nbytes)
    return _facts(digest, at, entries), at


def _first_panel(names: Iterable[str]) -> int:
    """Return where panels begin: after the longest header that matrices of these names can have."""
    return _aligned(len(MAGIC) + 36 + 512 + sum(len(json.dumps(name)) + 200 for name in names))


def _entry(name: str, m: Matrix, at: int) -> dict[str, Any]:
    facts = {"name": name, "kind": m.weight_type, "rows": m.rows, "cols": m.cols, "at": at, "bytes": m.nbytes}
    return facts | {"sum": checksum(m.panels())}


def _facts(digest: str, end: int, entries: list[dict[str, Any]]) -> bytes:
    return json.dumps({"layout": LAYOUT, "digest": digest, "bytes": end, "matrices": entries}).encode()


def _beginning(header: bytes) -> bytes:
    return struct.pack("<8sI32s", MAGIC, len(header), hashlib.sha256(header).digest()) + header


def _aligned(n: int) -> int:
    return (n + ALIGN - 1) // ALIGN * ALIGN


def _make_room(folder: Path, want: int, budget: int) -> int:
    """Drop packs of other layouts, then the least recently used, until `want` fits; return the disk's free bytes."""
    private.folder(folder)
    packs = []
    for p in folder.glob("*.pack"):
        if not p.stem.endswith(f"-v{LAYOUT}"):
            p.unlink(missing_ok=True)
            continue
        with contextlib.suppress(FileNotFoundError):  # another process removed it first
            packs.append((max(p.stat().st_atime, p.stat().st_mtime), p.stat().st_size, p))
    held = sum(size for _, size, _ in packs)
    for _, size, old in sorted(packs):
        if held + want <= budget:
            break
        old.unlink(missing_ok=True)  # a process that mapped it keeps its pages
        held -= size
    return shutil.disk_usage(folder).free


# --- a pack in use: a model's matrices in a mapped file, and whether they still are what was written
# A thread brings the pages in and compares each matrix with its checksum while the first step computes;
# `check` waits for it, so a token never leaves that was computed from damage. Later a change of the file
# shows in its time or size.

# The page cache keeps files written and read in pieces of whole huge pages as huge pages, and maps them so (Linux
# 6.x on ext4): a decoded token of a 0.5b takes 14.5 ms from huge pages and 16.8 from pages of 4 KB.
CHUNK = 16 << 20
# What is not finite makes us look again, at most so often: a damaged model file does so for ever.
AGAIN_S = 60.0

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Placed:
    """The place of a matrix in a pack, and the XXH64 of its panels."""

    name: str
    kind: str
    rows: int
    cols: int
    at: int
    bytes: int
    sum: int

    def panels(self, file: U8) -> U8:
        """Return its bytes of the whole file's."""
        return file[self.at : self.at + self.bytes]


class Pack(Mapping[str, Matrix]):
    """A model's packed matrices by name, mapped from a file."""

    def __init__(
        self, path: Path, fd: int, mapped: U8, placed: Sequence[Placed], paged: bool = False
    ) -> None:
        """Start to verify `mapped`, which is the whole of the open file `fd`; `fd` is ours from now on."""
        self.path = path
        weakref.finalize(self, os.close, fd)
        self._fd, self._mapped, self._placed = fd, mapped, placed
        self._matrices = {
            p.name: Matrix.view(p.panels(mapped), p.kind, p.rows, p.cols, paged) for p in placed
        }
        self._lock = threading.Lock()
        self._sound, self._fault = False, ""
        self._known, self._verified_at = self._stamp(), 0.0
        self._first = threading.Thread(target=self._verify, args=(True,), name="freehold-pages")
        self._first.start()

    def __getitem__(self, name: str) -> Matrix:
        return self._matrices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)

    def check(self) -> None:
        """Raise DamagedPack unless all that was read up to now is what was written; the file is removed then.

        Cheap after the first time, which waits until every matrix was compared.
        """
        if not (self._sound and self._stamp() == self._known and not is_lost(self._mapped)):
            self._first.join()
            self._settle(again=self._stamp() != self._known or not self._sound)

    def suspect(self) -> None:
        """Compare all matrices again, something computed with them being wrong. Raises DamagedPack."""
        self._first.join()
        self._settle(again=time.monotonic() - self._verified_at > AGAIN_S)

    def _settle(self, again: bool) -> None:
        with self._lock:
            if again and not self._fault:
                self._verify()
            if is_lost(self._mapped):
                self._fault = "was cut short, or the disk failed, while it was in use"
            if self._fault:
                self._sound = False
                raise self._removed()

    def _verify(self, background: bool = False) -> None:
        """Compare each matrix with its checksum; in the background, until the program ends."""
        stamp = self._stamp()
        for placed in self._placed:
            panels = placed.panels(self._mapped)
            # A daemon would still be in native code when the interpreter ends, which aborts the process for that.
            if not _bring_in(panels, until_end=background):
                return
            if checksum(panels) != placed.sum:
                self._fault = f"is damaged: {placed.name} is not what was written"
                return
        self._known, self._verified_at, self._sound = stamp, time.monotonic(), True

    def _stamp(self) -> tuple[int, int]:
        info = os.fstat(self._fd)
        return info.st_size, info.st_mtime_ns

    def _removed(self) -> DamagedPack:
        """Take the file away, unless another has its name by now, and word the error."""
        done, hint = "it was removed", "run it again: the weights are packed again from the model's own file"
        try:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self.path.stat(), os.fstat(self._fd)):
                    self.path.unlink()
        except OSError as e:
            done, hint = f"it could not be removed ({e.strerror})", f"remove {self.path}, then run it again"
        return DamagedPack(f"the packed copy of the weights, {self.path}, {self._fault}; {done}", hint)


def _bring_in(panels: U8, until_end: bool) -> bool:
    """Map the pages of a matrix, in order; False if the program ended meanwhile."""
    for at in range(0, panels.size, CHUNK):
        if until_end and not threading.main_thread().is_alive():
            return False
        prefault(panels[at : at + CHUNK])
    return True
