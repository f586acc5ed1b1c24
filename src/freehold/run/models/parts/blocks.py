"""A picture in its own aspect as blocks of patches, each block a token, as Qwen2-VL began it.

Sides become multiples of a block's, within limits of area; patches are read block by block. A picture is a video of
equal frames, so the frames' weights are added once. Half of a head turns by the row, half by the column. RMS norms and
gated MLPs stand here with what files hold of them: Qwen2.5-VL has biases, GLM-4V none.
`min_pixels` and `max_pixels` are areas, as are `shortest_edge` and `longest_edge` of `size`.
Sources: arXiv 2409.12191 (Qwen2-VL), 2502.13923 (Qwen2.5-VL), 2507.01006 (GLM-4.1V).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.rope import MAX_BASE, RopeTable
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.vision import CHANNELS, attend_in_parts
from freehold.run.models.tower import (
    F32,
    U8,
    Merger,
    PicturePlan,
    TokenBudget,
    TowerRows,
    TowerSizes,
    affine,
    affine_apart,
    affine_padded,
    affine_rows,
    check_ratio,
    in_blocks,
    raster_places,
)
from freehold.run.pictures.opening import Resize

MAX_PATCH, MAX_SIDE, MAX_FRAMES = 256, 1024, 16
MAX_AREA = 1 << 30  # pixels
RATIO = 200  # of a picture's sides
BASE = 10_000.0  # of the rope


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSizes(TowerSizes):
    """Sizes of a tower that reads blocks."""

    patch: int  # pixels of a patch's side
    merge: int  # patches of a block's side
    frames: int  # of a picture, all equal, as files hold the patches' weights
    base: float  # of the rope
    least: int  # pixels of a picture after its resize, as files state them
    most: int

    def __post_init__(self) -> None:
        super(BlockSizes, self).__post_init__()
        self.check_turned()
        if self.least > self.most:
            raise BadModelFile(
                f"pictures have {self.least:,} pixels at least and {self.most:,} at most, by the model's files"
            )

    @property
    def areas(self) -> tuple[float, float]:
        """The least and the greatest area of a picture."""
        return self.least, self.most

    @property
    def block(self) -> int:
        """Pixels of a block's side: one token."""
        return self.patch * self.merge

    @property
    def joined(self) -> int:
        """Width of a block's patches together."""
        return self.hidden * self.merge**2


# --- what files say -----------------------------------------------------------------------------------


def hf_blocks(vision: Fields, settings: Fields, *, patch: int, limits: tuple[int, int]) -> dict[str, Any]:
    """Read what `vision_config`, and what is said of pixels beside it, state of BlockSizes alone."""
    if vision.integer("in_channels", 1, MAX_WIDTH, CHANNELS) != CHANNELS:
        raise UnsupportedModel(f"in_channels is {vision.get('in_channels')}; pictures have {CHANNELS}")
    patch = vision.integer("patch_size", 1, MAX_PATCH, patch)
    merge = vision.integer("spatial_merge_size", 1, MAX_PATCH, 2)
    frames = vision.integer("temporal_patch_size", 1, MAX_FRAMES, 2)
    for key, value in (("patch_size", patch), ("merge_size", merge)):
        if settings.integer(key, 1, MAX_PATCH, value) != value:
            raise BadModelFile(f"{key} is {settings.get(key)} for pixels, and {value} in vision_config")
    rope = vision.section("rope_parameters") or Fields({})
    rope.require("rope_type", ("axial", "default"), "axial")
    least, most = hf_limits(settings, limits)
    return {
        "patch": patch,
        "merge": merge,
        "frames": frames,
        "base": rope.number("rope_theta", 1.001, MAX_BASE, BASE),
        "least": least,
        "most": most,
    }


def hf_limits(settings: Fields, assumed: tuple[int, int]) -> tuple[int, int]:
    """Read the least and the greatest area; a number by itself wins over `size`."""
    size = settings.section("size") or Fields({})

    def area(key: str, edge: str, assumed: int) -> int:
        assumed = size.integer(edge, 1, MAX_AREA, size.integer(key, 1, MAX_AREA, assumed))
        return settings.integer(key, 1, MAX_AREA, assumed)

    return area("min_pixels", "shortest_edge", assumed[0]), area("max_pixels", "longest_edge", assumed[1])


