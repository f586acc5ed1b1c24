"""Writes an adapter: PEFT's two files, and a GGUF of it for llama.cpp.

Knows both containers' names, settings and order of rows; knows no model's layers. PEFT's rows lie as safetensors have
them, the GGUF's as a GGUF has them: of a llama's q and k the two differ, and either file is wrong for the other.
Path: trainee.Trainee.save -> write_peft, write_gguf_adapter -> formats.open_lora; other programs read the same files
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.formats import QuantType
from freehold.formats.gguf_writer import TensorPlan, Value, write_gguf
from freehold.formats.lora import CONFIG, WEIGHTS
from freehold.models.family import TensorSpec
from freehold.models.lora import in_order_of
from freehold.models.tiny.containers import safetensors_bytes

F32 = NDArray[np.float32]
GGUF = "adapter.gguf"


@dataclass(frozen=True, slots=True)
class SavedPair:
    """A trained pair: its module's name in safetensors, its tensor's in a GGUF, rows as `of_gguf` says."""

    module: str
    gguf: str
    spec: TensorSpec
    a: F32
    b: F32
    of_gguf: bool  # rows and columns are in a GGUF's order

    def ordered(self, *, gguf: bool) -> tuple[F32, F32]:
        """Return A and B in a format's order."""
        if gguf == self.of_gguf:
            return self.a, self.b
        return in_order_of(self.spec, self.a, self.b, to_gguf=gguf)


def write_peft(folder: Path, pairs: Sequence[SavedPair], alpha: float, base: str) -> None:
    """Write adapter_model.safetensors (float32) and adapter_config.json. `base`: what the config names as the base."""
    rank = len(pairs[0].a)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({pair.module.rsplit(".", 1)[1] for pair in pairs}),
    }
    tensors: dict[str, F32] = {}
    for pair in pairs:
        a, b = pair.ordered(gguf=False)
        tensors[f"base_model.model.{pair.module}.lora_A.weight"] = a
        tensors[f"base_model.model.{pair.module}.lora_B.weight"] = b
    (folder / WEIGHTS).write_bytes(safetensors_bytes(tensors))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def write_gguf_adapter(
    path: Path, pairs: Sequence[SavedPair], alpha: float, architecture: str, base: str
) -> None:
    """Write the adapter as llama.cpp's `--lora` reads it: float32, rows in a GGUF's order."""
    keys: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        "general.name": f"an adapter for {base}",
        "general.base_model.count": 1,
        "general.base_model.0.name": base,
    }
    plans, data = [], []
    for pair in pairs:
        for suffix, values in zip(("lora_a", "lora_b"), pair.ordered(gguf=True), strict=True):
            plans.append(TensorPlan(f"{pair.gguf}.{suffix}", QuantType.F32, values.shape))
            data.append(np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8))
    write_gguf(path, keys, plans, data)
