"""A tiny random Whisper, drawn from what its halves declare; make-tiny makes models of text and pictures alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from freehold.run.formats.fields import Fields
from freehold.run.models.tiny import make
from freehold.run.models.towers import of_model_type

CONFIG = Path(__file__).with_name("whisper.json")
SEED, BANDS, ROWS = 433, 8, 48


def write_whisper(folder: Path) -> Path:
    """Write config.json, a tokenizer and the weights of both halves into `folder`."""
    tiny = make.TinyConfig(name="whisper", **json.loads(CONFIG.read_text(encoding="utf-8")))
    make.write_safetensors(tiny, folder)
    tensors = make.hf_tensors(tiny)
    tower = of_model_type("whisper")
    assert tower is not None
    cfg = tower.config_from_hf(Fields(tiny.hf), Fields({}))
    for prefix, _, _, spec in tower.declared(cfg):
        stored = spec.hf[0]
        own, shape = (stored, spec.shape) if isinstance(stored, str) else (stored.name, stored.shape)
        assert isinstance(own, str)
        tensors.setdefault(prefix + own, make.tensor(SEED, prefix + own, shape))
    (folder / "model.safetensors").write_bytes(make.safetensors_bytes(tensors, "F32"))
    return folder


def windows() -> np.ndarray:
    """Two windows of frames: float32 [2, BANDS, 2 * ROWS]."""
    return np.random.default_rng(0).standard_normal((2, BANDS, 2 * ROWS)).astype(np.float32)
