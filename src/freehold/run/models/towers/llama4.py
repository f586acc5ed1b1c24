"""The tower of Llama 4: a ViT with a class row over square tiles of a picture in its own aspect, and over the whole.

A picture gets a canvas of 1 to 16 tiles: the least that it fits without being shrunk, or else the one that shrinks it
least. Within it the picture keeps its aspect, is not enlarged beyond a tile's side, and has black to its right and
below. Where there is more than one tile, the whole picture as a tile comes last, its aspect changed. Bytes become
values in bfloat16. Each tile attends within itself, its class row last. Positions are learned, and a rope turns
adjacent pairs: the first half by the column, the second by the row, both from 1 on, the class row not at all. The class
row is left out after a norm, blocks of 2 x 2 patches are laid side by side, and pass two matrices, the exact GELU after
each, and a third.
A prompt has marks between tiles of a row, after each row of them, before the whole, and around all. GGUFs hold the
weights as safetensors do; they do not state the first two matrices' widths, nor how many tiles there may be.
Sources: Meta's code and cards of April 2025, arXiv 2010.11929 (ViT), 2104.09864 (rope).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.rope import MAX_BASE, RopeTable
from freehold.run.models.config.sizes import check_width
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.vision import CHANNELS, PictureAttention, PictureMlp, block_patches, tiles_of
from freehold.run.models.tower import (
    F32,
    U8,
    Merger,
    PicturePlan,
    PixelForm,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    TowerSizes,
    check_gguf_act,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    layer_norm,
    names_under,
    raster_places,
)
from freehold.run.pictures.opening import Resize

MAX_PATCH, MAX_SIDE, MAX_TILES = 256, 4096, 64
TILES = 16  # where a file does not say
BASE = 10_000.0  # of the rope
EPS = 1e-5  # of all norms, whatever a file says
MARK, ROW = "<|image|>", "<|patch|>"
BEFORE, AFTER, BESIDE, BELOW = (
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)
_UP, _DOWN = "mm.model.mlp.1.weight", "mm.model.mlp.2.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4TowerSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    merge: int  # patches of a block's side
    tile: int  # pixels of a tile's side
    most: int  # tiles of a picture, without the whole
    fills: bool  # whether a picture is enlarged as far as tiles allow
    wide: int  # width between the first two matrices after the layers, and between the second and the third
    base: float  # of the rope

    def __post_init__(self) -> None:
        super(Llama4TowerSizes, self).__post_init__()
        self.check_turned()
        check_width("projector's MLP", self.wide)
        if not self.grid or self.tile % self.patch or self.grid % self.merge:
            raise UnsupportedModel(
                f"a tile of {self.tile} pixels has {self.tile / self.patch:g} patches a side; "
                f"expected a multiple of {self.merge}"
            )

    @property
    def grid(self) -> int:
        """Patches of a tile's side."""
        return self.tile // self.patch

    @property
    def rows(self) -> int:
        """Rows that the tower computes of a tile, the class row among them."""
        return self.grid**2 + 1

    @property
    def tokens(self) -> int:
        """Rows that the text model reads of a tile."""
        return (self.grid // self.merge) ** 2

    @property
    def joined(self) -> int:
        """Width of a block's patches side by side."""
        return self.hidden * self.merge**2


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> Llama4TowerSizes:
    """Read config.json of a Llama4ForConditionalGeneration and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    vision.require("hidden_act", ("gelu",), "gelu")
    vision.require("vision_feature_select_strategy", ("default",), "default")
    vision.refuse("multi_modal_projector_bias", "a bias on the projector")
    if vision.integer("num_channels", 1, 1024, CHANNELS) != CHANNELS:
        raise UnsupportedModel(f"num_channels is {vision.get('num_channels')}; only {CHANNELS} are supported")
    hidden = vision.integer("hidden_size", 1, MAX_WIDTH, 768)
    rope = vision.section("rope_parameters") or vision
    rope.require("rope_type", ("axial", "default"), "axial")
    tile = vision.integer("image_size", 1, MAX_SIDE, 448)
    _check_tile(settings, tile)
    return Llama4TowerSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 34),
        hidden=hidden,
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 16),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 5632),
        out=text.integer("hidden_size", 1, MAX_WIDTH, 5120),
        eps=EPS,
        pixels=hf_pixel_form(settings.assuming(resample=2)),
        patch=vision.integer("patch_size", 1, MAX_PATCH, 14),
        merge=_merge(vision),
        tile=tile,
        most=settings.integer("max_patches", 1, MAX_TILES, TILES),
        fills=settings.flag("resize_to_max_canvas", False),
        wide=_projector_width(vision),
        base=rope.number("rope_theta", 1.001, MAX_BASE, BASE),
    )


def _check_tile(settings: Fields, tile: int) -> None:
    size = settings.section("size") or Fields({})
    for key in ("height", "width"):
        if size.integer(key, 1, MAX_SIDE, tile) != tile:
            raise UnsupportedModel(f"size.{key} is {size.get(key)} for pixels, and image_size {tile}")


def _merge(vision: Fields) -> int:
    """Return how many patches of a block's side `pixel_shuffle_ratio` joins."""
    ratio = vision.number("pixel_shuffle_ratio", 1 / MAX_PATCH, 1.0, 0.5)
    if abs(1 / ratio - round(1 / ratio)) > 1e-6:
        raise UnsupportedModel(f"pixel_shuffle_ratio is {ratio}; only one over a whole number is supported")
    return round(1 / ratio)


def _projector_width(vision: Fields) -> int:
    """Return the width of the projector's MLP, which three keys state."""
    assumed = {"projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 7680}
    widths = {key: vision.integer(key, 1, MAX_WIDTH, width) for key, width in assumed.items()}
    if len({*widths.values()}) > 1:
        stated = ", ".join(f"{key} {width:,}" for key, width in widths.items())
        raise BadModelFile(
            f"the projector's widths differ ({stated}); the matrices of one cannot follow another's"
        )
    return widths["projector_input_dim"]


def config_from_gguf(meta: Fields) -> Llama4TowerSizes:
    """Read the keys under `clip.`."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    form = gguf_pixel_form(vision)
    return Llama4TowerSizes(
        **gguf_tower_sizes(meta, EPS),
        pixels=PixelForm(form.mean, form.deviation, "bilinear"),
        patch=vision.integer("patch_size", 1, MAX_PATCH),
        merge=vision.integer("projector.scale_factor", 1, MAX_PATCH, 2),
        tile=vision.integer("image_size", 1, MAX_SIDE),
        most=vision.integer("preproc_max_tiles", 1, MAX_TILES, TILES),
        fills=False,
        wide=meta.integer("projector.width", 1, MAX_WIDTH),
        base=BASE,
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: Llama4TowerSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes; a budget makes its tiles fewer."""
    most = cfg.most if budget is None else _tiles_within(cfg, budget)
    columns, rows = canvas(cfg, width, height, most)
    wide, high = _fitted(cfg, width, height, columns * cfg.tile, rows * cfg.tile)
    kind = cfg.pixels.filter
    resizes = [(Resize(wide, high, kind),)]
    if columns * rows > 1:
        resizes.append((Resize(cfg.tile, cfg.tile, kind),))
    tiles = _with_whole(columns * rows)
    return PicturePlan(
        resizes=tuple(resizes),
        patches=tiles * cfg.rows,
        tokens=tiles * cfg.tokens,
        layout=_layout(columns, rows, cfg.tokens),
        places=None,
        advance=tiles * cfg.tokens,
    )


def canvas(cfg: Llama4TowerSizes, width: int, height: int, most: int) -> tuple[int, int]:
    """Return columns and rows of a picture's tiles: by float32 quotients, as the model's processor divides."""
    counts = np.array([(w, h) for w in range(1, most + 1) for h in range(1, most // w + 1)], np.float32)
    fits = (counts * np.float32(cfg.tile)) / np.array([width, height], np.float32)
    scales = fits.min(axis=1)
    larger = scales[scales >= 1]
    if len(larger):
        scale = larger.max() if cfg.fills else larger.min()
    else:
        scale = scales.max()
    chosen = counts[scales == scale]
    columns, rows = chosen[np.argmin(chosen.prod(axis=1))].astype(int).tolist()
    return columns, rows


def _fitted(cfg: Llama4TowerSizes, width: int, height: int, wide: int, high: int) -> tuple[int, int]:
    """Return a picture's size on a canvas, its aspect kept; enlarged to a tile's side at most unless it `fills`."""
    if not cfg.fills:
        wide, high = min(max(width, cfg.tile), wide), min(max(height, cfg.tile), high)
    by_width, by_height = wide / width, high / height
    if by_width < by_height:
        return wide, max(min(math.floor(height * by_width), high), 1)
    return max(min(math.floor(width * by_height), wide), 1), high


def _with_whole(tiles: int) -> int:
    return tiles + (tiles > 1)


def _tiles_within(cfg: Llama4TowerSizes, budget: TokenBudget) -> int:
    """Return how many tiles a budget allows beside the whole."""
    budget = budget.checked(_with_whole(cfg.most) * cfg.tokens)
    for tiles in range(cfg.most, 0, -1):
        if _with_whole(tiles) * cfg.tokens <= budget.most:
            return tiles
    raise UsageError(
        f"a picture may become {budget.most:,} tokens; this model makes {cfg.tokens:,} of one at least",
        f"allow {cfg.tokens:,} or more",
    )


def _layout(columns: int, rows: int, count: int) -> tuple[int | str, ...]:
    row: list[int | str] = [count, BESIDE] * columns
    tiles = (*row[:-1], BELOW) * rows if columns * rows > 1 else ()
    return (BEFORE, *tiles, MARK, count, AFTER)


def rows(cfg: Llama4TowerSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return of each tile its patches block by block, and a row of zeros for the class."""
    values = np.zeros((plan.patches // cfg.rows, cfg.rows, CHANNELS * cfg.patch**2), np.float32)
    table = byte_values(cfg.pixels)
    for row, shown in zip(values, _tiles(cfg, plan, pixels), strict=True):
        row[:-1] = block_patches(table[shown, np.arange(CHANNELS)], cfg.patch, cfg.merge)
    places = (raster_places(cfg.grid, cfg.grid) + np.array([0, 1, 1], np.int32)).reshape(
        cfg.grid, cfg.grid, 3
    )
    tile = np.concatenate([in_blocks(places, cfg.merge), np.zeros((1, 3), np.int32)])
    return TowerRows(
        values.reshape(plan.patches, -1), (cfg.rows,) * len(values), np.tile(tile, (len(values), 1))
    )


def byte_values(form: PixelForm) -> F32:
    """Return what each byte of each colour becomes, [256, 3]: every step rounded to bfloat16."""
    scaled = _bfloat16(np.arange(256, dtype=np.float32) * np.float32(1 / 255))[:, None]
    mean, deviation = (_bfloat16(np.array(each, np.float32)) for each in (form.mean, form.deviation))
    return _bfloat16(_bfloat16(scaled - mean) / deviation)


def _bfloat16(values: F32) -> F32:
    """Round to the nearest bfloat16, halves to even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def _tiles(cfg: Llama4TowerSizes, plan: PicturePlan, pixels: Sequence[U8]) -> Iterator[U8]:
    """Yield the tiles of a picture's canvas row by row, and the whole."""
    picture, *whole = pixels
    count = plan.patches // cfg.rows - len(whole)
    high = plan.layout.count(BELOW) or 1
    padded = np.zeros((high * cfg.tile, count // high * cfg.tile, CHANNELS), np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    yield from tiles_of(padded, cfg.tile)
    yield from whole


def positions(cfg: Llama4TowerSizes, plan: PicturePlan, w: Values) -> F32:
    """Return what is added to each patch, and the class row, of all tiles: float32 [patches, hidden]."""
    table = w["positions"].reshape(cfg.rows, cfg.hidden)
    patches = in_blocks(table[:-1].reshape(cfg.grid, cfg.grid, cfg.hidden), cfg.merge)
    tile = np.concatenate([patches, table[-1:] + w["class_row"]])
    return np.tile(tile, (plan.patches // cfg.rows, 1))


def join(cfg: Llama4TowerSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Leave the class rows out, and lay the patches of a block side by side: [tokens, joined]."""
    patches = leaving.reshape(-1, cfg.rows, cfg.hidden)[:, :-1]
    return patches.reshape(plan.tokens, cfg.joined)


def rope(cfg: Llama4TowerSizes) -> RopeTable:
    """Return the table of a head: its first pairs turn by the column, as many more by the row."""
    half = cfg.head // 2
    freq = cfg.base ** -(np.arange(0, half, 2, dtype=np.float64) / half)
    axes: NDArray[np.uint8] = np.repeat(np.array([2, 1], np.uint8), len(freq))
    return RopeTable(np.tile(freq, 2).astype(np.float32), 1.0, True, axes)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Llama4Ends(TowerEnds):
    """Patches, positions, the class row and a norm before the first layer; a norm after the last."""

    cfg: Llama4TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, the class row, the positions and two norms."""
        cfg, n = self.cfg, self.cfg.hidden
        names = "v.position_embd.weight", "vision_model.positional_embedding_vlm"
        table = [Cut(name, (cfg.rows, n), take=np.ravel) for name in names]
        patches = "v.patch_embd.weight", "vision_model.patch_embedding.linear.weight"
        return {
            "patches": matrix(*patches, n, CHANNELS * cfg.patch**2, floats=True),
            "class_row": vector("v.class_embd", "vision_model.class_embedding", n),
            "positions": vector(table[0], table[1], cfg.rows * n),
            **layer_norm("first_norm", "v.pre_ln", "vision_model.layernorm_pre", n),
            **layer_norm("norm", "v.post_ln", "vision_model.layernorm_post", n),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product, add their positions, and norm the sum."""
        pixels = CHANNELS * self.cfg.patch**2
        (x,) = ops.linear(ops.features(pixels), (w["patches"],), (None,))
        ops.add(x, ops.features(self.cfg.hidden, pixels))
        return ops.layer_normed(x, w["first_norm"], w["first_norm_bias"], self.cfg.eps)

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the norm."""
        ops.hidden(ops.layer_normed(x, w["norm"], w["norm_bias"], self.cfg.eps))


@dataclass(frozen=True, slots=True)
class Llama4Merger(Merger):
    """out(gelu(down(gelu(up x))))."""

    cfg: Llama4TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare three matrices."""
        cfg, hf = self.cfg, "vision_model.vision_adapter.mlp"
        last = "mm.model.fc.weight", "multi_modal_projector.linear_1.weight"
        return {
            "merger_up": matrix(_UP, f"{hf}.fc1.weight", cfg.wide, cfg.joined),
            "merger_down": matrix(_DOWN, f"{hf}.fc2.weight", cfg.wide, cfg.wide),
            "merger_out": matrix(*last, cfg.out, cfg.wide),
        }

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose the products; a run may pause between them."""
        x = ops.features(self.cfg.joined)
        for key in ("merger_up", "merger_down"):
            x = ops.linear_act(x, w[key], "gelu_erf")
            ops.section()
        (y,) = ops.linear(x, (w["merger_out"],), (None,))
        ops.hidden(y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4PictureMlp(PictureMlp):
    """An MLP whose norm has another name in GGUFs that were made after Gemma 4 appeared."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and two matrices."""
        specs = super(Llama4PictureMlp, self).tensors()
        for key, end in (("mlp_norm", "weight"), ("mlp_norm_bias", "bias")):
            specs[key] = replace(specs[key], gguf=(*specs[key].gguf, f"attn_post_norm.{end}"))
        return specs


def layer(cfg: Llama4TowerSizes, i: int) -> tuple[LayerPart, ...]:
    attention = PictureAttention.of(cfg, norm="input_layernorm", out="self_attn.o_proj")
    return attention, Llama4PictureMlp.of(cfg, "gelu_erf", norm="post_attention_layernorm")


TOWER = Tower(
    name="llama4",
    projectors=("llama4",),
    model_types=("llama4",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PictureAttention, Llama4PictureMlp),
    layer=layer,
    ends=Llama4Ends,
    merger=Llama4Merger,
    rope=rope,
    plan=plan,
    rows=rows,
    positions=positions,
    join=join,
    mark=MARK,
    row=ROW,
    hf_layers="vision_model.model.layers",
    hf_name=names_under("vision_model.", "multi_modal_projector."),
    rows_of={"projector.width": _UP},
)
