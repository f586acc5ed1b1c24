"""Traps of the dense families: edges of windows and temperatures, layers without positions, heads of their own."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import kept_bytes
from freehold.choose.advisor.file_anatomy import from_file
from freehold.run.formats import Metadata, open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import family_of, gguf_family, read_source
from freehold.run.models.config.rope import RopeSpec
from freehold.run.models.oracle.session import Oracle
from freehold.run.models.tiny import make
from tests.models.golden import golden, write_model
from tests.models.test_mixtures import reopened


def read(name: str, **changes: Any) -> Any:
    """Read a tiny configuration's config.json, with changes."""
    family, fields, _ = family_of(Metadata({**make.config(name).hf, **changes}, "config.json"))
    return family.config_from_hf(fields)


def read_gguf(name: str, **changes: Any) -> Any:
    """Read the same of its GGUF's keys, given without the architecture's prefix."""
    stated = make.config(name).gguf
    own = {f"{stated['general.architecture']}.{key}": value for key, value in changes.items()}
    family, fields = gguf_family(Metadata({**stated, **own}, "model.gguf"))
    return family.config_from_gguf(fields, 256)


def logits(path: Path, ids: list[int], **changes: Any) -> np.ndarray:
    return Oracle(reopened(path, **changes)).logits(ids)


def agree_until(first: np.ndarray, other: np.ndarray) -> int:
    """Return the first position whose logits differ."""
    apart = np.abs(first - other).max(axis=-1) > 1e-4
    return int(np.argmax(apart)) if apart.any() else len(apart)


def test_a_window_hides_the_token_before_its_edge(tmp_path: Path):
    """With eight tokens in view, the ninth no longer sees the first."""
    path, (ids, _) = write_model("mistral", "hf", tmp_path), golden("mistral")
    assert agree_until(logits(path, ids), logits(path, ids, sliding_window=9)) == 8


def test_queries_grow_at_the_original_length_and_not_before(tmp_path: Path):
    path, (ids, _) = write_model("ministral3", "hf", tmp_path), golden("ministral3")
    rope = {**make.config("ministral3").hf["rope_parameters"], "llama_4_scaling_beta": 0.0}
    assert agree_until(logits(path, ids), logits(path, ids, rope_parameters=rope)) == 8


def test_a_soft_cap_lets_no_later_token_through(tmp_path: Path):
    """A cap after the mask would turn the mask's infinities into a finite score."""
    path, (ids, _) = write_model("gemma2", "hf", tmp_path), golden("gemma2")
    changed = [*ids[:20], *reversed(ids[20:])]
    assert agree_until(logits(path, ids), logits(path, changed)) >= 20


@pytest.mark.parametrize(
    ("name", "turning"),
    [
        ("smollm3", [True, True, True, False]),
        ("cohere2", [True, True, True, False]),
        ("exaone4", [True, True, True, False]),
        ("exaone4-full", [True] * 4),
        ("cohere", [True] * 4),
    ],
)
def test_layers_without_positions_have_no_rope_in_either_format(name: str, turning: list[bool]):
    tiny = make.config(name)
    for cfg in (read(name), read_gguf(name)):
        assert [layer.rope is not None for layer in tiny.family.network(cfg).layers] == turning


@pytest.mark.parametrize("cfg", [read("ministral3"), read_gguf("ministral3")], ids=["hf", "gguf"])
def test_two_temperatures_of_yarn_cancel_to_one_attention_factor(cfg: Any):
    assert cfg.rope.scaling == "yarn" and cfg.rope.table().factor == pytest.approx(1.0)
    assert (cfg.beta, cfg.original) == (pytest.approx(0.1), 8)


def test_only_full_layers_of_an_olmo3_are_stretched():
    ropes = {
        "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0,
                           "original_max_position_embeddings": 16},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
    }  # fmt: skip
    old = {"rope_theta": 5e5, "rope_parameters": None, "rope_scaling": ropes["full_attention"]}
    for cfg in (read("olmo3", rope_parameters=ropes), read("olmo3", **old)):
        assert (cfg.rope.scaling, cfg.rope_local.scaling) == ("yarn", "default")


def test_a_tied_model_that_holds_a_head_of_its_own_uses_that(tmp_path: Path):
    opened: Any = open_model_file(write_model("llama3-rope", "hf", tmp_path))
    assert read_source(opened).ends["head"].tensor.name == "model.embed_tokens.weight"
    own = opened.tensors["model.embed_tokens.weight"]
    opened.tensors = {
        **opened.tensors,
        "lm_head.weight": type(own)("lm_head.weight", own.type, own.shape, own.raw),
    }
    assert read_source(opened).ends["head"].tensor.name == "lm_head.weight"


