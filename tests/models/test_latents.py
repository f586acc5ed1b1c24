"""Traps of latent attention's files: Wkvb in one piece, scales, routers, what a GGUF does not say, Mistral's names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import QuantType, open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.mistral_names import usual_name
from freehold.run.models.families import deepseek2, deepseek_sparse, mistral4
from freehold.run.models.load import load_model
from freehold.run.models.oracle.session import Oracle
from freehold.run.models.tiny import make
from freehold.run.models.tiny.make import gguf_bytes, safetensors_bytes
from tests.models.golden import BOUND, error, golden, native_logits, pieces, write_model
from tests.vectors.files import gguf_tensors
from tests.vectors.weights import FAMILIES, tensors

NOPE = VALUE = LATENT = 32
HEADS = 4


def gguf_keys(family: str) -> Fields:
    tiny = FAMILIES[family].gguf
    return Fields(tiny, f"{tiny['general.architecture']}.")


def hf_keys(family: str, **changes: Any) -> Fields:
    return Fields({k: v for k, v in (FAMILIES[family].hf | changes).items() if v is not ...})


# --- Wkvb in one piece -----------------------------------------------------------------------------


def older(path: Path, kind: str) -> Path:
    """Write deepseek_v3 as llama.cpp did before it split Wkvb: heads of k then v, plain key and value lengths."""
    found = gguf_tensors("deepseek_v3")
    for i in range(3):
        k, v = (found.pop(f"blk.{i}.attn_{key}_b.weight") for key in "kv")
        found[f"blk.{i}.attn_kv_b.weight"] = np.concatenate([k.swapaxes(1, 2), v], 1).reshape(-1, LATENT)
    keys = {k: v for k, v in FAMILIES["deepseek_v3"].gguf.items() if not k.endswith("_mla")}
    keys |= {"deepseek2.attention.key_length": NOPE + 16, "deepseek2.attention.value_length": VALUE}
    keys |= {"deepseek2.attention.head_count_kv": HEADS}
    stored = {}
    for name, value in found.items():
        one = kind if "attn_kv_b" in name else "F32"
        raw = gguf.quants.quantize(value, gguf.GGMLQuantizationType[one]).tobytes()
        stored[name] = QuantType[one], value.shape, raw
    path.write_bytes(gguf_bytes(keys | make.gguf_keys(), stored))
    return path


def test_older_file_with_both_halves_in_one_tensor_gives_the_golden_logits(tmp_path: Path):
    path, (ids, _) = older(tmp_path / "model.gguf", "F32"), golden("deepseek_v3")
    assert error(Oracle(path).logits(ids), "deepseek_v3") <= BOUND
    model = load_model(path, threads=1)
    assert error(native_logits(model, ids, pieces(ids), "f32"), "deepseek_v3") <= BOUND


def test_a_quantised_tensor_of_both_halves_is_cut_without_a_further_rounding(tmp_path: Path):
    """The transposed half becomes floats, which hold what the codes stand for; the other stays as it is."""
    path = older(tmp_path / "model.gguf", "Q8_0")
    with open_model_file(path) as opened:
        stored = opened.tensors["blk.1.attn_kv_b.weight"].numpy().reshape(HEADS, NOPE + VALUE, LATENT)
    w = load_model(path, threads=1).weights.layers[1]
    k, v = (np.stack([w[key].row(i) for i in range(HEADS * 32)]) for key in ("k_b", "v_b"))
    assert np.array_equal(k.reshape(HEADS, LATENT, NOPE), stored[:, :NOPE].swapaxes(1, 2))
    assert np.array_equal(v.reshape(HEADS, VALUE, LATENT), stored[:, NOPE:])


# --- scales, pairs, routers ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_yarn_scales_scores_by_the_square_of_its_temperature_and_no_cosine(family: str):
    weight = {"deepseek_v2": 0.707, "deepseek_v3": 1.0}[family]
    expected = (0.1 * weight * math.log(40) + 1) ** 2 / math.sqrt(NOPE + 16)
    for cfg in (
        deepseek2.config_from_hf(hf_keys(family)),
        deepseek2.config_from_gguf(gguf_keys(family), 256),
    ):
        assert cfg.scale == pytest.approx(expected, rel=1e-6)
        assert cfg.rope is not None and cfg.rope.table().factor == 1.0 and cfg.rope.adjacent


def test_halves_turn_together_only_where_the_config_says_so():
    rope = deepseek2.config_from_hf(hf_keys("deepseek_v3", rope_interleave=False)).rope
    assert rope is not None and not rope.adjacent


def test_groups_of_v2_are_compared_by_their_best_expert_and_those_of_v3_by_two():
    kinds = {}
    for family in ("deepseek_v2", "deepseek_v3"):
        for cfg in (
            deepseek2.config_from_hf(hf_keys(family)),
            deepseek2.config_from_gguf(gguf_keys(family), 256),
        ):
            assert cfg.mixture is not None
            routing = cfg.mixture.routing
            kinds.setdefault(family, set()).add((routing.scoring, routing.group_score, routing.renormalise))
    assert kinds == {
        "deepseek_v2": {("softmax", "best", False)},
        "deepseek_v3": {("sigmoid", "top2", True)},
    }


@pytest.mark.parametrize(("layers", "scoring"), [(47, "sigmoid"), (46, "softmax")])
def test_a_file_without_a_gating_has_a_softmax_unless_it_is_a_flash(layers: int, scoring: str):
    keys = dict(FAMILIES["deepseek_v3"].gguf)
    del keys["deepseek2.expert_gating_func"]
    keys["deepseek2.block_count"] = layers
    cfg = deepseek2.config_from_gguf(Fields(keys, "deepseek2."), 154_880)
    assert cfg.mixture is not None and cfg.mixture.routing.scoring == scoring


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("deepseek_v3", {"attention_bias": True}, "attention_bias"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("deepseek_v3", {"kv_lora_rank": 40}, "latent"),
        ("deepseek_v3", {"qk_nope_head_dim": ...}, "qk_nope_head_dim"),
        ("deepseek_v3", {"first_k_dense_replace": ...}, "first_k_dense_replace"),
        ("deepseek_v3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type"),
        ("deepseek_v3", {"hidden_act": "gelu"}, "hidden_act"),
        ("deepseek_v3", {"n_group": 3}, "3 groups do not divide 8"),
        ("deepseek_v3", {"topk_group": 1, "num_experts_per_tok": 4}, "1 groups hold 2"),
    ],
)
def test_what_is_not_exact_is_refused_by_name(family: str, changes: dict[str, Any], named: str):
    with pytest.raises((UnsupportedModel, BadModelFile), match=named):
        deepseek2.config_from_hf(hf_keys(family, **changes))


def test_yarn_in_a_gguf_needs_its_multiplier():
    keys = dict(FAMILIES["deepseek_v3"].gguf)
    del keys["deepseek2.rope.scaling.yarn_log_multiplier"]
    with pytest.raises(BadModelFile, match="yarn_log_multiplier is missing"):
        deepseek2.config_from_gguf(Fields(keys, "deepseek2."), 256)


def test_small_4_grows_queries_though_its_gguf_does_not_say_so():
    stated = mistral4.config_from_hf(hf_keys("mistral4"))
    silent = mistral4.config_from_gguf(gguf_keys("mistral4"), 256)
    assert stated.temper == silent.temper == (0.1, 8)
    assert not stated.notes and "0.1 from token 8 on" in silent.notes[0]


def test_an_indexer_does_not_bound_the_context_of_either_format():
    for cfg in (
        deepseek_sparse.config_from_hf(hf_keys("deepseek_v32")),
        deepseek_sparse.config_from_gguf(gguf_keys("deepseek_v32"), 256),
    ):
        assert cfg.context == 2560 and not cfg.notes
        assert (cfg.picked, cfg.index_heads, cfg.index, cfg.adjacent) == (10, 16, 32, False)


def test_which_layers_pick_is_read_in_every_spelling():
    stated = hf_keys("glm_moe_dsa")
    assert deepseek_sparse.config_from_hf(stated).indexed == (True, True, False, True)
    assert deepseek_sparse.config_from_hf(stated.without("indexer_types")).indexed == (
        True,
        True,
        False,
        True,
    )
    neither = stated.without("indexer_types", "index_topk_pattern")
    assert deepseek_sparse.config_from_hf(neither).indexed == (True,) * 4
    by_period = neither.assuming(index_topk_freq=2)
    assert deepseek_sparse.config_from_hf(by_period).indexed == (True, True, False, True)
    assert deepseek_sparse.config_from_gguf(gguf_keys("glm_moe_dsa"), 256).indexed == (
        True,
        True,
        False,
        True,
    )


def test_a_first_layer_without_an_indexer_is_refused():
    keys = hf_keys("glm_moe_dsa").without("indexer_types", "index_topk_pattern")
    with pytest.raises(BadModelFile, match="the first layer has no indexer"):
        deepseek_sparse.config_from_hf(keys.assuming(indexer_types=["shared", "full", "full", "full"]))


# --- Mistral's names -------------------------------------------------------------------------------

PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 96, "head_dim": 48, "norm_eps": 1e-6,
    "vocab_size": 256, "rope_theta": 1e4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "max_position_embeddings": 512, "tied_embeddings": False,
    "moe": {
        "first_k_dense_replace": 1, "num_experts_per_tok": 2, "num_experts": 8, "expert_hidden_dim": 32,
        "routed_scale": 1.0, "num_shared_experts": 1, "num_expert_groups": 1, "num_expert_groups_per_tok": 1,
        "route_every_n": 1, "create_stacked_experts": False,
    },
    "yarn": {
        "factor": 16.0, "beta": 32, "alpha": 1, "original_max_position_embeddings": 8, "apply_scale": False,
    },
    "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 8},
}  # fmt: skip
PARTS = ["attention." + n for n in ("wq_a", "q_a_norm", "wq_b", "wkv_a_with_mqa", "kv_a_norm", "wkv_b", "wo")]
PARTS += ["attention_norm", "ffn_norm", "gate", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
PARTS += [f"{of}.w{n}" for of in ("shared_experts", *(f"experts.{e}" for e in range(8))) for n in (1, 2, 3)]
NAMES = ["tok_embeddings.weight", "norm.weight", "output.weight"]
NAMES += [f"layers.{i}.{part}.weight" for i in range(3) for part in PARTS]


def consolidated(folder: Path, **changes: Any) -> Path:
    """Write mistral_large3 with params.json and Mistral's names of tensors."""
    usual = dict(tensors("mistral_large3"))
    for i in (1, 2):
        both = usual.pop(f"model.layers.{i}.mlp.experts.gate_up_proj")
        down = usual.pop(f"model.layers.{i}.mlp.experts.down_proj")
        for e in range(8):
            each = {"gate_proj": both[e, :32], "up_proj": both[e, 32:], "down_proj": down[e]}
            usual |= {f"model.layers.{i}.mlp.experts.{e}.{key}.weight": value for key, value in each.items()}
    own = {name: usual.pop(usual_name(name)) for name in NAMES if usual_name(name) in usual}
    assert not usual
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(PARAMS | changes))
    (folder / "consolidated.safetensors").write_bytes(safetensors_bytes(own))
    return folder