def gguf_blocks(vision: Fields, limits: tuple[int, int]) -> dict[str, Any]:
    """Read the same from the keys under `clip.vision.`; a GGUF holds the weights of two frames."""
    return {
        "patch": vision.integer("patch_size", 1, MAX_PATCH),
        "merge": vision.integer("spatial_merge_size", 1, MAX_PATCH, 2),
        "frames": 2,
        "base": BASE,
        "least": vision.integer("image_min_pixels", 1, MAX_AREA, limits[0]),
        "most": vision.integer("image_max_pixels", 1, MAX_AREA, limits[1]),
    }


# --- sizes and pixels -----------------------------------------------------------------------------------


def block_plan(cfg: BlockSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes: whole blocks, and as many pixels as the limits allow."""
    check_ratio(width, height, RATIO)
    least, most = cfg.areas
    if budget is not None:
        budget = budget.checked(max(int(most // cfg.block**2), 1))
        least, most = budget.least * cfg.block**2, budget.most * cfg.block**2
    wide, high = fitted(width, height, cfg.block, least, most)
    columns, rows = wide // cfg.block, high // cfg.block
    tokens = columns * rows
    return PicturePlan(
        resizes=((Resize(wide, high, cfg.pixels.filter),),),
        patches=tokens * cfg.merge**2,
        tokens=tokens,
        layout=(tokens,),
        places=raster_places(rows, columns),
        advance=max(rows, columns),
    )


def fitted(
    width: int, height: int, block: int, least: float, most: float, *, shortest: int = 0
) -> tuple[int, int]:
    """Return width and height as multiples of a block's side, rounded half to even, and scaled into the limits.

    A picture far from square may exceed `most`: neither side is less than a block. `shortest`: pixels of a side at
    least, before the area is compared with the limits.
    """
    wide, high = (max(shortest, round(side / block) * block) for side in (width, height))
    if wide * high > most:
        by = math.sqrt(width * height / most)
        wide, high = (max(block, math.floor(side / by / block) * block) for side in (width, height))
    elif wide * high < least:
        by = math.sqrt(least / (width * height))
        wide, high = (math.ceil(side * by / block) * block for side in (width, height))
    return wide, high


def block_rows(cfg: BlockSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
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


def cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' kernel of distances from 0 to 2, a = -0.75 (IEEE Transactions on Acoustics 29, 1981)."""
    a, d = -0.75, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, far)


