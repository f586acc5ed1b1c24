"""Tiny models on disk and their golden logits, and both our ways to compute logits; no test.

Path: test_golden.py, test_mixtures.py, test_lora.py -> write_model, golden, native_logits
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from freehold import _native as native
from freehold.run.models.load import LoadedModel
from freehold.run.models.oracle.session import Oracle
from tests.vectors.files import write_gguf, write_published, write_safetensors
from tests.vectors.weights import FAMILIES, PREFILL

GOLDEN = Path(__file__).parent.parent / "vectors" / "golden"
BOUND = 5e-4  # of the logits' standard deviation
FORMS = [
    (name, form)
    for name, it in FAMILIES.items()
    for form in ("hf", "published", "gguf")
    if it.gguf or form != "gguf"
]


def write_model(family: str, form: str, folder: Path) -> Path:
    """Write a tiny model: safetensors as transformers 5 writes them, as hubs have them, or a GGUF."""
    folder.mkdir(exist_ok=True)
    if form == "gguf":
        return write_gguf(family, folder / "model.gguf")
    return (write_published if form == "published" else write_safetensors)(family, folder / "model")


def golden(family: str) -> tuple[list[int], np.ndarray]:
    """Read the tokens, and the logits after each."""
    with np.load(GOLDEN / f"{family}.npz") as data:
        return data["ids"].tolist(), data["full"]


def error(got: np.ndarray, family: str) -> float:
    """How far logits are from the golden ones at most, in standard deviations of these."""
    _, full = golden(family)
    return float(np.abs(got - full).max() / full.std())


def pieces(ids: list[int]) -> list[int]:
    """Divide tokens into a prefill and single steps."""
    return [PREFILL, *[1] * (len(ids) - PREFILL)]


def oracle_logits(oracle: Oracle, ids: list[int], chunks: list[int]) -> np.ndarray:
    """Run the oracle over `ids` in pieces of the given sizes."""
    session, ends = oracle.session(), np.cumsum(chunks)
    return np.concatenate([session.step(ids[end - n : end]) for n, end in zip(chunks, ends, strict=True)])


def native_logits(model: LoadedModel, ids: list[int], chunks: list[int], kv_type: str = "f16") -> np.ndarray:
    """Run the model's plan over `ids` in pieces of the given sizes, with a cache of that type."""
    blocks = -(-len(ids) // native.BLOCK_TOKENS)
    recurrent = any(spec.conv or spec.state for spec in model.layers)
    plan = model.build(model.new_cache(blocks, kv_type, slots=1 if recurrent else 0), max(chunks))
    table = np.arange(blocks, dtype=np.int32)[None]
    out, first = [], 0
    for count in chunks:
        rows = np.arange(count, dtype=np.int32)
        tokens = np.array(ids[first : first + count], np.int32)
        state = {"pieces": np.array([[0, first, first + count, 0 if first else -1, 0]], np.int32)}
        given = state if recurrent else {}
        out.append(plan.run(tokens, rows + first, np.zeros(count, np.int32), table, rows, **given)[0])
        first += count
    return np.concatenate(out)
