"""Writes the tiny models of weights.py as real files: a safetensors directory, or a GGUF of any weight type.

Knows the dialects of config.json and what the gguf package quantises; the models are made by models/tiny. The GGUF side
is checked against llama.cpp itself by check_families.py, the safetensors side against transformers by make.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from freehold.run.formats import QuantType
from freehold.run.models.tiny import make
from freehold.run.models.tiny.make import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    IM_END,
    IM_START,
    MERGES,
    SPECIAL,
    VOCAB,
    safetensors_bytes,
    tokenizer_json,
    vocabulary,
)
from tests.vectors.weights import FAMILIES

__all__ = [
    "BOS",
    "CHAT_TEMPLATE",
    "EOS",
    "IM_END",
    "IM_START",
    "MERGES",
    "SPECIAL",
    "VOCAB",
    "safetensors_bytes",
    "tokenizer_json",
    "vocabulary",
]

Dtype = str | Callable[[str], str]


def write_safetensors(family: str, folder: Path | str, *, dtype: str = "F32", legacy: bool = False) -> Path:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files into `folder`.

    `dtype`: F32, F16 or BF16 (all exact). `legacy`: config.json with the keys of transformers 4
    (rope_theta, rope_scaling, ...), as most published models still have it.
    """
    folder = make.write_safetensors(FAMILIES[family], Path(folder), dtype=dtype)
    if legacy:
        path = folder / "config.json"
        path.write_text(json.dumps(older_keys(json.loads(path.read_text())), indent=1), encoding="utf-8")
    return folder


def write_published(family: str, folder: Path | str) -> Path:
    """Write the form that hubs mostly have: BF16 in two files with an index, and a config.json with older keys."""
    folder = write_safetensors(family, folder, dtype="BF16", legacy=True)
    (folder / "model.safetensors").unlink()
    tensors = sorted(make.hf_tensors(FAMILIES[family]).items())
    index: dict[str, str] = {}
    for i, part in enumerate((tensors[::2], tensors[1::2]), start=1):
        name = f"model-{i:05}-of-00002.safetensors"
        (folder / name).write_bytes(safetensors_bytes(dict(part), "BF16"))
        index |= dict.fromkeys((key for key, _ in part), name)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
    return folder


def older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Turn transformers' 5.x keys of a config.json into the older ones, and its infinity into a bare one."""
    config = json.loads(
        json.dumps(config), object_hook=lambda d: math.inf if d == {"__float__": "Infinity"} else d
    )
    if config.get("model_type") in (
        "gemma4_text",
        "laguna",
        "lfm3",
        "mellum",
        "muse_glimmer_text",
    ):  # newer than the older keys
        return config
    if "text_config" in config:
        return config | {"text_config": older_keys(config["text_config"])}
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        if config["model_type"] == "gemma3_text":  # OLMo 3 has always listed its layers
            config["sliding_window_pattern"] = 6
            del config["layer_types"]
        rope = rope["full_attention"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in scaling:
        config["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    config["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}  # GPT-NeoX's own
    if config["model_type"] == "gpt_neox":
        return {names.get(key, key): value for key, value in config.items()}
    return config


def write_gguf(
    family: str, path: Path | str, *, dtype: Dtype = "F32", keys: dict[str, Any] | None = None
) -> Path:
    """Write family `family` as one GGUF file; `keys` win over the configuration's and the tokenizer's.

    `dtype`: the type of every matrix (F32, F16, BF16, Q8_0 exact; Q4_0, Q4_1, Q5_0, Q5_1 rounded), or a
    function from a GGUF tensor name to a type. Vectors and routers are F32, as llama.cpp's converter has them.
    """
    pick = dtype if callable(dtype) else lambda _name: dtype

    def encode(name: str, value: np.ndarray) -> tuple[QuantType, bytes]:
        matrix = value.ndim > 1 and value.shape[-1] % 32 == 0 and "gate_inp" not in name
        kind = pick(name) if matrix else "F32"
        return QuantType[kind], gguf.quants.quantize(value, gguf.GGMLQuantizationType[kind]).tobytes()

    return make.write_gguf(FAMILIES[family], Path(path), encode=encode, keys=keys)


def gguf_tensors(family: str) -> dict[str, np.ndarray]:
    """Give the family's float32 tensors under GGUF names, as a GGUF holds them."""
    return make.gguf_tensors(FAMILIES[family])
