"""Which tiny models are judged, and by which tokens; the models themselves are Freehold's (models/tiny).

Path: FAMILIES[name] -> files.py writes it, make.py runs it through transformers, tests run it through us.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from freehold.run.models.tiny import make
from freehold.run.models.tiny.make import VOCAB, TinyConfig

LENGTH = 48  # tokens of a golden sequence; longer than every sliding window in use
PREFILL = 20  # tokens of the first call in the second path; the others follow one by one
_ALL = {name: make.config(name) for name in make.names()}
# Models of text alone, and those whose text half no other model has.
_OWN_TEXT_HALF = ("glm4v", "glm4v_moe", "paddleocr_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
FAMILIES: dict[str, TinyConfig] = {
    name: tiny
    for name, tiny in _ALL.items()
    if not (tiny.writes_speech or tiny.hears) and (not tiny.sees or name in _OWN_TEXT_HALF)
}
# Those whose towers read blocks (models/parts/blocks.py), see pictures.py; other towers have makers of their own.
_OF_BLOCKS = ("glm4v", "paddleocr", "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger")
SEEING: dict[str, TinyConfig] = {
    name: tiny for name, tiny in _ALL.items() if tiny.mmproj.get("clip.projector_type") in _OF_BLOCKS
}


def tensors(name: str) -> dict[str, np.ndarray]:
    """Make the weights of family `name`: Hugging Face name -> float32 array, the same on every machine."""
    return make.hf_tensors(FAMILIES[name])


def digest(name: str) -> int:
    """Sum up the family's weights as a CRC-32, so that a drifted generator is not taken for a wrong engine."""
    return checksum(tensors(name))


def checksum(tensors: Mapping[str, np.ndarray]) -> int:
    """Sum up tensors as a CRC-32, by name."""
    crc = 0
    for key, value in sorted(tensors.items()):
        crc = zlib.crc32(key.encode() + value.astype("<f4").tobytes(), crc)
    return crc


def token_ids(name: str) -> np.ndarray:
    """Draw the family's golden sequence: int64 [LENGTH], no special tokens."""
    words = np.random.PCG64([FAMILIES[name].seed, zlib.crc32(b"ids")]).random_raw(LENGTH)
    return (words % np.uint64(VOCAB - 5)).astype(np.int64) + 5
