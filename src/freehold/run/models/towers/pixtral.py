"""The tower of Pixtral, Mistral Small 3.1 to 4 and Ministral 3: a ViT that takes pictures in their own aspect.

A picture whose longer side exceeds a limit is made smaller, never larger, and both sides are then stretched up to whole
blocks of `merge` x `merge` patches. Patches are normed before the first layer; layers have RMS norms, a gated MLP with
SiLU, and no biases. Of a head's pairs the first half turns by the row, with every other frequency of a plain rope, and
the second half by the column, with those between. A picture attends within itself. Where `merges`, patches are normed
once more and those of a block joined by one matrix; Pixtral 12B takes each patch as it is. Two matrices with the exact
GELU between them end the tower.
A prompt has a mark after each row of a picture's tokens, and another after the last. GGUFs lay the rows of q and k so
that pairs which turn together are adjacent, and hold a copy of the text model's row for the first mark, which is not
read. They state one epsilon for all norms. Those made of Mistral's own form state the width of the text model's MLP as
that of features, so the last matrix tells it.
Sources: arXiv 2410.07073 (Pixtral), Mistral Small 3.1's and Ministral 3's model cards of 2025, 2104.09864 (rope).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.rope import MAX_BASE, RopeTable
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, check_width
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts import GatedMlp
from freehold.run.models.parts.vision import attend_in_parts
from freehold.run.models.tower import (
    F32,
    U8,
    Merger,
    PicturePlan,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    TowerSizes,
    check_gguf_act,
    check_ratio,
    clip_coloured,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    names_under,
    raster_places,
)
from freehold.run.pictures.opening import Resize

CHANNELS = 3
MAX_PATCH, MAX_EDGE = 256, 1 << 15
BASE = 10_000.0  # of the rope
EPS = 1e-5  # of the tower's norms, which no config.json states
MARK, BREAK, END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"

Biases = Literal["none", "all", "any"]  # of the last two matrices; any: where the file has them


@dataclass(frozen=True, slots=True, kw_only=True)
class PixtralSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    merge: int  # patches of a block's side
    merges: bool  # whether a norm and a matrix join a block's patches
    merge_eps: float  # of that norm
    biases: Biases
    longest: int  # pixels of a picture's longer side at most, before it is stretched to whole blocks
    base: float  # of the rope
    adjacent: bool  # whether pairs that turn together lie side by side, as GGUFs have them

    def __post_init__(self) -> None:
        super(PixtralSizes, self).__post_init__()
        check_width("encoder's MLP", self.intermediate)
        self.check_turned()
        if self.merge > 1 and not self.merges:
            raise BadModelFile(
                f"the encoder merges {self.merge} x {self.merge} patches, but the file does not name the matrix"
            )

    @property
    def block(self) -> int:
        """Pixels of a block's side: one token."""
        return self.patch * self.merge

    @property
    def joined(self) -> int:
        """Width of a block's patches together."""
        return self.hidden * self.merge**2

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes while it is computed, about."""
        return 7 * self.hidden + 2 * self.intermediate + 2 * (CHANNELS * self.patch**2 + self.hidden)


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> PixtralSizes:
    """Read config.json of a Mistral3ForConditionalGeneration or Pixtral's LlavaForConditionalGeneration.

    `settings` states a picture's longer side; patches of its own do not count, as in transformers.
    """
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    vision.require("model_type", ("pixtral",), "clip_vision_model")
    vision.require("hidden_act", ("silu",), "gelu")
    config.require("projector_hidden_act", ("gelu",), "gelu")
    merges = config.text("model_type", "") == "mistral3"
    _check_last_layer(config, merges)
    if vision.integer("num_channels", 1, MAX_WIDTH, CHANNELS) != CHANNELS:
        raise UnsupportedModel(f"num_channels is {vision.get('num_channels')}; pictures have {CHANNELS}")
    rope = vision.section("rope_parameters") or vision
    rope.require("rope_type", ("axial", "default"), "axial")
    return PixtralSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 24),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 1024),
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 16),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 4096),
        out=text.integer("hidden_size", 1, MAX_WIDTH),
        eps=EPS,
        pixels=hf_pixel_form(clip_coloured(settings)),
        patch=vision.integer("patch_size", 1, MAX_PATCH, 16),
        merge=config.integer("spatial_merge_size", 1, MAX_PATCH, 2 if merges else 1),
        merges=merges,
        merge_eps=text.number("rms_norm_eps", MIN_EPS, MAX_EPS, EPS),
        biases="all" if config.flag("multimodal_projector_bias", not merges) else "none",
        longest=_longest(settings, vision.integer("image_size", 1, MAX_EDGE, 1024)),
        base=rope.number("rope_theta", 1.0, MAX_BASE, BASE),
        adjacent=False,
    )


def _check_last_layer(config: Fields, merges: bool) -> None:
    """Raise unless features are of every patch, and of the last layer."""
    layer = config.get("vision_feature_layer")
    if layer is None:
        layer = -1 if merges else -2  # what the two classes assume
    if layer != -1:
        raise UnsupportedModel(f"vision_feature_layer is {str(layer)[:60]}; only -1, the last, is supported")
    if not merges:
        config.require("vision_feature_select_strategy", ("full",), "default")


def _longest(settings: Fields, assumed: int) -> int:
    """Read the limit of a picture's longer side, which older files state as a square."""
    settings.refuse("do_center_crop", "a cut of pictures")
    size = settings.section("size") or Fields({})
    longest = size.integer("longest_edge", 1, MAX_EDGE, 0)
    if longest:
        return longest
    sides = [size.integer(key, 1, MAX_EDGE, assumed) for key in ("height", "width")]
    if sides[0] != sides[1]:
        raise UnsupportedModel(
            f"pictures may have {sides[1]} x {sides[0]} pixels; only squares are supported"
        )
    return sides[0]


