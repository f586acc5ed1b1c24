"""Falcon 7B, 11B, 40B and 180B: attention and an MLP without a gate read layer norms of the same rows.

    x += attention(norm_2(x)) + mlp(norm(x)),  norm_2 = norm where a file has one alone

Query heads lie in groups, each with a key and a value head; 7B has one group. Safetensors hold q, k and v as one
matrix, group by group, a GGUF below each other. Positions turn whole heads; ALiBi, which Falcon RW has, is refused.
Source: arXiv 2311.16867.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from freehold.base.errors import UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeSpec
from freehold.run.models.config.sizes import Sizes, check_heads, gguf_sizes, hf_decoder
from freehold.run.models.family import Buffer, Cut, Family, LayerPart, Ops, TensorSpec, Values, matrix
from freehold.run.models.parts import NO_NORM, Attention, DecoderEnds, NormForm, PlainMlp

NORM = NormForm(kind="layer", bias=True)
CONTEXT = 2048  # of files that state none
# What the first files call their sizes.
CALLED = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon"))


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("alibi", "a bias of attention by distance")
    config.refuse("bias", "biases on projections")
    if not config.flag("parallel_attn", True):
        raise UnsupportedModel(
            f"{config.name('parallel_attn')} is false: an MLP after attention is not supported"
        )
    config = config.called(CALLED)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS, 71)
    if config.flag("new_decoder_architecture", False):
        kv_heads = config.integer("num_kv_heads", 1, MAX_HEADS, heads)
    else:
        kv_heads = 1 if config.flag("multi_query", True) else heads
    hidden = config.integer("hidden_size", 1, MAX_WIDTH, 4544)
    wide = config.integer("ffn_hidden_size", 1, MAX_WIDTH, 4 * hidden)
    config.require("activation", ("gelu",), "gelu")
    stated = config.without("num_key_value_heads", "intermediate_size", "head_dim")
    sizes = hf_decoder(
        stated.assuming(num_key_value_heads=kv_heads, intermediate_size=wide),
        act="gelu",
        tied=True,
        eps=1e-5,
        eps_key="layer_norm_epsilon",
        hidden_size=4544,
        num_attention_heads=71,
        num_hidden_layers=32,
        vocab_size=65024,
        max_position_embeddings=CONTEXT,
    )
    check_heads(config.name("num_kv_heads"), sizes["heads"], sizes["kv_heads"])
    return Sizes(**sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttention(Attention):
    """Attention whose q, k and v are one matrix: below each other in a GGUF, group by group in safetensors."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the rows of each, and the output."""
        n, q, kv = self.hidden, self.q_width, self.kv_width
        whole = (q + 2 * kv, n)
        groups = np.arange(q + 2 * kv).reshape(self.kv_heads, -1, self.head_dim)
        below = {"q": range(q), "k": range(q, q + kv), "v": range(q + kv, q + 2 * kv)}
        apart = {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}
        specs = {
            key: matrix(
                Cut("attn_qkv.weight", whole, rows=rows),
                Cut("self_attention.query_key_value.weight", whole, rows=apart[key].ravel()),
                len(rows),
                n,
            )
            for key, rows in below.items()
        }
        return specs | {"o": matrix("attn_output.weight", "self_attention.dense.weight", n, q)}


@dataclass(frozen=True, slots=True)
class FalconBlock(LayerPart):
    """Attention and an MLP, with one layer norm, or one each."""

    kinds = Attention.kinds

    attention: Attention
    mlp: PlainMlp

    @property
    def rope(self) -> RopeSpec | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Attention's."""
        return self.attention.rope

    @property
    def keeps(self) -> LayerSpec:
        """What attention keeps."""
        return self.attention.keeps

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both, the norm that the MLP reads, and attention's own where a file has one."""
        hidden = self.attention.hidden
        norms = NORM.tensors("attn_norm", "attn_norm", "input_layernorm", hidden)
        own = NORM.tensors("attn_norm_2", "attn_norm_2", "ln_attn", hidden)
        beside = {"attn_norm_2": "attn_norm_2_bias", "attn_norm_2_bias": "attn_norm_2"}
        both = {
            key: replace(spec, hf=(*spec.hf, *(f"ln_mlp.{str(name).partition('.')[2]}" for name in spec.hf)))
            for key, spec in norms.items()
        }
        both |= {key: replace(spec, optional=True, beside=beside[key]) for key, spec in own.items()}
        return both | self.attention.tensors() | self.mlp.tensors()

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Normalise, then add both."""
        eps = self.attention.eps
        read = NORM.before(ops, x, w, "attn_norm", eps)
        own = NORM.before(ops, x, w, "attn_norm_2", eps) if "attn_norm_2" in w else read
        self.attention.add(ops, layer, own, x, w)
        self.mlp.add(ops, read, x, w)


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    mlp = PlainMlp.of(
        cfg,
        i,
        act="gelu_erf",
        norm=NO_NORM,
        up_name="mlp.dense_h_to_4h",
        down_name="mlp.dense_4h_to_h",
    )
    return (FalconBlock(GroupedAttention.of(cfg, i, norm=NO_NORM), mlp),)


FAMILY = Family(
    gguf_architecture="falcon",
    hf_classes=("FalconForCausalLM", "RWForCausalLM"),
    model_types=("RefinedWeb", "RefinedWebModel"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(FalconBlock,),
    layer=layer,
    ends=lambda cfg: DecoderEnds.of(cfg, norm=NORM),
    hf_layers="transformer.h",
    names={"model.embed_tokens": "transformer.word_embeddings", "model.norm": "transformer.ln_f"},
)
