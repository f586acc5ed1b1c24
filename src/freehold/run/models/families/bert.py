"""BERT, as an encoder of texts: MiniLM, BGE, E5, GTE and what else sentence-transformers makes embeddings with.

    x = norm(words + positions + kinds);  x = norm(x + attention(x));  x = norm(x + down(gelu(up x)))

Attention is bidirectional: every token sees every other of its text, so nothing is kept between steps. Norms are layer
norms after each half, with biases everywhere; positions are learned, so the last one is the longest text's. A text by
itself is of kind 0. The pooler, a layer for classifying, does not belong to an embedding and is left out.
Source: arXiv 1810.04805.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import Sizes, checked_sizes
from freehold.run.models.family import (
    Buffer,
    Ends,
    Family,
    LayerPart,
    Ops,
    TensorSpec,
    Values,
    matrix,
    vector,
)

HEAD_STEP = 16  # the kernels take heads of whole vectors
MAX_KINDS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BertSizes(Sizes):
    """A BERT's sizes; `kinds` counts the segments a text may be made of."""

    kinds: int


def _affine(key: str, gguf: str, hf: str, rows: int, columns: int) -> dict[str, TensorSpec]:
    """Declare a matrix and its bias."""
    return {
        key: matrix(f"{gguf}.weight", f"{hf}.weight", rows, columns, wide=True),
        f"{key}_bias": vector(f"{gguf}.bias", f"{hf}.bias", rows),
    }


def _norm(key: str, gguf: str, hf: str, width: int) -> dict[str, TensorSpec]:
    """Declare a layer norm."""
    return {
        key: vector(f"{gguf}.weight", f"{hf}.weight", width),
        f"{key}_bias": vector(f"{gguf}.bias", f"{hf}.bias", width),
    }


@dataclass(frozen=True, slots=True)
class BidirectionalAttention(LayerPart):
    """Attention of every token to all of its text, and the norm after it."""

    kinds = frozenset({"plain"})
    cfg: BertSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare four projections and a norm."""
        n, own = self.cfg.hidden, "attention.self"
        return {
            **_affine("q", "attn_q", f"{own}.query", n, n),
            **_affine("k", "attn_k", f"{own}.key", n, n),
            **_affine("v", "attn_v", f"{own}.value", n, n),
            **_affine("o", "attn_output", "attention.output.dense", n, n),
            **_norm("attn_norm", "attn_output_norm", "attention.output.LayerNorm", n),
        }

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose projections, attention, residual and norm."""
        q, k, v = ops.linear(x, (w["q"], w["k"], w["v"]), (w["q_bias"], w["k_bias"], w["v_bias"]))
        a = ops.attend_both(q, k, v, self.cfg.heads[layer], self.cfg.head_dim**-0.5)
        ops.linear_add(a, w["o"], x, w["o_bias"])
        ops.layer_norm(x, w["attn_norm"], w["attn_norm_bias"], self.cfg.eps)


@dataclass(frozen=True, slots=True)
class GeluMlp(LayerPart):
    """An MLP without a gate, and the norm after it."""

    cfg: BertSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices and a norm."""
        n, wide = self.cfg.hidden, self.cfg.intermediate[0]
        return {
            **_affine("up", "ffn_up", "intermediate.dense", wide, n),
            **_affine("down", "ffn_down", "output.dense", n, wide),
            **_norm("out_norm", "layer_output_norm", "output.LayerNorm", n),
        }

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose up, GELU, down, residual and norm."""
        h = ops.linear_act(x, w["up"], "gelu_erf", w["up_bias"])
        ops.linear_add(h, w["down"], x, w["down_bias"])
        ops.layer_norm(x, w["out_norm"], w["out_norm_bias"], self.cfg.eps)


@dataclass(frozen=True, slots=True)
class BertEnds(Ends):
    """Three embeddings and a norm before the first layer; nothing after the last."""

    cfg: BertSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare tables of which a token reads a row, and a norm."""
        cfg, own = self.cfg, "embeddings"
        tables = {
            "embed": ("token_embd.weight", f"{own}.word_embeddings.weight", cfg.vocab),
            "positions": ("position_embd.weight", f"{own}.position_embeddings.weight", cfg.context),
            "kinds": ("token_types.weight", f"{own}.token_type_embeddings.weight", cfg.kinds),
        }
        specs = {key: matrix(gguf, hf, n, cfg.hidden, share=0.0) for key, (gguf, hf, n) in tables.items()}
        return specs | _norm("norm", "token_embd_norm", f"{own}.LayerNorm", cfg.hidden)

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Sum the embeddings."""
        x = ops.embed_sum(w["embed"], w["positions"], w["kinds"])
        ops.layer_norm(x, w["norm"], w["norm_bias"], self.cfg.eps)
        return x

    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Return activations as they are."""
        ops.hidden(x)


def config_from_gguf(meta: Fields, vocab: int) -> NoReturn:
    """Refuse: a GGUF's WordPiece vocabulary is spelled otherwise, and no reader of it is here."""
    raise UnsupportedModel(
        "an encoder as GGUF is not supported", "use its folder of safetensors, such as all-minilm:22m"
    )


def config_from_hf(config: Fields) -> BertSizes:
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
    layers = config.integer("num_hidden_layers", 1, MAX_LAYERS, 12)
    sizes = checked_sizes(
        vocab=config.integer("vocab_size", 1, MAX_VOCAB, 30522),
        hidden=hidden,
        intermediate=(config.integer("intermediate_size", 1, MAX_WIDTH, 3072),) * layers,
        heads=(heads,) * layers,
        kv_heads=(heads,) * layers,
        head_dim=hidden // heads,
        eps=config.number("layer_norm_eps", 1e-15, 1e-1, 1e-12),
        context=config.integer("max_position_embeddings", 1, MAX_CONTEXT, 512),
        tied=False,
    )
    return BertSizes(**sizes, kinds=config.integer("type_vocab_size", 1, MAX_KINDS, 2))


def layer(cfg: BertSizes, i: int) -> tuple[LayerPart, ...]:
    return BidirectionalAttention(cfg), GeluMlp(cfg)


FAMILY = Family(
    gguf_architecture="bert",
    hf_classes=("BertModel",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(BidirectionalAttention, GeluMlp),
    layer=layer,
    ends=BertEnds,
    encoder=True,
    hf_layers="encoder.layer",
    left_out=(("pooler.", "the pooler is left out, because embeddings do not use it"),),
)
