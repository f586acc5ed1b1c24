"""What Gemma 4 12B has in place of a tower: one matrix makes rows of blocks of pixels, the text model does the rest.

A picture is resized as for the other sizes of Gemma 4. Each block of 48 x 48 pixels is a row of 6,912 values from 0 to
1, which a layer norm, a matrix with a bias and another layer norm turn into one of the text model's width. Two learned
tables, of columns and of rows, add its place; a third layer norm, a norm without a weight and a second matrix follow.
No row sees another here: rows of a picture see each other in the text model's sliding layers. transformers 5.24 lets
them in full layers too where it computes a prompt at once, and not where it makes masks for generation, as Google does.
Source: Google's Gemma 4 files, and transformers' Gemma4UnifiedVisionEmbedder, read 2026-12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import Buffer, Cut, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.tower import (
    F32,
    NORM_STEP,
    U8,
    PicturePlan,
    PixelForm,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    TowerSizes,
    names_under,
    raster_places,
)
from freehold.run.models.towers.gemma4 import (
    CHANNELS,
    EPS,
    MARK,
    MAX_PATCH,
    MAX_TABLE,
    POOL,
    ROWS,
    SPELLED,
    Gemma4Merger,
    filled,
    hf_block,
    hf_budget,
    hf_pixels,
    most_rows,
)

WIDTH, TABLE = 3840, 1120  # where a file does not say
LAYER_EPS = 1e-5  # of layer norms, which no file states
ZERO_TO_ONE = {"mean": (0.0, 0.0, 0.0), "deviation": (1.0, 1.0, 1.0)}
HUB, NEW = "vision_embedder", "embed_vision"  # what published files call the module, and transformers its own


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedSizes(TowerSizes):
    """Sizes of what takes a tower's place; it has no layers."""

    block: int  # pixels of a row's side
    table: int  # rows of each table of positions
    most: int  # rows that a picture becomes at most

    def __post_init__(self) -> None:
        super(UnifiedSizes, self).__post_init__()
        if self.values % NORM_STEP:
            raise UnsupportedModel(
                f"blocks of {self.block} x {self.block} pixels have {self.values:,} values; only multiples of "
                f"{NORM_STEP} are supported"
            )

    @property
    def values(self) -> int:
        """Values of a block of pixels."""
        return CHANNELS * self.block**2

    @property
    def row_floats(self) -> int:
        """How many floats a row takes: a block twice, and what becomes of it."""
        return 2 * self.values + 5 * self.hidden


def _sizes(hidden: int, out: int, eps: float, pixels: PixelForm, **own: Any) -> UnifiedSizes:
    return UnifiedSizes(
        layers=0,
        hidden=hidden,
        heads=1,
        intermediate=0,
        out=out,
        eps=eps,
        pixels=replace(pixels, **ZERO_TO_ONE),
        **own,
    )


def config_from_hf(config: Fields, settings: Fields) -> UnifiedSizes:
    """Read config.json and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    patch, pool = hf_block(vision, settings)
    hidden = vision.integer("mm_embed_dim", 1, MAX_WIDTH, WIDTH)
    for key, own in (("output_proj_dims", hidden), ("model_patch_size", patch * pool)):
        if vision.integer(key, 1, MAX_WIDTH, own) != own:
            raise UnsupportedModel(f"{vision.name(key)} is {vision.get(key)}; only {own} is supported there")
    return _sizes(
        hidden,
        text.integer("hidden_size", 1, MAX_WIDTH, 2304),
        vision.number("rms_norm_eps", MIN_EPS, MAX_EPS, EPS),
        hf_pixels(settings),
        block=patch * pool,
        table=vision.integer("mm_posemb_size", 1, MAX_TABLE, TABLE),
        most=hf_budget(settings),
    )


def config_from_gguf(meta: Fields) -> UnifiedSizes:
    """Read the keys under `clip.`; a file does not say how many rows a picture may become."""
    vision = Fields(meta.values, meta.name("vision."))
    pool = vision.integer("projector.scale_factor", 1, MAX_PATCH, POOL)
    return _sizes(
        vision.integer("embedding_length", 1, MAX_WIDTH),
        vision.integer("projection_dim", 1, MAX_WIDTH),
        vision.number("attention.layer_norm_epsilon", MIN_EPS, MAX_EPS, EPS),
        PixelForm(),
        block=vision.integer("patch_size", 1, MAX_PATCH) * pool,
        table=TABLE,
        most=ROWS,
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: UnifiedSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes: see gemma4.filled."""
    return filled(width, height, most_rows(cfg.most, budget), cfg.block, 1, cfg.pixels.filter)


