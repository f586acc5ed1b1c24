"""The tower of PaddleOCR-VL: SigLIP's layers over pictures in their own aspect, whose heads turn by row and column.

Patches of 14 x 14 pixels; learned positions of a 27 x 27 grid are stretched over them (bilinear, corners not aligned).
Layers have layer norms, biases and the tanh GELU. Two norms end each patch; four patches are joined and pass two
matrices with the exact GELU. A side of less than a block is enlarged to one first, the other with it.
The reference reads patches row by row; block by block they give the same tokens, as each has its place.
GGUFs state the root of the greatest area as the size of a picture, and not how large the grid of positions is.
Sources: arXiv 2510.14528 (PaddleOCR-VL), 2303.15343 (SigLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import Buffer, LayerPart, Ops, TensorSpec, Values
from freehold.run.models.parts.blocks import (
    MAX_PATCH,
    MAX_SIDE,
    RATIO,
    BlockSizes,
    axial_rope,
    block_plan,
    block_rows,
    gelu_between,
    gguf_blocks,
    hf_blocks,
    linear,
    stretched,
)
from freehold.run.models.parts.vision import CHANNELS, PictureAttention, PictureMlp, SiglipEnds
from freehold.run.models.tower import (
    F32,
    Merger,
    PicturePlan,
    TokenBudget,
    Tower,
    affine,
    check_gguf_act,
    check_ratio,
    clip_coloured,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    layer_norm,
)

LEAST, MOST = 384 * 384, 1536 * 1536  # pixels of a picture, where no file says
EPS = 1e-6
JOIN_EPS = 1e-5  # of the norm before patches are joined
SIDE = 27  # of the grid of learned positions, in every published file
MODULE = "visual.vision_model"
_UNREAD = f"{MODULE}.head.", f"{MODULE}.embeddings.packing_position_embedding."


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddleSizes(BlockSizes):
    """The tower's sizes."""

    side: int  # of the grid of learned positions

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes while it is computed, about."""
        return 7 * self.hidden + self.inner + 2 * (CHANNELS * self.patch**2 + 2 * self.hidden)


# --- what files say -----------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> PaddleSizes:
    """Read config.json and what is said of pixels beside it; a patch is of one frame, whatever `vision_config` says."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or config  # older files state all in one
    if vision.integer("num_channels", 1, MAX_WIDTH, CHANNELS) != CHANNELS:
        raise UnsupportedModel(f"num_channels is {vision.get('num_channels')}; pictures have {CHANNELS}")
    vision.require("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    blocks = hf_blocks(vision, settings, patch=14, limits=(LEAST, MOST))
    blocks["frames"] = 1
    return PaddleSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 27),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 1152),
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 16),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 4304),
        out=text.integer("hidden_size", 1, MAX_WIDTH, 1024),
        eps=vision.number("layer_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixel_form(clip_coloured(settings)),
        **blocks,
        side=max(vision.integer("image_size", 1, MAX_SIDE * MAX_PATCH, 384) // blocks["patch"], 1),
    )


def config_from_gguf(meta: Fields) -> PaddleSizes:
    """Read the keys under `clip.`."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    blocks = gguf_blocks(vision, (LEAST, MOST))
    blocks["frames"] = 1
    return PaddleSizes(
        **gguf_tower_sizes(meta, EPS),
        **blocks,
        pixels=gguf_pixel_form(clip_coloured(vision)),
        side=SIDE,
    )


# --- sizes, positions, and rows that are joined -----------------------------------------------------------


def plan(cfg: PaddleSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes: whole blocks, a side of less than one enlarged first."""
    check_ratio(width, height, RATIO)
    if height < cfg.block:
        width, height = round(width * cfg.block / height), cfg.block
    if width < cfg.block:
        width, height = cfg.block, round(height * cfg.block / width)
    return block_plan(cfg, width, height, budget)


def positions(cfg: PaddleSizes, plan: PicturePlan, w: Values) -> F32:
    """Return the grid of learned positions stretched over the patches, block by block: float32 [patches, hidden]."""
    table = w["positions"].reshape(cfg.side, cfg.side, cfg.hidden)
    wide, high = (side // cfg.patch for side in plan.size)
    by_row = stretched(table, high, linear)
    return in_blocks(stretched(by_row.swapaxes(0, 1), wide, linear).swapaxes(0, 1), cfg.merge)


def join(cfg: PaddleSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side, row by row: [tokens, joined]."""
    return leaving.reshape(plan.tokens, cfg.joined)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddleEnds(SiglipEnds):
    """SigLIP's ends, and a second norm of each patch."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare SigLIP's weights, and the norm."""
        own = layer_norm("join_norm", "mm.input_norm", "projector.pre_norm", self.hidden)
        return super(PaddleEnds, self).tensors() | own

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose both norms."""
        n = ops.layer_normed(x, w["norm"], w["norm_bias"], self.eps)
        ops.hidden(ops.layer_normed(n, w["join_norm"], w["join_norm_bias"], JOIN_EPS))


@dataclass(frozen=True, slots=True)
class PaddleMerger(Merger):
    """down(gelu(up x)) of joined rows."""

    cfg: PaddleSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices with biases."""
        wide = self.cfg.joined
        specs = affine("merger_up", "mm.1", "projector.linear_1", wide, wide)
        return specs | affine("merger_down", "mm.2", "projector.linear_2", self.cfg.out, wide)

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose both."""
        ops.hidden(gelu_between(ops, ops.features(self.cfg.joined), "merger", w))


def ends(cfg: PaddleSizes) -> PaddleEnds:
    return PaddleEnds(hidden=cfg.hidden, patch=cfg.patch, side=cfg.side, eps=cfg.eps, module=MODULE)


def layer(cfg: PaddleSizes, i: int) -> tuple[LayerPart, ...]:
    return PictureAttention.of(cfg), PictureMlp.of(cfg, "gelu")


def hf_name(name: str) -> str:
    """Return what a wrapper's tensor is called here, older names as newer ones; "" for what the tower does not read."""
    own = name.removeprefix("model.")
    own = f"projector.{own.removeprefix('mlp_AR.')}" if own.startswith("mlp_AR.") else own
    return own if own.startswith(("visual.", "projector.")) and not own.startswith(_UNREAD) else ""


TOWER = Tower(
    name="paddleocr",
    projectors=("paddleocr",),
    model_types=("paddleocr_vl",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PictureAttention, PictureMlp),
    layer=layer,
    ends=ends,
    merger=PaddleMerger,
    rope=axial_rope,
    plan=plan,
    rows=block_rows,
    positions=positions,
    join=join,
    mark="<|IMAGE_PLACEHOLDER|>",
    hf_layers=f"{MODULE}.encoder.layers",
    hf_name=hf_name,
)
