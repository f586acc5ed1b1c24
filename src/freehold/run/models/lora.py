"""A LoRA adapter meets the model it changes: its modules by name, their shapes checked, packed for the kernels.

Knows how both formats name and order what a family declares; knows no request. A module that the model does not
have, or that is not computed with adapters (embeddings, the output head), is refused by its name: what is not
applied must not be ignored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadModelFile, CapacityExceeded, UnsupportedModel
from freehold.base.machine import available_bytes, show_bytes
from freehold.run.formats import LoraFile, LowRank, QuantType, Tensor, open_lora
from freehold.run.models.family import TensorSpec, plain_name
from freehold.run.models.load import LoadedModel

RANK_STEP = 16  # native.Adapter takes ranks that fill panels; what is added to one is zero
ALWAYS_16 = {QuantType.F16: "F16", QuantType.BF16: "BF16"}  # types whose bits are packed as they are
_EXPONENT = {QuantType.F16: 0x7C00, QuantType.BF16: 0x7F80}  # all of its bits are set in NaN and infinity
_LAYER = re.compile(r"(?:blk|model\.layers)\.(\d{1,6})\.(.+)")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter packed for one model. Immutable, shared by all requests that name it."""

    name: str
    digest: str  # of its file: distinguishes cached prefixes of one adapter from another's
    modules: int
    rank: int  # the greatest of its modules
    native: native.Adapter = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.native.nbytes


def load_adapter(path: str | Path, model: LoadedModel, name: str) -> Adapter:
    """Load an adapter for `model`. Raises what open_lora does, and BadModelFile with numbers where they do not fit."""
    return pack_adapter(open_lora(path), model, name)


