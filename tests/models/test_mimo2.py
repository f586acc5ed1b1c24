"""What MiMo V2's files state of windows, key heads and experts, and what Cohere2 MoE's state of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import read_source
from freehold.run.models.families import cohere2moe, mimo2
from freehold.run.models.families.cohere2moe import CohereMoeSizes
from freehold.run.models.families.mimo2 import MimoSizes
from tests.models.golden import write_model

# Sizes of XiaomiMiMo/MiMo-V2-Flash, with seven layers.
STATED: dict[str, Any] = {
    "attention_value_scale": 0.707,
    "head_dim": 192,
    "hidden_size": 4096,
    "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, 1],
    "intermediate_size": 16384,
    "layernorm_epsilon": 1e-5,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": [0, 1, 1, 1, 1, 1, 1],
    "n_group": 1,
    "n_routed_experts": 256,
    "n_shared_experts": None,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 7,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5000000,
    "routed_scaling_factor": None,
    "scoring_func": "sigmoid",
    "sliding_window": 128,
    "swa_num_key_value_heads": 8,
    "swa_rope_theta": 10000,
    "topk_group": 1,
    "v_head_dim": 128,
    "vocab_size": 152576,
}


def config(**changes: Any) -> MimoSizes:
    return mimo2.config_from_hf(Fields(STATED | changes))


@pytest.mark.parametrize("family", ["mimo_v2_flash", "cohere2_moe"])
def test_both_formats_state_the_same_layers(family: str, tmp_path: Path):
    read: list[Any] = []
    for form in ("hf", "gguf"):
        (folder := tmp_path / form).mkdir()
        read.append(read_source(open_model_file(write_model(family, form, folder))).cfg)
    own = {
        "mimo_v2_flash": ("rope_local", "value_dim"),
        "cohere2_moe": ("turned", "share", "norm", "logit_scale"),
    }
    for key in ("heads", "kv_heads", "windows", "mixture", "rope", *own[family]):
        assert getattr(read[0], key) == getattr(read[1], key), key
    if family == "mimo_v2_flash":
        assert read[0].factor == pytest.approx(read[1].factor)  # a GGUF's is a float32


def test_makers_keys_and_transformers_mean_the_same():
    full, sliding = (
        {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.334} for theta in (5e6, 1e4)
    )
    makers = (
        "hybrid_layer_pattern",
        "moe_layer_freq",
        "partial_rotary_factor",
        "rope_theta",
        "swa_rope_theta",
    )
    stated = {k: v for k, v in STATED.items() if k not in (*makers, "layernorm_epsilon")}
    kinds = ["sliding_attention" if slides else "full_attention" for slides in STATED["hybrid_layer_pattern"]]
    stated |= {
        "layer_types": kinds,
        "mlp_layer_types": ["dense"] + ["sparse"] * 6,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
    }
    del stated["swa_num_key_value_heads"]  # twice the others'
    assert mimo2.config_from_hf(Fields(stated)) == config()
    cfg = config()
    assert cfg.kv_heads == (4, 8, 8, 8, 8, 4, 8) and cfg.windows == (0, 128, 128, 128, 128, 0, 128)
    assert cfg.rope and cfg.rope.width == 64 and cfg.mixture and cfg.mixture.sparse[0] is False


def test_a_size_of_the_window_counts_the_tokens_before_a_tokens_own():
    assert config(sliding_window_size=128).windows[1] == 129


def test_a_value_is_narrower_than_a_key():
    keeps = mimo2.layer(config(), 1)[0].keeps
    assert keeps is not None and keeps.page == (8, 192, 128)


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"add_full_attention_sink_bias": True}, UnsupportedModel, "add_full_attention_sink_bias"),
        ({"n_shared_experts": 1}, UnsupportedModel, "n_shared_experts"),
        ({"swa_head_dim": 128}, UnsupportedModel, "swa_head_dim is 128"),
        ({"scoring_func": "softmax"}, UnsupportedModel, "scoring_func"),
        ({"swa_num_key_value_heads": 7}, BadModelFile, "do not divide 64"),
        ({"moe_layer_freq": [0, 1, 2, 1, 1, 1, 1]}, BadModelFile, "moe_layer_freq"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    changes: dict[str, Any], kind: type[Exception], named: str
):
    with pytest.raises(kind, match=named):
        config(**changes)


# --- Cohere2 MoE -----------------------------------------------------------------------------------------

COMMAND: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 768,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "num_attention_heads": 16,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 9,
    "num_key_value_heads": 4,
    "prefix_dense_intermediate_size": 4096,
    "vocab_size": 256000,
}


def command(**changes: Any) -> CohereMoeSizes:
    return cohere2moe.config_from_hf(Fields(COMMAND | changes))


def test_dense_layers_at_the_beginning_count_by_themselves():
    """They see all tokens and have a rope; of the others every fourth sees all, without one."""
    cfg = command()
    assert [bool(w) for w in cfg.windows] == [False, True, True, True, False, True, True, True, False]
    assert cfg.turned == 1 and cfg.intermediate[0] == 4096 and cfg.mixture and cfg.mixture.intermediate == 768
    ropes = [cohere2moe.layer(cfg, i)[0].rope is not None for i in range(9)]
    assert ropes == [True, True, True, True, False, True, True, True, False]


def test_shared_experts_are_averaged_or_added():
    assert command().share == 1.0
    assert command(num_shared_experts=2).share == 0.5
    assert command(num_shared_experts=2, shared_expert_combination_strategy="sum").share == 1.0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"expert_selection_fn": "relu"}, "expert_selection_fn"),
        ({"shared_expert_combination_strategy": "max"}, "shared_expert_combination_strategy"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_other_routers_are_refused_by_their_key(changes: dict[str, Any], named: str):
    with pytest.raises(UnsupportedModel, match=named):
        command(**changes)