def test_mistral_large_3_in_its_own_names_gives_the_golden_logits(tmp_path: Path):
    path, (ids, _) = consolidated(tmp_path / "model"), golden("mistral_large3")
    assert error(Oracle(path).logits(ids), "mistral_large3") <= BOUND
    model = load_model(path, threads=1)
    assert error(native_logits(model, ids, pieces(ids), "f32"), "mistral_large3") <= BOUND


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_encoder": {}}, "vision_encoder"),
        ({"activation": "gelu"}, "activation"),
        ({"moe": PARAMS["moe"] | {"create_stacked_experts": True}}, "create_stacked_experts"),
        ({"moe": PARAMS["moe"] | {"jitter": 1}}, "jitter"),
        ({"yarn": PARAMS["yarn"] | {"apply_scale": True}}, "apply_scale"),
        ({"llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 9}}, "differs from yarn"),
        ({"moe": None}, "without latent attention or experts"),
    ],
)
def test_a_key_of_params_json_that_is_not_known_is_refused_by_name(
    changes: dict[str, Any], named: str, tmp_path: Path
):
    with pytest.raises(UnsupportedModel, match=named):
        Oracle(consolidated(tmp_path / "model", **changes))


# --- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attn_k_b", "attn_v_b", "attn_kv_a_norm", "attn_q_a", "attn_kv_a_mqa"])
@pytest.mark.parametrize("how", ["missing", "narrow"])
def test_a_damaged_tensor_is_named(name: str, how: str, tmp_path: Path):
    found = {key: (QuantType.F32, v.shape, v.tobytes()) for key, v in gguf_tensors("deepseek_v3").items()}
    full = f"blk.1.{name}.weight"
    if how == "missing":
        del found[full]
    else:
        shape = (*found[full][1][:-1], 16)
        found[full] = QuantType.F32, shape, np.zeros(shape, np.float32).tobytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(FAMILIES["deepseek_v3"].gguf | make.gguf_keys(), found))
    with pytest.raises(BadModelFile, match=f"blk.1.{name}.weight"):
        Oracle(path)


def test_a_model_of_latents_is_written_and_read_back(tmp_path: Path):
    """What judges the files above judges them in the form that a converter writes, too."""
    ids, _ = golden("deepseek_v3")
    assert error(Oracle(write_model("deepseek_v3", "gguf", tmp_path)).logits(ids), "deepseek_v3") <= BOUND
