"""Lays a model's matrices into panels, one after another, rounded where that is asked for.

Says beforehand how many bytes that takes, and how fast a model runs that memory does not hold. Knows bound tensors and
weight types; knows no architecture and no file of packs.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.machine import show_bytes
from freehold.base.platforms import forget_cached
from freehold.run.formats import QuantType, dequantize, has_codes, split_codes
from freehold.run.models.binding.bind import BoundFile, Source
from freehold.run.models.binding.binder import FLOATS, Stored, Taken

Progress = Callable[[int, int], None]  # bytes packed so far, bytes in all


class Packer:
    """Packs matrices one after another and reports how far it is."""

    def __init__(
        self,
        threads: native.Threads,
        source: BoundFile,
        rounded: Mapping[str, str],
        packed: Mapping[str, native.Matrix],
        progress: Progress | None,
    ) -> None:
        self.matrices: dict[str, native.Matrix] = {}
        self._packed = packed
        self._threads, self._source = threads, source
        self._total = sum(t.nbytes for t in source.matrices())
        self._head = source.head
        self._wide = source.wide
        self._rounded = rounded
        self._done = 0
        self._progress = progress
        self._direct = {route[0] for route in native.type_routes()}

    def matrix(self, tensor: Stored) -> native.Matrix:
        """Pack one tensor, unless it was packed before; experts lie one below another."""
        if tensor.name in self.matrices:
            return self.matrices[tensor.name]
        ready = self._packed.get(tensor.name)
        if ready is None or (ready.rows, ready.cols) != _flat(tensor):
            ready = self._pack(tensor)
        self.matrices[tensor.name] = ready
        self._done += tensor.nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)
        return ready

    def each(self) -> Iterator[tuple[str, native.Matrix]]:
        """Pack every matrix and keep none: for a pack of a model that memory does not hold."""
        for tensor in self._source.matrices():
            yield tensor.name, self._pack(tensor)
            self._done += tensor.nbytes
            if self._progress is not None:
                self._progress(self._done, self._total)

    def _pack(self, tensor: Stored) -> native.Matrix:
        """Lay it as it is, through integer codes, or through float32, whichever its type allows."""
        rows, cols = _flat(tensor)
        if type := self._rounded.get(tensor.name):
            raw = round_rows(tensor, type, self._threads).reshape(-1)
            return native.Matrix.pack(raw, type, rows, cols, self._threads, tensor is self._head)
        if tensor.name in self._wide:
            return native.Matrix.pack_wide(np.ascontiguousarray(tensor.numpy(), np.float32), self._threads)
        raw = tensor.raw
        if tensor.type.name in self._direct and (tensor.type is not QuantType.MXFP4 or halves_hold(raw)):
            return native.Matrix.pack(raw, tensor.type.name, rows, cols, self._threads, tensor is self._head)
        if has_codes(tensor.type):
            return native.Matrix.pack_codes(*split_codes(tensor.rows, tensor.type, cols), self._threads)
        values = tensor.numpy().view(np.uint8).reshape(-1)
        return native.Matrix.pack(values, "F32", rows, cols, self._threads)


def halves_hold(mxfp4: NDArray[np.uint8]) -> bool:
    """Whether f16 holds half of every block's scale, 2^-24 to 2^15, but where all of a block is zero."""
    blocks = mxfp4.reshape(-1, 17)
    far = (blocks[:, 0] < 104) | (blocks[:, 0] > 143)
    return not (blocks[far, 1:] & 0x77).any()


def _flat(tensor: Stored) -> tuple[int, int]:
    """Return the rows and columns of a tensor as one matrix; a vector is a row."""
    return math.prod(tensor.shape[:-1]), tensor.shape[-1]


def packed_sizes(source: BoundFile, rounded: Mapping[str, str] = MappingProxyType({})) -> dict[str, int]:
    """Estimate the bytes of each matrix's panels, by tensor name, from the types' packed widths."""
    bits = {name: packed for name, _, _, _, packed in native.type_routes()}
    codes = 8 + 32 / 16  # an int8 code, and a float32 scale for sixteen
    sizes = {}
    for t in source.matrices():
        type = rounded.get(t.name, t.type.name)
        width = bits.get(type, codes if has_codes(t.type) else 32.0)
        width = 16.25 if t.name in source.wide else width
        sizes[t.name] = int(math.prod(t.shape) * width / 8)
    return sizes


