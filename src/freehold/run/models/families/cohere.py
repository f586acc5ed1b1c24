"""Command R and R+: attention and MLP read one layer norm and are added together; logits are scaled.

    x += attention(n) + mlp(n),  n = layer_norm(x)

Command R+ normalises queries and keys too, each head with weights of its own. Adjacent elements turn together in both
file formats.
Source: Cohere's files of 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import NO_NORM, Attention, DecoderEnds, GatedMlp, NormForm
from freehold.run.models.parts.parallel import ParallelBlock

NORM = NormForm(kind="layer")
LOGIT_SCALE = 0.0625


@dataclass(frozen=True, slots=True, kw_only=True)
class CohereSizes(Sizes):
    """Sizes of a Command R."""

    logit_scale: float
    qk_norm: bool | None = False  # None: if the file has their weights; GGUF has no key for it


def config_from_gguf(meta: Fields, vocab: int) -> CohereSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True, eps="layer_norm_epsilon")
    return CohereSizes(**sizes, logit_scale=meta.number("logit_scale", 1e-6, 1e6), qk_norm=None)


def config_from_hf(config: Fields) -> CohereSizes:
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_decoder(config, adjacent=True, base=500_000.0, tied=True, eps=1e-5, eps_key="layer_norm_eps")
    scale = config.number("logit_scale", 1e-6, 1e6, LOGIT_SCALE)
    return CohereSizes(**sizes, logit_scale=scale, qk_norm=config.flag("use_qk_norm", False))


def block(cfg: CohereSizes, i: int, **options: object) -> tuple[LayerPart, ...]:
    """Give a layer its block of attention and MLP."""
    form = "none" if cfg.qk_norm is False else "layer"
    attention = Attention.of(cfg, i, norm=NORM, qk_norm=form, qk_maybe=cfg.qk_norm is None, **options)
    return (ParallelBlock(attention, GatedMlp.of(cfg, i, norm=NO_NORM)),)


def ends(cfg: CohereSizes) -> DecoderEnds:
    """Scale logits, after a layer norm."""
    return DecoderEnds.of(cfg, norm=NORM, logit_scale=cfg.logit_scale)


FAMILY = Family(
    gguf_architecture="command-r",
    hf_classes=("CohereForCausalLM",),
    model_types=("cohere",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(ParallelBlock,),
    layer=block,
    ends=ends,
)