def config_from_gguf(meta: Fields) -> PixtralSizes:
    """Read the keys under `clip.`; a file without spatial_merge_size is Pixtral 12B's, whose patches are not joined."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "silu")
    sizes = gguf_tower_sizes(meta, EPS)
    return PixtralSizes(
        **sizes,
        pixels=gguf_pixel_form(clip_coloured(vision)),
        patch=vision.integer("patch_size", 1, MAX_PATCH),
        merge=vision.integer("spatial_merge_size", 1, MAX_PATCH, 1),
        merges=vision.get("spatial_merge_size") is not None,
        merge_eps=sizes["eps"],
        biases="any",
        longest=vision.integer("image_size", 1, MAX_EDGE),
        base=meta.number("rope.freq_base", 1.0, MAX_BASE, BASE),
        adjacent=True,
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: PixtralSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes; a budget makes it smaller, and none makes it larger."""
    check_ratio(width, height, cfg.longest)  # beyond it the shorter side would have no pixel left
    columns, rows = _blocks(cfg, width, height, cfg.longest)
    if budget is not None:
        most = budget.checked(math.ceil(cfg.longest / cfg.block) ** 2).most
        longest = max(columns, rows) * cfg.block
        while columns * rows > most:
            longest -= cfg.block
            columns, rows = _blocks(cfg, width, height, longest)
    tokens = columns * rows
    breaks: tuple[int | str, ...] = (columns, BREAK) * (rows - 1)
    return PicturePlan(
        resizes=((Resize(columns * cfg.block, rows * cfg.block, cfg.pixels.filter),),),
        patches=tokens * cfg.merge**2,
        tokens=tokens,
        layout=(*breaks, columns, END),
        places=None,
        advance=tokens,
    )


