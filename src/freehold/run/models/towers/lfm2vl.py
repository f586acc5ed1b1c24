"""The tower of LFM2-VL: SigLIP 2 over a picture in its own aspect, and over square tiles of a large one.

A picture becomes blocks of 2 x 2 patches, 64 to 256 of them. One that would have more than twice as many pixels is
stretched to the grid of 2 to 10 tiles of 512 pixels whose shape is nearest to its own; after the tiles comes the whole
picture as above. Each attends within itself. Learned positions of a 16 x 16 grid are stretched over each (bilinear,
corners not aligned, the mean where they shrink); layers have layer norms, biases and GELU. After the last norm, blocks
are laid side by side and pass a norm, which some models lack, and two matrices with the exact GELU. A prompt has a mark
before each tile's rows, and one around all of a picture.
A GGUF does not state tiles and limits, nor the width between the two matrices.
Sources: the model cards of LFM2-VL (2025), arXiv 2502.14786 (SigLIP 2), 2303.15343 (SigLIP).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import Cut, LayerPart, Ops, TensorSpec, Values, matrix
from freehold.run.models.parts.blocks import fitted, gelu_between
from freehold.run.models.parts.vision import (
    CHANNELS,
    PictureAttention,
    PictureMlp,
    SiglipEnds,
    block_patches,
    nearest_grid,
    tiles_of,
)
from freehold.run.models.tower import (
    F32,
    U8,
    Merger,
    PicturePlan,
    TokenBudget,
    Tower,
    TowerRows,
    TowerSizes,
    affine,
    check_gguf_act,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    layer_norm,
)
from freehold.run.pictures.opening import Resize

MAX_PATCH, MAX_SIDE, MAX_TILES, MAX_TOKENS = 256, 4096, 64, 1 << 16
LEAST, MOST = (
    64,
    256,
)  # tokens of a picture that is not cut, where a file does not say; as are the numbers below
TILE = 512  # pixels of a tile's side
LEAST_TILES, MOST_TILES = 2, 10
TOLERANCE = 2.0  # how many times the most pixels a picture may have that is not cut
EPS, MERGER_EPS = 1e-6, 1e-5
MARK, BEFORE, AFTER, WHOLE = "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"
IMAGENET_MEAN, IMAGENET_DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_BILINEAR = 2  # as Pillow numbers filters


@dataclass(frozen=True, slots=True, kw_only=True)
class LfmTowerSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    merge: int  # patches of a block's side
    side: int  # of the grid of learned positions
    between: int  # width between the merger's two matrices
    normed: bool | None  # whether the merger begins with a norm; None: where the file has one
    biased: bool  # whether its matrices have biases
    least: int  # tokens of a picture that is not cut
    most: int
    tile: int  # pixels of a tile's side
    least_tiles: int
    most_tiles: int  # 1: no picture is cut
    tolerance: float
    whole: bool  # whether the whole picture comes after its tiles

    def __post_init__(self) -> None:
        super(LfmTowerSizes, self).__post_init__()
        if self.tile % self.block:
            raise UnsupportedModel(
                f"a tile has {self.tile} pixels a side; expected a multiple of {self.block}, which a token takes"
            )
        for least, most, name in (
            (self.least, self.most, "tokens"),
            (self.least_tiles, self.most_tiles, "tiles"),
        ):
            if least > most and (name == "tokens" or most > 1):  # one tile: no picture is cut
                raise BadModelFile(
                    f"pictures have {least} {name} at least and {most} at most, by the model's files"
                )
        if self.most_tiles > 1 and self.least_tiles < 2:
            raise UnsupportedModel("min_tiles is 1, where a picture may have more; 2 and more are supported")

    @property
    def block(self) -> int:
        """Pixels of a block's side: one token."""
        return self.patch * self.merge

    @property
    def joined(self) -> int:
        """Width of a block's patches side by side."""
        return self.hidden * self.merge**2

    @property
    def tokens_of_tile(self) -> int:
        """Rows that the text model reads of a tile."""
        return (self.tile // self.block) ** 2


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> LfmTowerSizes:
    """Read config.json and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    patch = vision.integer("patch_size", 1, MAX_PATCH, 16)
    merge = config.integer("downsample_factor", 1, MAX_PATCH, 2)
    for key, value in (("encoder_patch_size", patch), ("downsample_factor", merge)):
        if settings.integer(key, 1, MAX_PATCH, value) != value:
            raise BadModelFile(f"{key} is {settings.get(key)} for pixels, and {value} in config.json")
    _check_hf(config, vision)
    places = vision.integer("num_patches", 1, MAX_SIDE**2, 256)
    if (side := int(places**0.5)) ** 2 != places:
        raise BadModelFile(f"num_patches is {places}; expected the square of a number")
    cuts = settings.flag("do_image_splitting", True)
    return LfmTowerSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 12),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 768),
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 12),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 3072),
        out=text.integer("hidden_size", 1, MAX_WIDTH, 2560),
        eps=vision.number("layer_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixel_form(
            settings.assuming(resample=_BILINEAR, image_mean=IMAGENET_MEAN, image_std=IMAGENET_DEVIATION)
        ),
        patch=patch,
        merge=merge,
        side=side,
        between=config.integer("projector_hidden_size", 1, MAX_WIDTH, 2560),
        normed=config.flag("projector_use_layernorm", True),
        biased=config.flag("projector_bias", True),
        least=settings.integer("min_image_tokens", 1, MAX_TOKENS, LEAST),
        most=settings.integer("max_image_tokens", 1, MAX_TOKENS, MOST),
        tile=settings.integer("tile_size", 1, MAX_SIDE, TILE),
        least_tiles=settings.integer("min_tiles", 1, MAX_TILES, LEAST_TILES),
        most_tiles=settings.integer("max_tiles", 1, MAX_TILES, MOST_TILES) if cuts else 1,
        tolerance=settings.number("max_pixels_tolerance", 0.0, 1e6, TOLERANCE),
        whole=settings.flag("use_thumbnail", True),
    )


def _check_hf(config: Fields, vision: Fields) -> None:
    """Raise UnsupportedModel for what no published model of this class has."""
    vision.require("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    config.require("projector_hidden_act", ("gelu",), "gelu")
    if vision.integer("num_channels", 1, 1024, CHANNELS) != CHANNELS:
        raise UnsupportedModel(f"num_channels is {vision.get('num_channels')}; only {CHANNELS} are supported")
    if config.integer("vision_feature_layer", -MAX_LAYERS, MAX_LAYERS, -1) != -1:
        raise UnsupportedModel("vision_feature_layer is not -1; only the last layer's rows are supported")


def config_from_gguf(meta: Fields) -> LfmTowerSizes:
    """Read the keys under `clip.`, and those of tiles and limits where a file has them."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    patch = vision.integer("patch_size", 1, MAX_PATCH)
    merge = vision.integer("projector.scale_factor", 1, MAX_PATCH, 2)
    area = (patch * merge) ** 2
    return LfmTowerSizes(
        **gguf_tower_sizes(meta, EPS),
        pixels=replace(gguf_pixel_form(vision), filter="bilinear"),
        patch=patch,
        merge=merge,
        side=max(vision.integer("image_size", 1, MAX_SIDE) // patch, 1),
        between=meta.integer("projector.width", 1, MAX_WIDTH),  # Tower.rows_of
        normed=None,
        biased=True,
        least=max(vision.integer("image_min_pixels", 1, MAX_TOKENS * area, LEAST * area) // area, 1),
        most=max(vision.integer("image_max_pixels", 1, MAX_TOKENS * area, MOST * area) // area, 1),
        tile=vision.integer("preproc_image_size", 1, MAX_SIDE, TILE),
        least_tiles=vision.integer("preproc_min_tiles", 1, MAX_TILES, LEAST_TILES),
        most_tiles=vision.integer("preproc_max_tiles", 1, MAX_TILES, MOST_TILES),
        tolerance=TOLERANCE,
        whole=True,
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: LfmTowerSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes; a budget makes its tiles fewer, then the whole smaller."""
    least, most, tiles = cfg.least, cfg.most, cfg.most_tiles
    if budget is not None:
        budget = budget.checked(cfg.most + (tiles * cfg.tokens_of_tile if tiles > 1 else 0))
        least, most = min(budget.least, cfg.most), min(budget.most, cfg.most)
        tiles = min(tiles, (budget.most - most) // cfg.tokens_of_tile)
    area, kind = cfg.block**2, cfg.pixels.filter
    whole = Resize(*fitted(width, height, cfg.block, least * area, most * area, shortest=cfg.block), kind)
    tokens = whole.width * whole.height // area
    if not cfg.least_tiles <= tiles or tiles < 2 or not _is_large(cfg, width, height):
        return _planned(cfg, ((whole,),), tokens, (BEFORE, tokens, AFTER))
    columns, rows = nearest_grid(width, height, cfg.tile, cfg.least_tiles, tiles)
    resizes = [(Resize(columns * cfg.tile, rows * cfg.tile, kind),)]
    layout: list[int | str] = [BEFORE]
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            layout += [f"<|img_row_{row}_col_{column}|>", cfg.tokens_of_tile]
    count = columns * rows * cfg.tokens_of_tile
    if cfg.whole:
        resizes.append((whole,))
        layout += [WHOLE, tokens]
        count += tokens
    return _planned(cfg, tuple(resizes), count, (*layout, AFTER))


def _is_large(cfg: LfmTowerSizes, width: int, height: int) -> bool:
    """Whether a picture of this size is cut."""
    wide, high = (max(cfg.patch, round(side / cfg.block) * cfg.block) for side in (width, height))
    return wide * high > cfg.most * cfg.block**2 * cfg.tolerance


def _planned(
    cfg: LfmTowerSizes, resizes: tuple[tuple[Resize, ...], ...], tokens: int, layout: tuple[int | str, ...]
) -> PicturePlan:
    patches = tokens * cfg.merge**2
    return PicturePlan(resizes, patches, tokens, layout, None, tokens)


def _is_cut(plan: PicturePlan) -> bool:
    return isinstance(plan.layout[1], str)  # the mark of a tile


def _grids(cfg: LfmTowerSizes, plan: PicturePlan) -> Iterator[tuple[int, int]]:
    """Yield of each part that attends within itself how many rows and columns of patches it has."""
    for i, steps in enumerate(plan.resizes):
        high, wide = (side // cfg.patch for side in (steps[-1].height, steps[-1].width))
        side = cfg.tile // cfg.patch
        if i == 0 and _is_cut(plan):
            yield from [(side, side)] * (high * wide // side**2)
        else:
            yield high, wide


def rows(cfg: LfmTowerSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return the patches of all tiles and of the whole block by block."""
    parts = [*tiles_of(pixels[0], cfg.tile), *pixels[1:]] if _is_cut(plan) else pixels
    values = [block_patches(cfg.pixels.values(part), cfg.patch, cfg.merge) for part in parts]
    groups = tuple(high * wide for high, wide in _grids(cfg, plan))
    return TowerRows(np.concatenate(values), groups)


def positions(cfg: LfmTowerSizes, plan: PicturePlan, w: Values) -> F32:
    """Return each patch's place in the grid of learned positions: float32 [patches, hidden]."""
    table = w["positions"].reshape(cfg.side, cfg.side, cfg.hidden)
    grids = list(_grids(cfg, plan))
    places = {grid: in_blocks(stretched(table, *grid), cfg.merge) for grid in {*grids}}
    return np.concatenate([places[grid] for grid in grids])


def stretched(table: F32, rows: int, columns: int) -> F32:
    """Return a grid of vectors, [side, side, width], as one of other sides: float32 [rows, columns, width]."""
    high, wide, width = table.shape
    by_row = (shares(high, rows) @ table.reshape(high, -1)).reshape(rows, wide, width)
    return np.matmul(shares(wide, columns), by_row)


def shares(side: int, count: int) -> NDArray[np.float32]:
    """Return how much of `side` places each of `count` has, float32 [count, side]: of near ones more, one in all."""
    by = side / count
    centres = (np.arange(count) + 0.5) * by - 0.5
    far = np.abs(np.arange(side) - centres[:, None])
    weights = np.maximum(1 - far / max(by, 1), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def join(cfg: LfmTowerSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side: [tokens, joined]."""
    return leaving.reshape(plan.tokens, cfg.joined)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearEnds(SiglipEnds):
    """SigLIP's ends, whose patches' matrix safetensors hold by row, column and colour, and a GGUF as a convolution."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, the positions and a norm."""
        n, patch = self.hidden, self.patch
        pixels = CHANNELS * patch**2
        gguf = Cut("v.patch_embd.weight", (n, CHANNELS, patch, patch), take=lambda v: v.reshape(n, -1))
        hf = Cut(
            f"{self.module}.embeddings.patch_embedding.weight",
            (n, pixels),
            take=lambda v: v.reshape(n, patch, patch, CHANNELS).transpose(0, 3, 1, 2).reshape(n, -1),
        )
        return super(LinearEnds, self).tensors() | {"patches": matrix(gguf, hf, n, pixels, floats=True)}


@dataclass(frozen=True, slots=True)
class LfmMerger(Merger):
    """down(gelu(up n)) of joined rows, n their layer norm, or they themselves."""

    cfg: LfmTowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm that may be missing, and two matrices."""
        cfg, hf = self.cfg, "multi_modal_projector"
        specs = affine("merger_up", "mm.1", f"{hf}.linear_1", cfg.between, cfg.joined)
        specs |= affine("merger_down", "mm.2", f"{hf}.linear_2", cfg.out, cfg.between)
        specs = {key: spec for key, spec in specs.items() if cfg.biased or not key.endswith("_bias")}
        if cfg.normed is False:
            return specs
        norm = layer_norm("merger_norm", "mm.input_norm", f"{hf}.layer_norm", cfg.joined)
        optional = cfg.normed is None
        norm = {key: replace(spec, optional=optional) for key, spec in norm.items()}
        norm["merger_norm_bias"] = replace(norm["merger_norm_bias"], beside="merger_norm")
        return norm | specs

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose norm and both matrices."""
        x = ops.features(self.cfg.joined)
        if "merger_norm" in w:
            x = ops.layer_normed(x, w["merger_norm"], w["merger_norm_bias"], MERGER_EPS)
        ops.hidden(gelu_between(ops, x, "merger", w))


def ends(cfg: LfmTowerSizes) -> LinearEnds:
    return LinearEnds(hidden=cfg.hidden, patch=cfg.patch, side=cfg.side, eps=cfg.eps, module="vision_tower")


def layer(cfg: LfmTowerSizes, i: int) -> tuple[LayerPart, ...]:
    return PictureAttention.of(cfg), PictureMlp.of(cfg, "gelu")


def hf_name(name: str) -> str:
    """Give the tower's names one form: older files put another module around it. The head over patches is not read."""
    own = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.", 1)
    if own.startswith("vision_tower.head."):
        return ""
    return own if own.startswith(("vision_tower.", "multi_modal_projector.")) else ""


TOWER = Tower(
    name="lfm2vl",
    projectors=("lfm2",),
    model_types=("lfm2_vl",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PictureAttention, PictureMlp),
    layer=layer,
    ends=ends,
    merger=LfmMerger,
    plan=plan,
    rows=rows,
    positions=positions,
    join=join,
    mark=MARK,
    hf_layers="vision_tower.encoder.layers",
    hf_name=hf_name,
    rows_of={"projector.width": "mm.1.weight"},
)