def pack_adapter(file: LoraFile, model: LoadedModel, name: str) -> Adapter:
    """Check every module against the model's, then pack them all."""
    if file.architecture and file.architecture != model.architecture:
        raise BadModelFile(
            f"{file.path} is an adapter for the architecture {file.architecture!r}; "
            f"{model.name} is {model.architecture!r}",
            _made_for(file),
        )
    pairs = list(_matched(file, model))
    need, have = 0, available_bytes()
    for _, _, pair in pairs:
        need += 4 * -(-pair.rank // RANK_STEP) * RANK_STEP * (pair.a.shape[1] + pair.b.shape[0])
    if need > have:
        raise CapacityExceeded(f"{file.path} needs {show_bytes(need)} of memory; {show_bytes(have)} are free")
    out = native.Adapter()
    for spec, weight, pair in pairs:
        a, b = _rows(file, pair.a), _rows(file, pair.b)
        if file.gguf != model.gguf:
            a, b = in_order_of(spec, a, b, to_gguf=model.gguf)
        packed = _pack(a, pair.a, model.threads, rows=RANK_STEP)
        out.add(weight, packed, _pack(b, pair.b, model.threads, columns=RANK_STEP), pair.scale)
    file.check_whole()
    return Adapter(name, file.digest, len(pairs), max(pair.rank for _, _, pair in pairs), out)


def pack_pairs(
    pairs: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    scale: float,
    model: LoadedModel,
    name: str,
) -> Adapter:
    """Pack an adapter that is in memory: A [rank, K] and B [N, rank] by the name of the weight they change.

    Names, and the order of rows, are those of the model's own file ("blk.0.attn_q.weight", or
    "model.layers.0.self_attn.q_proj.weight"). The values are copied. Raises as load_adapter does.
    """
    total = hashlib.sha256(repr(scale).encode())
    modules: dict[str, LowRank] = {}
    for module, (a, b) in pairs.items():
        halves = _half(f"{module}.lora_a", a), _half(f"{module}.lora_b", b)
        for half in halves:
            total.update(f"{half.name} {half.shape} ".encode())
            total.update(half.raw.data)
        modules[module] = LowRank(*halves, scale)
    origin = Path(f"the adapter {name}")
    return pack_adapter(LoraFile(origin, model.gguf, "", "", modules, total.hexdigest()), model, name)


def _half(name: str, values: NDArray[np.float32]) -> Tensor:
    plain = np.ascontiguousarray(values, np.float32)
    return Tensor(name, QuantType.F32, plain.shape, plain.view(np.uint8).reshape(-1))


# --- finding ---------------------------------------------------------------------------------------


def _matched(file: LoraFile, model: LoadedModel) -> Iterator[tuple[TensorSpec, native.Matrix, LowRank]]:
    """Yield each module's declaration, the matrix it changes, and what it gains."""
    for module, pair in file.modules.items():
        layer, key, spec = _declared(file, model, module)
        weight: native.Matrix = model.weights.layers[layer][key]
        a, b = pair.a.shape, pair.b.shape
        if (b[0], a[1]) != (weight.rows, weight.cols):
            raise BadModelFile(
                f"{file.path} changes {module} as a matrix of {b[0]:,} x {a[1]:,}; "
                f"{model.name} has {weight.rows:,} x {weight.cols:,}",
                _made_for(file),
            )
        yield spec, weight, pair


def _declared(file: LoraFile, model: LoadedModel, module: str) -> tuple[int, str, TensorSpec]:
    """Return the layer, the key and the declaration of the matrix that a module's name stands for."""
    match = _LAYER.fullmatch(module if file.gguf else plain_name(module))
    layers = model.network.layers
    layer = int(match[1]) if match else 0
    specs = layers[min(layer, len(layers) - 1)].tensors() if match else {}
    for key, spec in specs.items():
        named = match and match[2] in (spec.gguf if file.gguf else spec.hf)
        if named and len(spec.shape) == 2 and spec.adaptable:
            if layer < len(layers):
                return layer, key, spec
            raise BadModelFile(
                f"{file.path} changes layer {layer}; {model.name} has {len(layers)}, counted from 0",
                _made_for(file),
            )
    shown = module if len(module) <= 80 else module[:77] + "..."
    raise UnsupportedModel(
        f"{file.path} changes {shown}, which is not computed with adapters for {model.name}",
        "adapters change the matrices of attention and of the gated half of layers: "
        "train one for those, or merge it into its base",
    )


def _made_for(file: LoraFile) -> str:
    return f"it was made for {file.base[:120]}" if file.base else "use the model that it was made for"


# --- packing ---------------------------------------------------------------------------------------


def _rows(file: LoraFile, tensor: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Return a matrix's values: half-width floats as their bits, everything else as float32. Raises BadModelFile."""
    if tensor.type not in ALWAYS_16:
        values = tensor.numpy()
        finite = bool(np.isfinite(values).all())
    else:
        values = tensor.raw.view("<u2").reshape(tensor.shape)
        exponent = np.uint16(_EXPONENT[tensor.type])
        finite = not (values & exponent == exponent).any()
    if not finite:
        raise BadModelFile(
            f"{file.path} holds NaN or infinity in {tensor.name[:80]}",
            "its training failed, or it is damaged",
        )
    return values


def in_order_of(
    spec: TensorSpec, a: NDArray[Any], b: NDArray[Any], *, to_gguf: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lay inputs (columns of a) and outputs (rows of b) as one format has them, from the order of the other."""
    if spec.head:
        # A head's rows in adjacent pairs, or in halves.
        parts = (2, spec.head // 2) if to_gguf else (spec.head // 2, 2)
        b = b.reshape(-1, *parts, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
    if spec.turns is not None and spec.turns.axis == 0:
        b = spec.turns.reordered(b, to_gguf=to_gguf)
    elif spec.turns is not None:
        a = spec.turns.reordered(a, to_gguf=to_gguf)
    return a, b


def _pack(
    values: NDArray[np.float32] | NDArray[np.uint16],
    tensor: Tensor,
    threads: native.Threads,
    rows: int = 1,
    columns: int = 1,
) -> native.Matrix:
    """Fill up with zeros to multiples of `rows` and `columns`, and lay the panels."""
    padded = np.pad(values, ((0, -values.shape[0] % rows), (0, -values.shape[1] % columns)))
    (n, k), type = padded.shape, ALWAYS_16.get(tensor.type, "F32")
    return native.Matrix.pack(padded.view(np.uint8).reshape(-1), type, n, k, threads)
