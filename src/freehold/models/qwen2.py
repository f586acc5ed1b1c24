"""Qwen1.5, 2 and 2.5 (Coder, Math), QwQ, R1-distill-Qwen.

A Llama block with biases on q, k and v; rotary pairs are halves in both file formats.
Source: arXiv 2407.10671, 2412.15115.
Path: loader -> config, Weights -> forward
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.models.common import (
    F32,
    Dims,
    Family,
    Matrix,
    Ops,
    Rope,
    attention_layers,
    extended_context,
    gguf_dims,
    hf_dims,
    matrix,
    sliding_windows,
    vector,
)
from freehold.models.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from freehold.models.rope import RopeSpec, RopeTable, rope_from_gguf, rope_from_hf


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Dims):
    """A Qwen2's sizes; `windows` gives each layer's sliding window, 0 for none."""

    rope: RopeSpec
    windows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer's weights."""

    attn_norm: F32 = vector("attn_norm.weight", "input_layernorm.weight", "hidden")
    q: Matrix = matrix("attn_q.weight", "self_attn.q_proj.weight", "q_width", "hidden")
    k: Matrix = matrix("attn_k.weight", "self_attn.k_proj.weight", "kv_width", "hidden")
    v: Matrix = matrix("attn_v.weight", "self_attn.v_proj.weight", "kv_width", "hidden")
    q_bias: F32 = vector("attn_q.bias", "self_attn.q_proj.bias", "q_width")
    k_bias: F32 = vector("attn_k.bias", "self_attn.k_proj.bias", "kv_width")
    v_bias: F32 = vector("attn_v.bias", "self_attn.v_proj.bias", "kv_width")
    o: Matrix = matrix("attn_output.weight", "self_attn.o_proj.weight", "hidden", "q_width")
    ffn_norm: F32 = vector("ffn_norm.weight", "post_attention_layernorm.weight", "hidden")
    gate: Matrix = matrix("ffn_gate.weight", "mlp.gate_proj.weight", "inner", "hidden")
    up: Matrix = matrix("ffn_up.weight", "mlp.up_proj.weight", "inner", "hidden")
    down: Matrix = matrix("ffn_down.weight", "mlp.down_proj.weight", "hidden", "inner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A whole model's weights."""

    embed: Matrix = matrix("token_embd.weight", "model.embed_tokens.weight", "vocab", "hidden")
    norm: F32 = vector("output_norm.weight", "model.norm.weight", "hidden")
    head: Matrix = matrix("output.weight", "lm_head.weight", "vocab", "hidden")
    rope: Rope
    blocks: tuple[Block, ...]


def config_from_gguf(meta: Fields, vocab: int) -> Config:
    """Read the keys under `qwen2.`."""
    dims = gguf_dims(meta, vocab)
    rope = rope_from_gguf(meta, head_dim=dims["head_dim"], adjacent=False, context=dims["context"])
    dims["context"] = extended_context(dims["context"], rope)
    window = meta.integer("attention.sliding_window", 0, MAX_CONTEXT, 0)
    return Config(**dims, rope=rope, windows=(window,) * dims["layers"])


def config_from_hf(config: Fields) -> Config:
    """Read config.json of a Qwen2ForCausalLM."""
    config.require("hidden_act", ("silu",), "silu")
    dims = hf_dims(config)
    rope = rope_from_hf(config, head_dim=dims["head_dim"], context=dims["context"])
    dims["context"] = extended_context(dims["context"], rope)
    return Config(**dims, rope=rope, windows=hf_windows(config, dims["layers"]))


def hf_windows(config: Fields, layers: int) -> tuple[int, ...]:
    """Layers from `max_window_layers` on slide, but only where `use_sliding_window` says so."""
    if not config.flag("use_sliding_window", False):
        return (0,) * layers
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 4096)
    first = config.integer("max_window_layers", 0, MAX_LAYERS, 28)
    return sliding_windows(config, layers, window, lambda i: i >= first)


def ropes(cfg: Config, divisors: F32 | None) -> dict[str, RopeTable]:
    """One rope for all layers."""
    return {"rope": cfg.rope.table(divisors)}


def forward(ops: Ops, cfg: Config, w: Weights) -> None:
    """Compose one step."""
    x = ops.embed(w.embed)
    for i, b in enumerate(w.blocks):
        biases = (b.q_bias, b.k_bias, b.v_bias)
        q, k, v = ops.linear(x, (b.q, b.k, b.v), biases, b.attn_norm, cfg.eps)
        ops.rope_store(i, q, k, v, w.rope)
        a = ops.attention(i, q, cfg.head_dim**-0.5, cfg.windows[i])
        ops.linear_add(a, b.o, x)
        h = ops.gated(x, b.gate, b.up, "silu", b.ffn_norm, cfg.eps)
        ops.linear_add(h, b.down, x)
    ops.logits(x, w.head, w.norm, cfg.eps)


FAMILY = Family(
    gguf_architecture="qwen2",
    hf_classes=("Qwen2ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    weights=Weights,
    block=Block,
    ropes=ropes,
    forward=forward,
    layers=attention_layers,
)