def _blocks(cfg: PixtralSizes, width: int, height: int, longest: int) -> tuple[int, int]:
    """Return how many blocks a picture has side by side and one above another; a part of one counts."""
    by = max(height / longest, width / longest)
    if by > 1:
        width, height = (max(math.floor(side / by), 1) for side in (width, height))
    return -(-width // cfg.block), -(-height // cfg.block)


def rows(cfg: PixtralSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return patches block by block, their columns by colour, row and column, and which place each has."""
    (picture,) = pixels
    wide, high = plan.size
    assert picture.shape == (high, wide, CHANNELS), f"pixels of {picture.shape} for a plan of {wide} x {high}"
    patches = cfg.pixels.values(picture).reshape(
        high // cfg.patch, cfg.patch, wide // cfg.patch, cfg.patch, CHANNELS
    )
    grid = patches.transpose(0, 2, 4, 1, 3)  # [rows, columns, colours, pixels of a side, pixels of a side]
    places = raster_places(*grid.shape[:2]).reshape(*grid.shape[:2], 3)
    return TowerRows(
        in_blocks(grid, cfg.merge).reshape(plan.patches, -1), (plan.patches,), in_blocks(places, cfg.merge)
    )


def join(cfg: PixtralSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Join the patches of a block, each column's values side by side: [tokens, joined]."""
    blocks = leaving.reshape(plan.tokens, cfg.merge**2, cfg.hidden).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).reshape(plan.tokens, cfg.joined)


def rope(cfg: PixtralSizes) -> RopeTable:
    """Return the table of a head: even frequencies of a plain rope turn by the row, odd ones by the column."""
    freq = cfg.base ** -(np.arange(0, cfg.head, 2, dtype=np.float64) / cfg.head)
    axes: NDArray[np.uint8] = np.repeat(np.array([1, 2], np.uint8), cfg.head // 4)
    table = np.concatenate([freq[0::2], freq[1::2]]).astype(np.float32)
    return RopeTable(table, 1.0, cfg.adjacent, axes)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PixtralEnds(TowerEnds):
    """Patches and a norm before the first layer; the norm before blocks are joined, where they are, after the last."""

    cfg: PixtralSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, which files hold as a convolution's, and one norm or two."""
        cfg, n = self.cfg, self.cfg.hidden
        names = "v.patch_embd.weight", "vision_tower.patch_conv.weight"
        shape, pixels = (n, CHANNELS, cfg.patch, cfg.patch), CHANNELS * cfg.patch**2
        kernel = [Cut(name, shape, take=lambda v: v.reshape(n, -1)) for name in names]
        specs = {
            "patches": matrix(kernel[0], kernel[1], n, pixels, floats=True),
            "norm": vector("v.pre_ln.weight", "vision_tower.ln_pre.weight", n),
        }
        if cfg.merges:
            specs["merger_norm"] = vector("mm.input_norm.weight", "multi_modal_projector.norm.weight", n)
        return specs

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product, and norm it."""
        (x,) = ops.linear(ops.features(CHANNELS * self.cfg.patch**2), (w["patches"],), (None,))
        return ops.norm(x, w["norm"], self.cfg.eps)

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the second norm."""
        ops.hidden(ops.norm(x, w["merger_norm"], self.cfg.merge_eps) if self.cfg.merges else x)


@dataclass(frozen=True, slots=True)
class PixtralMerger(Merger):
    """down(gelu(up x)), where `merges` of a block's patches joined by a matrix."""

    cfg: PixtralSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two or three matrices, and biases of the last two."""
        cfg, hf, specs = self.cfg, "multi_modal_projector", {}
        if cfg.merges:
            names = "mm.patch_merger.weight", f"{hf}.patch_merger.merging_layer.weight"
            specs["merger"] = matrix(*names, cfg.hidden, cfg.joined)
        maybe = {"optional": cfg.biases == "any"}
        for key, other, number, columns in (("up", "down", 1, cfg.hidden), ("down", "up", 2, cfg.out)):
            gguf, own = f"mm.{number}", f"{hf}.linear_{number}"
            specs[f"merger_{key}"] = matrix(f"{gguf}.weight", f"{own}.weight", cfg.out, columns)
            if cfg.biases != "none":
                beside = f"merger_{other}_bias"
                names = f"{gguf}.bias", f"{own}.bias"
                specs[f"merger_{key}_bias"] = vector(*names, cfg.out, beside=beside, **maybe)
        return specs

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose the products; a run may pause between them."""
        x = ops.features(self.cfg.joined)
        if self.cfg.merges:
            (x,) = ops.linear(x, (w["merger"],), (None,))
            ops.section()
        h = ops.linear_act(x, w["merger_up"], "gelu_erf", w.get("merger_up_bias"))
        ops.section()
        (y,) = ops.linear(h, (w["merger_down"],), (w.get("merger_down_bias"),))
        ops.hidden(y)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixtralAttention(LayerPart):
    """x += o(attention(rope(q n), rope(k n), v n)),  n = RMS norm(x); every patch sees all of its picture."""

    hidden: int
    heads: int
    head: int
    eps: float

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and four projections."""
        n = self.hidden
        specs = {"attn_norm": vector("ln1.weight", "attention_norm.weight", n)}
        for key, gguf, turns in (
            ("q", "attn_q", True),
            ("k", "attn_k", True),
            ("v", "attn_v", False),
            ("o", "attn_out", False),
        ):
            names = f"{gguf}.weight", f"attention.{key}_proj.weight"
            specs[key] = matrix(*names, n, n, head=self.head if turns else 0)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose projections of the normed rows, turns, attention and residual."""
        q, k, v = ops.linear(x, (w["q"], w["k"], w["v"]), (None,) * 3, w["attn_norm"], self.eps)
        for each in (q, k):
            ops.rotate(each, w["rope"], self.head)
        ops.linear_add(attend_in_parts(ops, q, k, v, self.heads, self.head), w["o"], x)


def layer(cfg: PixtralSizes, i: int) -> tuple[LayerPart, ...]:
    attention = PixtralAttention(hidden=cfg.hidden, heads=cfg.heads, head=cfg.head, eps=cfg.eps)
    mlp = GatedMlp(
        hidden=cfg.hidden,
        intermediate=cfg.intermediate,
        eps=cfg.eps,
        norm_name="ffn_norm",
        gguf_norm="ln2",
        hf="feed_forward",
    )
    return attention, mlp


TOWER = Tower(
    name="pixtral",
    projectors=("pixtral",),
    model_types=("mistral3", "llava"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PixtralAttention, GatedMlp),
    layer=layer,
    ends=PixtralEnds,
    merger=PixtralMerger,
    rope=rope,
    plan=plan,
    rows=rows,
    join=join,
    mark=MARK,
    hf_layers="vision_tower.transformer.layers",
    hf_name=names_under("vision_tower.", "multi_modal_projector."),
    rows_of={"vision.projection_dim": "mm.2.weight"},
)