def forecast(
    source: Source, paths: Sequence[Path], rounded: Mapping[str, str], need: int, have: int
) -> PagingForecast:
    """Say how fast a model of `need` bytes runs in `have`, by the rate at which its own files are read now."""
    shares, sizes = source.shares, packed_sizes(source, rounded)
    token = round(sum(size * shares[name] for name, size in sizes.items()))
    return PagingForecast(need, have, token, read_rate(paths))


# --- models larger than memory: how fast one would run from its mapped file -------------------------

# Bytes read at once: what the kernel reads ahead of a stream, and more than a disk's latency costs
_PIECE = 4 << 20
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


# --- which weight type each float matrix is rounded to when it is packed ----------------------------
# `freehold pull org/repo --quant q6`.
# What is quantised in the file stays as it is, and so does what is computed in floats (routers). A matrix
# whose rows do not divide into blocks of 256 takes Q8_0, whose blocks are of 32.

Rounding: TypeAlias = Literal["q8", "q6", "q4"]
ROUNDINGS: dict[Rounding, str] = {"q8": "Q8_0", "q6": "Q6_K", "q4": "Q4_K"}
# Under q4 these take six bits, as in llama.cpp's Q4_K_M: errors of values and of an MLP's output go into the residual
# stream at full size, and the head's move every logit.
FINER = frozenset({"v", "down", "shared_down", "head", "embed"})
FINER_TYPE = "Q6_K"
WIDE_BLOCK, NARROW_BLOCK = 256, 32
BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q4_K": 4.5}
_SLAB = 1 << 24  # values decoded at once
_GREATEST = 4_000_000  # Q4_K's minima are at most 63 float16s: beyond 63 * 65,504 a block becomes infinite


def rounded_types(source: Source, rounding: Rounding) -> dict[str, str]:
    """Return the type of each matrix that is rounded, by tensor name. Raises UnsupportedModel where there is none."""
    if source.family.encoder:
        raise UnsupportedModel(
            f"{source.name} is an embedding model, which keeps its float weights", "leave out --quant"
        )
    rounded = rounded_floats(source, rounding)
    if not rounded:
        raise UnsupportedModel(
            f"{source.name} holds no float matrices; its weights are quantised", "leave out --quant"
        )
    return rounded


def rounded_floats(source: BoundFile, rounding: Rounding) -> dict[str, str]:
    """Return the type of each float matrix that is rounded, by tensor name; none where all are quantised."""
    rounded: dict[str, str] = {}
    for key, (spec, tensor) in source.matrices_by_key():
        if spec.floats or tensor.type not in FLOATS:
            continue
        type = FINER_TYPE if rounding == "q4" and key in FINER else ROUNDINGS[rounding]
        type = type if tensor.shape[-1] % WIDE_BLOCK == 0 else ROUNDINGS["q8"]
        if tensor.shape[-1] % NARROW_BLOCK == 0:
            rounded[tensor.name] = max(type, rounded.get(tensor.name, type), key=BITS.__getitem__)
    return rounded


def round_rows(tensor: Stored, type: str, threads: native.Threads) -> NDArray[np.uint8]:
    """Return a matrix's rows as bytes of `type`, uint8 [N, row bytes]. Raises BadModelFile for what does not fit it."""
    parts = []
    for values in _slabs(tensor):
        if not (np.abs(values) <= _GREATEST).all():  # False for NaN
            raise BadModelFile(
                f"tensor {tensor.name} holds NaN, infinity or a value beyond {_GREATEST:,}",
                "it is damaged; fetch the model again",
            )
        parts.append(native.quantize_rows(values, type, threads))
    return np.concatenate(parts)


def _slabs(tensor: Stored) -> Iterator[NDArray[np.float32]]:
    """Yield a matrix's values, some rows at a time, so that a large one takes little memory."""
    k = tensor.shape[-1]
    if isinstance(tensor, Taken):
        yield tensor.numpy().reshape(-1, k)
        return
    rows, step = tensor.rows, max(_SLAB // k, 1)
    for first in range(0, len(rows), step):
        yield dequantize(rows[first : first + step], tensor.type, k)
