"""OLMo 2 and 3: norms follow attention and MLP instead of preceding them, and span the width of queries and keys.

    x += norm(attention(x));  x += norm(mlp(x))

In OLMo 3 three sliding layers alternate with a full one, whose rope alone is stretched. GGUF files call both `olmo2`.
Source: arXiv 2501.00656 (OLMo 2), Ai2's OLMo 3 report of November 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.rope import RopeSpec, hf_layer_ropes
from freehold.run.models.config.sizes import Sizes, gguf_sizes, gguf_windows, hf_decoder, sliding_windows
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import NO_NORM, Attention, DecoderEnds, GatedMlp

BASE = 500_000.0
PATTERN = 4  # every fourth layer has full attention


@dataclass(frozen=True, slots=True, kw_only=True)
class OlmoSizes2(Sizes):
    """Sizes of an OLMo 2 or 3; `rope` is that of full layers."""

    rope_local: RopeSpec | None  # of sliding layers


def config_from_gguf(meta: Fields, vocab: int) -> OlmoSizes2:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), _slides)
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, sizes["rope"].base)
    return OlmoSizes2(**sizes, rope_local=RopeSpec(base=base, width=sizes["rope"].width, adjacent=False))


def config_from_hf(config: Fields) -> OlmoSizes2:
    config.refuse("attention_bias", "a bias on attention")
    if config.text("model_type", "olmo2") != "olmo3":
        return OlmoSizes2(**hf_decoder(config, eps=1e-5), rope_local=None)
    sizes = hf_decoder(config, _windows, eps=1e-5)
    context = config.integer("max_position_embeddings", 1, MAX_CONTEXT)
    theta = config.number("rope_theta", 1.001, 1e12, BASE)
    sizes["rope"], local = hf_layer_ropes(
        config, head_dim=sizes["head_dim"], context=context, base=theta, local_base=theta
    )
    return OlmoSizes2(**sizes, rope_local=local)


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 4096)
    return sliding_windows(config, layers, window, _slides)


def _slides(layer: int) -> bool:
    return (layer + 1) % PATTERN != 0


def layer(cfg: OlmoSizes2, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(
        cfg,
        i,
        rope=cfg.rope_local if cfg.windows[i] else cfg.rope,
        norm=NO_NORM,
        qk_norm="width",
        post_norm="post_attention_layernorm",
    )
    return attention, GatedMlp.of(cfg, i, norm=NO_NORM, post_norm="post_feedforward_layernorm")


FAMILY = Family(
    gguf_architecture="olmo2",
    hf_classes=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    model_types=("olmo3",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
