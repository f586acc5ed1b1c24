"""What a config leaves unsaid is what its class assumes, or is missed by name; what it says is never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import family_of, gguf_family, read_source
from freehold.run.models.binding.binder import join_blocks
from freehold.run.models.family import text_half
from tests.models.golden import write_model
from tests.models.test_mixtures import reopened
from tests.vectors.weights import FAMILIES

LONG = 10**400  # JSON has integers that no float holds


def from_hf(name: str, without: tuple[str, ...] = (), **changes: Any) -> Any:
    """Read a tiny model's config.json, changed."""
    stated = {key: value for key, value in FAMILIES[name].hf.items() if key not in without}
    family, fields, _ = family_of(stated | changes)
    return family.config_from_hf(fields)


def from_gguf(name: str, **changes: Any) -> Any:
    """Read a tiny model's GGUF keys, changed; `__` stands for a dot."""
    keys: Mapping[str, Any] = FAMILIES[name].gguf
    prefix = keys["general.architecture"]
    family, fields = gguf_family(
        {**keys, **{f"{prefix}.{key.replace('__', '.')}": value for key, value in changes.items()}}
    )
    return family.config_from_gguf(fields, 256)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("deepseek_v3", "routed_scaling_factor"),
        ("deepseek_v3", "n_group"),
        ("deepseek_v3", "topk_group"),
        ("deepseek_v32", "n_group"),
        ("glm4_moe_lite", "routed_scaling_factor"),
        ("glm4_moe_lite", "rms_norm_eps"),
        ("glm_moe_dsa", "rms_norm_eps"),
        ("kimi_linear", "routed_scaling_factor"),
        ("gpt_oss", "rope_parameters"),
        ("ministral3", "rope_parameters"),
        ("mistral4", "rope_parameters"),
    ],
)
def test_what_classes_assume_differently_and_no_tensor_tells_must_be_stated(name: str, key: str):
    with pytest.raises(BadModelFile, match=f"{key} is missing"):
        from_hf(name, without=(key,))


def test_a_phi_3_whose_longrope_is_called_yarn_is_refused():
    rope = {"type": "yarn", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    with pytest.raises(UnsupportedModel, match="rope_type is 'yarn'"):
        from_hf("phi3", without=("rope_parameters",), rope_scaling=rope, original_max_position_embeddings=64)


@pytest.mark.parametrize("name", ["mistral", "ministral"])
def test_a_mistral_slides_unless_its_window_is_null(name: str):
    bare = ("sliding_window", "layer_types")
    assert set(from_hf(name, without=bare).windows) == {4096}
    assert set(from_hf(name, without=bare, sliding_window=None).windows) == {0}


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("lfm2", 1e6),
        ("lfm2_moe", 1e6),
        ("llama4", 5e5),
        ("phimoe", 1e6),
        ("minimax_m2", 5e6),
        ("hy_v3", 11158840.0),
    ],
)
@pytest.mark.parametrize("null", [False, True])
def test_a_theta_that_is_not_stated_is_the_one_of_the_class(name: str, base: float, null: bool):
    bare = ("rope_parameters", "rope_scaling", "rope_theta")
    assert from_hf(name, without=bare, **({"rope_theta": None} if null else {})).rope.base == base


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "attention.scale", 0.5),
        ("llama", "embedding_scale", 12.0),
        ("qwen3", "attn_logit_softcapping", 50.0),
        ("qwen2", "final_logit_softcapping", 30.0),
        ("cohere", "residual_scale", 0.25),
        ("llama", "rope.scaling.yarn_attn_factor", 2.0),
        ("deepseek_v3", "attention.sliding_window", 8),
    ],
)
def test_a_key_of_arithmetic_that_a_family_does_not_read_is_refused_by_name(
    name: str, key: str, value: float, tmp_path: Path
):
    path = write_model(name, "gguf", tmp_path)
    full = f"{FAMILIES[name].gguf['general.architecture']}.{key}"
    with pytest.raises(UnsupportedModel, match=f"{full} is {value}"):
        read_source(reopened(path, **{full: value}))
    read_source(reopened(path, **{full: 0}))
    read_source(open_model_file(path))


