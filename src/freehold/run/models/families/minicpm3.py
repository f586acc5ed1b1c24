"""MiniCPM3: latent attention and a dense MLP, with factors on embeddings, on what each half adds, and before the head.

Queries and keys turn in halves, by a longrope. A GGUF states none of the factors; they are the 4B's, as in llama.cpp.
Sources: transformers 5.24, models/minicpm3; arXiv 2404.06395 (the factors).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.latents import LatentSizes, gguf_latent, hf_latent
from freehold.run.models.config.rope import MAX_FACTOR
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import DecoderEnds, GatedMlp
from freehold.run.models.parts.latent import LatentAttention

EMBEDDINGS, DEPTH, BASE_WIDTH = 12.0, 1.4, 256.0  # scale_emb, scale_depth and dim_model_base of the 4B


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniCpmSizes(LatentSizes):
    """Sizes of a MiniCPM3, and its factors."""

    embeddings: float
    residual: float  # of what attention and MLP add
    logits: float


def config_from_gguf(meta: Fields, vocab: int) -> MiniCpmSizes:
    hidden, heads = (
        meta.integer("embedding_length", 1, MAX_WIDTH),
        meta.integer("attention.head_count", 1, MAX_HEADS),
    )
    sizes = gguf_latent(meta.assuming(**{"attention.value_length": max(hidden // heads, 1)}), vocab)
    original = meta.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT, sizes["context"])
    factor = meta.number("rope.scaling.attn_factor", 1e-6, MAX_FACTOR, 1.0)
    rope = replace(
        sizes["rope"], adjacent=False, scaling="longrope", original=original, attention_factor=factor
    )
    return MiniCpmSizes(
        **sizes | {"rope": rope},
        embeddings=EMBEDDINGS,
        residual=DEPTH * len(sizes["heads"]) ** -0.5,
        logits=BASE_WIDTH / hidden,
    )


def config_from_hf(config: Fields) -> MiniCpmSizes:
    config.refuse("mlp_bias", "a bias on MLPs")
    hidden = config.integer("hidden_size", 1, MAX_WIDTH, 2560)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS, 40)
    stated = config.assuming(
        v_head_dim=max(hidden // heads, 1),
        rms_norm_eps=1e-5,
        rope_interleave=False,
        num_key_value_heads=heads,
    )
    sizes = hf_latent(stated, scalings=("default", "yarn", "longrope"), tied=True)
    layers = len(sizes["heads"])
    depth = config.number("scale_depth", 1e-6, MAX_FACTOR, DEPTH)
    return MiniCpmSizes(
        **sizes,
        embeddings=config.number("scale_emb", 1e-6, MAX_FACTOR, EMBEDDINGS),
        residual=depth * layers**-0.5,
        logits=config.number("dim_model_base", 1e-6, MAX_FACTOR, BASE_WIDTH) / hidden,
    )


def layer(cfg: MiniCpmSizes, i: int) -> tuple[LayerPart, ...]:
    attention = replace(LatentAttention.of(cfg, i), residual=cfg.residual)
    return attention, GatedMlp.of(cfg, i, residual=cfg.residual)


FAMILY = Family(
    gguf_architecture="minicpm3",
    hf_classes=("MiniCPM3ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(LatentAttention, GatedMlp),
    layer=layer,
    ends=lambda cfg: DecoderEnds.of(cfg, scale=cfg.embeddings, logit_scale=cfg.logits),
)
