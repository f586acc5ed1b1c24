"""The tower of Qwen2.5-VL: a ViT over blocks of patches whose layers see windows, and some of them the whole picture.

Patches of 14 x 14 pixels, no learned positions, RMS norms, a gated MLP with SiLU, biases everywhere but on patches.
Rows lie window by window of 112 x 112 pixels, so that a window is a run of rows; windows at the right and lower edge
are smaller. Four patches make a token: normed, joined, and passed through two matrices with the exact GELU. Tokens are
put back into rows and columns before that, where only each token counts.
GGUFs state after how many layers one sees the whole, and no size of windows.
Sources: arXiv 2502.13923 (Qwen2.5-VL), 2409.12191 (Qwen2-VL).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.family import Buffer, LayerPart, Ops, TensorSpec, Values, vector
from freehold.run.models.parts.blocks import (
    MAX_PATCH,
    MAX_SIDE,
    BiasedGatedMlp,
    BlockMerger,
    BlockSizes,
    RmsPictureAttention,
    axial_rope,
    block_plan,
    block_rows,
    frames_matrix,
    gguf_blocks,
    hf_blocks,
)
from freehold.run.models.parts.vision import CHANNELS
from freehold.run.models.tower import (
    F32,
    U8,
    PicturePlan,
    Tower,
    TowerEnds,
    TowerRows,
    check_gguf_act,
    clip_coloured,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    names_under,
)

LEAST, MOST = 56 * 56, 28 * 28 * 1280  # pixels of a picture, where a folder does not say
MOST_PUBLISHED = 28 * 28 * 16384  # what folders say that GGUFs are made of
WINDOW = 112  # pixels of a window's side
FULL = (7, 15, 23, 31)  # layers that see the whole, where a config does not say
EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedSizes(BlockSizes):
    """The tower's sizes."""

    window: int  # pixels of a window's side
    full: tuple[int, ...]  # numbers of the layers that see the whole

    def __post_init__(self) -> None:
        super(WindowedSizes, self).__post_init__()
        if any(not 0 <= i < self.layers for i in self.full):
            raise BadModelFile(
                f"fullatt_block_indexes is {list(self.full)}; expected numbers of {self.layers} layers"
            )
        if self.side < 1:
            raise UnsupportedModel(
                f"the encoder's windows are {self.window} pixels wide; expected {self.block}, a block, or more"
            )

    @property
    def side(self) -> int:
        """Blocks of a window's side."""
        return self.window // self.block

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes while it is computed, about."""
        return 8 * self.hidden + 2 * self.inner + 2 * CHANNELS * self.patch**2


# --- what files say -----------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> WindowedSizes:
    """Read the `vision_config` of a config.json, and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    vision.require("hidden_act", ("silu",), "silu")
    return WindowedSizes(
        layers=vision.integer("depth", 1, MAX_LAYERS, 32),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 3584),
        heads=vision.integer("num_heads", 1, MAX_HEADS, 16),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 3420),
        out=vision.integer("out_hidden_size", 1, MAX_WIDTH, 3584),
        eps=EPS,
        pixels=hf_pixel_form(clip_coloured(settings)),
        **hf_blocks(vision, settings, patch=14, limits=(LEAST, MOST)),
        window=vision.integer("window_size", 1, MAX_PATCH * MAX_SIDE, WINDOW),
        full=_listed(vision),
    )


def _listed(vision: Fields) -> tuple[int, ...]:
    layers = vision.get("fullatt_block_indexes")
    if layers is None:
        return FULL
    if not isinstance(layers, list) or any(type(n) is not int for n in layers):
        raise BadModelFile(f"fullatt_block_indexes is {str(layers)[:60]}; expected a list of layers")
    return tuple(sorted({*layers}))


def config_from_gguf(meta: Fields) -> WindowedSizes:
    """Read the keys under `clip.`: of every `n_wa_pattern` layers the last sees the whole."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "silu")
    sizes = gguf_tower_sizes(meta, EPS)
    pattern = vision.integer("n_wa_pattern", 1, MAX_LAYERS)
    return WindowedSizes(
        **sizes,
        pixels=gguf_pixel_form(clip_coloured(vision)),
        **gguf_blocks(vision, (LEAST, MOST_PUBLISHED)),
        window=WINDOW,
        full=tuple(range(pattern - 1, sizes["layers"], pattern)),
    )


# --- windows --------------------------------------------------------------------------------------------


def windows_of(rows: int, columns: int, side: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return a grid's places window by window of `side` x `side`, each row by row, and how many each window has."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    window = row // side * -(-columns // side) + column // side
    return np.argsort(window, kind="stable"), tuple(np.bincount(window).tolist())


def _order(cfg: WindowedSizes, plan: PicturePlan) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    wide, high = plan.size
    return windows_of(high // cfg.block, wide // cfg.block, cfg.side)


def rows(cfg: WindowedSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return patches window by window, and in each block by block."""
    read = block_rows(cfg, plan, pixels)
    order, counts = _order(cfg, plan)
    per = cfg.merge**2
    assert read.places is not None
    values, places = (
        each.reshape(plan.tokens, per, -1)[order].reshape(plan.patches, -1)
        for each in (read.values, read.places)
    )
    return replace(read, values=values, places=places, windows=tuple(count * per for count in counts))


def join(cfg: WindowedSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side, and the blocks row by row again: [tokens, joined]."""
    order, _ = _order(cfg, plan)
    joined = np.empty((plan.tokens, cfg.joined), np.float32)
    joined[order] = leaving.reshape(plan.tokens, cfg.joined)
    return joined


def windowed(cfg: WindowedSizes) -> frozenset[int]:
    return frozenset(range(cfg.layers)) - {*cfg.full}


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WindowedEnds(TowerEnds):
    """Patches before the first layer; the merger's norm, which is each patch's, after the last."""

    cfg: WindowedSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, of which a GGUF holds each frame's apart, and a norm."""
        names = "v.post_ln.weight", "visual.merger.ln_q.weight"
        return {
            "patches": frames_matrix(self.cfg, "visual.patch_embed.proj"),
            "merger_norm": vector(*names, self.cfg.hidden),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product."""
        (x,) = ops.linear(ops.features(CHANNELS * self.cfg.patch**2), (w["patches"],), (None,))
        return x

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the norm."""
        ops.hidden(ops.norm(x, w["merger_norm"], self.cfg.eps))


def layer(cfg: WindowedSizes, i: int) -> tuple[LayerPart, ...]:
    return RmsPictureAttention.of(cfg, biases=True, apart=True), BiasedGatedMlp.of(cfg)


TOWER = Tower(
    name="qwen25vl",
    projectors=("qwen2.5vl_merger",),
    model_types=("qwen2_5_vl",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(RmsPictureAttention, BiasedGatedMlp),
    layer=layer,
    ends=WindowedEnds,
    merger=BlockMerger,
    rope=axial_rope,
    windowed=windowed,
    plan=block_plan,
    rows=rows,
    join=join,
    mark="<|image_pad|>",
    hf_layers="visual.blocks",
    hf_name=names_under("visual."),
)