@pytest.mark.parametrize(
    "name", ["qwen3moe", "qwen2moe", "mixtral", "olmoe", "lfm2_moe", "qwen3_next", "qwen3_5_moe"]
)
def test_what_a_gguf_states_of_its_router_counts_in_every_family(name: str):
    assert from_gguf(name, expert_weights_scale=2.5).mixture.routing.scale == 2.5
    assert from_gguf(name, expert_weights_norm=False).mixture.routing.renormalise is False
    other = 1 if name == "lfm2_moe" else 2
    with pytest.raises(BadModelFile, match="expert_gating_func"):
        from_gguf(name, expert_gating_func=other)


def test_widths_that_are_computed_or_read_apart_must_fit_the_kernels_too():
    with pytest.raises(UnsupportedModel, match="intermediate width is 33"):
        from_hf(
            "lfm2", intermediate_size=33, block_auto_adjust_ff_dim=True, block_multiple_of=33, block_ff_dim=48
        )
    with pytest.raises(UnsupportedModel, match="shared expert width is 40"):
        from_hf("granitemoehybrid-dense", shared_intermediate_size=40)
    with pytest.raises(UnsupportedModel, match="intermediate width is 40"):
        from_hf("llama4", intermediate_size_mlp=40)


def test_sizes_that_together_would_take_gigabytes_are_refused_before_any_is_listed():
    with pytest.raises(BadModelFile, match="4096 experts of 1048576 have 4294967296 rows"):
        from_gguf("qwen3moe", expert_count=4096, expert_used_count=1, expert_feed_forward_length=1 << 20)
    with pytest.raises(BadModelFile, match="keys are 67108864 wide together"):
        from_hf(
            "qwen3_next",
            linear_num_key_heads=1 << 14,
            linear_num_value_heads=1 << 14,
            linear_key_head_dim=4096,
        )


@pytest.mark.parametrize("topk", [None, 3])
def test_how_many_groups_are_kept_must_be_stated_where_there_are_several(topk: int | None):
    with pytest.raises(BadModelFile, match="topk_group is"):
        from_hf("dots1", n_group=2, topk_group=topk)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rms_norm_eps": LONG}),
        ("phi3-long", {"rope_theta": LONG}),
        ("minimax_m2", {"attn_type_list": 1}),
        ("minimax_m2", {"attn_type_list": [[1]]}),
    ],
)
def test_a_value_of_another_form_in_config_json_is_a_damaged_file(name: str, changes: dict[str, Any]):
    with pytest.raises(BadModelFile, match=next(iter(changes))):
        from_hf(name, **changes)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "attention__key_length", np.array([16, 24])),
        ("lfm2_moe", "expert_used_count", np.array([1, 2])),
        ("olmoe", "attention__clamp_kqv", np.array([1.0, 2.0])),
        ("qwen3_5", "attention__recurrent_layers", 3),
    ],
)
def test_a_value_of_another_form_in_a_gguf_is_a_damaged_file(name: str, key: str, value: Any):
    with pytest.raises(BadModelFile, match=key.replace("__", ".")):
        from_gguf(name, **{key: value})


def test_exponents_without_nibbles_and_names_that_meet_are_refused(tmp_path: Path):
    file: Any = open_model_file(write_model("qwen3_5", "hf", tmp_path))
    name = "model.layers.0.mlp.up_proj.weight"
    twice = {name: file.tensors[name], f"language_model.{name}": file.tensors[name]}
    with pytest.raises(BadModelFile, match=f"{name} occurs twice"):
        text_half(twice, ())
    alone, _ = join_blocks(Fields({}), {"stranger_scales": file.tensors[name]})
    assert list(alone) == ["stranger_scales"]  # which no declaration takes
