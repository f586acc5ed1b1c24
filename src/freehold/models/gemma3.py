"""Gemma 3, text: 270m to 27b.

Norms before and after each half, a norm on every query and key head, GeLU (tanh) gates, embeddings times
sqrt(hidden). Five layers with a sliding window and a rope base of 10,000, then one that sees everything, with
base 1,000,000.
GGUF files hold norm weights as they multiply; safetensors hold them around zero, so 1 is added.
Source: arXiv 2503.19786.
Path: loader -> config, Weights -> forward
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from freehold.errors import BadModelFile
from freehold.models.common import (
    F32,
    Dims,
    Family,
    Matrix,
    Ops,
    Rope,
    attention_layers,
    gguf_dims,
    hf_dims,
    matrix,
    sliding_windows,
    vector,
)
from freehold.models.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from freehold.models.rope import RopeSpec, RopeTable, hf_rope_section, rope_from_gguf, rope_from_hf

LOCAL_BASE = 10_000.0
GLOBAL_BASE = 1_000_000.0
PATTERN = 6  # every sixth layer sees everything
# The one size that scales queries by hidden/heads instead of the head's width; a GGUF has no key for it.
LAYERS_27B = 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Dims):
    """A Gemma 3's sizes; `windows` gives each layer's sliding window, 0 where it sees everything."""

    rope: RopeSpec
    rope_local: RopeSpec
    windows: tuple[int, ...]
    scale: float  # of query times key
    attn_softcap: float
    logit_softcap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer's weights."""

    attn_norm: F32 = vector("attn_norm.weight", "input_layernorm.weight", "hidden", hf_offset=1.0)
    q: Matrix = matrix("attn_q.weight", "self_attn.q_proj.weight", "q_width", "hidden")
    k: Matrix = matrix("attn_k.weight", "self_attn.k_proj.weight", "kv_width", "hidden")
    v: Matrix = matrix("attn_v.weight", "self_attn.v_proj.weight", "kv_width", "hidden")
    q_norm: F32 = vector("attn_q_norm.weight", "self_attn.q_norm.weight", "head_dim", hf_offset=1.0)
    k_norm: F32 = vector("attn_k_norm.weight", "self_attn.k_norm.weight", "head_dim", hf_offset=1.0)
    o: Matrix = matrix("attn_output.weight", "self_attn.o_proj.weight", "hidden", "q_width")
    attn_post_norm: F32 = vector(
        "post_attention_norm.weight", "post_attention_layernorm.weight", "hidden", hf_offset=1.0
    )
    ffn_norm: F32 = vector("ffn_norm.weight", "pre_feedforward_layernorm.weight", "hidden", hf_offset=1.0)
    gate: Matrix = matrix("ffn_gate.weight", "mlp.gate_proj.weight", "inner", "hidden")
    up: Matrix = matrix("ffn_up.weight", "mlp.up_proj.weight", "inner", "hidden")
    down: Matrix = matrix("ffn_down.weight", "mlp.down_proj.weight", "hidden", "inner")
    ffn_post_norm: F32 = vector(
        "post_ffw_norm.weight", "post_feedforward_layernorm.weight", "hidden", hf_offset=1.0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A whole model's weights."""

    embed: Matrix = matrix("token_embd.weight", "model.embed_tokens.weight", "vocab", "hidden")
    norm: F32 = vector("output_norm.weight", "model.norm.weight", "hidden", hf_offset=1.0)
    head: Matrix = matrix("output.weight", "lm_head.weight", "vocab", "hidden")
    rope: Rope
    rope_local: Rope
    blocks: tuple[Block, ...]


def config_from_gguf(meta: Fields, vocab: int) -> Config:
    """Read the keys under `gemma3.`."""
    dims = gguf_dims(meta, vocab)
    rope = rope_from_gguf(
        meta, head_dim=dims["head_dim"], adjacent=False, context=dims["context"], base=GLOBAL_BASE
    )
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, LOCAL_BASE)
    window = meta.integer("attention.sliding_window", 1, MAX_CONTEXT)
    pattern = meta.integer("attention.sliding_window_pattern", 1, MAX_LAYERS, PATTERN)
    width = dims["hidden"] / dims["heads"] if dims["layers"] == LAYERS_27B else dims["head_dim"]
    return Config(
        **dims,
        rope=rope,
        rope_local=RopeSpec(base=base, width=dims["head_dim"], adjacent=False),
        windows=tuple(0 if (i + 1) % pattern == 0 else window for i in range(dims["layers"])),
        scale=meta.number("attention.scale", 1e-6, 1e3, width**-0.5),
        attn_softcap=meta.number("attn_logit_softcapping", 0.0, 1e6, 0.0),
        logit_softcap=meta.number("final_logit_softcapping", 0.0, 1e6, 0.0),
    )


