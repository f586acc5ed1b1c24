"""Rotary tables follow their papers' formulas; the golden vectors judge them as a whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import (
    Divisors,
    RopeSpec,
    hf_rope_section,
    rope_from_gguf,
    rope_from_hf,
    yarn_mscale,
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def spec(section: dict[str, object], head_dim: int = 16) -> RopeSpec:
    return hf_rope_section(Fields(section), head_dim=head_dim, context=256, base=1e4)


def test_plain_table_is_a_geometric_series():
    table = spec({}).table()
    assert np.allclose(table.inv_freq, [10000 ** (-i / 8) for i in range(8)])
    assert table.factor == 1.0 and not table.adjacent


def test_partial_rotation_makes_a_shorter_table():
    assert len(spec({"partial_rotary_factor": 0.25}, head_dim=64).table().inv_freq) == 8


def test_linear_scaling_divides_every_frequency():
    scaled = spec({"rope_type": "linear", "factor": 8.0}).table()
    assert np.allclose(scaled.inv_freq * 8, spec({}).table().inv_freq)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones():
    plain, scaled = spec({}).table().inv_freq, spec(YARN).table().inv_freq
    assert scaled[0] == plain[0] and np.isclose(scaled[-1] * 4, plain[-1])


@pytest.mark.parametrize(
    ("extra", "factor"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, yarn_mscale(4, 2) / yarn_mscale(4, 1)),
    ],
)
def test_yarn_attention_factor_is_the_stated_one_or_the_rule(extra: dict[str, object], factor: float):
    assert spec(YARN | extra).table().factor == pytest.approx(factor)


def test_gguf_divisors_divide_and_are_checked():
    rope = rope_from_gguf(Fields({}), head_dim=16, adjacent=True, context=64)
    divisors = np.arange(1, 9, dtype=np.float32)
    assert np.allclose(rope.table(Divisors(divisors)).inv_freq * divisors, rope.table().inv_freq)
    for bad in (divisors[:4], divisors * 0, divisors * np.float32("nan")):
        with pytest.raises(BadModelFile, match="rope_freqs"):
            rope.table(Divisors(bad))


def test_old_gguf_linear_key_is_read():
    rope = rope_from_gguf(Fields({"rope.scale_linear": 2.0}), head_dim=16, adjacent=True, context=64)
    assert (rope.scaling, rope.factor) == ("linear", 2.0)


def test_both_spellings_of_a_config_give_one_rope():
    new = {"rope_parameters": {**YARN, "rope_theta": 1e6}}
    old = {
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", **{k: v for k, v in YARN.items() if k != "rope_type"}},
    }
    read = [rope_from_hf(Fields(c), head_dim=16, context=256) for c in (new, old)]
    assert read[0] == read[1]


@pytest.mark.parametrize("kind", ["dynamic", "ntk"])
def test_unknown_scaling_is_refused_by_name(kind: str):
    with pytest.raises(UnsupportedModel, match=kind):
        spec({"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize(
    "section",
    [
        {"rope_type": "linear", "factor": 0.0},
        {"rope_type": "linear"},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 3.0},
        {**YARN, "beta_fast": 1.0, "beta_slow": 2.0},
        {"rope_theta": -1.0},
    ],
)
def test_impossible_parameters_are_refused(section: dict[str, object]):
    with pytest.raises(BadModelFile):
        spec(section)
