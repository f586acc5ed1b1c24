"""Llama 1 to 3, SmolLM2, Mistral 7B and all that share their block.

    x += attention(norm(x));  x += down(silu(gate n) * up n),  n = norm(x)

Grouped-query attention, rotary positions, RMS norms before each half, no biases (older derivatives have some
on attention). GGUF files hold q and k rows permuted so that adjacent elements turn together; safetensors hold
halves.
Sources: arXiv 2302.13971 (Llama), 2307.09288 (Llama 2), 2407.21783 (Llama 3), 2310.06825 (Mistral's window).
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
from freehold.models.fields import MAX_CONTEXT, Fields
from freehold.models.rope import RopeSpec, RopeTable, rope_from_gguf, rope_from_hf


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Dims):
    """A Llama's sizes; `windows` gives each layer's sliding window, 0 for none."""

    rope: RopeSpec
    windows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer's weights."""

    attn_norm: F32 = vector("attn_norm.weight", "input_layernorm.weight", "hidden")
    q: Matrix = matrix("attn_q.weight", "self_attn.q_proj.weight", "q_width", "hidden")
    k: Matrix = matrix("attn_k.weight", "self_attn.k_proj.weight", "kv_width", "hidden")
    v: Matrix = matrix("attn_v.weight", "self_attn.v_proj.weight", "kv_width", "hidden")
    o: Matrix = matrix("attn_output.weight", "self_attn.o_proj.weight", "hidden", "q_width")
    q_bias: F32 | None = vector("attn_q.bias", "self_attn.q_proj.bias", "q_width", optional=True)
    k_bias: F32 | None = vector("attn_k.bias", "self_attn.k_proj.bias", "kv_width", optional=True)
    v_bias: F32 | None = vector("attn_v.bias", "self_attn.v_proj.bias", "kv_width", optional=True)
    o_bias: F32 | None = vector("attn_output.bias", "self_attn.o_proj.bias", "hidden", optional=True)
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
    """Read the keys under `llama.`; a window, which few writers state, holds on every layer."""
    dims = gguf_dims(meta, vocab)
    rope = rope_from_gguf(meta, head_dim=dims["head_dim"], adjacent=True, context=dims["context"])
    dims["context"] = extended_context(dims["context"], rope)
    window = meta.integer("attention.sliding_window", 0, MAX_CONTEXT, 0)
    return Config(**dims, rope=rope, windows=(window,) * dims["layers"])


def config_from_hf(config: Fields) -> Config:
    """Read config.json of a LlamaForCausalLM or MistralForCausalLM."""
    config.require("hidden_act", ("silu",), "silu")
    dims = hf_dims(config)
    rope = rope_from_hf(config, head_dim=dims["head_dim"], context=dims["context"])
    dims["context"] = extended_context(dims["context"], rope)
    windowed = config.text("model_type", "llama") == "mistral"
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0) if windowed else 0
    return Config(
        **dims, rope=rope, windows=sliding_windows(config, dims["layers"], window, lambda i: windowed)
    )


def ropes(cfg: Config, divisors: F32 | None) -> dict[str, RopeTable]:
    """One rope for all layers; a GGUF states Llama 3's scaling as divisors of its frequencies."""
    return {"rope": cfg.rope.table(divisors)}


def forward(ops: Ops, cfg: Config, w: Weights) -> None:
    """Compose one step."""
    x = ops.embed(w.embed)
    for i, b in enumerate(w.blocks):
        biases = (b.q_bias, b.k_bias, b.v_bias)
        q, k, v = ops.linear(x, (b.q, b.k, b.v), biases, b.attn_norm, cfg.eps)
        ops.rope_store(i, q, k, v, w.rope)
        a = ops.attention(i, q, cfg.head_dim**-0.5, cfg.windows[i])
        ops.linear_add(a, b.o, x, b.o_bias)
        h = ops.gated(x, b.gate, b.up, "silu", b.ffn_norm, cfg.eps)
        ops.linear_add(h, b.down, x)
    ops.logits(x, w.head, w.norm, cfg.eps)


FAMILY = Family(
    gguf_architecture="llama",
    hf_classes=("LlamaForCausalLM", "MistralForCausalLM"),
    model_types=("mistral",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    weights=Weights,
    block=Block,
    ropes=ropes,
    forward=forward,
    layers=attention_layers,
    gguf_pairs=True,
)
