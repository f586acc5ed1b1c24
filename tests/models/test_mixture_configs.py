"""What files of mixtures say of routers and layers, what they leave out, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import read_source
from freehold.run.models.families import llama4
from tests.models.golden import write_model
from tests.models.test_mixtures import reopened


def config(family: str, form: str, folder: Path) -> Any:
    """Read the config of a tiny model."""
    (own := folder / f"{family}-{form}").mkdir()
    return read_source(open_model_file(write_model(family, form, own))).cfg


@pytest.mark.heavy
def test_both_formats_state_the_same_router(tmp_path: Path):
    for family in ("dots1", "glm4_moe", "minimax_m2", "ernie4_5_moe", "phimoe", "gpt_oss", "hunyuan_v1_moe"):
        stated = {config(family, form, tmp_path).mixture.routing for form in ("gguf", "hf", "legacy")}
        assert len(stated) == 1, family


@pytest.mark.parametrize("form", ["gguf", "hf"])
@pytest.mark.parametrize("family", ["dots1", "glm4_moe", "ernie4_5_moe"])
def test_experts_begin_after_the_dense_layers(family: str, form: str, tmp_path: Path):
    assert config(family, form, tmp_path).mixture.sparse == (False, True, True, True)


def test_the_last_layer_with_experts_may_come_before_the_last(tmp_path: Path):
    cfg = reopened(write_model("ernie4_5_moe", "hf", tmp_path), moe_layer_end_index=2)
    with pytest.raises(BadModelFile, match=r"layers\.3\.mlp\.gate_proj\.weight is missing"):
        read_source(cfg)


def test_every_second_layer_of_a_gpt_oss_slides(tmp_path: Path):
    for form in ("gguf", "hf"):
        cfg = config("gpt_oss", form, tmp_path)
        assert cfg.windows == (8, 0, 8, 0) and cfg.rope.truncate is False


def test_a_dots1_slides_from_max_window_layers_on_unless_its_window_is_null(tmp_path: Path):
    """No `use_sliding_window` says so, as it does of a Qwen."""
    path = write_model("dots1-window", "hf", tmp_path)
    assert read_source(open_model_file(path)).cfg.windows == (0, 0, 8, 8)
    assert read_source(reopened(path, max_window_layers=62)).cfg.windows == (0, 0, 0, 0)
    assert read_source(reopened(path, sliding_window=None)).cfg.windows == (0, 0, 0, 0)


def test_a_dots1_divides_weights_by_their_sum_only_where_stated(tmp_path: Path):
    path = write_model("dots1", "hf", tmp_path)
    assert read_source(open_model_file(path)).cfg.mixture.routing.renormalise
    assert not read_source(reopened(path, norm_topk_prob=None)).cfg.mixture.routing.renormalise


def test_published_dots1_files_name_their_router_by_how_it_chooses(tmp_path: Path):
    path = write_model("dots1", "hf", tmp_path)
    stated = read_source(open_model_file(path)).cfg
    assert read_source(reopened(path, scoring_func="noaux_tc")).cfg == stated


def test_a_gguf_of_unknown_shape_is_exact_where_a_chunk_hides_nothing():
    """Llama 4's files state neither chunk nor growth: the context ends before either counts, and a note says so."""
    cfg = llama4.config_from_gguf(_llama4_keys(layers=4, hidden=64), 256)
    assert cfg.context == 8191 and "does not state its chunks" in cfg.notes[0]
    known = llama4.config_from_gguf(_llama4_keys(layers=48, hidden=5120), 256)
    assert known.context == 1 << 20 and "Llama 4 Scout" in known.notes[0]
    assert known.turns[:5] == (True, True, True, False, True) and known.normalised


def test_the_llama_4_of_128_experts_does_not_normalise_queries():
    assert not llama4.config_from_gguf(_llama4_keys(layers=48, hidden=5120, experts=128), 256).normalised


def _llama4_keys(*, layers: int, hidden: int, experts: int = 16) -> Any:
    keys = {
        "block_count": layers, "embedding_length": hidden, "feed_forward_length": 96, "context_length": 1 << 20,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5e5,
        "expert_count": experts, "expert_used_count": 1, "expert_feed_forward_length": 96,
        "interleave_moe_layer_step": 1,
    }  # fmt: skip
    return Fields({f"llama4.{key}": value for key, value in keys.items()}, "llama4.")


def test_an_extended_phi_moe_multiplies_cosine_and_sine_by_its_own_factor(tmp_path: Path):
    """Its GGUF states another, which converters compute by the rule of Phi-3.5."""
    path = write_model("phimoe", "gguf", tmp_path)
    keys = {"phimoe.rope.scaling.attn_factor": 1.19, "phimoe.rope.scaling.original_context_length": 64}
    rope = read_source(reopened(path, **keys)).cfg.rope
    assert (rope.scaling, rope.original, rope.attention_factor) == ("longrope", 64, 1.243163121016122)


