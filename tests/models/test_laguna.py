"""What Laguna's files state of layers, heads and gates, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import read_source
from freehold.run.models.families.laguna import LagunaSizes, config_from_hf, layer
from tests.models.golden import write_model

# Sizes of poolside/Laguna-XS.2, with four layers; what its class assumes is left out.
STATED: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
    "max_position_embeddings": 131072,
    "mlp_layer_types": ["dense"] + ["sparse"] * 3,
    "moe_intermediate_size": 512,
    "moe_routed_scaling_factor": 2.5,
    "num_attention_heads": 48,
    "num_attention_heads_per_layer": [48, 64, 64, 64],
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "vocab_size": 100352,
}


def config(**changes: Any) -> LagunaSizes:
    return config_from_hf(Fields(STATED | changes))


def test_both_formats_state_the_same_layers(tmp_path: Path):
    """A GGUF lists no kinds of layers: of four the first sees all tokens."""
    read: list[LagunaSizes] = []
    for form in ("hf", "gguf"):
        (folder := tmp_path / form).mkdir()
        read.append(read_source(open_model_file(write_model("laguna", form, folder))).cfg)
    for key in ("heads", "windows", "mixture", "rope", "rope_local", "gate_heads"):
        assert getattr(read[0], key) == getattr(read[1], key), key
    assert read[0].windows == (0, 8, 8, 8) and read[0].heads == (4, 6, 6, 6)


def test_an_absent_rope_window_and_gate_are_the_class_s():
    cfg = config()
    assert cfg.windows == (0, 512, 512, 512) and cfg.gate_heads
    assert cfg.rope and (cfg.rope.base, cfg.rope.width) == (5e5, 64), "half of a full layer's head turns"
    assert (cfg.rope_local.base, cfg.rope_local.width) == (1e4, 128)
    assert [layer(cfg, i)[0].tensors()["q_gate"].shape[0] for i in range(4)] == [48, 64, 64, 64]


def test_a_gate_may_be_of_each_value():
    whole = layer(config(gating="per-element"), 1)[0].tensors()["q_gate"]
    assert whole.shape == (64 * 128, 2048)


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"gating": "per-layer"}, UnsupportedModel, "gating is 'per-layer'"),
        ({"attention_bias": True}, UnsupportedModel, "attention_bias"),
        ({"moe_router_logit_softcapping": 30.0}, UnsupportedModel, "moe_router_logit_softcapping"),
        ({"moe_apply_router_weight_on_input": True}, UnsupportedModel, "moe_apply_router_weight_on_input"),
        ({"num_attention_heads_per_layer": [48, 65, 64, 64]}, BadModelFile, "do not divide 65"),
        ({"num_attention_heads_per_layer": [48, 64]}, BadModelFile, "num_attention_heads_per_layer"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    changes: dict[str, Any], kind: type[Exception], named: str
):
    with pytest.raises(kind, match=named):
        config(**changes)
