"""Models larger than memory: how fast one would run from its mapped file.

Knows bytes, a disk's measured rate and the arithmetic of a forecast; knows no weights and no file format.
Path: load.load_model -> forecast -> CapacityExceeded, or a note where paging is allowed
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.machine import show_bytes
from freehold.platforms import forget_cached

_PIECE = (
    4 << 20
)  # bytes read at once: what the kernel reads ahead of a stream, and more than a disk's latency costs
_SECONDS = 0.5  # of measuring


@dataclass(frozen=True, slots=True)
class PagingForecast:
    """What running from disk means. Weights that memory holds are not read again, at best; all are, at worst."""

    need: int  # bytes of packed weights
    have: int  # bytes of memory for them
    token: int  # bytes of weights that one token reads
    rate: float  # bytes a second, from disk, measured here

    @property
    def slowest(self) -> float:
        """Tokens a second if every byte comes from disk: weights are read in turn, so the oldest page leaves first."""
        return self.rate / max(self.token, 1)

    @property
    def fastest(self) -> float:
        """Tokens a second if what memory holds stays there."""
        return self.slowest / max(1 - self.have / self.need, 0.01)

    def __str__(self) -> str:
        return (
            f"{_pace(self.slowest)} to {_pace(self.fastest)} tokens a second: a token reads {show_bytes(self.token)} "
            f"of {show_bytes(self.need)}, memory holds {show_bytes(self.have)}, and the disk gives "
            f"{show_bytes(int(self.rate))} a second"
        )


def _pace(rate: float) -> str:
    return f"{rate:.2g}" if rate < 100 else f"{rate:,.0f}"


def read_rate(paths: Sequence[Path], seconds: float = _SECONDS) -> float:
    """Measure the bytes a second that files come from disk with, in pieces at random places that memory is rid of."""
    sizes = [path.stat().st_size for path in paths]
    draw, read, spent = random.Random(0), 0, 0.0
    while spent < seconds and read < 64 * _PIECE:
        (path, size), *_ = draw.choices(list(zip(paths, sizes, strict=True)), weights=sizes)
        at = draw.randrange(max(size - _PIECE, 0) + 1) // 4096 * 4096
        fd = os.open(path, os.O_RDONLY)
        try:
            forget_cached(fd, at, _PIECE)
            began = time.perf_counter()
            read += len(os.pread(fd, _PIECE, at))
            spent += time.perf_counter() - began
        finally:
            os.close(fd)
    return read / max(spent, 1e-9)
