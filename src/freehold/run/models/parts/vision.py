"""What most towers are made of: attention of every patch to all of its group, an MLP without a gate, SigLIP's ends.

    x += o(attention(rope(q n), rope(k n), v n)),  n = norm(x)
    x += down(act(up n)),  n = norm(x)

Norms are layer norms, everything has biases, and nothing is kept between steps. A GGUF calls the weights alike in all
towers; safetensors call them as each model's class does. Sources: arXiv 2010.11929 (ViT), 2303.15343 (SigLIP).

Towers that cut pictures into square tiles of one side share the choice of a grid, which is the one nearest to a
picture's shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.tower import (
    F32,
    U8,
    TowerEnds,
    TowerSizes,
    affine,
    affine_apart,
    affine_padded,
    affine_rows,
    in_blocks,
    layer_norm,
)

HEADS_AT_ONCE = 4  # of 4,096 patches they take 0.1 s on two cores


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureAttention(LayerPart):
    """Attention of every patch to all of its group, with a rope where the tower has one."""

    hidden: int
    heads: int
    eps: float
    norm: str = "layer_norm1"  # in safetensors, as are the names below
    qkv: tuple[str, ...] = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    )  # one: files hold them as one
    out: str = "self_attn.out_proj"
    apart: bool = False  # whether a GGUF holds apart what safetensors hold as one

    @classmethod
    def of(cls, cfg: TowerSizes, **names: Any) -> PictureAttention:
        """Take the sizes out of a config."""
        return cls(hidden=cfg.hidden, heads=cfg.heads, eps=cfg.eps, **names)

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and four projections."""
        n = self.hidden
        specs = layer_norm("attn_norm", "ln1", self.norm, n)
        for i, key in enumerate("qkv"):
            if self.apart:
                specs |= affine_apart(key, f"attn_{key}", self.qkv[0], (3 * n, n), range(i * n, (i + 1) * n))
            elif len(self.qkv) == 1:
                specs |= affine_rows(key, "attn_qkv", self.qkv[0], (3 * n, n), range(i * n, (i + 1) * n))
            else:
                specs |= affine(key, f"attn_{key}", self.qkv[i], n, n)
        return specs | affine("o", "attn_out", self.out, n, n)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, turns, attention and residual."""
        n = ops.layer_normed(x, w["attn_norm"], w["attn_norm_bias"], self.eps)
        q, k, v = ops.linear(n, (w["q"], w["k"], w["v"]), (w["q_bias"], w.get("k_bias"), w["v_bias"]))
        rope = w["rope"]
        if rope is not None:
            ops.rotate(q, rope, self.head)
            ops.rotate(k, rope, self.head)
        ops.linear_add(attend_in_parts(ops, q, k, v, self.heads, self.head), w["o"], x, w["o_bias"])


def attend_in_parts(ops: Ops, q: Buffer, k: Buffer, v: Buffer, heads: int, head: int) -> Buffer:
    """Compose attention both ways, some heads at a time: of a large picture all of them would hold up other steps."""
    scale = head**-0.5
    out: Buffer = -1
    for first in range(0, heads, HEADS_AT_ONCE):
        ops.section()
        out = ops.attend_both(q, k, v, heads, scale, first, min(HEADS_AT_ONCE, heads - first), out)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureMlp(LayerPart):
    """An MLP without a gate, filled up with zeros where 32 does not divide its width."""

    hidden: int
    intermediate: int
    inner: int  # the width with its zeros
    eps: float
    act: str  # gelu (tanh form) or gelu_erf (exact)
    norm: str = "layer_norm2"  # in safetensors, as are the names below
    up: str = "mlp.fc1"
    down: str = "mlp.fc2"
    swapped: bool = False  # GGUFs of the first converters call up `ffn_down`, and down `ffn_up`

    @classmethod
    def of(cls, cfg: TowerSizes, act: str, **names: Any) -> PictureMlp:
        """Take the sizes out of a config."""
        sizes = {"hidden": cfg.hidden, "intermediate": cfg.intermediate, "inner": cfg.inner, "eps": cfg.eps}
        return cls(**sizes, act=act, **names)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and two matrices."""
        specs = layer_norm("mlp_norm", "ln2", self.norm, self.hidden)
        for key, name, other in (("up", "ffn_up", "ffn_down"), ("down", "ffn_down", "ffn_up")):
            own = self._padded(key, name)
            specs |= _either(own, self._padded(key, other)) if self.swapped else own
        return specs

    def _padded(self, key: str, gguf: str) -> dict[str, TensorSpec]:
        n, wide, inner = self.hidden, self.intermediate, self.inner
        if key == "up":
            return affine_padded(key, gguf, self.up, (wide, n), inner, n)
        return affine_padded(key, gguf, self.down, (n, wide), n, inner)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, up, activation, down and residual."""
        n = ops.layer_normed(x, w["mlp_norm"], w["mlp_norm_bias"], self.eps)
        h = ops.linear_act(n, w["up"], self.act, w["up_bias"])
        ops.linear_add(h, w["down"], x, w["down_bias"])


def _either(first: dict[str, TensorSpec], second: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Declare weights that a GGUF has under the first names, or under the second."""
    return {key: replace(spec, gguf=(*spec.gguf, *second[key].gguf)) for key, spec in first.items()}


