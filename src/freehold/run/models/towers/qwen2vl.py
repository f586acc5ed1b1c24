"""The tower of Qwen2-VL: the first ViT over blocks of patches, whose layers all see the whole picture.

Patches of 14 x 14 pixels, no learned positions, half of each head turns by the row and half by the column. Layers have
layer norms, biases, and an MLP four times as wide with the quick GELU, x * sigmoid(1.702 x). Four patches make a token:
normed, joined, and passed through two matrices with the exact GELU.
GGUFs state the text model's width in place of the MLP's, and say of the activation nothing: neither GELU nor SiLU.
Source: arXiv 2409.12191 (Qwen2-VL).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.family import Buffer, LayerPart, Ops, TensorSpec, Values
from freehold.run.models.parts.blocks import (
    BlockMerger,
    BlockSizes,
    axial_rope,
    block_plan,
    block_rows,
    frames_matrix,
    gguf_blocks,
    hf_blocks,
)
from freehold.run.models.parts.vision import CHANNELS, PictureAttention, PictureMlp
from freehold.run.models.tower import (
    F32,
    PicturePlan,
    Tower,
    TowerEnds,
    clip_coloured,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    layer_norm,
    names_under,
)

LEAST, MOST = 56 * 56, 28 * 28 * 1280  # pixels of a picture, where a folder does not say
MOST_PUBLISHED = 28 * 28 * 16384  # what folders say that GGUFs are made of
RATIO = 4  # widths of the residual stream that an MLP has, in all published files
EPS = 1e-6
ACT = "gelu_quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBlockSizes(BlockSizes):
    """The tower's sizes."""

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes while it is computed, about."""
        return 8 * self.hidden + self.inner + 2 * CHANNELS * self.patch**2


# --- what files say -----------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> FirstBlockSizes:
    """Read the `vision_config` of a config.json, and what is said of pixels beside it.

    `hidden_size` is the text model's width, `embed_dim` the tower's.
    """
    vision = config.section("vision_config") or Fields({})
    vision.require("hidden_act", ("quick_gelu",), "quick_gelu")
    width = vision.integer("embed_dim", 1, MAX_WIDTH, 1280)
    return FirstBlockSizes(
        layers=vision.integer("depth", 1, MAX_LAYERS, 32),
        hidden=width,
        heads=vision.integer("num_heads", 1, MAX_HEADS, 16),
        intermediate=width * vision.integer("mlp_ratio", 1, 64, RATIO),
        out=vision.integer("hidden_size", 1, MAX_WIDTH, 3584),
        eps=EPS,
        pixels=hf_pixel_form(clip_coloured(settings)),
        **hf_blocks(vision, settings, patch=14, limits=(LEAST, MOST)),
    )


def config_from_gguf(meta: Fields) -> FirstBlockSizes:
    """Read the keys under `clip.`; an MLP's width is not among them, whatever `feed_forward_length` says."""
    vision = Fields(meta.values, meta.name("vision."))
    for act in ("gelu", "silu"):
        if meta.flag(f"use_{act}", False):
            raise UnsupportedModel(
                f"{meta.name(f'use_{act}')} is true; this encoder supports only the quick GELU"
            )
    width = vision.integer("embedding_length", 1, MAX_WIDTH)
    stated = {**meta.values, vision.name("feed_forward_length"): RATIO * width}
    return FirstBlockSizes(
        **gguf_tower_sizes(Fields(stated, meta.name("")), EPS),
        pixels=gguf_pixel_form(clip_coloured(vision)),
        **gguf_blocks(vision, (LEAST, MOST_PUBLISHED)),
    )


def join(cfg: FirstBlockSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side: [tokens, joined]."""
    return leaving.reshape(plan.tokens, cfg.joined)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FirstBlockEnds(TowerEnds):
    """Patches before the first layer; the merger's norm, which is each patch's, after the last."""

    cfg: FirstBlockSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, of which a GGUF holds each frame's apart, and a norm."""
        return {
            "patches": frames_matrix(self.cfg, "visual.patch_embed.proj"),
            **layer_norm("merger_norm", "v.post_ln", "visual.merger.ln_q", self.cfg.hidden),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product."""
        (x,) = ops.linear(ops.features(CHANNELS * self.cfg.patch**2), (w["patches"],), (None,))
        return x

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the norm."""
        ops.hidden(ops.layer_normed(x, w["merger_norm"], w["merger_norm_bias"], self.cfg.eps))


def layer(cfg: FirstBlockSizes, i: int) -> tuple[LayerPart, ...]:
    attention = PictureAttention.of(cfg, norm="norm1", qkv=("attn.qkv",), out="attn.proj", apart=True)
    return attention, PictureMlp.of(cfg, ACT, norm="norm2", swapped=True)


TOWER = Tower(
    name="qwen2vl",
    projectors=("qwen2vl_merger",),
    model_types=("qwen2_vl",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PictureAttention, PictureMlp),
    layer=layer,
    ends=FirstBlockEnds,
    merger=BlockMerger,
    rope=axial_rope,
    plan=block_plan,
    rows=block_rows,
    join=join,
    mark="<|image_pad|>",
    hf_layers="visual.blocks",
    hf_name=names_under("visual."),
)
