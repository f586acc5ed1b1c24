"""What a fuzzer calls with bytes: each reader of strangers' files, and the native code under it.

A target returns for anything that is read or refused by name; whatever else it raises is a finding. Sizes in a file
must never make it allocate more than the file's own size justifies, which the fuzzer's memory limit watches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from freehold import _native as native
from freehold.base.errors import FreeholdError
from freehold.run.formats import (
    GGUFFile,
    QuantType,
    SafetensorsFile,
    Tensor,
    open_gguf,
    open_lora,
    open_safetensors,
    trellis,
)
from freehold.run.formats.lora import CONFIG, WEIGHTS
from freehold.run.formats.weight_types import tensor_bytes
from freehold.run.models.binding.bind import read_source
from freehold.run.models.tiny.make import gguf_bytes
from freehold.run.sounds.pcm import is_aiff, open_aiff, open_flac, open_wav
from freehold.run.tokenizer import tokenizer_from_gguf
from tests.formats import trellis_rows
from tests.sounds import flac_files as sound_files
from tests.vectors import adapters, files

Target = Callable[[bytes], None]
DECODED = 4096  # bytes of a tensor up to which it is decoded
_ROOM = tempfile.TemporaryDirectory(prefix="freehold-fuzz-")
FOLDER = Path(_ROOM.name)


def gguf(data: bytes) -> None:
    """Open, bind the config, build the tokenizer, decode what is small."""
    path = _written("model.gguf", data)
    with suppress(FreeholdError), open_gguf(path) as opened:
        _looked_at(opened)
        with suppress(FreeholdError):
            tokenizer_from_gguf(opened.metadata)


def safetensors(data: bytes) -> None:
    """The same of a safetensors file beside a sound config.json."""
    path = _written("model.safetensors", data)
    with suppress(FreeholdError), open_safetensors(path) as opened:
        _looked_at(opened)


def lora(data: bytes) -> None:
    """An adapter: a GGUF as it is; else two bytes of length, that much adapter_config.json, and the weights."""
    if data[:4] == b"GGUF":
        with suppress(FreeholdError):
            open_lora(_written("adapter.gguf", data))
        return
    cut = 2 + int.from_bytes(data[:2], "little")
    _written(CONFIG, data[2:cut])
    _written(WEIGHTS, data[cut:])
    with suppress(FreeholdError):
        open_lora(FOLDER)


def panels(data: bytes) -> None:
    """Re-lay bytes as rows of a type, and read rows back; the first bytes choose type and shape."""
    if len(data) < 4:
        return
    types = [route[0] for route in native.type_routes()]
    rows, columns = 1 + data[1] % 40, 32 * (data[2] % 20) + data[3] % 2 * (data[0] % 7)
    raw = np.frombuffer(data, np.uint8)[4:]
    with suppress(FreeholdError):
        if data[3] % 4 and len(raw):  # else only the check of its size would be reached
            raw = np.resize(raw, tensor_bytes(QuantType[types[data[0] % len(types)]], (rows, columns)))
        packed = native.Matrix.pack(
            raw, types[data[0] % len(types)], rows, columns, _THREADS, data[3] % 3 == 0
        )
        packed.row(rows - 1)


def strings(data: bytes) -> None:
    """A vocabulary's strings, and a tokenizer over what was read."""
    if len(data) < 2:
        return
    with suppress(FreeholdError):
        read = native.Strings.read(np.frombuffer(data, np.uint8), 2, int.from_bytes(data[:2], "little"))
        if len(read):
            bpe = native.Bpe(read, np.ones(len(read), np.uint8), data[0] % 2 == 0)
            bpe.encode(data[:32], [0] * len(data[:32]))


def flac(data: bytes) -> None:
    """Decode a FLAC file frame by frame."""
    with suppress(FreeholdError):
        for piece in open_flac(data).pieces:
            assert np.isfinite(piece).all()


def wav(data: bytes) -> None:
    """Read WAV or AIFF: what lies in the file as it is."""
    with suppress(FreeholdError):
        for piece in (open_aiff if is_aiff(data) else open_wav)(data).pieces:
            assert np.isfinite(piece).all()


def _trellis_file(type: QuantType) -> bytes:
    """Return a file of two small tensors in a type that has a table; mutations hit table, scales and rows."""
    tensors = {
        f"blk.{i}.attn_q.weight": (type, (3, k), trellis_rows.draw(type, 3, k).raw.tobytes())
        for i, k in enumerate((64, 96))
    }
    keys = {"general.architecture": "llama", "freehold.requires": trellis.REQUIRES}
    return gguf_bytes(keys, tensors)


def _written(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def _looked_at(opened: GGUFFile | SafetensorsFile) -> None:
    for tensor in opened.tensors.values():
        _decoded(tensor)
    with suppress(FreeholdError):
        read_source(opened)


def _decoded(tensor: Tensor) -> None:
    if tensor.nbytes <= DECODED:
        with suppress(FreeholdError):
            tensor.numpy()


_THREADS = native.Threads(1)
TARGETS: dict[str, Target] = {
    each.__name__: each for each in (gguf, safetensors, lora, panels, strings, flac, wav)
}


def seeds(target: str) -> list[bytes]:
    """Sound inputs of a target, to begin from."""
    room = FOLDER / "seeds"
    room.mkdir(exist_ok=True)
    if target == "gguf":
        plain = [
            files.write_gguf(f, room / f"{f}.gguf", dtype="Q8_0").read_bytes()
            for f in ("llama", "gemma3", "qwen2moe")
        ]
        return [*plain, *map(_trellis_file, (QuantType.T2, QuantType.T3))]
    if target == "safetensors":
        made = files.write_safetensors("qwen3", room / "qwen3", dtype="F16")
        (FOLDER / "config.json").write_bytes((made / "config.json").read_bytes())
        return [(made / "model.safetensors").read_bytes()]
    if target == "lora":
        case = adapters.CASES["qwen3"]
        peft = adapters.write_peft(case, room / "peft")
        config, weights = (peft / CONFIG).read_bytes(), (peft / WEIGHTS).read_bytes()
        return [
            len(config).to_bytes(2, "little") + config + weights,
            adapters.write_gguf(case, room / "a.gguf").read_bytes(),
        ]
    if target == "panels":
        return [
            bytes([t, rows, 8, 2 + 4 * (rows % 2)]) + bytes(range(128)) * 80
            for t in range(16)
            for rows in (0, 15, 16)
        ]
    if target == "flac":
        return sound_files.flac_of_every_kind()
    if target == "wav":
        return sound_files.plain_of_every_kind()
    return [b"\2\0" + b"".join(len(w).to_bytes(8, "little") + w for w in (b"a", b"\xc3\xa9b"))]