def test_layers_of_an_ernie_that_predict_further_tokens_are_left_out(tmp_path: Path):
    path = write_model("ernie4_5_moe", "hf", tmp_path)
    tensors = dict(open_model_file(path).tensors)
    tensors["model.mtp_linear_proj.0.weight"] = tensors["model.norm.weight"]
    assert "further tokens are left out" in read_source(reopened(path, tensors)).notes[0]


@pytest.mark.parametrize(
    ("family", "form", "key", "value", "says"),
    [
        ("glm4_moe", "gguf", "glm4moe.expert_gating_func", 4, "expert_gating_func is 4"),
        (
            "glm4_moe",
            "gguf",
            "glm4moe.expert_gating_func",
            1,
            "is 1, softmax; models of this architecture have sigmoid",
        ),
        ("dots1", "gguf", "dots1.expert_gating_func", 1, "models of this architecture have sigmoid"),
        ("dots1", "hf", "attention_bias", True, "a bias on attention"),
        ("dots1", "hf", "scoring_func", "softmax", "scoring_func is 'softmax'"),
        ("ernie4_5_moe", "hf", "use_bias", True, "use_bias"),
        ("minimax_m2", "hf", "scoring_func", "softmax", "scoring_func is 'softmax'"),
        ("minimax_m2", "hf", "shared_intermediate_size", 64, "a shared expert"),
        ("minimax_m2", "hf", "use_routing_bias", False, "use_routing_bias is false"),
        ("minimax_m2", "hf", "attn_type_list", [0, 1, 1, 1], "attn_type_list"),
        ("minimax_m2", "hf", "qk_norm_type", "per_head", "qk_norm_type is 'per_head'"),
        ("hunyuan_v1_moe", "hf", "num_shared_expert", 2, "num_shared_expert is 2"),
        ("hunyuan_v1_moe", "hf", "use_mla", True, "use_mla"),
        ("hunyuan_v1_moe", "hf", "moe_topk", [2, 2, 2, 3], "moe_topk differs from layer to layer"),
        ("gpt_oss", "hf", "attention_bias", False, "attention_bias is false"),
        ("llama4", "hf", "attention_bias", True, "a bias on attention"),
    ],
)
def test_variants_that_are_not_computed_are_refused(
    family: str, form: str, key: str, value: object, says: str, tmp_path: Path
):
    with pytest.raises(UnsupportedModel) as error:
        read_source(reopened(write_model(family, form, tmp_path), **{key: value}))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("family", "form", "key", "value", "says"),
    [
        ("glm4_moe", "gguf", "glm4moe.expert_group_used_count", 2, "expert_group_used_count is 2"),
        ("glm4_moe", "gguf", "glm4moe.nextn_predict_layers", 5, "leaves no layer"),
        ("glm4_moe", "hf", "first_k_dense_replace", 0, "layers.0.mlp.gate.weight is missing"),
        ("dots1", "hf", "layer_types", ["sliding_attention"] * 4, "sliding_window is missing"),
        ("gpt_oss", "hf", "swiglu_limit", 0.0, "swiglu_limit is 0.0"),
        ("llama4", "hf", "no_rope_layers", [1, 0, 1, 0], "layer_types and no_rope_layers disagree"),
        ("llama4", "hf", "no_rope_layers", [1, 2, 1, 0], "expected 0 or 1 for each of 4 layers"),
        ("llama4", "hf", "moe_layers", [4], "moe_layers is [4]"),
        ("phimoe", "hf", "router_jitter_noise", 0.0, "router_jitter_noise is 0.0"),
        ("glm4_moe", "gguf", "glm4moe.expert_used_count", 99, "glm4moe.expert_used_count is 99"),
        ("glm4_moe", "hf", "num_experts_per_tok", 99, "num_experts_per_tok is 99"),
        ("deepseek_v3", "hf", "num_experts_per_tok", 99, "num_experts_per_tok is 99"),
        (
            "nemotron_h",
            "gguf",
            "nemotron_h_moe.expert_used_count",
            99,
            "nemotron_h_moe.expert_used_count is 99",
        ),
        ("hunyuan_v1_moe", "hf", "moe_topk", [99] * 4, "moe_topk is 99"),
        ("glm4_moe", "gguf", "glm4moe.attention.head_count_kv", 3, "glm4moe.attention.head_count_kv is 3"),
        ("glm4_moe", "hf", "num_key_value_heads", 3, "num_key_value_heads is 3"),
        ("gemma4-moe", "hf", "num_key_value_heads", 3, "num_key_value_heads is 3"),
        ("nemotron_h", "hf", "num_key_value_heads", 3, "num_key_value_heads is 3"),
        (
            "nemotron_h",
            "gguf",
            "nemotron_h_moe.attention.head_count",
            3,
            "nemotron_h_moe.attention.head_count_kv is",
        ),
    ],
)
def test_what_files_contradict_is_an_error(
    family: str, form: str, key: str, value: object, says: str, tmp_path: Path
):
    with pytest.raises(BadModelFile) as error:
        read_source(reopened(write_model(family, form, tmp_path), **{key: value}))
    assert says in str(error.value)
