"""Command R7B and A: Command R's block, three sliding layers with a rope, then a full one without.

Source: arXiv 2504.00698.
"""

from __future__ import annotations

from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from freehold.run.models.config.sizes import gguf_sizes, gguf_windows, hf_decoder, sliding_windows
from freehold.run.models.families.cohere import LOGIT_SCALE, CohereSizes, block, ends
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts.parallel import ParallelBlock

PATTERN = 4  # every fourth layer has full attention


def config_from_gguf(meta: Fields, vocab: int) -> CohereSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True, eps="layer_norm_epsilon")
    meta.integer("attention.sliding_window", 1, MAX_CONTEXT)
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), lambda i: (i + 1) % PATTERN != 0)
    return CohereSizes(**sizes, logit_scale=meta.number("logit_scale", 1e-6, 1e6))


def config_from_hf(config: Fields) -> CohereSizes:
    config.refuse("attention_bias", "a bias on attention")
    config.refuse("use_qk_norm", "a norm on queries and keys")
    sizes = hf_decoder(config, _windows, adjacent=True, tied=True, eps=1e-5, eps_key="layer_norm_eps")
    return CohereSizes(**sizes, logit_scale=config.number("logit_scale", 1e-6, 1e6, LOGIT_SCALE))


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 4096)
    every = config.integer("sliding_window_pattern", 1, MAX_LAYERS, PATTERN)
    return sliding_windows(config, layers, window, lambda i: (i + 1) % every != 0)


def layer(cfg: CohereSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its block; full attention knows no positions."""
    return block(cfg, i, rope=cfg.rope if cfg.windows[i] else None)


FAMILY = Family(
    gguf_architecture="cohere2",
    hf_classes=("Cohere2ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(ParallelBlock,),
    layer=layer,
    ends=ends,
)
