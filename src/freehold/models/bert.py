"""BERT, as an encoder of texts: MiniLM, BGE, E5, GTE and what else sentence-transformers makes embeddings with.

    x = norm(words + positions + kinds);  x = norm(x + attention(x));  x = norm(x + down(gelu(up x)))

Every token sees every other of its text, so nothing is kept between steps. Norms are layer norms behind each half,
with biases everywhere; positions are learned, so the last one is the longest text's. A text by itself is of kind 0.
The pooler, a layer for classifying, is no part of an embedding and is left out.
Source: arXiv 1810.04805.
Path: loader -> config, Weights -> forward
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from freehold.errors import UnsupportedModel
from freehold.layers import LayerSpec
from freehold.models.common import F32, Dims, Family, Matrix, Ops, checked_dims, matrix, vector
from freehold.models.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.models.rope import RopeTable

HEAD_STEP = 16  # the kernels take heads of whole vectors
MAX_KINDS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Dims):
    """A BERT's sizes; `kinds` counts the segments a text may be made of."""

    kinds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One layer's weights."""

    q: Matrix = matrix("attn_q.weight", "attention.self.query.weight", "hidden", "hidden")
    k: Matrix = matrix("attn_k.weight", "attention.self.key.weight", "hidden", "hidden")
    v: Matrix = matrix("attn_v.weight", "attention.self.value.weight", "hidden", "hidden")
    q_bias: F32 = vector("attn_q.bias", "attention.self.query.bias", "hidden")
    k_bias: F32 = vector("attn_k.bias", "attention.self.key.bias", "hidden")
    v_bias: F32 = vector("attn_v.bias", "attention.self.value.bias", "hidden")
    o: Matrix = matrix("attn_output.weight", "attention.output.dense.weight", "hidden", "hidden")
    o_bias: F32 = vector("attn_output.bias", "attention.output.dense.bias", "hidden")
    attn_norm: F32 = vector("attn_output_norm.weight", "attention.output.LayerNorm.weight", "hidden")
    attn_norm_bias: F32 = vector("attn_output_norm.bias", "attention.output.LayerNorm.bias", "hidden")
    up: Matrix = matrix("ffn_up.weight", "intermediate.dense.weight", "inner", "hidden")
    up_bias: F32 = vector("ffn_up.bias", "intermediate.dense.bias", "inner")
    down: Matrix = matrix("ffn_down.weight", "output.dense.weight", "hidden", "inner")
    down_bias: F32 = vector("ffn_down.bias", "output.dense.bias", "hidden")
    out_norm: F32 = vector("layer_output_norm.weight", "output.LayerNorm.weight", "hidden")
    out_norm_bias: F32 = vector("layer_output_norm.bias", "output.LayerNorm.bias", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A whole model's weights."""

    embed: Matrix = matrix("token_embd.weight", "embeddings.word_embeddings.weight", "vocab", "hidden")
    positions: Matrix = matrix(
        "position_embd.weight", "embeddings.position_embeddings.weight", "context", "hidden"
    )
    kinds: Matrix = matrix("token_types.weight", "embeddings.token_type_embeddings.weight", "kinds", "hidden")
    norm: F32 = vector("token_embd_norm.weight", "embeddings.LayerNorm.weight", "hidden")
    norm_bias: F32 = vector("token_embd_norm.bias", "embeddings.LayerNorm.bias", "hidden")
    blocks: tuple[Block, ...]


def config_from_gguf(meta: Fields, vocab: int) -> NoReturn:
    """Refuse: a GGUF's WordPiece vocabulary is spelled otherwise, and no reader of it is here."""
    raise UnsupportedModel(
        "an encoder as GGUF is not supported", "use its folder of safetensors, such as all-minilm:22m"
    )


def config_from_hf(config: Fields) -> Config:
    """Read config.json of a BertModel."""
    config.require("hidden_act", ("gelu",), "gelu")
    config.require("position_embedding_type", ("absolute",), "absolute")
    if config.flag("is_decoder", False):
        raise UnsupportedModel("is_decoder is true; only BERT encoders are supported")
    hidden = config.integer("hidden_size", 1, MAX_WIDTH, 768)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS, 12)
    if hidden % heads or hidden // heads % HEAD_STEP:
        raise UnsupportedModel(
            f"{heads} heads over a width of {hidden}; only heads of a multiple of {HEAD_STEP} are supported"
        )
    dims = checked_dims(
        vocab=config.integer("vocab_size", 1, MAX_VOCAB, 30522),
        hidden=hidden,
        inner=config.integer("intermediate_size", 1, MAX_WIDTH, 3072),
        layers=config.integer("num_hidden_layers", 1, MAX_LAYERS, 12),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        eps=config.number("layer_norm_eps", 1e-15, 1e-1, 1e-12),
        context=config.integer("max_position_embeddings", 1, MAX_CONTEXT, 512),
        tied=False,
    )
    return Config(**dims, kinds=config.integer("type_vocab_size", 1, MAX_KINDS, 2))


def ropes(cfg: Config, divisors: F32 | None) -> Mapping[str, RopeTable]:
    """Give none: positions are learned."""
    return {}


def forward(ops: Ops, cfg: Config, w: Weights) -> None:
    """Compose one step over whole texts."""
    x = ops.embed_sum(w.embed, w.positions, w.kinds)
    ops.layer_norm(x, w.norm, w.norm_bias, cfg.eps)
    for b in w.blocks:
        q, k, v = ops.linear(x, (b.q, b.k, b.v), (b.q_bias, b.k_bias, b.v_bias))
        a = ops.attend_both(q, k, v, cfg.heads, cfg.head_dim**-0.5)
        ops.linear_add(a, b.o, x, b.o_bias)
        ops.layer_norm(x, b.attn_norm, b.attn_norm_bias, cfg.eps)
        h = ops.linear_gelu(x, b.up, b.up_bias)
        ops.linear_add(h, b.down, x, b.down_bias)
        ops.layer_norm(x, b.out_norm, b.out_norm_bias, cfg.eps)
    ops.hidden(x)


FAMILY = Family(
    gguf_architecture="bert",
    hf_classes=("BertModel",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    weights=Weights,
    block=Block,
    ropes=ropes,
    forward=forward,
    layers=lambda cfg: (LayerSpec("plain"),) * cfg.layers,
    keeps=frozenset({"plain"}),
    encoder=True,
    hf_layers="encoder.layer",
    gathered=("embed", "positions", "kinds"),
    left_out=(("pooler.", "the pooler, which no embedding is made with, is left out"),),
)
