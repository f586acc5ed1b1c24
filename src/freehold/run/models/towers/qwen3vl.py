"""The tower of Qwen3-VL and of Qwen3.5: a ViT that takes pictures in their own aspect.

A picture becomes patches of 16 x 16 pixels, read block by block of 2 x 2. Learned positions of a 48 x 48 grid are
stretched over it (bilinear, corners aligned), and half of each head turns by the row, half by the column. Layers have
layer norms, biases and the tanh GELU; a picture's patches all see each other. Four patches make a token: normed,
joined, and passed through two matrices with the exact GELU. DeepStack (Qwen3-VL alone): copies of the stream after
three layers pass mergers of their own, normed after joining, and the text model adds them after its first layers.
What it shares with other towers of blocks: parts/blocks.py.
Sources: arXiv 2409.12191 (Qwen2-VL), 2502.13923 (Qwen2.5-VL), 2406.04334 (DeepStack); Qwen3-VL's model cards of 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freehold.base.errors import BadModelFile
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, vector
from freehold.run.models.parts.blocks import (
    MAX_PATCH,
    MAX_SIDE,
    BlockSizes,
    axial_rope,
    block_plan,
    block_rows,
    frames_matrix,
    gelu_between,
    gguf_blocks,
    hf_blocks,
)
from freehold.run.models.parts.vision import CHANNELS, PictureAttention, PictureMlp, embedded_patches
from freehold.run.models.tower import (
    F32,
    Merger,
    PicturePlan,
    Tower,
    TowerEnds,
    affine,
    check_gguf_act,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    layer_norm,
    names_under,
)

LEAST, MOST = 1 << 16, 1 << 24  # pixels of a picture, where no file says
EPS = 1e-6
DEEPSTACK = (8, 16, 24)  # of Qwen3-VL, where its config does not say
_ACTS = {"gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenSizes(BlockSizes):
    """The tower's sizes."""

    side: int  # of the grid of learned positions
    act: str  # of the MLPs
    deepstack: tuple[int, ...]  # numbers of the layers that have mergers of their own

    def __post_init__(self) -> None:
        super(QwenSizes, self).__post_init__()
        if list(self.deepstack) != sorted({*self.deepstack} & {*range(self.layers)}):
            raise BadModelFile(
                f"deepstack_visual_indexes is {list(self.deepstack)}; expected rising numbers of {self.layers} layers"
            )

    @property
    def feature_width(self) -> int:
        """The main feature's columns, then those of each layer with a merger of its own."""
        return self.out * (1 + len(self.deepstack))

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes while it is computed, about."""
        entering = CHANNELS * self.patch**2 + self.hidden
        return (7 + len(self.deepstack)) * self.hidden + self.inner + entering


# --- what files say -----------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> QwenSizes:
    """Read the `vision_config` of a config.json, and the limits of sizes beside it."""
    vision = config.section("vision_config")
    if vision is None:
        raise BadModelFile("vision_config is missing; expected an object")
    deep = () if config.text("model_type", "").startswith("qwen3_5") else _listed(vision)
    places = vision.integer("num_position_embeddings", 1, MAX_SIDE**2, 48**2)
    if (side := math.isqrt(places)) ** 2 != places:
        raise BadModelFile(f"num_position_embeddings is {places}; expected the square of a number")
    return QwenSizes(
        layers=vision.integer("depth", 1, MAX_LAYERS, 27),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 1152),
        heads=vision.integer("num_heads", 1, MAX_HEADS, 16),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 4304),
        out=vision.integer("out_hidden_size", 1, MAX_WIDTH, 3584),
        eps=EPS,
        pixels=hf_pixel_form(settings),
        **hf_blocks(vision, settings, patch=16, limits=(LEAST, MOST)),
        side=side,
        act=_ACTS[vision.require("hidden_act", tuple(_ACTS), "gelu_pytorch_tanh")],
        deepstack=deep,
    )


def _listed(vision: Fields) -> tuple[int, ...]:
    layers = vision.get("deepstack_visual_indexes")
    if layers is None:
        return DEEPSTACK
    if not isinstance(layers, list) or any(type(n) is not int for n in layers):
        raise BadModelFile(f"deepstack_visual_indexes is {str(layers)[:60]}; expected a list of layers")
    return tuple(layers)


def config_from_gguf(meta: Fields) -> QwenSizes:
    """Read the keys under `clip.`; the grid of positions is that of a square picture of `image_size`."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    sizes = gguf_tower_sizes(meta, EPS)
    blocks = gguf_blocks(vision, (LEAST, MOST))
    return QwenSizes(
        **sizes,
        **blocks,
        pixels=gguf_pixel_form(vision),
        side=max(vision.integer("image_size", 1, MAX_SIDE * MAX_PATCH) // blocks["patch"], 1),
        act="gelu",
        deepstack=_flagged(vision, sizes["layers"]),
    )


def _flagged(vision: Fields, layers: int) -> tuple[int, ...]:
    stated = vision.get("is_deepstack_layers")
    flags = stated.tolist() if isinstance(stated, np.ndarray) else stated
    if flags is None:
        return ()
    if not isinstance(flags, list) or len(flags) != layers or any(flag not in (0, 1) for flag in flags):
        raise BadModelFile(
            f"{vision.name('is_deepstack_layers')} is {str(flags)[:60]}; expected true or false for each layer"
        )
    return tuple(i for i, flag in enumerate(flags) if flag)


# --- positions, and rows that are joined ------------------------------------------------------------------


def positions(cfg: QwenSizes, plan: PicturePlan, w: Values) -> F32:
    """Return the grid of learned positions stretched over the patches, block by block: float32 [patches, hidden]."""
    table = w["positions"].reshape(cfg.side, cfg.side, cfg.hidden)
    wide, high = (side // cfg.patch for side in plan.size)
    by_row = _stretched(table, high)
    return in_blocks(_stretched(by_row.swapaxes(0, 1), wide).swapaxes(0, 1), cfg.merge)


def _stretched(table: F32, count: int) -> F32:
    """Interpolate along the first axis between equally far points, the first and the last where they were."""
    side = len(table)
    # In float32 and in this order, as transformers computes them: a point that falls on another stays there.
    points = np.arange(count, dtype=np.float32) * np.float32(side - 1) / np.float32(max(count - 1, 1))
    first = np.floor(points).astype(np.int64)
    share = (points - first.astype(np.float32))[:, None, None]
    after = table[np.minimum(first + 1, side - 1)]
    return np.asarray(table[first] * (1 - share) + after * share, np.float32)


def join(cfg: QwenSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side, of the stream and of each copy: [tokens, copies * joined]."""
    copies = 1 + len(cfg.deepstack)
    blocks = leaving.reshape(plan.tokens, cfg.merge**2, copies, cfg.hidden).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).reshape(plan.tokens, copies * cfg.joined)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QwenEnds(TowerEnds):
    """Patches and positions before the first layer; the merger's norm, which is each patch's, after the last."""

    cfg: QwenSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, of which a GGUF holds each frame's apart, the positions and a norm."""
        cfg, n, hf = self.cfg, self.cfg.hidden, "visual.patch_embed.proj"
        grid = cfg.side**2, n
        stored = [
            Cut(name, grid, take=np.ravel) for name in ("v.position_embd.weight", "visual.pos_embed.weight")
        ]
        return {
            "patches": frames_matrix(cfg, hf),
            "patches_bias": vector("v.patch_embd.bias", f"{hf}.bias", n),
            "positions": vector(stored[0], stored[1], grid[0] * n),
            **layer_norm("merger_norm", "v.post_ln", "visual.merger.norm", n),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product, and add their positions."""
        return embedded_patches(ops, w, self.cfg.patch, self.cfg.hidden)

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the norm; copies have theirs after they are joined."""
        n = ops.layer_normed(x, w["merger_norm"], w["merger_norm_bias"], self.cfg.eps)
        ops.hidden(n, list(kept))


@dataclass(frozen=True, slots=True)
class QwenMerger(Merger):
    """down(gelu(up x)) of the stream, and down(gelu(up norm(x))) of each copy; their rows side by side."""

    cfg: QwenSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices for the stream, and a norm and two matrices for each copy."""
        wide, out = self.cfg.joined, self.cfg.out
        specs = affine("merger_up", "mm.0", "visual.merger.linear_fc1", wide, wide)
        specs |= affine("merger_down", "mm.2", "visual.merger.linear_fc2", out, wide)
        for i, layer in enumerate(self.cfg.deepstack):
            gguf, hf = f"v.deepstack.{layer}", f"visual.deepstack_merger_list.{i}"
            specs |= layer_norm(f"deep{i}_norm", f"{gguf}.norm", f"{hf}.norm", wide)
            specs |= affine(f"deep{i}_up", f"{gguf}.fc1", f"{hf}.linear_fc1", wide, wide)
            specs |= affine(f"deep{i}_down", f"{gguf}.fc2", f"{hf}.linear_fc2", out, wide)
        return specs

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose all mergers; a run may pause before and within each."""
        wide = self.cfg.joined
        main = gelu_between(ops, ops.features(wide), "merger", w)
        others: list[Buffer] = []
        for i in range(len(self.cfg.deepstack)):
            ops.section()
            x = ops.features(wide, wide * (1 + i))
            n = ops.layer_normed(x, w[f"deep{i}_norm"], w[f"deep{i}_norm_bias"], self.cfg.eps)
            others.append(gelu_between(ops, n, f"deep{i}", w))
        ops.hidden(main, others)


def layer(cfg: QwenSizes, i: int) -> tuple[LayerPart, ...]:
    attention = PictureAttention.of(cfg, norm="norm1", qkv=("attn.qkv",), out="attn.proj")
    return attention, PictureMlp.of(cfg, cfg.act, norm="norm2", up="mlp.linear_fc1", down="mlp.linear_fc2")


def _kept(cfg: Any) -> tuple[int, ...]:
    return cfg.deepstack


TOWER = Tower(
    name="qwen3vl",
    projectors=("qwen3vl_merger",),
    model_types=("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PictureAttention, PictureMlp),
    layer=layer,
    ends=QwenEnds,
    merger=QwenMerger,
    rope=axial_rope,
    kept=_kept,
    plan=block_plan,
    rows=block_rows,
    positions=positions,
    join=join,
    mark="<|image_pad|>",
    hf_layers="visual.blocks",
    hf_name=names_under("visual."),
)