def test_layers_that_share_keys_read_the_last_of_their_kind_and_keep_nothing():
    tiny = make.config("gemma4")
    for cfg in (read("gemma4"), read_gguf("gemma4")):
        layers = tiny.family.network(cfg).layers
        assert [layer.keeps.kind for layer in layers] == ["window", "full", "plain", "plain"]
        assert [layer.parts[0].source for layer in layers] == [None, None, 0, 1]  # type: ignore[attr-defined]


def test_a_quarter_of_the_pairs_turns_as_of_the_whole_head():
    for cfg in (read("gemma4"), read_gguf("gemma4")):
        assert cfg.rope.width == 32
    table = read("gemma4").rope.table()
    plain = RopeSpec(base=1e6, width=32, adjacent=False).table()
    assert np.array_equal(table.inv_freq[:4], plain.inv_freq[:4]) and not table.inv_freq[4:].any()


KEPT = [
    "cohere2", "exaone4", "gemma2", "gemma4", "gemma4-dense", "gemma4-moe", "glm4", "granite", "hunyuan_v1_dense",
    "ministral3", "nemotron", "olmo3", "phi3", "phi3-mini", "seed_oss", "smollm3",
]  # fmt: skip


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("name", KEPT)
def test_fit_counts_what_layers_keep(name: str, form: str, tmp_path: Path):
    path = write_model(name, form, tmp_path)
    kept = [layer.keeps for layer in read_source(open_model_file(path)).network.layers]
    assert kept_bytes(from_file(path).layers, 40) == kept_bytes(kept, 40)


LAST_SLIDES = ["full_attention"] * 3 + ["sliding_attention"]
REFUSED = [
    ("granite", {"mlp_bias": True}, "mlp_bias"),
    ("granite", {"logits_scaling": 0.0}, "logits_scaling"),
    ("granite", {"residual_multiplier": "much"}, "residual_multiplier"),
    ("granite", {"hidden_act": "gelu"}, "hidden_act"),
    ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 2]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ("smollm3", {"mlp_bias": True}, "mlp_bias"),
    (
        "ministral3",
        {"rope_parameters": {"rope_type": "yarn", "factor": 16.0, "llama_4_scaling_beta": -1}},
        "beta",
    ),
    ("ministral", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
    ("ministral", {"layer_types": ["full_attention"]}, "layer_types"),
    ("olmo", {"clip_qkv": -1.0}, "clip_qkv"),
    ("olmo", {"attention_bias": True}, "attention_bias"),
    ("olmo3", {"rope_parameters": {"full_attention": {}}}, "sliding_attention"),
    ("olmo3", {"layer_types": ["linear_attention"] * 4}, "linear_attention"),
    ("gemma2", {"hidden_activation": "silu"}, "hidden_activation"),
    ("gemma2", {"attn_logit_softcapping": "fifty"}, "attn_logit_softcapping"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("gemma", {"hidden_act": "relu"}, "hidden_act"),
    ("cohere", {"logit_scale": None, "attention_bias": True}, "attention_bias"),
    ("cohere", {"layer_norm_eps": 2.0}, "layer_norm_eps"),
    ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
    ("cohere2", {"sliding_window": 0}, "sliding_window"),
    ("exaone4", {"layer_types": None, "sliding_window_pattern": "LLLG"}, "sliding_window_pattern"),
    ("ernie4_5", {"use_bias": True}, "use_bias"),
    ("hunyuan_v1_dense", {"use_qk_norm": False}, "use_qk_norm"),
    ("hunyuan_v1_dense", {"use_cla": True}, "use_cla"),
    ("starcoder2", {"hidden_act": "gelu"}, "hidden_act"),
    ("starcoder2", {"norm_epsilon": -1.0}, "norm_epsilon"),
    ("phi3", {"attention_bias": True}, "attention_bias"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "short_factor"),
    ("seed_oss", {"mlp_bias": True}, "mlp_bias"),
    ("seed_oss", {"head_dim": 20}, "attention width"),
    ("nemotron", {"mlp_bias": True}, "mlp_bias"),
    ("arcee", {"hidden_act": "silu"}, "hidden_act"),
    ("arcee", {"mlp_bias": True}, "mlp_bias"),
    ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
    ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ("gemma4", {"num_kv_shared_layers": 4}, "share keys and values"),
    ("gemma4", {"num_kv_shared_layers": 3}, "share keys and values"),
    (
        "gemma4",
        {"layer_types": LAST_SLIDES, "per_layer_config": None, "num_kv_shared_layers": 0},
        "last layer",
    ),
    ("gemma4", {"layer_types": LAST_SLIDES}, "per_layer_config"),
    ("gemma4", {"vocab_size_per_layer_input": 128}, "vocab_size_per_layer_input"),
    ("gemma4", {"attention_bias": True}, "attention_bias"),
]


@pytest.mark.parametrize(("name", "changes", "says"), REFUSED)
def test_a_config_that_is_not_computed_is_refused_by_its_key(name: str, changes: dict[str, Any], says: str):
    with pytest.raises((UnsupportedModel, BadModelFile), match=says):
        read(name, **changes)


@pytest.mark.parametrize(("name", "key"), [("arcee", "rms_norm_eps"), ("nemotron", "norm_eps")])
def test_an_absent_epsilon_is_the_classes_own(name: str, key: str):
    """Both classes assume 1e-5, where most assume 1e-6."""
    assert read(name, **{key: None}).eps == 1e-5


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("granite", "logit_scale", 0.0, "logit_scale"),
        ("cohere2", "attention.sliding_window", None, "sliding_window"),
        ("cohere", "logit_scale", None, "logit_scale"),
        ("olmo3", "attention.sliding_window_pattern", [True], "sliding_window_pattern"),
        ("olmo", "attention.clamp_kqv", -2.0, "clamp_kqv"),
        ("gemma4", "attention.shared_kv_layers", 4, "share keys and values"),
        ("gemma4", "attention.key_length_swa", 0, "key_length_swa"),
        ("stablelm", "use_parallel_residual", True, "use_parallel_residual"),
        ("ministral3", "attention.temperature_scale", -1.0, "temperature_scale"),
        ("phi3", "rope.scaling.attn_factor", 0.0, "attn_factor"),
    ],
)
def test_a_gguf_key_that_is_not_computed_is_refused_by_name(name: str, key: str, value: object, says: str):
    with pytest.raises((UnsupportedModel, BadModelFile), match=says):
        read_gguf(name, **{key: value})


