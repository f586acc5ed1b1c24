"""Counts a model's weights from its config.json, without a file of weights.

Knows the shapes of the families below, by config.json's model_type; refuses any other by name rather than guess.
Counts what makes text: towers for images and layers for drafting (MTP) are left out, and an embedding that is the
head counts once. Knows no file, no quantisation and no machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from freehold.base.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Count:
    """Weights of a model's text half. `embed`: the table of tokens, 0 where `head` is the same one."""

    embed: int
    head: int
    body: int  # layers without their routed experts, and the last norm
    experts: int = 0  # routed ones, of which a token is sent to `used`
    used: float = 1.0

    @property
    def total(self) -> int:
        """All of them."""
        return self.embed + self.head + self.body + self.experts

    @property
    def active(self) -> int:
        """Those that one token is multiplied with: one row of `embed` is not."""
        return self.head + self.body + round(self.experts * self.used)


@dataclass(frozen=True, slots=True)
class FamilyShape:
    """What a family adds to a block of attention, gated MLP and two norms."""

    bias: tuple[str, ...] = ()  # q, k, v, o projections with one whatever the config says
    # "head": a norm as wide as a head for queries and for keys; "full": as wide as all of them
    qk_norm: str = ""
    norms: int = 2  # as wide as the model, in each layer
    tied: bool = False  # what a config without tie_word_embeddings means
    router_bias: bool = False
    sinks: bool = False  # a value for each query head
    expert_bias: bool = False


FAMILIES: dict[str, FamilyShape] = {
    "llama": FamilyShape(),
    "mistral": FamilyShape(),
    "ministral3": FamilyShape(),
    "mixtral": FamilyShape(),
    "granite": FamilyShape(),
    "smollm3": FamilyShape(),
    "phi3": FamilyShape(),
    "seed_oss": FamilyShape(),
    "olmo": FamilyShape(norms=0),
    "olmo2": FamilyShape(qk_norm="full"),
    "olmo3": FamilyShape(qk_norm="full"),
    "olmoe": FamilyShape(qk_norm="full"),
    "qwen2": FamilyShape(bias=("q", "k", "v")),
    "qwen2_moe": FamilyShape(bias=("q", "k", "v")),
    "qwen3": FamilyShape(qk_norm="head"),
    "qwen3_moe": FamilyShape(qk_norm="head"),
    "qwen3_next": FamilyShape(qk_norm="head"),
    "qwen3_5": FamilyShape(qk_norm="head"),
    "qwen3_5_moe": FamilyShape(qk_norm="head"),
    "gemma2": FamilyShape(norms=4, tied=True),
    "gemma3": FamilyShape(norms=4, qk_norm="head", tied=True),
    "glm4_moe": FamilyShape(router_bias=True),
    "glm4_moe_lite": FamilyShape(router_bias=True),
    "minimax_m2": FamilyShape(qk_norm="full", router_bias=True),
    "gpt_oss": FamilyShape(bias=("q", "k", "v", "o"), router_bias=True, sinks=True, expert_bias=True),
    "deepseek_v2": FamilyShape(),
    "deepseek_v3": FamilyShape(router_bias=True),
    "deepseek_v32": FamilyShape(router_bias=True),
    "mistral4": FamilyShape(),
    "glm_moe_dsa": FamilyShape(router_bias=True),
    "llama4": FamilyShape(),
    "qwen3_vl": FamilyShape(qk_norm="head"),
    "qwen3_vl_moe": FamilyShape(qk_norm="head"),
}


