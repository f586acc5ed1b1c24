"""What Step 3.5's files state of layers, heads, ropes and limits, in makers' words or transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import read_source
from freehold.run.models.families.step35 import StepSizes, config_from_gguf, config_from_hf, layer
from freehold.run.models.oracle.session import Oracle
from freehold.run.models.parts.moe import Moe
from freehold.run.models.tiny import make
from tests.models.golden import write_model

FULL, SLIDING = "full_attention", "sliding_attention"
# Sizes of stepfun-ai/Step-3.5-Flash, with four layers and one that drafts, which the lists count.
STATED: dict[str, Any] = {
    "attention_other_setting": {"num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128},
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 11264,
    "layer_types": [FULL, SLIDING, SLIDING, SLIDING, FULL],
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 1280,
    "moe_layers_enum": "3",
    "moe_num_experts": 288,
    "moe_router_scaling_factor": 3.0,
    "moe_top_k": 8,
    "num_attention_groups": 8,
    "num_attention_heads": 64,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0, 0.5],
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 2.0,
        "original_max_position_embeddings": 131072,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
    },
    "rope_theta": [5e6, 1e4, 1e4, 1e4, 5e6],
    "share_expert_dim": 1280,
    "sliding_window": 512,
    "swiglu_limits": [0.0, 0.0, None, 7.0, 0.0],
    "swiglu_limits_shared": [0.0, 0.0, 0.0, 16.0, 0.0],
    "vocab_size": 128896,
}


def config(**changes: Any) -> StepSizes:
    return config_from_hf(Fields(STATED | changes))


def test_both_formats_state_the_same_layers(tmp_path: Path):
    read: list[StepSizes] = []
    for form in ("hf", "gguf"):
        (folder := tmp_path / form).mkdir()
        read.append(read_source(open_model_file(write_model("step3p7", form, folder))).cfg)
    keys = ("heads", "kv_heads", "windows", "mixture", "scale", "limits", "shared_limits")
    for key in keys:
        assert getattr(read[0], key) == getattr(read[1], key), key
    for each in read:
        assert each.rope and (each.rope.width, each.rope_local.width) == (8, 16)
        assert (each.rope.base, each.rope_local.base) == (5e6, 1e4)
    assert read[0].rope and read[0].rope.scaling == "llama3" and read[0].rope_local.scaling == "default"


def test_lists_may_count_the_layers_that_draft():
    cfg = config()
    assert cfg.layers == 4 and cfg.heads == (64, 96, 96, 96) and cfg.windows == (0, 512, 512, 512)
    assert cfg.limits == (0.0, 0.0, 0.0, 7.0) and cfg.shared_limits == (0.0, 0.0, 0.0, 16.0)
    assert cfg.mixture and cfg.mixture.sparse == (False, False, False, True)
    last = layer(cfg, 3)[1]
    assert isinstance(last, Moe) and (last.limit, last.shared_limit) == (7.0, 16.0)


def test_transformers_own_keys_mean_the_same():
    """transformers writes one rope a kind, kinds of MLPs, and sliding layers' heads under another key."""
    makers = (
        "attention_other_setting",
        "moe_layers_enum",
        "partial_rotary_factors",
        "rope_scaling",
        "rope_theta",
    )
    stated = {key: value for key, value in STATED.items() if key not in makers}
    full = {"rope_theta": 5e6, "partial_rotary_factor": 0.5, **STATED["rope_scaling"]}
    sliding = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    stated |= {
        "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 2,
        "num_sliding_attention_heads": 96,
        "rope_parameters": {FULL: full, SLIDING: sliding},
    }
    assert config_from_hf(Fields(stated)) == config()


def test_a_gguf_may_count_the_layers_that_draft():
    tiny = make.config("step3p7").gguf
    counted = {
        key: [*value, value[-1]] if isinstance(value, list) else value for key, value in tiny.items()
    } | {"step35.block_count": 5, "step35.nextn_predict_layers": 1}
    assert config_from_gguf(Fields(counted, "step35."), 256) == config_from_gguf(Fields(tiny, "step35."), 256)


@pytest.mark.parametrize("key", ["swiglu_limits", "swiglu_limits_shared"])
def test_a_limit_changes_the_logits(key: str, tmp_path: Path):
    """Each of the two kinds reaches activations of the tiny model, or its golden logits would show neither."""
    path, ids = write_model("step3p7", "hf", tmp_path), list(range(5, 40))
    limited = Oracle(path).logits(ids)
    opened: Any = open_model_file(path)
    text = dict(opened.config["text_config"])
    opened.config = type(opened.config)(
        {**opened.config, "text_config": text | {key: [0.0] * 4}}, "config.json"
    )
    assert np.abs(Oracle(opened).logits(ids) - limited).max() > 0.05


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"attention_bias": True}, UnsupportedModel, "attention_bias"),
        ({"moe_router_activation": "softmax"}, UnsupportedModel, "moe_router_activation"),
        ({"rope_theta": [5e6, 1e4, 2e4, 1e4, 5e6]}, UnsupportedModel, "differ among layers of a kind"),
        (
            {"attention_other_setting": {"num_attention_groups": 4}},
            UnsupportedModel,
            "num_attention_groups is 4",
        ),
        ({"attention_other_setting": {"num_attention_heads": 97}}, BadModelFile, "do not divide 97"),
        ({"swiglu_limits": [0.0, 1.0]}, BadModelFile, "swiglu_limits"),
        ({"swiglu_limits": [0.0, 0.0, 0.0, -1.0]}, BadModelFile, "a number from 0"),
        ({"swiglu_limits": [0.0, 0.0, 0.0, "7"]}, BadModelFile, "a finite number"),
        ({"moe_layers_enum": "three"}, BadModelFile, "moe_layers_enum"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    changes: dict[str, Any], kind: type[Exception], named: str
):
    with pytest.raises(kind, match=named):
        config(**changes)


def test_a_gguf_without_its_windows_pattern_is_refused():
    keys = {k: v for k, v in make.config("step3p7").gguf.items() if not k.endswith("_pattern")}
    with pytest.raises(BadModelFile, match="sliding_window_pattern is missing"):
        config_from_gguf(Fields(keys, "step35."), 256)
