"""Bound tensors in, loaded model out: packs the weights for the kernels and traces the forward pass.

Knows panels, memory and what a token reads of the weights; knows no format's names and no architecture.
Path: bind.read_source -> load_model -> LoadedModel -> engine.Engine
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from freehold import _native as native
from freehold.errors import CapacityExceeded
from freehold.formats import ModelFile, has_codes, open_model_file, split_codes
from freehold.layers import LayerSpec
from freehold.machine import available_bytes, default_threads, show_bytes
from freehold.models.bind import Source, assemble, read_source
from freehold.models.family import Family, Network, NetworkWeights
from freehold.models.pack import Pack
from freehold.models.rope import RopeTable
from freehold.models.rounding import Rounding, round_rows, rounded_types
from freehold.models.stored import Stored

Progress = Callable[[int, int], None]  # bytes packed so far, bytes in all


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights packed for the kernels, and all the engine needs to know about them. Immutable, shareable."""

    name: str
    path: Path
    family: Family
    cfg: Any
    network: Network
    weights: NetworkWeights
    threads: native.Threads = field(repr=False)  # the pool that packed it; the engine computes with it
    tokens: int  # selectable ids are 0 .. tokens - 1
    matrices: Mapping[str, native.Matrix] = field(
        repr=False
    )  # by tensor name, as packs.write_pack takes them
    shares: Mapping[str, float]  # of each matrix that one token reads, by tensor name
    type_bytes: Mapping[str, int]  # file bytes by tensor type, the most first
    notes: tuple[str, ...] = ()
    gguf: bool = False  # names and the order of rows in its file are a GGUF's
    digest: str = ""  # distinguishes its file from others, as far as the caller knows one
    pack: Pack | None = field(
        default=None, repr=False
    )  # the mapped file that the matrices lie in, if they do

    def check(self) -> None:
        """Raise DamagedPack unless what was computed up to now came from the weights as they were packed."""
        if self.pack is not None:
            self.pack.check()

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(m.nbytes for m in self.matrices.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of packed weights read to compute one token: chosen experts, and no embedding that is not the head."""
        return round(sum(m.nbytes * self.shares[name] for name, m in self.matrices.items()))

    @property
    def weights_per_token(self) -> int:
        """Weights multiplied to compute one token, counted alike."""
        return round(sum(m.rows * m.cols * self.shares[name] for name, m in self.matrices.items()))

    @property
    def architecture(self) -> str:
        """The family's name, as GGUF spells it."""
        return self.family.gguf_architecture

    @property
    def vocab(self) -> int:
        """Rows of logits; may exceed `tokens`."""
        return self.cfg.vocab

    @property
    def context(self) -> int:
        """Positions the model was trained or extended for."""
        return self.cfg.context

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """What each layer keeps of a sequence."""
        return tuple(layer.keeps for layer in self.network.layers)

    def new_cache(
        self, blocks: int, kv_type: str = "f16", window_blocks: int = 0, slots: int = 0
    ) -> native.KvCache:
        """Allocate pages for all layers; with `window_blocks`, those with a window lie in a pool of this many.

        `slots`: how many states of recurrent layers there is memory for.
        """
        pages = [spec.page for spec in self.layers]
        windows = [spec.window for spec in self.layers]
        states = [(spec.conv, spec.state) for spec in self.layers]
        return native.KvCache(pages, blocks, kv_type, windows, window_blocks, states, slots)

    def build(
        self, cache: native.KvCache | None, max_rows: int, threads: native.Threads | None = None
    ) -> native.Plan:
        """Trace the forward pass into a plan for steps of at most `max_rows` rows; an encoder has no cache."""
        plan = native.Plan(threads or self.threads, cache, max_rows)
        self.network.forward(plan, self.weights)
        plan.finish()
        return plan


def load_model(
    source: str | Path | ModelFile,
    *,
    threads: int | native.Threads | None = None,
    name: str = "",
    tokens: int | None = None,
    packed: Mapping[str, native.Matrix] | None = None,
    progress: Progress | None = None,
    digest: str = "",
    rounding: Rounding | None = None,
) -> LoadedModel:
    """Load a GGUF file or a directory of safetensors, packing its weights into memory.

    `source` is a path or an open model file. `threads` None: as many as help. `name` is what errors and
    status lines call it (default: the file's own name). `tokens` is the tokenizer's size where the file
    does not say it (safetensors). `packed` holds matrices packed before, by tensor name (packs.open_pack),
    taken as they are. `digest`: the file's; without one nothing that depends on it is kept for another life.
    `rounding`: the size that float weights are rounded to, in `packed` too; None: as they are.
    Raises BadModelFile naming the tensor or key, UnsupportedModel, CapacityExceeded.
    """
    if isinstance(source, str | Path):
        with closing(open_model_file(source)) as opened:
            return load_model(
                opened,
                threads=threads,
                name=name,
                tokens=tokens,
                packed=packed,
                progress=progress,
                digest=digest,
                rounding=rounding,
            )
    read = read_source(source, tokens=tokens)
    pool = threads if isinstance(threads, native.Threads) else native.Threads(threads or default_threads())
    rounded = rounded_types(read, rounding) if rounding else {}
    packer = _Packer(pool, read, rounded, packed or {}, progress)
    _check_memory(read, rounded, packed or {})
    weights = assemble(read, packer.matrix, _native_rope)
    source.check_whole()
    return LoadedModel(
        name=name or read.name,
        path=read.path,
        family=read.family,
        cfg=read.cfg,
        network=read.network,
        weights=weights,
        threads=pool,
        tokens=read.tokens,
        matrices=packer.matrices,
        shares=read.shares,
        type_bytes=_type_bytes(read),
        notes=read.notes,
        gguf=read.gguf,
        digest=digest,
        pack=packed if isinstance(packed, Pack) else None,
    )


# --- packing ---------------------------------------------------------------------------------------


class _Packer:
    """Packs matrices one after another and reports how far it is."""

    def __init__(
        self,
        threads: native.Threads,
        source: Source,
        rounded: Mapping[str, str],
        packed: Mapping[str, native.Matrix],
        progress: Progress | None,
    ) -> None:
        self.matrices: dict[str, native.Matrix] = {}
        self._packed = packed
        self._threads = threads
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

    def _pack(self, tensor: Stored) -> native.Matrix:
        """Lay it as it is, through integer codes, or through float32, whichever its type allows."""
        rows, cols = _flat(tensor)
        if type := self._rounded.get(tensor.name):
            raw = round_rows(tensor, type, self._threads).reshape(-1)
            return native.Matrix.pack(raw, type, rows, cols, self._threads, tensor is self._head)
        if tensor.name in self._wide:
            return native.Matrix.pack_wide(np.ascontiguousarray(tensor.numpy(), np.float32), self._threads)
        if tensor.type.name in self._direct:
            return native.Matrix.pack(
                tensor.raw, tensor.type.name, rows, cols, self._threads, tensor is self._head
            )
        if has_codes(tensor.type):
            return native.Matrix.pack_codes(*split_codes(tensor.rows, tensor.type, cols), self._threads)
        values = tensor.numpy().view(np.uint8).reshape(-1)
        return native.Matrix.pack(values, "F32", rows, cols, self._threads)


def _flat(tensor: Stored) -> tuple[int, int]:
    """Return the rows and columns of a tensor as one matrix; a vector is a row."""
    return math.prod(tensor.shape[:-1]), tensor.shape[-1]


def _native_rope(table: RopeTable) -> native.Rope:
    return native.Rope(table.inv_freq, table.factor, table.adjacent)


def packed_bytes(source: Source, rounded: Mapping[str, str] = MappingProxyType({})) -> int:
    """Estimate the memory the packed matrices take, from the types' packed widths."""
    bits = {name: packed for name, _, _, _, packed in native.type_routes()}
    codes = 8 + 32 / 16  # an int8 code, and a float32 scale for sixteen
    total = 0.0
    for t in source.matrices():
        type = rounded.get(t.name, t.type.name)
        width = bits.get(type, codes if has_codes(t.type) else 32.0)
        width = 16.25 if t.name in source.wide else width
        total += math.prod(t.shape) * width / 8
    return int(total)


def _check_memory(source: Source, rounded: Mapping[str, str], packed: Mapping[str, native.Matrix]) -> None:
    if packed:  # mapped from disk: the kernel reads and drops pages as it must
        return
    need, have = packed_bytes(source, rounded), available_bytes()
    if need > have:
        raise CapacityExceeded(
            f"{source.name} needs {show_bytes(need)} of memory for its weights; {show_bytes(have)} are free",
            "choose a smaller model or a smaller quantisation of this one",
        )


def _type_bytes(source: Source) -> dict[str, int]:
    sums: dict[str, int] = {}
    for t in source.matrices():
        sums[t.type.name] = sums.get(t.type.name, 0) + t.nbytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
