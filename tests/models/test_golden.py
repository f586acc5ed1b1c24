"""Every family computes what transformers computed: golden logits, from safetensors and from GGUF.

The sequences are longer than every window in use; full forward and prefill + single steps are both judged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freehold.models.oracle import Oracle
from tests.vectors.files import write_gguf, write_safetensors
from tests.vectors.weights import FAMILIES, PREFILL

GOLDEN = Path(__file__).parent.parent / "vectors" / "golden"
BOUND = 1e-3
FORMS = [
    (name, form)
    for name, it in FAMILIES.items()
    for form in ("hf", "legacy", "gguf")
    if it.gguf or form != "gguf"
]


def write_model(family: str, form: str, folder: Path) -> Path:
    if form == "gguf":
        return write_gguf(family, folder / "model.gguf")
    return write_safetensors(family, folder / "model", legacy=form == "legacy")


def golden(family: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    with np.load(GOLDEN / f"{family}.npz") as data:
        return data["ids"].tolist(), data["full"], data["steps"]


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_oracle_computes_the_golden_logits(family: str, form: str, tmp_path: Path):
    ids, full, steps = golden(family)
    oracle = Oracle(write_model(family, form, tmp_path))
    assert np.abs(oracle.logits(ids) - full).max() <= BOUND
    session = oracle.session()
    rows = [session.step(ids[:PREFILL]), *(session.step([t]) for t in ids[PREFILL:])]
    assert np.abs(np.concatenate(rows) - steps).max() <= BOUND