def rows(cfg: UnifiedSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return blocks row by row, their columns by colour, row and column."""
    (picture,) = pixels
    wide, high = (side // cfg.block for side in plan.size)
    blocks = cfg.pixels.values(picture).reshape(high, cfg.block, wide, cfg.block, CHANNELS)
    values = np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3)).reshape(plan.patches, cfg.values)
    return TowerRows(values, (plan.patches,))


def positions(cfg: UnifiedSizes, plan: PicturePlan, w: Values) -> F32:
    """Return the sum of each block's two learned positions: float32 [tokens, hidden]."""
    columns, lines = w["positions"].reshape(2, cfg.table, cfg.hidden)
    wide, high = (side // cfg.block for side in plan.size)
    if max(wide, high) > cfg.table:
        raise UsageError(f"the picture has more than {cfg.table:,} blocks a side", "allow it fewer tokens")
    places = raster_places(high, wide)
    return columns[places[:, 2]] + lines[places[:, 1]]


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnifiedEnds(TowerEnds):
    """All but the last matrix: a norm, the matrix over pixels, a norm, positions, a norm."""

    cfg: UnifiedSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the matrix and its bias, two tables of positions, and three layer norms."""
        n, wide, size = self.cfg.hidden, self.cfg.values, self.cfg.table
        by_colour = self._by_colour
        dense = _named("patch_dense.weight", lambda hf: Cut(hf, (n, wide), take=by_colour))
        table = _named("pos_embedding", lambda hf: Cut(hf, (size, 2, n), take=_by_axis))
        specs = {
            "pixels": matrix("v.patch_embd.weight", dense, n, wide),
            "pixels_bias": vector("v.patch_embd.bias", _named("patch_dense.bias"), n),
            "positions": vector(
                Cut("v.position_embd.weight", (2, size, n), take=np.ravel), table, 2 * size * n
            ),
        }
        for end in ("weight", "bias"):
            first = _named(f"patch_ln1.{end}", lambda hf: Cut(hf, (wide,), take=by_colour))
            key = "" if end == "weight" else "_bias"
            specs |= {
                f"pixels_norm{key}": vector(f"v.patch_norm.1.{end}", first, wide),
                f"rows_norm{key}": vector(f"v.patch_norm.2.{end}", _named(f"patch_ln2.{end}"), n),
                f"placed_norm{key}": vector(f"v.patch_norm.3.{end}", _named(f"pos_norm.{end}"), n),
            }
        return specs

    def _by_colour(self, values: F32) -> F32:
        """Lay the last axis by colour, row and column, which safetensors have by row, column and colour."""
        side = self.cfg.block
        cube = values.reshape(-1, side, side, CHANNELS).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(cube).reshape(values.shape)

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the norm of pixels, their product, its norm, and add positions."""
        pixels = ops.features(self.cfg.values)
        n = ops.layer_normed(pixels, w["pixels_norm"], w["pixels_norm_bias"], LAYER_EPS)
        (x,) = ops.linear(n, (w["pixels"],), (w["pixels_bias"],))
        x = ops.layer_normed(x, w["rows_norm"], w["rows_norm_bias"], LAYER_EPS)
        ops.add(x, ops.features(self.cfg.hidden, self.cfg.values))
        return x

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the last layer norm."""
        ops.hidden(ops.layer_normed(x, w["placed_norm"], w["placed_norm_bias"], LAYER_EPS))


def _named(name: str, cut: Callable[[str], Cut] | None = None) -> tuple[str | Cut, ...]:
    """Return what published safetensors call a tensor, and what transformers does; or cuts of these."""
    names = f"{HUB}.{name}", f"{NEW}.{name}"
    return names if cut is None else tuple(map(cut, names))


def _by_axis(values: F32) -> F32:
    """Lay the table of columns before that of rows; safetensors have both for each place."""
    return values.swapaxes(0, 1).ravel()


TOWER = Tower(
    name="gemma4_unified",
    projectors=("gemma4uv",),
    model_types=("gemma4_unified",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(),
    layer=lambda cfg, i: (),
    ends=UnifiedEnds,
    merger=Gemma4Merger,
    plan=plan,
    rows=rows,
    positions=positions,
    join=lambda cfg, plan, leaving: leaving,
    mark=MARK,
    written=MARK,
    spelled=SPELLED,
    span_rows=lambda cfg, budget: most_rows(cfg.most, budget),
    hf_layers=f"{HUB}.layers",
    hf_name=names_under(f"{HUB}.", f"{NEW}."),
)
