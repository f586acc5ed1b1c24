"""The text halves of Qwen3-VL, dense and as mixtures: Qwen3's blocks, with what a tower's middle layers saw added.

Rows of a picture turn by time, row and column, pairs in turns. DeepStack: after each of the first layers, as many
columns of the features as the model is wide join the stream of a picture's rows; text passes these layers as in Qwen3.
Experts are stored transposed, as the Hub has them, or as transformers 5 writes them. Tower: towers/qwen3vl.py.
Sources: Qwen3-VL's model cards of 2025, arXiv 2406.04334 (DeepStack).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.run.formats.fields import Fields
from freehold.run.models.config.mixtures import gguf_mixture, qwen_mixture
from freehold.run.models.config.rope import Sections, gguf_sections, hf_sections
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Buffer, Family, LayerPart, Ops, TensorSpec, Values
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, either, fused, mlp_or_experts, transposed

BASE = 500_000.0  # of the rope, where a config does not say
SECTIONS: Sections = (24, 20, 20)
DEEPSTACK = (8, 16, 24)  # layers of the tower, where a config does not say
_EXPERTS = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
NAMES = MoeNames(experts=either(fused(*_EXPERTS), transposed(*_EXPERTS, interleaved=False)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeeingSizes(Sizes):
    """A decoder's sizes, and how many of its first layers add columns of the features."""

    deepstack: int


@dataclass(frozen=True, slots=True)
class DeepStack(LayerPart):
    """Adds the features' columns for this layer to rows of pictures."""

    hidden: int
    number: int  # of the layer, and of its columns after those that stand for the words

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare nothing."""
        return {}

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose the sum."""
        ops.add_features(x, self.hidden * (1 + self.number))


def dense_from_gguf(meta: Fields, vocab: int) -> SeeingSizes:
    return SeeingSizes(**_gguf_sizes(meta, vocab))


def mixed_from_gguf(meta: Fields, vocab: int) -> SeeingSizes:
    sizes = _gguf_sizes(meta, vocab)
    return SeeingSizes(**sizes, mixture=gguf_mixture(meta, sizes))


def _gguf_sizes(meta: Fields, vocab: int) -> dict[str, Any]:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    rope = gguf_sections(meta, sizes["rope"], SECTIONS, interleaved=True)
    deepstack = meta.integer("n_deepstack_layers", 0, len(sizes["heads"]), 0)
    return sizes | {"rope": rope, "deepstack": deepstack}


def dense_from_hf(config: Fields) -> SeeingSizes:
    sizes = hf_decoder(config, base=BASE, head_dim=128)
    return SeeingSizes(**sizes | _of_pictures(config, sizes))


def mixed_from_hf(config: Fields) -> SeeingSizes:
    """Read config.json; the chosen experts' weights are divided by their sum, whatever it says of that."""
    config.refuse("attention_bias", "a bias on attention")
    read = config.without("norm_topk_prob").assuming(norm_topk_prob=True, rope_theta=BASE)
    cfg = qwen_mixture(read)
    sizes = {name: getattr(cfg, name) for name in Sizes.__dataclass_fields__}
    return SeeingSizes(**sizes | _of_pictures(read, sizes))


def _of_pictures(config: Fields, sizes: dict[str, Any]) -> dict[str, Any]:
    """Read what pictures alone need; how many layers have features of their own is the tower's to say."""
    tower = config.section("vision_config") or Fields({})
    layers = tower.get("deepstack_visual_indexes")
    count = len(layers) if isinstance(layers, list) else len(DEEPSTACK)
    rope = hf_sections(config, sizes["rope"], SECTIONS, interleaved=True)
    return {"rope": rope, "deepstack": min(count, len(sizes["heads"]))}


def _deepstack(cfg: SeeingSizes, i: int) -> tuple[LayerPart, ...]:
    return (DeepStack(cfg.hidden, i),) if i < cfg.deepstack else ()


def dense_layer(cfg: SeeingSizes, i: int) -> tuple[LayerPart, ...]:
    return Attention.of(cfg, i, qk_norm="head"), GatedMlp.of(cfg, i), *_deepstack(cfg, i)


def mixed_layer(cfg: SeeingSizes, i: int) -> tuple[LayerPart, ...]:
    return Attention.of(cfg, i, qk_norm="head"), mlp_or_experts(cfg, i, NAMES), *_deepstack(cfg, i)


DENSE = Family(
    gguf_architecture="qwen3vl",
    hf_classes=(),
    wrappers=("Qwen3VLForConditionalGeneration",),
    model_types=("qwen3_vl", "qwen3_vl_text"),
    config_from_gguf=dense_from_gguf,
    config_from_hf=dense_from_hf,
    parts=(Attention, GatedMlp, DeepStack),
    layer=dense_layer,
    ends=DecoderEnds.of,
    towers=("qwen3vl",),
    feature_width=lambda cfg: cfg.hidden * (1 + cfg.deepstack),
)
MIXED = replace(
    DENSE,
    gguf_architecture="qwen3vlmoe",
    wrappers=("Qwen3VLMoeForConditionalGeneration",),
    model_types=("qwen3_vl_moe", "qwen3_vl_moe_text"),
    config_from_gguf=mixed_from_gguf,
    config_from_hf=mixed_from_hf,
    parts=(Attention, GatedMlp, Moe, DeepStack),
    layer=mixed_layer,
)
FAMILIES = (DENSE, MIXED)
