"""Every family computes what transformers computed: golden logits, from safetensors and from GGUF.

The sequences are longer than every window in use; full forward and prefill + single steps are both judged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freehold.run.models.load import load_model
from freehold.run.models.oracle.session import Oracle
from tests.models.golden import (
    BOUND,
    FORMS,
    GOLDEN,
    error,
    golden,
    native_logits,
    oracle_logits,
    pieces,
    write_model,
)
from tests.vectors.weights import FAMILIES

F16_FLIPS = 5e-3  # a last bit of float32 decides which way a few keys and values round to f16
# int8 rounds to 1/254 of a head's greatest, f16 to 1/4096 of each value: some 40 times the 0.015 that f16 costs here.
Q8_BOUND = 0.6
# int8 keys and values move a router's logits by some hundredths: a token nearer to a tie is sent to other experts.
CLEAR = 0.1
OF_KEYS = [
    name for name, it in FAMILIES.items() if "kv_lora_rank" not in it.hf
]  # latents are kept as floats alone
ROUTED = [name for name in FAMILIES if "experts" in np.load(GOLDEN / f"{name}.npz")]


def clearly_routed(path: Path, ids: list[int]) -> np.ndarray:
    """Mask the tokens that no router nearly sends elsewhere: all, where there are no experts."""
    session = Oracle(path).session()
    session.step(ids)
    return np.min([routes.margin for routes in session.routes] or [np.full(len(ids), np.inf)], axis=0) > CLEAR


@pytest.mark.parametrize(("family", "form"), [f for f in FORMS if f[0] in ROUTED])
def test_oracle_chooses_the_experts_that_transformers_chose(family: str, form: str, tmp_path: Path):
    with np.load(GOLDEN / f"{family}.npz") as data:
        ids, experts, margins = data["ids"].tolist(), data["experts"], data["margins"]
    session = Oracle(write_model(family, form, tmp_path)).session()
    session.step(ids)
    for routes, chosen, margin in zip(session.routes, experts, margins, strict=True):
        assert np.array_equal(np.sort(routes.ids), chosen)
        assert np.isnan(margin).all() or np.abs(routes.margin - margin).max() <= BOUND


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_oracle_computes_the_golden_logits(family: str, form: str, tmp_path: Path):
    ids, _ = golden(family)
    oracle = Oracle(write_model(family, form, tmp_path))
    assert error(oracle.logits(ids), family) <= BOUND
    assert error(oracle_logits(oracle, ids, pieces(ids)), family) <= BOUND


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_native_plan_computes_the_golden_logits(family: str, form: str, tmp_path: Path):
    ids, _ = golden(family)
    model = load_model(write_model(family, form, tmp_path), threads=1)
    assert error(native_logits(model, ids, [len(ids)], kv_type="f32"), family) <= BOUND
    assert error(native_logits(model, ids, pieces(ids), kv_type="f32"), family) <= BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_an_f16_cache_costs_what_it_costs_the_oracle(family: str, tmp_path: Path):
    """Rounding keys and values alone moves these logits by up to 0.015, in the oracle as in the plan."""
    ids, _ = golden(family)
    path = write_model(family, "hf", tmp_path)
    got = native_logits(load_model(path, threads=1), ids, [len(ids)])
    assert np.abs(got - Oracle(path, f16_kv=True).logits(ids)).max() <= F16_FLIPS


@pytest.mark.parametrize("family", OF_KEYS)
def test_a_cache_of_codes_stays_near_the_golden_logits(family: str, tmp_path: Path):
    ids, full = golden(family)
    path = write_model(family, "hf", tmp_path)
    got = native_logits(load_model(path, threads=1), ids, [len(ids)], kv_type="q8")
    assert np.abs(got - full)[clearly_routed(path, ids)].max() <= Q8_BOUND


@pytest.mark.parametrize(
    ("family", "kv_type"), [*((name, "f16") for name in FAMILIES), *((name, "q8") for name in OF_KEYS)]
)
def test_prefill_and_steps_give_the_bits_of_one_forward(family: str, kv_type: str, tmp_path: Path):
    ids, _ = golden(family)
    path = write_model(family, "hf", tmp_path)
    whole = native_logits(load_model(path, threads=1), ids, [len(ids)], kv_type)
    apart = native_logits(load_model(path, threads=2), ids, pieces(ids), kv_type)
    assert np.array_equal(whole, apart)
