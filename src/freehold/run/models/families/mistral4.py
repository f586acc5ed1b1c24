"""Mistral Small 4: latent attention whose queries grow with the position, and experts in every layer.

A softmax over all experts, renormalised; gate and up of experts are one tensor in both formats. A GGUF does not
state how queries grow, which is then taken from the published config.json.
Source: Mistral-Small-4-119B-2603's config.json (llama_4_scaling_beta 0.1).
"""

from __future__ import annotations

from dataclasses import replace

from freehold.run.formats.fields import Fields
from freehold.run.models.config.latents import LatentSizes, gguf_latent, hf_latent
from freehold.run.models.config.mixtures import SOFTMAX, gguf_latent_mixture, hf_latent_mixture
from freehold.run.models.config.rope import state_rope
from freehold.run.models.family import Family
from freehold.run.models.parts import DecoderEnds, GatedMlp
from freehold.run.models.parts.latent import LatentAttention
from freehold.run.models.parts.moe import Moe, MoeNames, fused, mlp_or_experts

NAMES = MoeNames(
    shared="mlp.shared_experts", experts=fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
)
BETA = 0.1


def config_from_gguf(meta: Fields, vocab: int) -> LatentSizes:
    sizes = gguf_latent(meta, vocab)
    mixture = gguf_latent_mixture(meta, sizes, replace(SOFTMAX, renormalise=False))
    cfg = LatentSizes(**sizes, mixture=mixture)
    if cfg.temper or cfg.rope is None or not cfg.rope.original:
        return cfg
    note = (
        "the file does not state how queries grow with the position; "
        f"Mistral Small 4's {BETA:g} from token {cfg.rope.original:,} on is used"
    )
    return replace(cfg, temper=(BETA, cfg.rope.original), notes=(note,))


def config_from_hf(config: Fields) -> LatentSizes:
    """Read config.json of a Mistral4ForCausalLM, or the text half of a Mistral3ForConditionalGeneration."""
    state_rope(config)
    sizes = hf_latent(config)
    return LatentSizes(**sizes, mixture=hf_latent_mixture(config, sizes, SOFTMAX))


FAMILY = Family(
    gguf_architecture="mistral4",
    hf_classes=("Mistral4ForCausalLM",),
    model_types=("mistral4",),
    wrappers=("Mistral3ForConditionalGeneration",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(LatentAttention, GatedMlp, Moe),
    layer=lambda cfg, i: (LatentAttention.of(cfg, i), mlp_or_experts(cfg, i, NAMES)),
    ends=DecoderEnds.of,
    towers=("pixtral",),
)
