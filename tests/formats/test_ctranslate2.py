"""A Whisper of CTranslate2 is read in place, under the names of safetensors; a damaged one is refused by name."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, FreeholdError, UnsupportedModel
from freehold.run.formats.ctranslate2 import is_ctranslate2, open_ctranslate2

WIDTH, MELS, FFN, VOCAB, SOUND, TEXTS = 64, 8, 96, 40, 12, 6
CODES = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.float16): 4}
Arrays = dict[str, np.ndarray]


def arrays(dtype: type = np.float16) -> Arrays:
    """One layer a side, as the converter names and joins its tensors."""
    draw = np.random.default_rng(5)

    def some(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(dtype)

    def norm(name: str) -> Arrays:
        return {f"{name}/beta": some(WIDTH), f"{name}/gamma": some(WIDTH)}

    def linear(name: str, rows: int, columns: int) -> Arrays:
        return {f"{name}/bias": some(rows), f"{name}/weight": some(rows, columns)}

    stored: Arrays = {
        "encoder/conv1/weight": some(WIDTH, MELS, 3),
        "encoder/conv1/bias": some(WIDTH),
        "encoder/conv2/weight": some(WIDTH, WIDTH, 3),
        "encoder/conv2/bias": some(WIDTH),
        "encoder/position_encodings/encodings": some(SOUND, WIDTH),
        "decoder/position_encodings/encodings": some(TEXTS, WIDTH),
        "decoder/embeddings/weight": some(VOCAB, WIDTH),
        **norm("encoder/layer_norm"),
        **norm("decoder/layer_norm"),
    }
    for side in ("encoder", "decoder"):
        own = f"{side}/layer_0"
        stored |= norm(f"{own}/self_attention/layer_norm") | norm(f"{own}/ffn/layer_norm")
        stored |= linear(f"{own}/self_attention/linear_0", 3 * WIDTH, WIDTH)
        stored[f"{own}/self_attention/linear_0/bias"][WIDTH : 2 * WIDTH] = 0
        stored |= linear(f"{own}/self_attention/linear_1", WIDTH, WIDTH)
        stored |= linear(f"{own}/ffn/linear_0", FFN, WIDTH) | linear(f"{own}/ffn/linear_1", WIDTH, FFN)
    own = "decoder/layer_0/attention"
    stored |= norm(f"{own}/layer_norm") | linear(f"{own}/linear_0", WIDTH, WIDTH)
    stored |= linear(f"{own}/linear_1", 2 * WIDTH, WIDTH) | linear(f"{own}/linear_2", WIDTH, WIDTH)
    stored[f"{own}/linear_1/bias"][:WIDTH] = 0
    return stored | {"decoder/num_heads": np.array(1, np.int8)}


def name(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def written(stored: Arrays, version: int = 6, spec: str = "WhisperSpec", revision: int = 3) -> bytes:
    parts = [struct.pack("<I", version), name(spec), struct.pack("<II", revision, len(stored))]
    for key, array in stored.items():
        shape = struct.pack(f"<{array.ndim}I", *array.shape)
        size = struct.pack("<BI", CODES[array.dtype], array.nbytes)
        parts += [name(key), struct.pack("<B", array.ndim), shape, size, array.tobytes()]
    aliases = [struct.pack("<I", 1), name("decoder/projection/weight"), name("decoder/embeddings/weight")]
    return b"".join([*parts, *aliases])


def folder(path: Path, data: bytes) -> Path:
    (path / "model.bin").write_bytes(data)
    (path / "config.json").write_text('{"suppress_ids": [1, 2]}')
    return path


def test_tensors_have_the_names_and_values_of_safetensors(tmp_path: Path):
    stored = arrays()
    opened = open_ctranslate2(folder(tmp_path, written(stored)))
    joined = stored["decoder/layer_0/self_attention/linear_0/weight"].astype(np.float32)
    own = "model.decoder.layers.0.self_attn"
    for i, each in enumerate("qkv"):
        rows = opened.tensors[f"{own}.{each}_proj.weight"].numpy()
        assert np.array_equal(rows, joined[i * WIDTH : (i + 1) * WIDTH])
    keys = stored["decoder/layer_0/attention/linear_1/weight"][:WIDTH].astype(np.float32)
    assert np.array_equal(opened.tensors["model.decoder.layers.0.encoder_attn.k_proj.weight"].numpy(), keys)
    assert not [each for each in opened.tensors if each.endswith("k_proj.bias")]
    assert opened.stated["suppress_ids"] == [1, 2]
    sizes = {
        "d_model": WIDTH,
        "num_mel_bins": MELS,
        "vocab_size": VOCAB,
        "encoder_layers": 1,
        "decoder_ffn_dim": FFN,
    }
    assert {key: opened.config[key] for key in sizes} == sizes
    assert opened.config["max_source_positions"] == SOUND and opened.config["max_target_positions"] == TEXTS
    assert is_ctranslate2(written(stored)[:32]) and not is_ctranslate2(b"GGUF" + bytes(60))


def test_int8_codes_are_divided_by_their_row_s_scale(tmp_path: Path):
    stored, key = arrays(), "encoder/layer_0/ffn/linear_0/weight"
    codes = np.random.default_rng(2).integers(-127, 128, (FFN, WIDTH)).astype(np.int8)
    scale = np.linspace(20, 90, FFN).astype(np.float32)
    stored[key], stored[f"{key}_scale"] = codes, scale
    opened = open_ctranslate2(folder(tmp_path, written(stored)))
    got = opened.tensors["model.encoder.layers.0.fc1.weight"].numpy()
    assert np.allclose(got, codes / scale[:, None], rtol=1e-6)
    stored[f"{key}_scale"] = scale * 0
    with pytest.raises(BadModelFile, match="scales"):
        open_ctranslate2(folder(tmp_path, written(stored)))


def with_a_bias_at_keys(stored: Arrays) -> None:
    stored["encoder/layer_0/self_attention/linear_0/bias"][WIDTH] = 1


def with_a_stranger(stored: Arrays) -> None:
    stored["decoder/layer_0/alibi/weight"] = np.ones(3, np.float32)


def without_positions(stored: Arrays) -> None:
    del stored["encoder/position_encodings/encodings"]


@pytest.mark.parametrize("change", [with_a_bias_at_keys, with_a_stranger, without_positions])
def test_what_no_whisper_has_is_refused_by_name(tmp_path: Path, change: Callable[[Arrays], None]):
    stored = arrays()
    change(stored)
    with pytest.raises((UnsupportedModel, BadModelFile), match=r"biases at keys|alibi|embed_positions"):
        open_ctranslate2(folder(tmp_path, written(stored)))


@pytest.mark.parametrize("head", [{"version": 3}, {"spec": "TransformerSpec"}, {"revision": 9}])
def test_another_version_or_network_is_named(tmp_path: Path, head: dict[str, object]):
    with pytest.raises(UnsupportedModel, match=str(next(iter(head.values())))):
        open_ctranslate2(folder(tmp_path, written(arrays(), **head)))


def test_a_damaged_file_is_refused_and_never_crashes(tmp_path: Path):
    whole, draw = written(arrays()), np.random.default_rng(7)
    for cut in [0, 1, 5, 20, *draw.integers(20, len(whole), 40).tolist(), len(whole) - 1]:
        with pytest.raises(FreeholdError):
            open_ctranslate2(folder(tmp_path, whole[:cut]))
    for _ in range(200):
        changed = bytearray(whole)
        changed[int(draw.integers(0, 3000))] = int(draw.integers(0, 256))
        with contextlib.suppress(FreeholdError):
            open_ctranslate2(folder(tmp_path, bytes(changed)))
    with pytest.raises(BadModelFile, match="after its last name"):
        open_ctranslate2(folder(tmp_path, whole + b"x"))
