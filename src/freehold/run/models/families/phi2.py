"""Phi-1, 1.5 and 2: attention and an MLP without a gate read one layer norm; biases everywhere, on the head too.

Rope turns a part of a head, in halves. A GGUF holds q, k and v apart, or as one matrix where it is older.
Sources: arXiv 2306.11644 (Phi-1), 2309.05463 (Phi-1.5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart, TensorSpec
from freehold.run.models.parts import NO_NORM, Attention, DecoderEnds, NormForm, PlainMlp
from freehold.run.models.parts.attention import ApartOrFused
from freehold.run.models.parts.parallel import ParallelBlock

NORM = NormForm(kind="layer", bias=True)


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("qk_layernorm", "a norm on queries and keys")
    sizes = hf_decoder(config, act="gelu_new", partial=0.5, eps=1e-5, eps_key="layer_norm_eps")
    return Sizes(**sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseAttention(ApartOrFused):
    """Attention whose output safetensors call `dense`."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the same weights, the output under its name."""
        specs = super(DenseAttention, self).tensors()
        for key, suffix in (("o", "weight"), ("o_bias", "bias")):
            specs[key] = replace(specs[key], hf=(f"self_attn.dense.{suffix}",))
        return specs


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    attention = DenseAttention.of(cfg, i, bias="all", norm=NORM)
    mlp = PlainMlp.of(cfg, i, act="gelu", bias=True, norm=NO_NORM, up_name="mlp.fc1", down_name="mlp.fc2")
    return (ParallelBlock(attention, mlp),)


FAMILY = Family(
    gguf_architecture="phi2",
    hf_classes=("PhiForCausalLM",),
    model_types=("phi",),
    config_from_gguf=lambda meta, vocab: Sizes(
        **gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon")
    ),
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=lambda cfg: DecoderEnds.of(cfg, norm=NORM, bias=True),
    names={"model.norm": "model.final_layernorm"},
)