def config_from_hf(config: Fields) -> Config:
    """Read config.json of a Gemma3ForCausalLM, or the `text_config` of a Gemma3ForConditionalGeneration."""
    config.require("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    config.refuse("use_bidirectional_attention", "attention to later tokens")
    config.refuse("attention_bias", "a bias on attention")
    dims = hf_dims(
        config,
        tied=True,
        vocab_size=262_208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131_072,
    )
    rope, rope_local = _hf_ropes(config, dims["head_dim"], dims["context"])
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 4096)
    pattern = config.integer("sliding_window_pattern", 1, MAX_LAYERS, PATTERN)
    return Config(
        **dims,
        rope=rope,
        rope_local=rope_local,
        windows=sliding_windows(config, dims["layers"], window, lambda i: (i + 1) % pattern != 0),
        scale=config.number("query_pre_attn_scalar", 1e-3, 1e6, 256.0) ** -0.5,
        attn_softcap=config.number("attn_logit_softcapping", 0.0, 1e6, 0.0),
        logit_softcap=config.number("final_logit_softcapping", 0.0, 1e6, 0.0),
    )


def _hf_ropes(config: Fields, head_dim: int, context: int) -> tuple[RopeSpec, RopeSpec]:
    """Read the global and the local rope: one object per layer kind, or the two bases of transformers 4."""
    local_base = config.number("rope_local_base_freq", 1.001, 1e12, LOCAL_BASE)
    both = config.section("rope_parameters")
    if both is None or both.get("rope_theta") is not None:
        rope = rope_from_hf(config, head_dim=head_dim, context=context, base=GLOBAL_BASE)
        return rope, RopeSpec(base=local_base, width=rope.width, adjacent=False)
    sections = both.section("full_attention"), both.section("sliding_attention")
    if None in sections:
        raise BadModelFile("rope_parameters lacks full_attention or sliding_attention")
    return (
        hf_rope_section(sections[0], head_dim=head_dim, context=context, base=GLOBAL_BASE),
        hf_rope_section(sections[1], head_dim=head_dim, context=context, base=local_base),
    )


def ropes(cfg: Config, divisors: F32 | None) -> dict[str, RopeTable]:
    """One rope for the layers that see everything, one for the others."""
    return {"rope": cfg.rope.table(divisors), "rope_local": cfg.rope_local.table()}


def forward(ops: Ops, cfg: Config, w: Weights) -> None:
    """Compose one step."""
    x = ops.embed(w.embed, math.sqrt(cfg.hidden))
    for i, b in enumerate(w.blocks):
        window = cfg.windows[i]
        q, k, v = ops.linear(x, (b.q, b.k, b.v), (None, None, None), b.attn_norm, cfg.eps)
        ops.rope_store(i, q, k, v, w.rope_local if window else w.rope, b.q_norm, b.k_norm, cfg.eps)
        a = ops.attention(i, q, cfg.scale, window, cfg.attn_softcap)
        (a,) = ops.linear(a, (b.o,), (None,))
        ops.add_norm(x, a, b.attn_post_norm, cfg.eps)
        h = ops.gated(x, b.gate, b.up, "gelu", b.ffn_norm, cfg.eps)
        (h,) = ops.linear(h, (b.down,), (None,))
        ops.add_norm(x, h, b.ffn_post_norm, cfg.eps)
    ops.logits(x, w.head, w.norm, cfg.eps, softcap=cfg.logit_softcap)


FAMILY = Family(
    gguf_architecture="gemma3",
    hf_classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_types=("gemma3_text",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    weights=Weights,
    block=Block,
    ropes=ropes,
    forward=forward,
    layers=attention_layers,
)
