"""Every family computes what transformers computed: golden logits, from safetensors and from GGUF.

The sequences are longer than every window in use; full forward and prefill + single steps are both judged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freehold import _native as native
from freehold.models.load import LoadedModel, load_model
from freehold.models.oracle import Oracle
from tests.vectors.files import write_gguf, write_safetensors
from tests.vectors.weights import FAMILIES, PREFILL

GOLDEN = Path(__file__).parent.parent / "vectors" / "golden"
BOUND = 1e-3
F16_FLIPS = 5e-3  # a last bit of float32 decides which way a few keys and values round to f16
# int8 rounds to 1/254 of a head's greatest, f16 to 1/4096 of each value: some 40 times the 0.015 that f16 costs here.
Q8_BOUND = 0.6
# int8 keys and values move a router's logits by some hundredths: a token nearer to a tie is sent to other experts.
CLEAR = 0.1
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


def clearly_routed(family: str) -> np.ndarray:
    """Mask the tokens that no router nearly sends elsewhere: all, where there are no experts."""
    with np.load(GOLDEN / f"{family}.npz") as data:
        if "margins" not in data:
            return np.ones(len(data["ids"]), bool)
        return data["margins"].min(axis=0) > CLEAR


@pytest.mark.parametrize(
    ("family", "form"), [f for f in FORMS if "num_experts_per_tok" in FAMILIES[f[0]].config]
)
def test_oracle_chooses_the_experts_that_transformers_chose(family: str, form: str, tmp_path: Path):
    with np.load(GOLDEN / f"{family}.npz") as data:
        ids, experts, margins = data["ids"].tolist(), data["experts"], data["margins"]
    session = Oracle(write_model(family, form, tmp_path)).session()
    session.step(ids)
    for routes, chosen, margin in zip(session.routes, experts, margins, strict=True):
        assert np.array_equal(np.sort(routes.ids), chosen)
        assert np.abs(routes.margin - margin).max() <= BOUND


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_oracle_computes_the_golden_logits(family: str, form: str, tmp_path: Path):
    ids, full, steps = golden(family)
    oracle = Oracle(write_model(family, form, tmp_path))
    assert np.abs(oracle.logits(ids) - full).max() <= BOUND
    session = oracle.session()
    rows = [session.step(ids[:PREFILL]), *(session.step([t]) for t in ids[PREFILL:])]
    assert np.abs(np.concatenate(rows) - steps).max() <= BOUND


def native_logits(model: LoadedModel, ids: list[int], chunks: list[int], kv_type: str = "f16") -> np.ndarray:
    """Run the model's plan over `ids` in pieces of the given sizes, with a cache of that type."""
    blocks = -(-len(ids) // native.BLOCK_TOKENS)
    stateful = any(spec.state or spec.conv for spec in model.layers)
    plan = model.build(model.new_cache(blocks, kv_type, slots=int(stateful)), max(chunks))
    table = np.arange(blocks, dtype=np.int32)[None]
    out, first = [], 0
    for count in chunks:
        rows = np.arange(count, dtype=np.int32)
        tokens = np.array(ids[first : first + count], np.int32)
        read = 0 if first else -1
        pieces = np.array([(0, first, first + count, read, 0)], np.int32) if stateful else None
        out.append(plan.run(tokens, rows + first, rows * 0, table, rows, pieces=pieces)[0])
        first += count
    return np.concatenate(out)


@pytest.mark.parametrize(("family", "form"), [f for f in FORMS if f[1] != "legacy"])
def test_native_plan_computes_the_golden_logits(family: str, form: str, tmp_path: Path):
    ids, full, steps = golden(family)
    model = load_model(write_model(family, form, tmp_path), threads=1)
    assert np.abs(native_logits(model, ids, [len(ids)], kv_type="f32") - full).max() <= BOUND
    pieces = [PREFILL, *[1] * (len(ids) - PREFILL)]
    assert np.abs(native_logits(model, ids, pieces, kv_type="f32") - steps).max() <= BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_an_f16_cache_costs_what_it_costs_the_oracle(family: str, tmp_path: Path):
    """Rounding keys and values alone moves these logits by up to 0.015, in the oracle as in the plan."""
    ids, _, _ = golden(family)
    path = write_model(family, "hf", tmp_path)
    got = native_logits(load_model(path, threads=1), ids, [len(ids)])
    assert np.abs(got - Oracle(path, f16_kv=True).logits(ids)).max() <= F16_FLIPS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_codes_stays_near_the_golden_logits(family: str, tmp_path: Path):
    ids, full, _ = golden(family)
    got = native_logits(
        load_model(write_model(family, "hf", tmp_path), threads=1), ids, [len(ids)], kv_type="q8"
    )
    assert np.abs(got - full)[clearly_routed(family)].max() <= Q8_BOUND


@pytest.mark.parametrize("kv_type", ["f16", "q8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_steps_give_the_bits_of_one_forward(family: str, kv_type: str, tmp_path: Path):
    ids, _, _ = golden(family)
    path = write_model(family, "hf", tmp_path)
    whole = native_logits(load_model(path, threads=1), ids, [len(ids)], kv_type)
    pieces = native_logits(load_model(path, threads=2), ids, [PREFILL, *[1] * (len(ids) - PREFILL)], kv_type)
    assert np.array_equal(whole, pieces)