def test_a_wrapper_of_an_unknown_text_half_is_refused_by_its_type():
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {"model_type": "mamba9"}}
    with pytest.raises(UnsupportedModel, match="'mamba9'"):
        family_of(Metadata(config, "config.json"))


def test_a_wrappers_keys_count_where_its_text_half_does_not_state_them():
    text = {**make.config("ministral3").hf}
    del text["tie_word_embeddings"]
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": text,
        "tie_word_embeddings": True,
    }
    family, fields, wrapped = family_of(Metadata(config, "config.json"))
    assert wrapped and family.gguf_architecture == "mistral3"
    assert family.config_from_hf(Fields(fields.values)).tied


@pytest.mark.parametrize(
    ("family", "form"), [("cohere-qknorm", "hf"), ("cohere-qknorm", "gguf"), ("glm4_moe", "gguf")]
)
@pytest.mark.parametrize("half", ["q", "k"])
def test_a_norm_of_queries_or_of_keys_alone_is_refused_when_tensors_are_bound(
    family: str, form: str, half: str, tmp_path: Path
):
    path = write_model(family, form, tmp_path)
    opened: Any = open_model_file(path)
    name = (
        f"blk.1.attn_{half}_norm.weight" if form == "gguf" else f"model.layers.1.self_attn.{half}_norm.weight"
    )
    opened.tensors = MappingProxyType({n: t for n, t in opened.tensors.items() if n != name})
    with pytest.raises(BadModelFile, match=f"tensor {re.escape(name)} is missing"):
        read_source(opened)


@pytest.mark.parametrize("name", ["granite_swa", "muse_glimmer"])
@pytest.mark.parametrize(
    "listed", [5, "0", [1e4], [1e4, 1e4, 1e4, "0"], [1e4, 1e4, 1e4, True], [0.5, 1, 1, 0]]
)
def test_bases_of_layers_that_are_no_bases_are_refused(name: str, listed: object):
    config = make.config(name).hf
    text = config.get("text_config")
    changes = {"text_config": {**text, "layer_rope_theta": listed}} if text else {"layer_rope_theta": listed}
    with pytest.raises(BadModelFile, match="layer_rope_theta is"):
        read(name, **changes)


def test_muse_glimmer_turns_in_sliding_layers_alone():
    text = make.config("muse_glimmer").hf["text_config"]
    with pytest.raises(UnsupportedModel, match="a rope on full layers"):
        read("muse_glimmer", text_config={**text, "layer_rope_theta": [5e5] * 4})
