"""The tower of SmolVLM, SmolVLM2 and Idefics3: SigLIP over square tiles of a picture and over the whole of it.

A picture's longer side becomes `longest` pixels, then both sides multiples of a tile's: each time by Lanczos. Tiles are
read row by row, and after them the whole picture as one more tile; a picture of a single tile has no other. Each tile
attends within itself. Positions are learned, one for each patch of a square; layers have layer norms, biases and GELU.
After the last norm, blocks of `merge` x `merge` patches are laid side by side and pass one matrix without bias.
A prompt has marks around each tile's rows. A GGUF may name another mark, `freehold.mark`, for a text model without
these tokens: rows have no marks around them then.
Sources: arXiv 2504.05299 (SmolVLM), 2408.12637 (Idefics3), 2303.15343 (SigLIP), 2307.06304 (positions by fractions).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import LayerPart, Ops, TensorSpec, Values, matrix
from freehold.run.models.parts.vision import (
    CHANNELS,
    PictureAttention,
    PictureMlp,
    SiglipEnds,
    block_patches,
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
    check_gguf_act,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    names_under,
)
from freehold.run.pictures.opening import Resize

MAX_PATCH, MAX_TILE = 256, 4096
MAX_EDGE = 4096  # pixels of a side after the first resize, whatever a file says
TILES = 4  # a side's tiles at most, where a file does not say
EPS = 1e-6
MARK, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
_ACTS = {"gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}
_LANCZOS = 1  # as Pillow numbers filters


@dataclass(frozen=True, slots=True, kw_only=True)
class SmolTowerSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    merge: int  # patches of a block's side
    side: int  # of the grid of learned positions
    tile: int  # pixels of a tile's side
    longest: int  # pixels of a picture's longer side, before it is cut
    cuts: bool  # whether it is cut at all; else the whole is one tile
    act: str  # of the MLPs

    def __post_init__(self) -> None:
        super(SmolTowerSizes, self).__post_init__()
        if self.grid % self.merge or not self.grid:
            raise UnsupportedModel(
                f"a tile of {self.tile} pixels has {self.grid} patches a side; expected a multiple of {self.merge}"
            )

    @property
    def grid(self) -> int:
        """Patches of a tile's side; pixels that are left over are not read."""
        return self.tile // self.patch

    @property
    def rows_of_tile(self) -> int:
        """Rows that the text model reads of a tile."""
        return (self.grid // self.merge) ** 2

    @property
    def joined(self) -> int:
        """Width of a block's patches side by side."""
        return self.hidden * self.merge**2


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> SmolTowerSizes:
    """Read config.json and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    patch = vision.integer("patch_size", 1, MAX_PATCH, 32)
    image = vision.integer("image_size", 1, MAX_TILE, 224)
    if vision.integer("num_channels", 1, 1024, CHANNELS) != CHANNELS:
        raise UnsupportedModel(f"num_channels is {vision.get('num_channels')}; only {CHANNELS} are supported")
    vision.require("hidden_act", tuple(_ACTS), "gelu_pytorch_tanh")
    tile = _edge(settings, "max_image_size", MAX_TILE, image)
    return SmolTowerSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 12),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 1152),
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 16),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 3072),
        out=text.integer("hidden_size", 1, MAX_WIDTH, 4096),
        eps=vision.number("layer_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixel_form(settings.assuming(resample=_LANCZOS)),
        patch=patch,
        merge=config.integer("scale_factor", 1, MAX_PATCH, 2),
        side=max(image // patch, 1),
        tile=tile,
        longest=_edge(settings, "size", MAX_TILE * MAX_PATCH, TILES * tile),
        cuts=settings.flag("do_image_splitting", True),
        act=_ACTS[vision.text("hidden_act", "gelu_pytorch_tanh")],
    )


def _edge(settings: Fields, key: str, most: int, assumed: int) -> int:
    size = settings.section(key)
    return assumed if size is None else size.integer("longest_edge", 1, most)


def config_from_gguf(meta: Fields) -> SmolTowerSizes:
    """Read the keys under `clip.`; a tile is as large as the square of the learned positions."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    patch = vision.integer("patch_size", 1, MAX_PATCH)
    tile = vision.integer("image_size", 1, MAX_TILE)
    return SmolTowerSizes(
        **gguf_tower_sizes(meta, EPS),
        pixels=replace(gguf_pixel_form(vision), filter="lanczos"),
        patch=patch,
        merge=vision.integer("projector.scale_factor", 1, MAX_PATCH),
        side=max(tile // patch, 1),
        tile=tile,
        longest=vision.integer("preproc_image_size", 1, MAX_TILE * MAX_PATCH, TILES * tile),
        cuts=True,
        act="gelu",
        mark=Fields(meta.values).text("freehold.mark", ""),
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: SmolTowerSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes; a budget makes its longer side shorter, by whole tiles."""
    if budget is None:
        return _plan(cfg, width, height, cfg.longest if cfg.cuts else 0)
    most = (math.ceil(min(cfg.longest, MAX_EDGE) / cfg.tile) ** 2 + 1) * cfg.rows_of_tile
    budget = budget.checked(most)
    for longest in _edges(cfg):
        cut = _plan(cfg, width, height, longest)
        if cut.tokens <= budget.most:
            return cut
    raise UsageError(
        f"a picture may become {budget.most:,} tokens; this model makes {cfg.rows_of_tile:,} of one at least",
        f"allow {cfg.rows_of_tile:,} or more",
    )


def _edges(cfg: SmolTowerSizes) -> Iterator[int]:
    """Yield the longer sides that a budget may choose from, the greatest first; 0: it is not cut."""
    if cfg.cuts:
        yield cfg.longest
        yield from range((cfg.longest - 1) // cfg.tile * cfg.tile, cfg.tile, -cfg.tile)
    yield 0


def _plan(cfg: SmolTowerSizes, width: int, height: int, longest: int) -> PicturePlan:
    """Cut a picture whose longer side is `longest` into tiles; 0: squeeze it into one."""
    kind = cfg.pixels.filter
    first = Resize(*_scaled(width, height, longest or cfg.longest), kind)
    one = Resize(cfg.tile, cfg.tile, kind)
    whole = Resize(*_in_tiles(first, cfg.tile), kind) if longest else one
    rows, columns = whole.height // cfg.tile, whole.width // cfg.tile
    single = whole == one
    count = 1 if single else rows * columns + 1
    return PicturePlan(
        resizes=((first, whole),) if single else ((first, whole), (first, whole, one)),
        patches=count * cfg.grid**2,
        tokens=count * cfg.rows_of_tile,
        layout=_layout(cfg, 0 if single else rows, columns),
        places=None,
        advance=count * cfg.rows_of_tile,
    )


def _scaled(width: int, height: int, longest: int) -> tuple[int, int]:
    """Return width and height with `longest` as the longer side; the other is even, as transformers has it."""
    ratio = width / height
    other = _other(longest, ratio)
    wide, high = _sides(longest, max(other + other % 2, 1), ratio)
    if max(wide, high) <= MAX_EDGE:
        return wide, high
    ratio = wide / high
    return _sides(MAX_EDGE, max(_other(MAX_EDGE, ratio), 1), ratio)


def _in_tiles(size: Resize, tile: int) -> tuple[int, int]:
    """Return width and height as multiples of a tile's, the longer one first rounded up, the other after it."""
    ratio = size.width / size.height
    longer = math.ceil(max(size.width, size.height) / tile) * tile
    return _sides(longer, max(math.ceil(_other(longer, ratio) / tile), 1) * tile, ratio)


def _other(longer: int, ratio: float) -> int:
    """Return the shorter side; in transformers' order, whose roundings decide between two whole numbers."""
    return int(longer / ratio if ratio >= 1 else longer * ratio)


def _sides(longer: int, other: int, ratio: float) -> tuple[int, int]:
    return (longer, other) if ratio >= 1 else (other, longer)


def _layout(cfg: SmolTowerSizes, rows: int, columns: int) -> tuple[int | str, ...]:
    """Return what stands for a picture of `rows` x `columns` tiles and the whole; no rows: the whole alone."""
    count = cfg.rows_of_tile
    if cfg.mark:
        return ((rows * columns + 1) * count,)
    out: list[int | str] = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            out += [AROUND, f"<row_{row}_col_{column}>", count]
        out.append(
            "\n" if row < rows else "\n\n"
        )  # the second belongs to the whole, and both may be one token
    return (*out, AROUND, WHOLE, count, AROUND)


def rows(cfg: SmolTowerSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return the patches of all tiles block by block, their columns by colour, row and column."""
    tiles = [
        block_patches(cfg.pixels.values(tile), cfg.patch, cfg.merge)
        for picture in pixels
        for tile in tiles_of(picture, cfg.tile)
    ]
    return TowerRows(np.concatenate(tiles), (cfg.grid**2,) * len(tiles))


def positions(cfg: SmolTowerSizes, plan: PicturePlan, w: Values) -> F32:
    """Return each patch's learned position, by which fraction of the tile it lies at: float32 [patches, hidden]."""
    table = w["positions"].reshape(cfg.side, cfg.side, cfg.hidden)
    bucket = buckets(cfg.grid, cfg.side)
    tile = in_blocks(table[bucket[:, None], bucket], cfg.merge)
    return np.tile(tile, (plan.patches // len(tile), 1))


def buckets(grid: int, side: int) -> NDArray[np.int64]:
    """Return for each patch of a side which learned position of `side` it has: int64 [grid].

    By whole numbers. transformers compares float32, which in some counts that no published model has (19, 25, 29, ...)
    puts a patch into the bucket before; in which ones depends on the processor.
    """
    return np.arange(grid) * side // grid


def join(cfg: SmolTowerSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side, row by row: [tokens, joined]."""
    return leaving.reshape(plan.tokens, cfg.joined)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SmolMerger(Merger):
    """One matrix over a block's patches."""

    cfg: SmolTowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the matrix."""
        names = "mm.model.fc.weight", "connector.modality_projection.proj.weight"
        return {"merger": matrix(*names, self.cfg.out, self.cfg.joined)}

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose the product."""
        (y,) = ops.linear(ops.features(self.cfg.joined), (w["merger"],), (None,))
        ops.hidden(y)


def ends(cfg: SmolTowerSizes) -> SiglipEnds:
    return SiglipEnds(hidden=cfg.hidden, patch=cfg.patch, side=cfg.side, eps=cfg.eps, module="vision_model")


def layer(cfg: SmolTowerSizes, i: int) -> tuple[LayerPart, ...]:
    return PictureAttention.of(cfg), PictureMlp.of(cfg, cfg.act, swapped=True)


TOWER = Tower(
    name="smolvlm",
    projectors=("idefics3",),
    model_types=("smolvlm", "idefics3"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PictureAttention, PictureMlp),
    layer=layer,
    ends=ends,
    merger=SmolMerger,
    plan=plan,
    rows=rows,
    positions=positions,
    join=join,
    mark=MARK,
    hf_layers="vision_model.encoder.layers",
    hf_name=names_under("vision_model.", "connector."),
)
