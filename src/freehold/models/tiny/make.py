"""Makes a tiny random model of a family, as safetensors and as GGUF, from the family's declarations.

Knows how declared weights become stored tensors; knows no family's names or shapes. A configuration is data
(configs/NAME.json, see TinyConfig). The GGUF is made from the safetensors, read as any model is: both hold one model.
Path: cli/make_tiny.py -> write_safetensors, write_gguf -> declared tensors -> draw, containers
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.config import nearest
from freehold.errors import UnsupportedModel, UsageError
from freehold.formats import QuantType, open_model_file
from freehold.models.binding.bind import Source, family_of, gguf_family, read_source
from freehold.models.family import Cut, Family, TensorSpec, renamed
from freehold.models.tiny import containers, draw, tokens

F32 = NDArray[np.float32]
Encode = Callable[
    [str, F32], tuple[QuantType, bytes]
]  # a GGUF tensor's name and values to its type and bytes
_CONFIGS = files("freehold.models.tiny") / "configs"


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyConfig:
    """A tiny model's configuration."""

    name: str
    seed: int  # what draws the weights
    hf: dict[str, Any]  # its config.json
    gguf: dict[str, Any] = field(default_factory=dict)  # a GGUF's keys; empty: none can express it
    tensors: dict[str, list[float]] = field(default_factory=dict)  # what a GGUF holds beside weights
    optional: tuple[str, ...] = ()  # declared keys that it has although they may be missing
    turns: dict[str, list[int]] = field(
        default_factory=dict
    )  # keys whose heads a GGUF reorders: see _in_turns
    names: dict[str, int] = field(
        default_factory=dict
    )  # which of a key's names its safetensors have; 0 if not stated
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of stored vectors with more dimensions
    beside: dict[str, list[int]] = field(
        default_factory=dict
    )  # shapes of stored tensors that no part declares

    @property
    def architecture(self) -> str:
        """What a GGUF calls it; empty: none can."""
        return self.gguf.get("general.architecture", "")

    @property
    def family(self) -> Family:
        """The family that its config.json names."""
        return family_of(self.hf)[0]


def names() -> list[str]:
    """List the configurations."""
    return sorted(
        path.name.removesuffix(".json") for path in _CONFIGS.iterdir() if path.name.endswith(".json")
    )


