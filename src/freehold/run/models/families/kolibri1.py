"""Kolibri: four layers of five slide and have a rope, norms follow each half too, and logits choose the experts.

A correction joins the logits that are compared. The weights of the chosen are sigmoids of logits without it, and are
not divided by their sum unless a file says so. Each layer has a shared expert too. llama.cpp has no converter.
Source: transformers 5.24, models/kolibri1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import hf_mixture
from freehold.run.models.config.sizes import Routing, Sizes, hf_decoder, sliding_windows
from freehold.run.models.family import Family, LayerPart, TensorSpec
from freehold.run.models.parts import Attention, DecoderEnds
from freehold.run.models.parts.moe import Moe, MoeNames, apart, either, fused

PATTERN = 5  # the last of these sees all tokens
MIXER_NORM, EXPERTS_NORM = "post_self_attn_layernorm", "post_mlp_layernorm"
NAMES = MoeNames(
    experts=either(apart("mlp.experts.{e}"), fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
    correction=("moe.router.expert_bias", "mlp.gate.e_score_correction_bias"),
    shared="mlp.shared_experts",
)


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Raise: no converter writes such a file, so its names are not known."""
    raise UnsupportedModel("GGUF files of kolibri1 are not supported", "use the safetensors files")


def config_from_hf(config: Fields) -> Sizes:
    width = config.integer("moe_intermediate_size", 1, MAX_WIDTH, 512)
    sizes = hf_decoder(config, _windows, eps=1e-6, head_dim=128, intermediate_size=width)
    layers = len(sizes["heads"])
    routing = Routing(
        scoring="sigmoid",
        renormalise=config.flag("norm_topk_prob", False),
        correction=True,
        corrects_logits=True,
    )
    shared = config.integer("shared_expert_intermediate_size", 1, MAX_WIDTH, 512)
    stated = config.assuming(moe_intermediate_size=width)
    return Sizes(
        **sizes, mixture=hf_mixture(stated, "moe_intermediate_size", layers, shared=shared, routing=routing)
    )


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 513)
    return sliding_windows(config, layers, window, lambda i: (i + 1) % PATTERN != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class KolibriAttention(Attention):
    """Attention whose second norm has another name in makers' files."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both names."""
        specs = super(KolibriAttention, self).tensors()
        names = ("post_attn_norm.weight", f"{MIXER_NORM}.weight")
        return specs | {"attn_post_norm": replace(specs["attn_post_norm"], hf=names)}


@dataclass(frozen=True, slots=True, kw_only=True)
class KolibriMoe(Moe):
    """Experts whose second norm has another name in makers' files."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both names."""
        specs = super(KolibriMoe, self).tensors()
        names = ("post_ffn_norm.weight", f"{EXPERTS_NORM}.weight")
        return specs | {"ffn_post_norm": replace(specs["ffn_post_norm"], hf=names)}


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    rope = cfg.rope if cfg.windows[i] else None
    attention = KolibriAttention.of(cfg, i, rope=rope, qk_norm="head", post_norm=MIXER_NORM)
    return attention, KolibriMoe.of(cfg, NAMES, post_norm=EXPERTS_NORM)


FAMILY = Family(
    gguf_architecture="kolibri1",
    hf_classes=("Kolibri1ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layer=layer,
    ends=DecoderEnds.of,
)
