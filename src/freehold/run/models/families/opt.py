"""OPT: learned positions, which begin at the table's third row, layer norms and biases everywhere, and ReLU.

The 350M, whose norms follow each half and whose embeddings are narrower than its layers, is refused. llama.cpp has no
converter for OPT.
Source: arXiv 2205.01068.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.sizes import Sizes, hf_sizes
from freehold.run.models.family import Buffer, Cut, Family, LayerPart, Ops, TensorSpec, Values, matrix
from freehold.run.models.parts import Attention, DecoderEnds, NormForm, PlainMlp

NORM = NormForm(kind="layer", bias=True)
EPS = 1e-5  # of all norms: no file states one
FIRST = 2  # rows of the table before that of position 0
TABLE = "model.decoder.embed_positions.weight"


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Raise: no converter writes such a file, so its names are not known."""
    raise UnsupportedModel("GGUF files of opt are not supported", "use the safetensors files")


def config_from_hf(config: Fields) -> Sizes:
    config.require("activation_function", ("relu",), "relu")
    for key, meaning in (
        ("do_layer_norm_before", "norms after each half"),
        ("enable_bias", "projections without biases"),
        ("layer_norm_elementwise_affine", "norms without weights"),
    ):
        if not config.flag(key, True):
            raise UnsupportedModel(f"{config.name(key)} is false: {meaning} are not supported")
    config.refuse("_remove_final_layer_norm", "a head without a norm before it")
    hidden = config.integer("hidden_size", 1, MAX_WIDTH, 768)
    if config.integer("word_embed_proj_dim", 1, MAX_WIDTH, hidden) != hidden:
        raise UnsupportedModel(
            f"word_embed_proj_dim is {config.get('word_embed_proj_dim')}: embeddings of another width than the "
            f"layers', {hidden}, are not supported"
        )
    defaults: dict[str, Any] = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
        "intermediate_size": 3072,
    }
    stated = config.called({"intermediate_size": "ffn_dim"}).without("num_key_value_heads")
    sizes = hf_sizes(stated, tied=True, eps=EPS, **defaults)
    sizes["eps"] = EPS
    return Sizes(**sizes, windows=(0,) * len(sizes["heads"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptAttention(Attention):
    """Attention whose output is called otherwise."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the same weights, the output under its name."""
        specs = super(OptAttention, self).tensors()
        for key, suffix in (("o", "weight"), ("o_bias", "bias")):
            specs[key] = replace(specs[key], hf=(f"self_attn.out_proj.{suffix}",))
        return specs


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetEnds(DecoderEnds):
    """A decoder's ends with an embedding of positions, whose first rows no position has."""

    positions: int

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the embedding of positions too."""
        rows, n = range(FIRST, FIRST + self.positions), self.hidden
        stored = Cut(TABLE, (FIRST + self.positions, n), rows=rows)
        table = matrix(None, stored, self.positions, n, share=0.0, floats=True)
        return super(OffsetEnds, self).tensors() | {"positions": table}

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Sum a token's row and its position's."""
        return ops.embed_sum(w["embed"], w["positions"])


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    attention = OptAttention.of(cfg, i, bias="all", norm=NORM, rope=None)
    mlp = PlainMlp.of(
        cfg, i, act="relu", bias=True, norm=NORM, norm_name="final_layer_norm", up_name="fc1", down_name="fc2"
    )
    return attention, mlp


FAMILY = Family(
    gguf_architecture="opt",
    hf_classes=("OPTForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=lambda cfg: OffsetEnds.of(cfg, norm=NORM, positions=cfg.context),
    hf_layers="model.decoder.layers",
    names={
        "model.embed_tokens": "model.decoder.embed_tokens",
        "model.norm": "model.decoder.final_layer_norm",
        "input_layernorm": "self_attn_layer_norm",
    },
)
