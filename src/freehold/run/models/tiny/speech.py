"""Makes a tiny random Whisper: its encoder, its vocabulary, and its files as safetensors or as CTranslate2's.

Knows what such a model has beside what make.py draws of every family; both forms hold one model. Weights survive
float16 unrounded, so they are equal to the bit.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import Fields
from freehold.run.formats.ggml import control_tokens
from freehold.run.models.tiny import make
from freehold.run.models.tiny.make import TinyConfig
from freehold.run.models.towers import of_model_type

F32 = NDArray[np.float32]
VERSION, REVISION, HALVES = 6, 3, 4  # of CTranslate2's container; its code of float16


def write_safetensors(tiny: TinyConfig, folder: Path) -> Path:
    """Write the model as Hugging Face's files into `folder`."""
    make.write_safetensors(tiny, folder)
    for name, value in _side_files(tiny).items():
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(make.safetensors_bytes(speech_tensors(tiny)))
    return folder


def write_ctranslate2(tiny: TinyConfig, folder: Path) -> Path:
    """Write the model as CTranslate2's files into `folder`. Raises UnsupportedModel for another family's."""
    if not tiny.writes_speech:
        raise UnsupportedModel(
            f"{tiny.name} is not a speech model: CTranslate2 files can be written only for these",
            "freehold make-tiny whisper --format ctranslate2",
        )
    folder.mkdir(parents=True, exist_ok=True)
    stated, words = generation_config(tiny), vocabulary(tiny)
    config = {
        "suppress_ids": stated["suppress_tokens"],
        "suppress_ids_begin": stated["begin_suppress_tokens"],
        "alignment_heads": stated["alignment_heads"],
        "lang_ids": list(stated["lang_to_id"].values()),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tiny), indent=1), encoding="utf-8")
    (folder / "vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "model.bin").write_bytes(_container(dict(_joined(tiny))))
    return folder


def speech_tensors(tiny: TinyConfig) -> dict[str, F32]:
    """Draw every tensor of both halves, by its published name."""
    tensors = make.hf_tensors(tiny)
    tower = of_model_type(tiny.hf["model_type"])
    assert tower is not None, "a model of speech has an encoder"
    cfg = tower.config_from_hf(Fields(tiny.hf), Fields({}))
    for prefix, _, _, spec in tower.declared(cfg):
        stored = spec.hf[0]
        own, shape = (stored, spec.shape) if isinstance(stored, str) else (stored.name, stored.shape)
        assert isinstance(own, str), "an encoder's weights are not stored in pieces"
        tensors.setdefault(prefix + own, make.tensor(tiny.seed, prefix + own, shape))
    return tensors


# --- the vocabulary: bytes and words, then what every Whisper has ------------------------------------


def vocabulary(tiny: TinyConfig) -> list[str]:
    """List the tokens as byte-level BPE spells them, without the marks of time, which files do not name."""
    words = make.vocabulary()[len(make.SPECIAL) :]
    heard, size = tiny.hf["max_source_positions"], tiny.hf["vocab_size"]
    return [*words, *control_tokens(Path(tiny.name), len(words), size, heard)]


def tokenizer_json(tiny: TinyConfig) -> dict[str, Any]:
    """Give the tokenizer.json."""
    tokens, count = vocabulary(tiny), len(make.vocabulary()) - len(make.SPECIAL)
    data = make.tokenizer_json()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": text, "special": True} | flags for i, text in enumerate(tokens)]
    data["added_tokens"] = added[count:]
    data["model"]["vocab"] = {token: i for i, token in enumerate(tokens[: count + 1])}
    return data


def generation_config(tiny: TinyConfig) -> dict[str, Any]:
    """Give the generation_config.json: what is never said, and what tokens mean."""
    ids = {text: i for i, text in enumerate(vocabulary(tiny))}
    end = ids["<|endoftext|>"]
    named = [text for text in ids if text.startswith("<|") and len(text) == len("<|en|>")]
    return {
        "eos_token_id": end,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "is_multilingual": True,
        "lang_to_id": {text: ids[text] for text in named},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        "suppress_tokens": sorted(ids[sign] for sign in "#()*[]{}"),
        "begin_suppress_tokens": [ids["\u0120"], end],
        "alignment_heads": [[tiny.hf["decoder_layers"] - 1, 0]],
    }


def _side_files(tiny: TinyConfig) -> dict[str, Mapping[str, Any]]:
    end = "<|endoftext|>"
    named = {"tokenizer_class": "WhisperTokenizer", "eos_token": end, "bos_token": end, "pad_token": end}
    mel = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": tiny.hf["num_mel_bins"]}
    return {
        "tokenizer.json": tokenizer_json(tiny),
        "tokenizer_config.json": named,
        "generation_config.json": generation_config(tiny),
        "preprocessor_config.json": mel | {"hop_length": 160, "n_fft": 400, "sampling_rate": 16_000},
    }


# --- CTranslate2's names and container (formats/ctranslate2.py reads them) ---------------------------

_ENDS = {
    "embed_positions.weight": "position_encodings/encodings",
    "embed_tokens.weight": "embeddings/weight",
    "conv1.weight": "conv1/weight",
    "conv1.bias": "conv1/bias",
    "conv2.weight": "conv2/weight",
    "conv2.bias": "conv2/bias",
    "layer_norm.weight": "layer_norm/gamma",
    "layer_norm.bias": "layer_norm/beta",
}
_NORMS = {
    "self_attention": "self_attn_layer_norm",
    "attention": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}
_LINEARS = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def _joined(tiny: TinyConfig) -> Iterator[tuple[str, F32]]:
    """Yield the tensors under CTranslate2's names, queries, keys and values one below another."""
    tensors = speech_tensors(tiny)
    for side in ("encoder", "decoder"):
        for name, theirs in _ENDS.items():
            if (stored := f"model.{side}.{name}") in tensors:
                yield f"{side}/{theirs}", tensors[stored]
        for i in range(tiny.hf[f"{side}_layers"]):
            own, prefix = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            for group, norm in _NORMS.items():
                if f"{prefix}.{norm}.weight" in tensors:
                    yield f"{own}/{group}/layer_norm/gamma", tensors[f"{prefix}.{norm}.weight"]
                    yield f"{own}/{group}/layer_norm/beta", tensors[f"{prefix}.{norm}.bias"]
            for place, parts in _LINEARS.items():
                if f"{prefix}.{parts[0]}.weight" in tensors:
                    weights = [tensors[f"{prefix}.{part}.weight"] for part in parts]
                    none = np.zeros(len(weights[0]), np.float32)  # keys have no bias
                    biases = [tensors.get(f"{prefix}.{part}.bias", none) for part in parts]
                    yield f"{own}/{place}/weight", np.concatenate(weights)
                    yield f"{own}/{place}/bias", np.concatenate(biases)


def _container(tensors: Mapping[str, F32]) -> bytes:
    out = bytearray(struct.pack("<I", VERSION) + _text("WhisperSpec"))
    out += struct.pack("<II", REVISION, len(tensors))
    for name, values in tensors.items():
        raw = values.astype("<f2").tobytes()
        out += _text(name) + struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
        out += struct.pack("<BI", HALVES, len(raw)) + raw
    out += struct.pack("<I", 1) + _text("decoder/projection/weight") + _text("decoder/embeddings/weight")
    return bytes(out)


def _text(name: str) -> bytes:
    raw = name.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw
