"""Longrope has two sets of factors; a context takes one of them, whatever the tokens in it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.engine import Engine
from freehold.run.engine.cache.disk import dependencies
from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import Divisors, RopeSpec, hf_rope_section, rope_from_hf
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.session import Oracle
from tests.models.test_golden import BOUND, golden, native_logits
from tests.vectors.files import write_safetensors

ORIGINAL, CONTEXT = 64, 512
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [1.0 + i / 2 for i in range(8)],
}


def spec(**changes: object) -> RopeSpec:
    return hf_rope_section(Fields({**LONGROPE, **changes}), head_dim=16, context=CONTEXT, base=1e4)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose config.json says longrope."""
    folder = write_safetensors("llama", tmp_path_factory.mktemp("models") / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": LONGROPE}))
    return folder


def logits(model: LoadedModel, ids: list[int]) -> np.ndarray:
    return native_logits(model, ids, [len(ids)], kv_type="f32")


@pytest.mark.parametrize(("context", "side"), [(ORIGINAL, "short"), (ORIGINAL + 1, "long")])
def test_the_configured_context_chooses_not_the_number_of_tokens(extended: Path, context: int, side: str):
    ids, _ = golden("llama")
    assert len(ids) < ORIGINAL
    model = load_model(extended, threads=1).at(context)
    assert model.rope_side == side
    got = logits(model, ids)
    oracle = Oracle(extended)
    assert np.abs(got - oracle.session(context).step(ids)).max() <= BOUND
    other = ORIGINAL if side == "long" else CONTEXT
    assert np.abs(got - oracle.session(other).step(ids)).max() > 100 * BOUND


def test_an_engine_says_which_factors_it_has_and_keeps_their_blocks_apart(extended: Path):
    model = load_model(extended, threads=1, digest="d")
    with Engine(model, context=ORIGINAL) as short, Engine(model, context=CONTEXT) as long:
        assert short.context_note == "as asked; with the short factors of its rope"
        assert long.context_note == "as asked; with the long factors of its rope"
        assert dependencies(short.model, "f16") != dependencies(long.model, "f16")


def test_a_model_without_longrope_has_no_choice(tmp_path: Path):
    model = load_model(write_safetensors("llama", tmp_path / "llama"), threads=1)
    assert model.at(8) is model and model.rope_note == ""


@pytest.mark.parametrize(("long", "key"), [(False, "short_factor"), (True, "long_factor")])
def test_each_side_divides_by_its_list_and_has_the_same_attention_factor(long: bool, key: str):
    table = spec().table(long=long)
    plain = 1e4 ** -(np.arange(8) / 8)
    np.testing.assert_allclose(table.inv_freq, plain / np.array(LONGROPE[key]), rtol=1e-6)
    factor = math.sqrt(1 + math.log(CONTEXT / ORIGINAL) / math.log(ORIGINAL))
    assert table.factor == pytest.approx(factor)


def test_the_original_context_may_be_stated_outside_of_the_rope():
    inside = {k: v for k, v in LONGROPE.items() if k != "original_max_position_embeddings"}
    config = {"rope_scaling": inside, "original_max_position_embeddings": 32}
    assert rope_from_hf(Fields(config), head_dim=16, context=CONTEXT).original == 32


def test_a_gguf_states_factors_as_tensors():
    gguf = RopeSpec(base=1e4, width=16, adjacent=False, scaling="longrope", original=64, attention_factor=1.2)
    short, long = np.full(8, 2, np.float32), np.full(8, 4, np.float32)
    both = Divisors(short=short, long=long)
    np.testing.assert_allclose(gguf.table(both).inv_freq, 2 * gguf.table(both, long=True).inv_freq)
    assert np.allclose(gguf.table().inv_freq, 2 * gguf.table(both).inv_freq)
    with pytest.raises(BadModelFile, match=r"rope_factors_long\.weight is missing"):
        gguf.table(Divisors(short=short), long=True)


@pytest.mark.parametrize("wrong", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [math.inf], "four", [True] * 8])
def test_factors_that_do_not_fit_are_refused_by_name(wrong: object):
    with pytest.raises(BadModelFile, match="long_factor"):
        spec(long_factor=wrong)


def test_factors_on_the_attention_of_each_side_are_refused():
    with pytest.raises(UnsupportedModel, match=r"short_mscale is 1\.2 and long_mscale 0"):
        spec(short_mscale=1.2)
    with pytest.raises(UnsupportedModel, match=r"short_mscale is 1\.2 and long_mscale 1\.3"):
        spec(short_mscale=1.2, long_mscale=1.3)


def test_one_factor_for_both_sides_is_what_cosine_and_sine_are_multiplied_by():
    """As Phi-3.5-MoE states it."""
    assert spec(short_mscale=1.25, long_mscale=1.25).table().factor == 1.25