CHANNELS = 3  # of a picture


def embedded_patches(ops: Ops, w: Values, patch: int, hidden: int) -> Buffer:
    """Compose the product of patches of `patch` pixels a side, and add their positions, columns after their pixels."""
    pixels = CHANNELS * patch**2
    (x,) = ops.linear(ops.features(pixels), (w["patches"],), (w["patches_bias"],))
    ops.add(x, ops.features(hidden, pixels))
    return x


@dataclass(frozen=True, slots=True, kw_only=True)
class SiglipEnds(TowerEnds):
    """Patches and learned positions before the first layer, a norm after the last."""

    hidden: int
    patch: int  # pixels of a patch's side
    side: int  # of the grid of learned positions
    eps: float
    module: str  # in safetensors

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, which files hold as a convolution's, the positions and a norm."""
        n, hf = self.hidden, f"{self.module}.embeddings"
        shape, grid = (n, CHANNELS, self.patch, self.patch), (self.side**2, n)
        names = "v.patch_embd.weight", f"{hf}.patch_embedding.weight"
        kernel = [Cut(name, shape, take=lambda v: v.reshape(n, -1)) for name in names]
        names = "v.position_embd.weight", f"{hf}.position_embedding.weight"
        table = [Cut(name, grid, take=np.ravel) for name in names]
        return {
            "patches": matrix(kernel[0], kernel[1], n, CHANNELS * self.patch**2, floats=True),
            "patches_bias": vector("v.patch_embd.bias", f"{hf}.patch_embedding.bias", n),
            "positions": vector(table[0], table[1], self.side**2 * n),
            **layer_norm("norm", "v.post_ln", f"{self.module}.post_layernorm", n),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product, and add their positions."""
        return embedded_patches(ops, w, self.patch, self.hidden)

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the norm."""
        ops.hidden(ops.layer_normed(x, w["norm"], w["norm_bias"], self.eps))


# --- grids of tiles --------------------------------------------------------------------------------


def nearest_grid(width: int, height: int, tile: int, least: int, most: int) -> tuple[int, int]:
    """Return columns and rows of the grid of `least` to `most` tiles whose shape is nearest to a picture's.

    Of equally near grids the larger wins, while the picture has more than half of its pixels.
    """
    grids = [(w, h) for w in range(1, most + 1) for h in range(1, most // w + 1) if w * h >= least]
    shape, best, nearest = width / height, (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        far = abs(shape - columns / rows)
        tied = far == nearest and width * height > 0.5 * tile * tile * columns * rows
        if far < nearest or tied:
            best, nearest = (columns, rows), far
    return best


def tiles_of(picture: U8, tile: int) -> Iterator[U8]:
    """Yield a picture's tiles row by row."""
    high, wide = picture.shape[:2]
    for top in range(0, high, tile):
        for left in range(0, wide, tile):
            yield picture[top : top + tile, left : left + tile]


def block_patches(values: F32, patch: int, merge: int) -> F32:
    """Return patches block by block of `merge` x `merge`, their columns by colour, row and column.

    `values`: [height, width, 3]; pixels that fill no patch are left out.
    """
    high, wide = (side // patch for side in values.shape[:2])
    whole = values[: high * patch, : wide * patch]
    patches = whole.reshape(high, patch, wide, patch, CHANNELS).transpose(0, 2, 4, 1, 3)
    return in_blocks(patches, merge).reshape(high * wide, -1)
