"""EXAONE 4, and the text half of 4.5: norms follow each half, and normalise every query and key head.

Three sliding layers alternate with a full one. Where layers slide, only those turn by position. The 1.2B has full
attention and a rope everywhere.
Source: arXiv 2507.11407.
"""

from __future__ import annotations

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, gguf_windows, hf_decoder, sliding_windows
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import NO_NORM, Attention, DecoderEnds, GatedMlp

PATTERN = 4  # every fourth layer has full attention


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), slides)
    return Sizes(**sizes)


def slides(layer: int) -> bool:
    """Say whether a layer slides where a file does not list them."""
    return (layer + 1) % PATTERN != 0


def stated_windows(config: Fields, layers: int) -> tuple[int, ...]:
    """A null window is none; the pattern is a number, or a text of L (sliding) and G (full) that repeats."""
    if "sliding_window" in config.values and config.get("sliding_window") is None:
        return (0,) * layers
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 4096)
    pattern = config.get("sliding_window_pattern")
    pattern = PATTERN if pattern is None else pattern
    if isinstance(pattern, int) and pattern > 0:
        return sliding_windows(config, layers, window, lambda i: (i + 1) % pattern != 0)
    if config.get("layer_types") is None:
        raise UnsupportedModel(
            f"sliding_window_pattern is {str(pattern)[:40]!r}; supported: a number, or layer_types"
        )
    return sliding_windows(config, layers, window, lambda i: False)


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    turns = cfg.windows[i] or not any(cfg.windows)
    attention = Attention.of(
        cfg,
        i,
        rope=cfg.rope if turns else None,
        norm=NO_NORM,
        qk_norm="head",
        post_norm="post_attention_layernorm",
    )
    return attention, GatedMlp.of(cfg, i, norm=NO_NORM, post_norm="post_feedforward_layernorm")


FAMILY = Family(
    gguf_architecture="exaone4",
    hf_classes=("Exaone4ForCausalLM",),
    wrappers=("Exaone4_5_ForConditionalGeneration",),
    model_types=("exaone4_5_text",),
    config_from_gguf=config_from_gguf,
    config_from_hf=lambda config: Sizes(**hf_decoder(config, stated_windows, eps=1e-5)),
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
    left_out=(("mtp.", "the layers that predict further tokens are left out"),),
)
