"""A tiny random Whisper, drawn from what its halves declare; make-tiny makes models of text and pictures alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from freehold.run.formats.fields import Fields
from freehold.run.models.tiny import make
from freehold.run.models.towers import of_model_type

CONFIG = Path(__file__).with_name("whisper.json")
SEED, BANDS, ROWS = 433, 8, 48


def write_whisper(folder: Path, **sizes: int) -> Path:
    """Write config.json, a tokenizer and the weights of both halves into `folder`; `sizes` replace the config's."""
    tiny = make.TinyConfig(name="whisper", **json.loads(CONFIG.read_text(encoding="utf-8")))
    tiny = replace(tiny, hf=tiny.hf | sizes)
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


# What a vocabulary of Whisper has after its words, before the marks of time.
CONTROL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>",
    "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
MARKS = 1501  # 0.00 s to 30.00 s
WORDS = make.VOCAB


def write_listener(folder: Path, texts: int = 32, languages: tuple[str, ...] = ()) -> Path:
    """Write a tiny Whisper that transcribes recordings: windows of 30 s, Whisper's special tokens and marks.

    What it writes of a window is not language, so that every text is written at each temperature. `languages`: codes,
    English first; a model of none is English.
    """
    control = (*CONTROL[:2], *(f"<|{code}|>" for code in languages), *CONTROL[2:])
    vocab = WORDS + len(control) + MARKS
    write_whisper(
        folder, vocab_size=vocab, max_source_positions=1500, num_mel_bins=80, max_target_positions=texts
    )
    spelled = make.tokenizer_json()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for id, token in enumerate(control, start=WORDS):
        spelled["added_tokens"].append({"id": id, "content": token, "special": True} | flags)
    (folder / "tokenizer.json").write_text(json.dumps(spelled), encoding="utf-8")
    stated = {
        "suppress_tokens": list(range(len(make.SPECIAL))),
        "begin_suppress_tokens": [WORDS],
        "alignment_heads": [[0, 1], [1, 0]],
    }
    (folder / "generation_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return folder


def windows() -> np.ndarray:
    """Two windows of frames: float32 [2, BANDS, 2 * ROWS]."""
    return np.random.default_rng(0).standard_normal((2, BANDS, 2 * ROWS)).astype(np.float32)
