"""What LFM3 has beside its reference's logits: which layers do what, gates by head, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.base.errors import UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import Fields
from freehold.run.models.families.lfm2 import ShortConv
from freehold.run.models.families.lfm3 import FAMILY, Lfm3Sizes, config_from_hf, layer
from freehold.run.models.parts.attention import Attention

# LiquidAI/LFM3-1.7B's sizes as its class has them, with eight layers.
STATED: dict[str, Any] = {
    "model_type": "lfm3",
    "hidden_size": 2048,
    "intermediate_size": 7680,
    "max_position_embeddings": 128000,
    "num_attention_heads": 16,
    "num_hidden_layers": 8,
    "num_key_value_heads": 4,
    "vocab_size": 128000,
}


def config(**changes: Any) -> Lfm3Sizes:
    return config_from_hf(Fields(STATED | changes))


def test_a_config_without_lists_has_the_layers_windows_and_ropes_of_the_class():
    cfg = config()
    mixers = [layer(cfg, i)[0] for i in range(8)]
    attends = [isinstance(mixer, Attention) for mixer in mixers]
    assert attends == [False, False, True, False, True, False, True, False]
    assert mixers[0].keeps == LayerSpec("shortconv", conv=6 * 2048)
    assert cfg.windows == (0, 0, 0, 0, 256, 0, 0, 0)
    full, slides = mixers[2].rope, mixers[4].rope
    assert full and slides and (full.base, slides.base) == (1e6, 1e4)
    assert (full.width, full.turning, slides.turning) == (128, 32, -1), "half of a full head's pairs turn"


def test_each_head_has_one_gate():
    specs = layer(config(), 2)[0].tensors()
    assert specs["q_gate"].shape == (16, 2048) and specs["q"].shape == (16 * 128, 2048)
    without = layer(config(use_attention_gate=False), 2)[0].tensors()
    assert "q_gate" not in without


def test_norms_follow_mixers_and_mlps_only_where_a_config_says_so():
    for sandwich in (True, False):
        cfg = config(use_sandwich_norm=sandwich)
        keys = {key for i in (0, 2) for part in layer(cfg, i) for key in part.tensors()}
        post = {"conv_post_norm", "attn_post_norm", "ffn_post_norm"}
        assert (keys & post) == (post if sandwich else set())
    assert isinstance(layer(config(), 0)[0], ShortConv)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"conv_bias": True}, "conv_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"layer_types": ["linear"] * 8}, "layer_types names 'linear'"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(changes: dict[str, Any], named: str):
    with pytest.raises(UnsupportedModel, match=named):
        config(**changes)


def test_a_gguf_is_refused_with_the_way_out():
    with pytest.raises(UnsupportedModel, match="GGUF files of lfm3") as refused:
        FAMILY.config_from_gguf(Fields({}), 256)
    assert "safetensors" in str(refused.value.hint)