def count(config: Mapping[str, Any]) -> Count:
    """Count what a config.json asks for; of one with a text_config, its text half.

    Raises UnsupportedModel for a model_type that is not known here, or a size that is missing or none.
    """
    text = config.get("text_config")
    sizes = _Sizes(text if isinstance(text, Mapping) else config)
    kind = sizes.family
    if kind in _WHOLE:
        return _WHOLE[kind](sizes)
    shape = FAMILIES.get(kind)
    if shape is None:
        raise UnsupportedModel(
            f"the weights of model_type {kind!r} cannot be counted",
            f"known: {', '.join([*_WHOLE, *FAMILIES])}",
        )
    hidden, layers, vocab = (sizes[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    tied = bool(sizes.raw.get("tie_word_embeddings", config.get("tie_word_embeddings", shape.tied)))
    body = hidden if shape.norms else 0
    experts = 0
    for layer in range(layers):
        body += _mixer(sizes, shape, layer) + shape.norms * hidden
        own, routed = _feed_forward(sizes, shape, layer)
        body, experts = body + own, experts + routed
    table = hidden * vocab
    return Count(0 if tied else table, table, body, experts, _used(sizes) if experts else 1.0)


class _Sizes:
    """Whole numbers out of a config by key; `family`: its model_type without what marks a text half."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        name = str(raw.get("model_type", "")).removesuffix("_text")
        self.family = {
            "xlm-roberta": "bert",
            "roberta": "bert",
            "gemma3_text": "gemma3",
            "kimi_k2": "deepseek_v3",
        }.get(name, name)

    def __getitem__(self, key: str) -> int:
        value = self.raw.get(key)
        if type(value) is not int or not 0 < value < 1 << 32:
            raise UnsupportedModel(f"config.json's {key} is {str(value)[:40]!r}, which is not a size")
        return value

    def get(self, *keys: str) -> int:
        """Return the first of the keys that is there; 0 if none is."""
        return next((self[k] for k in keys if self.raw.get(k)), 0)

    @property
    def head_dim(self) -> int:
        return self.get("head_dim") or self["hidden_size"] // self["num_attention_heads"]


def _encoder(s: _Sizes) -> Count:
    """BERT and what shares its layers; the pooler, of no use to an embedding, is left out."""
    hidden, intermediate = s["hidden_size"], s["intermediate_size"]
    tables = s["vocab_size"] + s["max_position_embeddings"] + s.get("type_vocab_size")
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden
    return Count(tables * hidden, 0, 2 * hidden + s["num_hidden_layers"] * layer)


def _nemotron(s: _Sizes) -> Count:
    """Nemotron-H: each layer is one thing, by a letter: M for Mamba-2, * for attention, - for an MLP, E for experts."""
    pattern = str(s.raw.get("hybrid_override_pattern", ""))
    if not pattern or set(pattern) - set("M*-E"):
        raise UnsupportedModel(f"hybrid_override_pattern is {pattern[:40]!r}, not made of M, *, - and E")
    hidden, vocab = s["hidden_size"], s["vocab_size"]
    own = {
        "M": _mamba2,
        "*": lambda s: _attention(s, FamilyShape()),
        "-": lambda s: 2 * hidden * s["intermediate_size"],
    }
    body = hidden * (1 + len(pattern)) + sum(own[kind](s) for kind in pattern if kind in own)
    moe = pattern.count("E")
    if not moe:
        return Count(hidden * vocab, hidden * vocab, body)
    experts, intermediate = s["n_routed_experts"], s["moe_intermediate_size"]
    latent = s.get("moe_latent_size")
    shared = (
        experts * (hidden + 1) + 2 * hidden * s["moe_shared_expert_intermediate_size"] + 2 * hidden * latent
    )
    routed = experts * 2 * (latent or hidden) * intermediate
    return Count(hidden * vocab, hidden * vocab, body + moe * shared, moe * routed, _used(s))


def _gemma4(s: _Sizes) -> Count:
    """Gemma 4: full layers with wider heads, at times without values of their own, and tables for each layer (PLE)."""
    hidden, layers, own = s["hidden_size"], s["num_hidden_layers"], s.get("hidden_size_per_layer_input")
    queries, wide, experts = (
        s["num_attention_heads"],
        s.get("global_head_dim") or s.head_dim,
        s.get("num_experts"),
    )
    shared = s.get("num_kv_shared_layers")
    body = hidden + (hidden * layers * own + own if own else 0)
    for layer, kind in enumerate(s.raw["layer_types"]):
        full = kind == "full_attention"
        dim = wide if full else s.head_dim
        keys = (s.get("num_global_key_value_heads") if full else 0) or s["num_key_value_heads"]
        pairs = 1 if full and s.raw.get("attention_k_eq_v") else 2
        body += hidden * dim * (2 * queries + pairs * keys) + 2 * dim + 4 * hidden + 1
        intermediate = s["intermediate_size"] * (
            2 if s.raw.get("use_double_wide_mlp") and layer >= layers - shared else 1
        )
        body += 3 * hidden * intermediate + (2 * hidden * own + hidden if own else 0)
        body += experts * hidden + hidden + experts + 3 * hidden if experts else 0
    routed = layers * experts * 3 * hidden * s["moe_intermediate_size"] if experts else 0
    per_layer = s["vocab_size"] * layers * own
    used = s["top_k_experts"] / experts if experts else 1.0
    return Count(per_layer, hidden * s["vocab_size"], body, routed, used)


_WHOLE: dict[str, Callable[[_Sizes], Count]] = {"bert": _encoder, "nemotron_h": _nemotron, "gemma4": _gemma4}


# --- what mixes tokens --------------------------------------------------------------------------------


def _mixer(s: _Sizes, shape: FamilyShape, layer: int) -> int:
    if s.get("kv_lora_rank"):
        return _latent(s, layer)
    kinds = s.raw.get("layer_types")
    every = s.get("full_attention_interval") or 4
    hybrid = s.get("linear_num_value_heads")
    linear = kinds[layer] == "linear_attention" if isinstance(kinds, list) else (layer + 1) % every != 0
    return _deltanet(s) if hybrid and linear else _attention(s, shape)


def _attention(s: _Sizes, shape: FamilyShape) -> int:
    hidden, dim = s["hidden_size"], s.head_dim
    queries = s["num_attention_heads"] * dim
    keys = (s.get("num_key_value_heads") or s["num_attention_heads"]) * dim
    gate = queries if s.get("linear_num_value_heads") else 0  # Qwen3-Next and on gate attention's output
    widths = {"q": queries, "k": keys, "v": keys, "o": hidden}
    bias = shape.bias or (("q", "k", "v") if s.family == "glm4_moe" else ("q", "k", "v", "o"))
    biased = sum(widths[k] for k in bias) if shape.bias or s.raw.get("attention_bias") else 0
    if s.family == "seed_oss" and not s.raw.get("attention_out_bias"):
        biased -= hidden if biased else 0
    norm = {"head": 2 * dim, "full": queries + keys, "": 0}[shape.qk_norm]
    if s.raw.get("use_qk_norm") and not norm:
        norm = 2 * dim
    sinks = s["num_attention_heads"] if shape.sinks else 0
    return hidden * (queries + gate + 2 * keys) + queries * hidden + biased + norm + sinks


def _latent(s: _Sizes, layer: int) -> int:
    """MLA, and the indexer that picks tokens where a layer has one of its own."""
    hidden, heads, kv = s["hidden_size"], s["num_attention_heads"], s["kv_lora_rank"]
    nope, rope, value = s["qk_nope_head_dim"], s["qk_rope_head_dim"], s["v_head_dim"]
    low, wide = s.get("q_lora_rank"), heads * (nope + rope)
    queries = hidden * low + low + low * wide if low else hidden * wide
    keys = hidden * (kv + rope) + kv + kv * heads * (nope + value)
    index, dim = s.get("index_n_heads"), s.get("index_head_dim")
    types = s.raw.get("indexer_types")
    if isinstance(types, list) and types[layer] != "full":
        index = 0
    indexer = low * index * dim + hidden * dim + 2 * dim + hidden * index if index else 0
    return queries + keys + heads * value * hidden + indexer


def _deltanet(s: _Sizes) -> int:
    hidden = s["hidden_size"]
    keys = s["linear_num_key_heads"] * s["linear_key_head_dim"]
    heads, dim = s["linear_num_value_heads"], s["linear_value_head_dim"]
    values = heads * dim
    conv = (2 * keys + values) * s["linear_conv_kernel_dim"]
    return hidden * (2 * keys + 2 * values + 2 * heads) + conv + 2 * heads + dim + values * hidden


def _mamba2(s: _Sizes) -> int:
    hidden, heads = s["hidden_size"], s["mamba_num_heads"]
    inner, states = heads * s["mamba_head_dim"], 2 * s["n_groups"] * s["ssm_state_size"]
    conv = (inner + states) * (s["conv_kernel"] + 1)
    return hidden * (2 * inner + states + heads) + conv + 3 * heads + inner + inner * hidden


# --- what follows each token alone --------------------------------------------------------------------


def _feed_forward(s: _Sizes, shape: FamilyShape, layer: int) -> tuple[int, int]:
    """Return the weights that all tokens share, and those of routed experts."""
    hidden = s["hidden_size"]
    experts = s.get("num_experts", "n_routed_experts", "num_local_experts")
    if not experts or _is_dense(s, layer):
        return 3 * hidden * (s.get("intermediate_size_mlp") or s["intermediate_size"]), 0
    intermediate = s.get("moe_intermediate_size") or s["intermediate_size"]
    each = 3 * hidden * intermediate + (2 * intermediate + hidden if shape.expert_bias else 0)
    shared = s.get("shared_expert_intermediate_size")
    gate = hidden if shared else 0
    shared = (
        shared or s.get("n_shared_experts") * intermediate or (intermediate if s.family == "llama4" else 0)
    )
    router = experts * hidden + (experts if shape.router_bias else 0)
    return 3 * hidden * shared + gate + router, experts * each


def _is_dense(s: _Sizes, layer: int) -> bool:
    """Say whether a layer of a model with experts has none."""
    step = s.get("interleave_moe_layer_step") or 1
    return (
        layer < s.get("first_k_dense_replace")
        or layer in (s.raw.get("mlp_only_layers") or ())
        or (layer + 1) % step != 0
    )


def _used(s: _Sizes) -> float:
    return s["num_experts_per_tok"] / s.get("num_experts", "n_routed_experts", "num_local_experts")
