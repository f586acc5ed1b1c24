"""LFM2's configs: which layers attend, how wide its MLP is built, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.base.errors import BadModelFile, FreeholdError, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import Fields
from freehold.run.models.families.lfm2 import Config, ShortConv, config_from_hf, layer
from freehold.run.models.parts.attention import Attention

# LiquidAI/LFM2-1.2B's config.json, with four layers.
PUBLISHED: dict[str, Any] = {
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": True,
    "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "conv_bias": False,
    "full_attn_idxs": [2],
    "hidden_size": 2048,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "num_attention_heads": 32,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "rope_theta": 1e6,
    "torch_dtype": "bfloat16",
    "vocab_size": 65536,
}


def config(**changes: Any) -> Config:
    return config_from_hf(Fields(PUBLISHED | changes))


def test_two_thirds_of_the_stated_width_are_built():
    assert config().intermediate == (8192,) * 4
    assert config(block_ff_dim=6656).intermediate == (4608,) * 4  # 4437, rounded up to a multiple of 256
    assert config(block_ff_dim=6656, block_ffn_dim_multiplier=1.5).intermediate == (6656,) * 4
    assert config(block_auto_adjust_ff_dim=False).intermediate == (12288,) * 4
    assert config(block_ff_dim=None, intermediate_size=3072).intermediate == (2048,) * 4


@pytest.mark.parametrize(
    "stated", [{}, {"layer_types": ["conv", "conv", "full_attention", "conv"], "full_attn_idxs": None}]
)
def test_layers_that_do_not_attend_have_a_convolution(stated: dict[str, Any]):
    cfg = config(**stated)
    mixers = [type(layer(cfg, i)[0]) for i in range(4)]
    assert mixers == [ShortConv, ShortConv, Attention, ShortConv]
    assert layer(cfg, 0)[0].keeps == LayerSpec("shortconv", conv=2 * 2048)


def test_without_a_list_every_layer_attends():
    assert config(full_attn_idxs=None).kv_heads == (8,) * 4


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"conv_bias": True}, UnsupportedModel, "conv_bias"),
        (
            {"layer_types": ["conv", "conv", "sliding_attention", "conv"]},
            UnsupportedModel,
            "sliding_attention",
        ),
        ({"full_attn_idxs": [4]}, BadModelFile, "full_attn_idxs"),
        ({"full_attn_idxs": [True]}, BadModelFile, "full_attn_idxs"),
        ({"conv_L_cache": 17}, BadModelFile, "conv_L_cache"),
        ({"norm_eps": 0.0}, BadModelFile, "norm_eps"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    changes: dict[str, Any], error: type[FreeholdError], named: str
):
    with pytest.raises(error, match=named):
        config(**changes)