def config(name: str, seed: int | None = None) -> TinyConfig:
    """Read a configuration. Raises UsageError with the nearest name."""
    if name not in names():
        near = nearest(name, names())
        hint = f"did you mean {near}?" if near else "freehold make-tiny --list shows all"
        raise UsageError(f"there is no tiny configuration {name!r}", hint)
    read = json.loads((_CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    read |= {"optional": tuple(read.get("optional", ()))} | ({} if seed is None else {"seed": seed})
    return TinyConfig(name=name, **read)


# --- safetensors ---------------------------------------------------------------------------------------


def write_safetensors(tiny: TinyConfig, folder: Path, *, dtype: str = "F32") -> Path:
    """Write config.json, the weights as F32, F16 or BF16, and the tokenizer's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    _write_json(folder / "config.json", tiny.hf | {"torch_dtype": named})
    _write_json(folder / "generation_config.json", tokens.generation_config())
    _write_json(folder / "tokenizer.json", tokens.tokenizer_json())
    _write_json(folder / "tokenizer_config.json", tokens.tokenizer_config())
    (folder / "model.safetensors").write_bytes(containers.safetensors_bytes(hf_tensors(tiny), dtype))
    return folder


def hf_tensors(tiny: TinyConfig) -> dict[str, F32]:
    """Draw every tensor that a safetensors model stores, by its published name."""
    tensors: dict[str, F32] = {}
    for prefix, key, spec in declared(tiny):
        if not spec.hf or ((spec.optional or spec.default) and key not in tiny.optional):
            continue
        for name, shape in _stored(spec.hf[tiny.names.get(key, 0)], spec.shape):
            shape = tuple(tiny.shapes.get(name, shape))
            if prefix + name not in tensors:
                centred = spec.hf_offset != 0.0
                tensors[prefix + name] = draw.tensor(tiny.seed, prefix + name, shape, zero_centred=centred)
            assert tensors[prefix + name].shape == shape, f"{prefix + name} is declared with two shapes"
    return tensors | {name: draw.tensor(tiny.seed, name, tuple(shape)) for name, shape in tiny.beside.items()}


def declared(tiny: TinyConfig) -> Iterator[tuple[str, str, TensorSpec]]:
    """Yield the prefix, the key and the declaration of every weight, as a safetensors model has them."""
    family, fields, _ = family_of(tiny.hf)
    network = family.network(family.config_from_hf(fields))
    for key, spec in renamed(network.ends.tensors(), family.names).items():
        yield "", key, spec
    for i, layer in enumerate(network.layers):
        for key, spec in layer.tensors().items():
            yield f"{family.hf_layers}.{i}.", key, spec


def _stored(name: str | Cut, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the stored tensors that hold a declared weight.

    Several, where experts lie apart, or where a weight is joined of parts; any division of the rows will do.
    """
    stored, shape = (name, shape) if isinstance(name, str) else (name.name, name.shape)
    if isinstance(stored, tuple):
        ends = [shape[0] * i // len(stored) for i in range(len(stored) + 1)]
        yield from ((each, (b - a, *shape[1:])) for each, a, b in zip(stored, ends, ends[1:], strict=False))
    elif "{e}" in stored:
        yield from ((stored.replace("{e}", str(e)), shape[1:]) for e in range(shape[0]))
    else:
        yield stored, shape


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


# --- GGUF ------------------------------------------------------------------------------------------------


def write_gguf(
    tiny: TinyConfig, path: Path, *, encode: Encode | None = None, keys: Mapping[str, Any] | None = None
) -> Path:
    """Write the model as one GGUF; `encode` chooses each tensor's type, float32 unless given; `keys` win over ours.

    Raises UnsupportedModel for a configuration that a GGUF cannot express.
    """
    encode = encode or (lambda _name, values: (QuantType.F32, values.tobytes()))
    tensors = {}
    for name, value in gguf_tensors(tiny).items():
        kind, raw = encode(name, value)
        tensors[name] = kind, value.shape, raw
    about = {"general.name": f"tiny random {tiny.name}", "general.file_type": 0}
    written = tiny.gguf | about | tokens.gguf_keys() | dict(keys or {})
    path.write_bytes(containers.gguf_bytes(written, tensors))
    return path


def gguf_tensors(tiny: TinyConfig) -> dict[str, F32]:
    """Give every tensor that a GGUF of the model stores, float32, by name."""
    if not tiny.gguf:
        raise UnsupportedModel(f"a GGUF cannot express {tiny.name}", "write it as safetensors")
    with (
        tempfile.TemporaryDirectory() as folder,
        open_model_file(write_safetensors(tiny, Path(folder))) as opened,
    ):
        return _gguf_tensors(tiny, read_source(opened))


def _gguf_tensors(tiny: TinyConfig, source: Source) -> dict[str, F32]:
    family, keys = gguf_family(tiny.gguf)
    network = family.network(family.config_from_gguf(keys, source.cfg.vocab))
    groups = [("", renamed(network.ends.tensors(), family.names), source.ends)]
    for i, layer in enumerate(network.layers):
        groups.append((f"blk.{i}.", layer.tensors(), source.layers[i]))
    tensors = {name: np.array(values, np.float32) for name, values in tiny.tensors.items()}
    for prefix, specs, bound in groups:
        for key, spec in specs.items():
            tied = spec.default and bound[key].tensor is bound[spec.default].tensor
            if key in bound and spec.gguf and not tied:
                values = bound[key].tensor.numpy().reshape(spec.shape) + np.float32(bound[key].spec.hf_offset)
                values = _in_turns(values, *tiny.turns[key]) if key in tiny.turns else values
                _store(tensors, prefix, spec, in_gguf_order(values, spec.head))
    for name, value in tensors.items():
        assert not np.isnan(value).any(), f"{name} is declared in part"
    return tensors


def _store(tensors: dict[str, F32], prefix: str, spec: TensorSpec, values: F32) -> None:
    """Put a declared weight where its first name says: a tensor of its own, or rows of one that holds several."""
    name = spec.gguf[0]
    if isinstance(name, str):
        tensors[prefix + name] = values[0] if len(values) == 1 and values.ndim == 2 else values
        return
    assert isinstance(name.name, str), f"{name.name}: a GGUF holds declared weights whole"
    whole = tensors.setdefault(prefix + name.name, np.full(name.shape, np.nan, np.float32))
    if name.take is not None:
        whole.reshape(-1)[_sources(name)] = values.reshape(-1)
        assert np.array_equal(name.take(whole), values), (
            f"{name.name}: a GGUF holds declared weights as they are"
        )
        return
    rows = whole.reshape(-1, name.shape[-1]) if len(name.shape) > 1 else whole
    index = np.asarray(name.rows)
    rows[index] = values.reshape(len(index), *rows.shape[1:])


def _sources(cut: Cut) -> NDArray[np.int64]:
    """Say which element of the stored tensor each element of the weight is, where `take` only puts them in order."""
    count = math.prod(cut.shape)
    assert cut.take is not None and count < 1 << 24, "float32 counts no further"
    return cut.take(np.arange(count, dtype=np.float32).reshape(cut.shape)).reshape(-1).astype(np.int64)


def _in_turns(values: F32, axis: int, first: int, groups: int, per: int, width: int) -> F32:
    """Reorder heads of `width` elements along an axis, from `first` on, so that groups take turns."""
    index = np.arange(values.shape[axis])
    part = slice(first, first + groups * per * width)
    index[part] = index[part].reshape(groups, per, width).swapaxes(0, 1).reshape(-1)
    return np.take(values, index, axis)


def in_gguf_order(values: F32, head: int) -> F32:
    """Reorder each head's rows from (first half, second half) to pairs that rotate together."""
    if not head:
        return values
    halves = values.reshape(-1, 2, head // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
