"""GPT-2: learned positions, layer norms and biases everywhere, and an MLP without a gate.

Safetensors hold matrices as (inputs, outputs), and q, k and v as one; a GGUF turns them, and keeps them one.
Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, Sizes, checked_sizes, gguf_layers
from freehold.run.models.family import (
    Buffer,
    Cut,
    Family,
    LayerPart,
    Ops,
    Rule,
    TensorSpec,
    Values,
    matrix,
    vector,
)
from freehold.run.models.parts import Attention, DecoderEnds, NormForm, PlainMlp

F32 = NDArray[np.float32]
NORM = NormForm(kind="layer", bias=True)
MASKS: tuple[Rule, ...] = (
    (r"h\.\d+\.attn\.(masked_)?bias$", "masks of attention, which a file need not hold, are left out"),
)


def _sizes(read: Callable[[str, int], int], vocab: int, layers: int, intermediate: int, eps: float) -> Sizes:
    """Return the sizes of a model whose `read` gives width, heads and context by the format's name."""
    hidden, heads = read("width", MAX_WIDTH), read("heads", MAX_HEADS)
    sizes = checked_sizes(
        vocab=vocab,
        hidden=hidden,
        intermediate=(intermediate,) * layers,
        heads=(heads,) * layers,
        kv_heads=(heads,) * layers,
        head_dim=max(hidden // heads, 1),
        eps=eps,
        context=read("context", MAX_CONTEXT),
        tied=True,
        windows=(0,) * layers,
    )
    return Sizes(**sizes)


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    keys = {"width": "embedding_length", "heads": "attention.head_count", "context": "context_length"}
    return _sizes(
        lambda name, most: meta.integer(keys[name], 1, most),
        vocab,
        gguf_layers(meta),
        meta.integer("feed_forward_length", 1, MAX_WIDTH),
        meta.number("attention.layer_norm_epsilon", MIN_EPS, MAX_EPS),
    )


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a GPT2LMHeadModel, which has names of its own."""
    config.require("activation_function", ("gelu_new",), "gelu_new")
    config.refuse("scale_attn_by_inverse_layer_idx", "scores divided by the layer's number")
    config.refuse("add_cross_attention", "attention to another sequence")
    keys = {"width": ("n_embd", 768), "heads": ("n_head", 12), "context": ("n_positions", 1024)}
    hidden = config.integer("n_embd", 1, MAX_WIDTH, 768)
    return _sizes(
        lambda name, most: config.integer(keys[name][0], 1, most, keys[name][1]),
        config.integer("vocab_size", 1, MAX_VOCAB, 50257),
        config.integer("n_layer", 1, MAX_LAYERS, 12),
        config.integer("n_inner", 1, MAX_WIDTH, 4 * hidden),
        config.number("layer_norm_epsilon", MIN_EPS, MAX_EPS, 1e-5),
    )


def turned(gguf: str, hf: str, rows: int, columns: int) -> TensorSpec:
    """Declare a matrix that safetensors hold the other way round."""
    return matrix(gguf, Cut(hf, (columns, rows), take=np.transpose), rows, columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedAttention(Attention):
    """Attention whose q, k and v are rows of one matrix, and in safetensors columns."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the rows of each, with biases, and the output."""
        n = self.hidden
        specs = self.norm.tensors("attn_norm", "attn_norm", "ln_1", n)
        for i, key in enumerate("qkv"):
            own = range(i * n, (i + 1) * n)
            stored = Cut("attn.c_attn.weight", (n, 3 * n), take=_columns(own))
            specs[key] = matrix(Cut("attn_qkv.weight", (3 * n, n), rows=own), stored, n, n)
            gguf, hf = (Cut(name, (3 * n,), rows=own) for name in ("attn_qkv.bias", "attn.c_attn.bias"))
            specs[f"{key}_bias"] = vector(gguf, hf, n)
        specs["o"] = turned("attn_output.weight", "attn.c_proj.weight", n, n)
        specs["o_bias"] = vector("attn_output.bias", "attn.c_proj.bias", n)
        return specs


def _columns(own: range) -> Callable[[F32], F32]:
    return lambda stored: np.ascontiguousarray(stored[:, own.start : own.stop].T)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedMlp(PlainMlp):
    """An MLP whose matrices safetensors hold the other way round."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices, their biases and the norm before them."""
        wide, hidden = self.intermediate, self.hidden
        return self.norm.tensors("ffn_norm", "ffn_norm", "ln_2", hidden) | {
            "up": turned("ffn_up.weight", "mlp.c_fc.weight", wide, hidden),
            "up_bias": vector("ffn_up.bias", "mlp.c_fc.bias", wide),
            "down": turned("ffn_down.weight", "mlp.c_proj.weight", hidden, wide),
            "down_bias": vector("ffn_down.bias", "mlp.c_proj.bias", hidden),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionedEnds(DecoderEnds):
    """A decoder's ends with an embedding of positions; names of GPT-2's files."""

    positions: int

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the two embeddings, the head and the norm before it."""
        size = (self.vocab, self.hidden)
        own = {
            "embed": matrix("token_embd.weight", "wte.weight", *size, share=0.0),
            "positions": matrix(
                "position_embd.weight", "wpe.weight", self.positions, self.hidden, share=0.0, floats=True
            ),
            "head": matrix("output.weight", "lm_head.weight", *size, default="embed"),
        }
        return own | self.norm.tensors("norm", "output_norm", "ln_f", self.hidden)

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Sum a token's row and its position's."""
        return ops.embed_sum(w["embed"], w["positions"])


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    mlp: Any = TurnedMlp.of(cfg, i, act="gelu", bias=True, norm=NORM)
    return TurnedAttention.of(cfg, i, norm=NORM), mlp


FAMILY = Family(
    gguf_architecture="gpt2",
    hf_classes=("GPT2LMHeadModel",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=lambda cfg: PositionedEnds.of(cfg, norm=NORM, positions=cfg.context),
    hf_layers="h",
    hf_outer="transformer.",
    left_out=MASKS,
)
