"""Made-up LoRA adapters for the tiny models: their matrices, and files of them in PEFT's form and in GGUF's.

Knows names, shapes and settings; knows no forward pass. Values lie on the grid of weights.py, so F32, F16 and BF16 hold
the same ones, and one golden file (make_adapters.py) judges readers of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from freehold.run.models.load import LoadedModel
from freehold.run.models.tiny.make import TinyConfig, declared, in_gguf_order, noise_of
from tests.vectors import files, weights

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # Hugging Face module name -> A [rank, K], B [N, rank]


@dataclass(frozen=True)
class Case:
    """An adapter for `family`: `seed` draws it, `settings` go into adapter_config.json."""

    family: str
    seed: int = 1
    r: int = 8
    alpha: float = 4.0
    targets: tuple[str, ...] = (*ATTENTION, *MLP)
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, module: str) -> int:
        """Return a module's rank."""
        for name, rank in self.settings.get("rank_pattern", {}).items():
            if module.endswith(name):
                return rank
        return self.r


CASES = {
    "llama": Case("llama"),
    "qwen2": Case(
        "qwen2",
        r=16,
        alpha=1.0,
        settings={
            "use_rslora": True,
            "rank_pattern": {"down_proj": 3, "layers.1.self_attn.q_proj": 20},
            "alpha_pattern": {"layers.2.mlp.up_proj": 2.0},
        },
    ),
    "qwen3": Case("qwen3", r=3, alpha=1.5, targets=("q_proj", "v_proj")),
    "gemma3": Case("gemma3", r=20, alpha=10.0),
}


def pairs(case: Case) -> Pairs:
    """Make an adapter's matrices, the same on every machine."""
    out: Pairs = {}
    for name, value in weights.tensors(case.family).items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in case.targets:
            rank = case.rank(module)
            out[module] = (
                _matrix(case, module, "A", rank, value.shape[1]),
                _matrix(case, module, "B", value.shape[0], rank),
            )
    return out


def _matrix(case: Case, module: str, which: str, n: int, k: int) -> np.ndarray:
    """Draw multiples of 1/256 below 1/2: eight bits, which any float type holds."""
    noise = noise_of(case.seed, f"{case.family} {module} {which}", n * k).reshape(n, k)
    return (np.clip(np.rint(noise * 48), -127, 127) / 256).astype(np.float32)


def peft_config(case: Case) -> dict[str, Any]:
    """Give the adapter's settings as PEFT writes them."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": f"tiny random {case.family}",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "r": case.r,
        "lora_alpha": case.alpha,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "target_modules": list(case.targets),
        "use_dora": False,
        "loftq_config": {},
    } | case.settings


def write_peft(
    case: Case, folder: Path | str, *, dtype: str = "F32", changes: Any = None, **settings: Any
) -> Path:
    """Write the two files of a PEFT folder; `settings` win over the case's, `changes` is done to the tensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(peft_tensors(case))
    if changes is not None:
        changes(tensors)
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(case) | settings), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(files.safetensors_bytes(tensors, dtype))
    return folder


def peft_tensors(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names as PEFT spells them, and values."""
    for module, (a, b) in pairs(case).items():
        yield f"base_model.model.{module}.lora_A.weight", a
        yield f"base_model.model.{module}.lora_B.weight", b


def write_gguf(case: Case, path: Path | str, *, dtype: str = "F32", **keys: Any) -> Path:
    """Write an adapter as llama.cpp's converter does: names and rows of q and k as in a GGUF of its base."""
    base = weights.FAMILIES[case.family]
    names = gguf_names(base)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, keys.pop("architecture", base.architecture))
    writer.add_type(keys.pop("type", "adapter"))
    writer.add_string("adapter.type", keys.pop("adapter_type", "lora"))
    writer.add_float32("adapter.lora.alpha", keys.pop("alpha", case.alpha))
    kind = gguf.GGMLQuantizationType[dtype]
    for module, (a, b) in pairs(case).items():
        name, head = names[module]
        b = in_gguf_order(b, head)
        for half, value in (("a", a), ("b", b)):
            writer.add_tensor(f"{name}.lora_{half}", gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def gguf_names(base: TinyConfig) -> dict[str, tuple[str, int]]:
    """Map a module's name to its tensor's in a GGUF, and the width of heads whose rows lie in pairs there."""
    found = {}
    for prefix, _, spec in declared(base):
        hf, name = spec.hf[0], spec.gguf[0]
        assert isinstance(hf, str) and isinstance(name, str)
        layer = prefix.removesuffix(".").rsplit(".", 1)[-1]
        found[(prefix + hf).removesuffix(".weight")] = (f"blk.{layer}.{name}" if prefix else name), spec.head
    return found


def adaptable(model: LoadedModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a safetensors' name and the shape of each matrix of a model that adapters may change."""
    for i, layer in enumerate(model.network.layers):
        for spec in layer.tensors().values():
            name = spec.hf[0] if spec.hf else None
            if len(spec.shape) == 2 and spec.adaptable and isinstance(name, str):
                yield f"model.layers.{i}.{name.removesuffix('.weight')}", spec.shape


def write_for(
    model: LoadedModel,
    folder: Path | str,
    *,
    rank: int = 16,
    seed: int = 1,
    dtype: str = "F16",
    strength: float = 0.05,
) -> Path:
    """Write a made-up adapter for any loaded model, of all seven matrices, in PEFT's form.

    A row of A keeps its input's size, and B is `strength` wide: 0.05 changes a matrix's product by about a fifth.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, (n, k) in adaptable(model):
        a = rng.standard_normal((rank, k), np.float32) / np.float32(k**0.5)
        b = rng.standard_normal((n, rank), np.float32) * np.float32(strength)
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = peft_config(Case(model.name, r=rank, alpha=rank))
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(files.safetensors_bytes(tensors, dtype))
    return folder
