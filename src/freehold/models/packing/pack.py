"""A pack in use: a model's matrices in a mapped file, and whether they still are what was written.

Knows checksums and one open file; knows no header and no folder (packs.py reads and writes those), no step.
A thread brings the pages in and compares each matrix with its checksum while the first step computes; `check` waits
for it, so a token never leaves that was computed from damage. Later a change of the file shows in its time or size.
Path: packs.open_pack -> Pack -> load_model; ModelRunner.run -> LoadedModel.check -> Pack.check
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold._native import Matrix, checksum, is_lost, prefault
from freehold.errors import DamagedPack

# The page cache keeps files written and read in pieces of whole huge pages as huge pages, and maps them so (Linux
# 6.x on ext4): a decoded token of a 0.5b takes 14.5 ms from huge pages and 16.8 from pages of 4 KB.
CHUNK = 16 << 20
AGAIN_S = (
    60.0  # what is not finite makes us look again, at most so often: a damaged model file does so for ever
)

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
        done, hint = "it was removed", "run it again: the weights are packed anew from the model's own file"
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