def linear(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the kernel that interpolates between two neighbours."""
    return np.maximum(1 - distance, 0.0)


def stretched(table: F32, count: int, kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> F32:
    """Interpolate along the first axis at the middles of `count` equal parts, the first and the last row repeated."""
    points = (np.arange(count) + 0.5) * len(table) / count - 0.5
    first = np.floor(points).astype(np.int64)
    out = np.zeros((count, *table.shape[1:]), np.float32)
    for tap in range(-1, 3):
        weight = kernel(np.abs(points - first - tap)).astype(np.float32)
        out += weight[:, None, None] * table[np.clip(first + tap, 0, len(table) - 1)]
    return out


def axial_rope(cfg: BlockSizes) -> RopeTable:
    """Return the table of a head: its first pairs turn by the row, as many more by the column."""
    half = cfg.head // 2
    freq = cfg.base ** -(np.arange(0, half, 2, dtype=np.float64) / half)
    axes: NDArray[np.uint8] = np.repeat(np.array([1, 2], np.uint8), len(freq))
    return RopeTable(np.tile(freq, 2).astype(np.float32), 1.0, False, axes)


# --- parts ------------------------------------------------------------------------------------------------


def frames_matrix(cfg: BlockSizes, hf: str) -> TensorSpec:
    """Declare the patches' matrix: all frames added, of which a GGUF holds each apart."""
    n, frame, pixels = cfg.hidden, (CHANNELS, cfg.patch, cfg.patch), CHANNELS * cfg.patch**2
    apart = tuple(f"v.patch_embd.weight{end}" for end in ("", ".1"))
    gguf = Cut(apart, (2 * n, *frame), take=lambda v: (v[:n] + v[n:]).reshape(n, -1))
    shape = (n, CHANNELS, cfg.frames, cfg.patch, cfg.patch)
    whole = Cut(f"{hf}.weight", shape, take=lambda v: v.sum(axis=2).reshape(n, -1))
    return matrix(gguf, whole, n, pixels, floats=True)


def gelu_between(ops: Ops, x: Buffer, key: str, w: Values) -> Buffer:
    """Compose down(gelu(up x)), exact GELU and biases; a run may pause between the two."""
    h = ops.linear_act(x, w[f"{key}_up"], "gelu_erf", w.get(f"{key}_up_bias"))
    ops.section()
    (y,) = ops.linear(h, (w[f"{key}_down"],), (w.get(f"{key}_down_bias"),))
    return y


@dataclass(frozen=True, slots=True)
class BlockMerger(Merger):
    """down(gelu(up x)) of joined rows, as Qwen2-VL and Qwen2.5-VL name the two."""

    cfg: BlockSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices with biases."""
        wide = self.cfg.joined
        specs = affine("merger_up", "mm.0", "visual.merger.mlp.0", wide, wide)
        return specs | affine("merger_down", "mm.2", "visual.merger.mlp.2", self.cfg.out, wide)

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose both."""
        ops.hidden(gelu_between(ops, ops.features(self.cfg.joined), "merger", w))


@dataclass(frozen=True, slots=True, kw_only=True)
class RmsPictureAttention(LayerPart):
    """x += o(attention(rope(q n), rope(k n), v n)),  n = RMS norm(x); safetensors hold q, k and v as one matrix."""

    hidden: int
    heads: int
    eps: float
    biases: bool
    apart: bool  # whether a GGUF holds q, k and v each by itself

    @classmethod
    def of(cls, cfg: TowerSizes, *, biases: bool, apart: bool) -> RmsPictureAttention:
        """Take the sizes out of a config."""
        return cls(hidden=cfg.hidden, heads=cfg.heads, eps=cfg.eps, biases=biases, apart=apart)

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and four projections."""
        n = self.hidden
        specs = {"attn_norm": vector("ln1.weight", "norm1.weight", n)}
        for i, key in enumerate("qkv"):
            whole, rows = (3 * n, n), range(i * n, (i + 1) * n)
            if self.apart:
                specs |= affine_apart(key, f"attn_{key}", "attn.qkv", whole, rows)
            else:
                specs |= affine_rows(key, "attn_qkv", "attn.qkv", whole, rows)
        return self._biased(specs | affine("o", "attn_out", "attn.proj", n, n))

    def _biased(self, specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        return {key: spec for key, spec in specs.items() if self.biases or not key.endswith("_bias")}

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose projections of the normed rows, turns, attention and residual."""
        biases = tuple(w.get(f"{key}_bias") for key in "qkv")
        q, k, v = ops.linear(x, (w["q"], w["k"], w["v"]), biases, w["attn_norm"], self.eps)
        for each in (q, k):
            ops.rotate(each, w["rope"], self.head)
        attended = attend_in_parts(ops, q, k, v, self.heads, self.head)
        ops.linear_add(attended, w["o"], x, w.get("o_bias"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasedGatedMlp(LayerPart):
    """x += down(silu(gate n) * up n),  n = RMS norm(x), with biases; filled up with zeros to a multiple of 32."""

    hidden: int
    intermediate: int
    inner: int  # the width with its zeros
    eps: float

    @classmethod
    def of(cls, cfg: TowerSizes) -> BiasedGatedMlp:
        """Take the sizes out of a config."""
        return cls(hidden=cfg.hidden, intermediate=cfg.intermediate, inner=cfg.inner, eps=cfg.eps)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and three matrices."""
        n, wide, inner = self.hidden, self.intermediate, self.inner
        specs = {"mlp_norm": vector("ln2.weight", "norm2.weight", n)}
        for key in ("gate", "up"):
            specs |= affine_padded(key, f"ffn_{key}", f"mlp.{key}_proj", (wide, n), inner, n)
        return specs | affine_padded("down", "ffn_down", "mlp.down_proj", (n, wide), n, inner)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose gate and up of the normed rows, their product, down and residual."""
        biases = w["up_bias"], w["gate_bias"]
        h, gate = ops.linear(x, (w["up"], w["gate"]), biases, w["mlp_norm"], self.eps)
        ops.gate_norm(h, gate, None)
        ops.linear_add(h, w["down"], x, w["down_bias"])
