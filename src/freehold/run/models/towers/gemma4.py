"""The tower of Gemma 4, all but 12B: pictures of any shape, enlarged or shrunk to a number of rows.

A picture keeps its shape, and is resized to the largest sides that a number of rows allows: one of BUDGETS. Positions
are two learned tables, of columns and of rows, and a rope whose first half of a head turns by the column, the second by
the row. Layers have RMS norms before and after each half, on queries and keys, and one without a weight on values;
scores are not scaled. Blocks of 3 x 3 patches become their mean, times sqrt(hidden), and are standardised by a mean and
a factor of each column, where a model has these; a norm without a weight and one matrix follow. In E2B and E4B four
numbers a matrix bound what enters and what leaves it. The text model sees the rows of a picture both ways in sliding
layers, but for E2B and E4B.
Source: Google's Gemma 4 files, and transformers' Gemma4VisionModel, read 2026-12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeTable
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.vision import HEADS_AT_ONCE
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
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    names_under,
    raster_places,
)
from freehold.run.pictures.opening import Filter, Resize

CHANNELS = 3
MAX_PATCH, MAX_TABLE = 256, 1 << 16
BUDGETS = (70, 140, 280, 560, 1120)  # rows that a picture becomes at most, as the models were trained
PATCH, POOL, ROWS, TABLE = 16, 3, 280, 10_240  # where a file does not say
EPS, BASE = 1e-6, 100.0
MARK = "<|image|>"
SPELLED = f"<|image>{MARK}<image|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4TowerSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    pool: int  # patches of a block's side
    table: int  # rows of each table of positions
    most: int  # rows that a picture becomes at most
    base: float
    standardised: bool | None  # None: as the file has it
    clipped: bool | None  # likewise: whether bounds stand beside matrices

    def __post_init__(self) -> None:
        super(Gemma4TowerSizes, self).__post_init__()
        if self.head % 4:
            raise UnsupportedModel(f"heads of {self.head} columns are no multiple of 4, as turns need")

    @property
    def block(self) -> int:
        """Pixels of a block's side."""
        return self.patch * self.pool

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes while it is computed, about: an MLP with a gate has its width twice."""
        return 8 * self.hidden + 2 * self.inner


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> Gemma4TowerSizes:
    """Read config.json and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    vision.require("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    vision.refuse("attention_bias", "a bias on attention")
    hidden = vision.integer("hidden_size", 1, MAX_WIDTH, 768)
    heads = vision.integer("num_attention_heads", 1, MAX_HEADS, 12)
    for key, own in (("num_key_value_heads", heads), ("head_dim", hidden // heads)):
        if vision.integer(key, 1, MAX_WIDTH, own) != own:
            raise UnsupportedModel(f"{vision.name(key)} is {vision.get(key)}; only {own} is supported there")
    rope = vision.section("rope_parameters") or Fields({})
    rope.require("rope_type", ("axial", "default"), "axial")
    patch, pool = hf_block(vision, settings)
    return Gemma4TowerSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 16),
        hidden=hidden,
        heads=heads,
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 3072),
        out=text.integer("hidden_size", 1, MAX_WIDTH, 2304),
        eps=vision.number("rms_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixels(settings),
        patch=patch,
        pool=pool,
        table=vision.integer("position_embedding_size", 1, MAX_TABLE, TABLE),
        most=hf_budget(settings),
        base=rope.number("rope_theta", 1.001, 1e12, BASE),
        standardised=vision.flag("standardize", False),
        clipped=vision.flag("use_clipped_linears", False),
    )


def hf_block(vision: Fields, settings: Fields) -> tuple[int, int]:
    """Read the pixels of a patch's side and the patches of a block's, on which both files agree."""
    patch = vision.integer("patch_size", 1, MAX_PATCH, PATCH)
    pool = vision.integer("pooling_kernel_size", 1, MAX_PATCH, POOL)
    for key, own in (("patch_size", patch), ("pooling_kernel_size", pool)):
        if settings.integer(key, 1, MAX_PATCH, own) != own:
            raise UnsupportedModel(f"{key} is {settings.get(key)} for pixels, and {own} in vision_config")
    return patch, pool


def hf_budget(settings: Fields) -> int:
    """Read how many rows a picture becomes at most where a request does not say: one of BUDGETS."""
    most = settings.integer("max_soft_tokens", 1, BUDGETS[-1], ROWS)
    if most not in BUDGETS:
        known = ", ".join(map(str, BUDGETS))
        raise UnsupportedModel(
            f"{settings.name('max_soft_tokens')} is {most}; Gemma 4 was trained with {known}"
        )
    return most


def hf_pixels(settings: Fields) -> PixelForm:
    """Read how bytes become values: from 0 to 1, which the tower moves to -1 to 1."""
    neutral = settings.get("image_mean") in (None, [0, 0, 0]) and settings.get("image_std") in (
        None,
        [1, 1, 1],
    )
    if settings.flag("do_normalize", False) and not neutral:
        raise UnsupportedModel("do_normalize is true with a mean or deviation, which is not supported")
    return hf_pixel_form(settings.without("do_normalize", "image_mean", "image_std"))


def config_from_gguf(meta: Fields) -> Gemma4TowerSizes:
    """Read the keys under `clip.`; a file does not say how many rows a picture may become."""
    vision = Fields(meta.values, meta.name("vision."))
    return Gemma4TowerSizes(
        **gguf_tower_sizes(meta, EPS),
        pixels=PixelForm(),
        patch=vision.integer("patch_size", 1, MAX_PATCH),
        pool=vision.integer("projector.scale_factor", 1, MAX_PATCH, POOL),
        table=TABLE,
        most=ROWS,
        base=BASE,
        standardised=None,
        clipped=None,
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: Gemma4TowerSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes: see `filled`."""
    return filled(width, height, most_rows(cfg.most, budget), cfg.block, cfg.pool**2, cfg.pixels.filter)


def most_rows(own: int, budget: TokenBudget | None) -> int:
    """Return the largest of BUDGETS within `budget`; `own` without one. Raises UsageError for none or more."""
    if budget is None:
        return own
    allowed = budget.checked(BUDGETS[-1]).most
    if allowed < BUDGETS[0]:
        raise UsageError(
            f"a picture may become {allowed:,} tokens; this model makes up to {BUDGETS[0]} of one at least",
            f"allow {BUDGETS[0]}, {', '.join(map(str, BUDGETS[1:-1]))} or {BUDGETS[-1]}",
        )
    return max(rows for rows in BUDGETS if rows <= allowed)


def filled(width: int, height: int, most: int, block: int, patches: int, filter: Filter) -> PicturePlan:
    """Return what a picture becomes: the largest sides of its shape that the rows allow, small pictures enlarged.

    `block`: pixels of a row's side; `patches`: rows of the tower for each. Raises UsageError for a picture without
    pixels.
    """
    if min(width, height) < 1:
        raise UsageError(f"the picture is {width} x {height} pixels", "send one that has some")
    wide, high = _blocks(width, height, most, block)
    tokens = wide * high
    return PicturePlan(
        resizes=((Resize(wide * block, high * block, filter),),),
        patches=tokens * patches,
        tokens=tokens,
        layout=(tokens,),
        places=None,
        advance=tokens,
    )


def _blocks(width: int, height: int, most: int, block: int) -> tuple[int, int]:
    """Return how many blocks a picture has in a row and in a column; one that is very long has one row of them."""
    factor = math.sqrt(most * block**2 / (width * height))
    wide, high = (math.floor(factor * side / block) for side in (width, height))
    if not high:
        return min(max(width // height, 1), most), 1
    if not wide:
        return 1, min(max(height // width, 1), most)
    return wide, high


def rows(cfg: Gemma4TowerSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return patches block by block, their columns by colour, row and column, and which place each has."""
    (picture,) = pixels
    wide, high = (side // cfg.patch for side in plan.size)
    patches = cfg.pixels.values(picture).reshape(high, cfg.patch, wide, cfg.patch, CHANNELS)
    grid = patches.transpose(0, 2, 4, 1, 3)
    values = in_blocks(grid, cfg.pool).reshape(plan.patches, -1)
    return TowerRows(values, (plan.patches,), in_blocks(_places(cfg, plan), cfg.pool))


def _places(cfg: Gemma4TowerSizes, plan: PicturePlan) -> NDArray[np.int32]:
    wide, high = (side // cfg.patch for side in plan.size)
    return raster_places(high, wide).reshape(high, wide, 3)


def positions(cfg: Gemma4TowerSizes, plan: PicturePlan, w: Values) -> F32:
    """Return the sum of each patch's two learned positions: float32 [patches, hidden]."""
    columns, lines = w["positions"].reshape(2, cfg.table, cfg.hidden)
    places = in_blocks(_places(cfg, plan), cfg.pool)
    if places.max(initial=0) >= cfg.table:
        raise UsageError(f"the picture has more than {cfg.table:,} patches a side", "send it smaller")
    return columns[places[:, 2]] + lines[places[:, 1]]


def join(cfg: Gemma4TowerSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Return the mean of each block's patches, scaled: float32 [tokens, hidden]."""
    mean = leaving.reshape(plan.tokens, cfg.pool**2, cfg.hidden).mean(axis=1, dtype=np.float32)
    return mean * np.float32(cfg.hidden**0.5)


def standardised(cfg: Gemma4TowerSizes, joined: F32, w: Values) -> F32:
    """Move and scale every column, where the model has means and factors for it."""
    if "std_bias" not in w:
        return joined
    return np.ascontiguousarray((joined - w["std_bias"]) * w["std_scale"])


def rope(cfg: Gemma4TowerSizes) -> RopeTable:
    """Return the table of a head: pairs of its first half turn by the column, those of its second by the row.

    Queries and keys are laid so that a pair's ends are half a head apart: `turned`.
    """
    freq = cfg.base ** -(np.arange(0, cfg.head // 2, 2, dtype=np.float64) / (cfg.head // 2))
    axes: NDArray[np.uint8] = np.repeat(np.array([2, 1], np.uint8), cfg.head // 4)
    return RopeTable(np.tile(freq, 2).astype(np.float32), 1.0, False, axes)


def turned(heads: int, head: int) -> NDArray[np.int64]:
    """Return the order of rows in which the second and third quarters of each head have changed places."""
    order = np.arange(heads * head, dtype=np.int64).reshape(heads, 4, head // 4)
    return np.ascontiguousarray(order[:, [0, 2, 1, 3]]).reshape(-1)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gemma4Ends(TowerEnds):
    """Patches and positions before the first layer; nothing after the last."""

    cfg: Gemma4TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, two tables of positions, and what standardises joined rows."""
        cfg, n, hf = self.cfg, self.cfg.hidden, "vision_tower"
        kernel = n, CHANNELS, cfg.patch, cfg.patch
        wide = CHANNELS * cfg.patch**2
        patches = (
            Cut("v.patch_embd.weight", kernel, take=lambda v: v.reshape(n, -1)),
            Cut(f"{hf}.patch_embedder.input_proj.weight", (n, wide), take=self._by_colour),
        )
        tables = [
            Cut(name, (2, cfg.table, n), take=np.ravel)
            for name in ("v.position_embd.weight", f"{hf}.patch_embedder.position_embedding_table")
        ]
        specs = {
            "patches": matrix(patches[0], patches[1], n, wide, floats=True),
            "positions": vector(tables[0], tables[1], 2 * cfg.table * n),
        }
        if cfg.standardised is not False:
            for key, other in (("bias", "scale"), ("scale", "bias")):
                names, maybe = (f"v.std_{key}", f"{hf}.std_{key}"), cfg.standardised is None
                specs[f"std_{key}"] = vector(
                    *names, n, optional=maybe, beside=f"std_{other}" if maybe else ""
                )
        return specs

    def _by_colour(self, values: F32) -> F32:
        """Lay columns by colour, row and column, which safetensors have by row, column and colour."""
        side = self.cfg.patch
        cube = values.reshape(-1, side, side, CHANNELS).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(cube).reshape(len(values), -1)

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product, and add their positions."""
        pixels = CHANNELS * self.cfg.patch**2
        (x,) = ops.linear(ops.features(pixels), (w["patches"],), (None,))
        ops.add(x, ops.features(self.cfg.hidden, pixels))
        return x

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Give the stream."""
        ops.hidden(x)


@dataclass(frozen=True, slots=True)
class Gemma4Merger(Merger):
    """A norm without a weight, and one matrix."""

    cfg: TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the matrix, which transformers names otherwise where there is no tower."""
        inner = ("embedding_projection", "multimodal_embedder.embedding_projection")
        hf = tuple(f"embed_vision.{name}.weight" for name in inner)
        return {"merger": matrix("mm.input_projection.weight", hf, self.cfg.out, self.cfg.hidden)}

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose norm and product."""
        ones = np.ones(self.cfg.hidden, np.float32)
        (y,) = ops.linear(ops.features(self.cfg.hidden), (w["merger"],), (None,), ones, self.cfg.eps)
        ops.hidden(y)


# Bounds of a matrix: of its inputs, least and greatest, then of what leaves it.
_SIDES = ("input_min", "input_max", "output_min", "output_max")


def bounds(clipped: bool | None, key: str, gguf: str, hf: str) -> dict[str, TensorSpec]:
    """Declare what bounds a matrix, where the tower clips; None: the file may have it, as a GGUF does not say."""
    if clipped is False:
        return {}
    maybe = clipped is None
    specs = {}
    for i, side in enumerate(_SIDES):
        beside = f"{key}_{_SIDES[i - 1]}" if maybe else ""  # all four are there, or none
        number = Cut(f"{hf}.{side}", (), take=lambda v: v.reshape(1))
        specs[f"{key}_{side}"] = vector(f"{gguf}.{side}", number, 1, optional=maybe, beside=beside)
    return specs


class _Bounds(NamedTuple):
    least: float
    greatest: float


_OPEN = _Bounds(-math.inf, math.inf)


def _bounds_of(w: Values, key: str, side: str) -> _Bounds:
    """Return the bounds of a matrix's inputs or outputs. Raises BadModelFile for a least above the greatest."""
    if f"{key}_{side}_min" not in w:
        return _OPEN
    both = _Bounds(*(float(w[f"{key}_{side}_{end}"][0]) for end in ("min", "max")))
    if not both.least <= both.greatest:
        raise BadModelFile(f"{side}s of an encoder's matrix have the bounds {both.least} and {both.greatest}")
    return both


def _clip(ops: Ops, x: Buffer, limits: _Bounds) -> None:
    if limits != _OPEN:
        ops.clamp(x, limits.greatest, limits.least)


def clipped_linear(
    ops: Ops, x: Buffer, w: Values, keys: tuple[str, ...], norm: F32 | None = None, eps: float = 0.0
) -> list[Buffer]:
    """Compose products of the normed rows, or of the rows; what enters and leaves each matrix within its bounds.

    Matrices that bound their inputs alike read one buffer; without a norm it is x itself, so they all must.
    """
    groups: dict[_Bounds, list[str]] = {}
    for key in keys:
        groups.setdefault(_bounds_of(w, key, "input"), []).append(key)
    assert norm is not None or len(groups) == 1, "rows are clipped in place"
    products: dict[str, Buffer] = {}
    for limits, group in groups.items():
        rows, before = x, norm
        if norm is not None and limits != _OPEN:
            rows, before = ops.norm(x, norm, eps), None
        _clip(ops, rows, limits)
        out = ops.linear(rows, tuple(w[key] for key in group), (None,) * len(group), before, eps)
        products |= zip(group, out, strict=True)
    for key in keys:
        _clip(ops, products[key], _bounds_of(w, key, "output"))
    return [products[key] for key in keys]


@dataclass(frozen=True, slots=True)
class Gemma4Attention(LayerPart):
    """x += norm(o(attention(rope(norm(q n)), rope(norm(k n)), unit(v n)))),  n = norm(x)."""

    cfg: Gemma4TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare four projections, their bounds and norms; queries and keys in the order of `turned`."""
        n, head, heads = self.cfg.hidden, self.cfg.head, self.cfg.heads
        specs = {
            "attn_norm": vector("ln1.weight", "input_layernorm.weight", n),
            "attn_post_norm": vector("attn_post_norm.weight", "post_attention_layernorm.weight", n),
            "v": matrix("attn_v.weight", "self_attn.v_proj.linear.weight", n, n),
            "o": matrix("attn_out.weight", "self_attn.o_proj.linear.weight", n, n),
        }
        for key in "qk":
            rows = [
                Cut(name, (n, n), rows=turned(heads, head))
                for name in (f"attn_{key}.weight", f"self_attn.{key}_proj.linear.weight")
            ]
            norms = [
                Cut(name, (head,), rows=turned(1, head))
                for name in (f"attn_{key}_norm.weight", f"self_attn.{key}_norm.weight")
            ]
            specs[key] = matrix(rows[0], rows[1], n, n)
            specs[f"{key}_norm"] = vector(norms[0], norms[1], head)
        for key, name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_out")):
            specs |= bounds(self.cfg.clipped, key, name, f"self_attn.{key}_proj")
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose projections of the normed rows, their norms and turns, attention, norm and residual."""
        cfg = self.cfg
        q, k, v = clipped_linear(ops, x, w, ("q", "k", "v"), w["attn_norm"], cfg.eps)
        q, k = (ops.norm(each, w[f"{key}_norm"], cfg.eps) for key, each in (("q", q), ("k", k)))
        for each in (q, k):
            ops.rotate(each, w["rope"], cfg.head)
        v = ops.norm(v, np.ones(cfg.head, np.float32), cfg.eps)
        out: Buffer = -1
        for first in range(0, cfg.heads, HEADS_AT_ONCE):
            ops.section()
            out = ops.attend_both(q, k, v, cfg.heads, 1.0, first, min(HEADS_AT_ONCE, cfg.heads - first), out)
        (out,) = clipped_linear(ops, out, w, ("o",))
        ops.add_norm(x, out, w["attn_post_norm"], cfg.eps)


@dataclass(frozen=True, slots=True)
class Gemma4Mlp(LayerPart):
    """x += norm(down(gelu(gate n) * up n)),  n = norm(x); filled up with zeros where 32 does not divide its width."""

    cfg: Gemma4TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two norms, three matrices and their bounds."""
        n, inner = self.cfg.hidden, self.cfg.inner
        specs = {
            "mlp_norm": vector("ln2.weight", "pre_feedforward_layernorm.weight", n),
            "mlp_post_norm": vector("ffn_post_norm.weight", "post_feedforward_layernorm.weight", n),
            "gate": self._padded("gate", inner, n),
            "up": self._padded("up", inner, n),
            "down": self._padded("down", n, inner),
        }
        for key in ("gate", "up", "down"):
            specs |= bounds(self.cfg.clipped, key, f"ffn_{key}", f"mlp.{key}_proj")
        return specs

    def _padded(self, key: str, rows: int, columns: int) -> TensorSpec:
        names = f"ffn_{key}.weight", f"mlp.{key}_proj.linear.weight"
        more = self.cfg.inner - self.cfg.intermediate
        if not more:
            return matrix(*names, rows, columns)
        wide = ((0, 0), (0, more)) if key == "down" else ((0, more), (0, 0))
        stored = rows - wide[0][1], columns - wide[1][1]
        cuts = [Cut(name, stored, take=lambda v: np.pad(v, wide), decode=True) for name in names]
        return matrix(cuts[0], cuts[1], rows, columns)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose gate and up, down, norm and residual."""
        if "gate_input_min" in w or "up_input_min" in w:
            gate, h = clipped_linear(ops, x, w, ("gate", "up"), w["mlp_norm"], self.cfg.eps)
            ops.norm_gate(h, gate, None, act="gelu")
        else:
            h = ops.gated(x, w["gate"], w["up"], "gelu", w["mlp_norm"], self.cfg.eps)
        (h,) = clipped_linear(ops, h, w, ("down",))
        ops.add_norm(x, h, w["mlp_post_norm"], self.cfg.eps)


def layer(cfg: Gemma4TowerSizes, i: int) -> tuple[LayerPart, ...]:
    return Gemma4Attention(cfg), Gemma4Mlp(cfg)


TOWER = Tower(
    name="gemma4",
    projectors=("gemma4v",),
    model_types=("gemma4",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Gemma4Attention, Gemma4Mlp),
    layer=layer,
    ends=Gemma4Ends,
    merger=Gemma4Merger,
    rope=rope,
    plan=plan,
    rows=rows,
    positions=positions,
    join=join,
    standardised=standardised,
    mark=MARK,
    written=MARK,
    spelled=SPELLED,
    span_rows=lambda cfg, budget: most_rows(cfg.most, budget),
    hf_layers="vision_tower.encoder.layers",
    hf_name=names_under("vision_tower.", "embed_vision."),
)
