"""A repository in Mistral's own form, params.json and consolidated*.safetensors, as the form that families read.

Knows Mistral's keys and names of a model with latent attention and experts (Mistral Large 3); a key or a tensor that is
not known here is refused. Knows no arithmetic. Queries and keys turn in adjacent pairs, as in DeepSeek's files.
Source: Mistral-Large-3-675B-Instruct-2512's params.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import Fields, Metadata

T = TypeVar("T")

# What such a config is called here; transformers has no class.
CLASS, LARGE_3 = "MistralLarge3", "mistral_large3"
_SIZES = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size", "norm_eps": "rms_norm_eps", "vocab_size": "vocab_size",
    "q_lora_rank": "q_lora_rank", "kv_lora_rank": "kv_lora_rank", "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim", "v_head_dim": "v_head_dim", "n_kv_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings", "tied_embeddings": "tie_word_embeddings",
    "rope_theta": "rope_theta",
}  # fmt: skip
_EXPERTS = {
    "route_every_n": "moe_layer_freq", "first_k_dense_replace": "first_k_dense_replace",
    "num_experts_per_tok": "num_experts_per_tok", "num_experts": "n_routed_experts",
    "expert_hidden_dim": "moe_intermediate_size", "routed_scale": "routed_scaling_factor",
    "num_shared_experts": "n_shared_experts", "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
}  # fmt: skip
_YARN = {"factor": "factor", "beta": "beta_fast", "alpha": "beta_slow"}
_ORIGINAL = "original_max_position_embeddings"
# What follows from other keys, or only says how weights are served.
_SAID_ELSEWHERE = {"head_dim", "max_seq_len", "model_type", "activation"}
_ENDS = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_ATTENTION = {
    "wq_a": "q_a_proj", "q_a_norm": "q_a_layernorm", "wq_b": "q_b_proj", "wq": "q_proj",
    "wkv_a_with_mqa": "kv_a_proj_with_mqa", "kv_a_norm": "kv_a_layernorm", "wkv_b": "kv_b_proj", "wo": "o_proj",
}  # fmt: skip
_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "gate": "mlp.gate"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")


def is_mistral(config: Metadata, params: Metadata) -> bool:
    """Tell whether a directory is in Mistral's own form: params.json, and no config.json that names a class."""
    return bool(params) and not config.get("architectures")


def from_mistral(params: Metadata, tensors: Mapping[str, T]) -> tuple[Metadata, dict[str, T]]:
    """Return what params.json says by config.json's keys, and the tensors by their usual names."""
    fields = Fields(params)
    experts, yarn = fields.section("moe"), fields.section("yarn")
    if experts is None or params.get("kv_lora_rank") is None:
        raise UnsupportedModel(
            "params.json is of a model without latent attention or experts, which is read only in the usual format",
            "fetch the repository's model*.safetensors with config.json",
        )
    config: dict[str, Any] = {"architectures": [CLASS], "model_type": LARGE_3, "norm_topk_prob": True}
    config |= _renamed(fields, _SIZES, {"moe", "yarn", "llama_4_scaling", *_SAID_ELSEWHERE})
    config |= _renamed(experts, _EXPERTS, {"create_stacked_experts"})
    fields.require("activation", ("silu",), "silu")
    experts.refuse("create_stacked_experts", "experts in one tensor")
    if yarn is not None:
        config["rope_parameters"] = _rope(yarn, fields.section("llama_4_scaling"))
    elif params.get("llama_4_scaling"):
        raise UnsupportedModel("params.json has llama_4_scaling without yarn, which is not supported")
    usual = {usual_name(name): tensor for name, tensor in tensors.items()}
    return Metadata(config, "params.json"), usual


def _rope(yarn: Fields, temper: Fields | None) -> dict[str, Any]:
    """YaRN's keys; `apply_scale` false cancels its factor on cosines and sines, as equal mscales do."""
    if yarn.flag("apply_scale", False):
        raise UnsupportedModel("params.json's yarn.apply_scale is true, which is not supported")
    rope: dict[str, Any] = _renamed(yarn, _YARN | {_ORIGINAL: _ORIGINAL}, {"apply_scale"})
    rope |= {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}
    if temper is None:
        return rope
    if temper.get(_ORIGINAL) != rope.get(_ORIGINAL):
        raise UnsupportedModel(f"llama_4_scaling's {_ORIGINAL} differs from yarn's, which is not supported")
    return rope | _renamed(temper, {"beta": "llama_4_scaling_beta"}, {_ORIGINAL})


def _renamed(fields: Fields, names: Mapping[str, str], apart: set[str]) -> dict[str, Any]:
    """Rename known keys; those that are read apart may be there too."""
    for key in fields.values:
        if key not in names and key not in apart:
            raise UnsupportedModel(f"params.json has {key[:60]!r}, which Freehold does not know")
    return {names[key]: value for key, value in fields.values.items() if key in names}


def usual_name(name: str) -> str:
    """Return a tensor's usual name; one that is not known keeps its own, and is refused when weights are bound."""
    if name in _ENDS:
        return _ENDS[name]
    match = _LAYER.fullmatch(name)
    if not match:
        return name
    layer, rest = match.groups()
    part = _part(rest.split("."))
    return f"model.layers.{layer}.{part}.weight" if part else name


def _part(words: list[str]) -> str:
    match words:
        case [norm] if norm in _NORMS:
            return _NORMS[norm]
        case ["attention", name] if name in _ATTENTION:
            return f"self_attn.{_ATTENTION[name]}"
        case ["feed_forward", name] if name in _MLP:
            return f"mlp.{_MLP[name]}"
        case ["shared_experts", name] if name in _MLP:
            return f"mlp.shared_experts.{_MLP[name]}"
        case ["experts", number, name] if name in _MLP:
            return f"mlp.experts.{number}.{_MLP[name]}"
    return ""
