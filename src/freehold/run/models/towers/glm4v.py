"""The tower of GLM-4.1V, 4.5V and 4.6V: a ViT over blocks of patches, whose blocks a convolution joins.

Patches of 14 x 14 pixels are normed, then learned positions of a 24 x 24 grid are added, stretched by cubic kernels
(a = -0.75, corners not aligned, the edge repeated). Layers have RMS norms, a gated MLP with SiLU as wide as the text
model, and no biases. The last norm is each patch's; a convolution of 2 x 2 makes a token of four, then a matrix, a
layer norm, the exact GELU and a gated MLP follow.
Limits of area count two frames, as for a video. A side of less than a block is enlarged to one first.
GGUFs state the width of the last MLP; that of the layers' is the text model's.
Source: arXiv 2507.01006 (GLM-4.1V-Thinking, GLM-4.5V).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, check_width
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts import GatedMlp
from freehold.run.models.parts.blocks import (
    MAX_PATCH,
    MAX_SIDE,
    RATIO,
    BlockSizes,
    RmsPictureAttention,
    axial_rope,
    block_plan,
    block_rows,
    cubic,
    frames_matrix,
    gguf_blocks,
    hf_blocks,
    stretched,
)
from freehold.run.models.parts.vision import CHANNELS
from freehold.run.models.tower import (
    F32,
    Merger,
    PicturePlan,
    TokenBudget,
    Tower,
    TowerEnds,
    check_gguf_act,
    check_ratio,
    clip_coloured,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    layer_norm,
    names_under,
)

LIMITS = 112 * 112, 28 * 28 * 15000  # pixels of both frames, where a folder does not say
PUBLISHED = 112 * 112, 28 * 28 * 12288  # what folders say that GGUFs are made of
EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Glm4vSizes(BlockSizes):
    """The tower's sizes; `intermediate` is that of the layers' MLPs."""

    side: int  # of the grid of learned positions
    last: int  # width of the last MLP

    def __post_init__(self) -> None:
        super(Glm4vSizes, self).__post_init__()
        check_width("encoder's MLP", self.intermediate)
        check_width("last MLP", self.last)

    @property
    def areas(self) -> tuple[float, float]:
        """The least and the greatest area of a picture, which is half of the limits."""
        return self.least / self.frames, self.most / self.frames

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes while it is computed, about."""
        entering = CHANNELS * self.patch**2 + self.hidden
        return 7 * self.hidden + 2 * self.intermediate + 2 * entering


# --- what files say -----------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> Glm4vSizes:
    """Read the `vision_config` of a config.json, and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    vision.require("hidden_act", ("silu",), "silu")
    vision.refuse("attention_bias", "a bias on the encoder's attention")
    out = vision.integer("out_hidden_size", 1, MAX_WIDTH, 4096)
    blocks = hf_blocks(vision, settings, patch=14, limits=LIMITS)
    return Glm4vSizes(
        layers=vision.integer("depth", 1, MAX_LAYERS, 24),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 1536),
        heads=vision.integer("num_heads", 1, MAX_HEADS, 12),
        intermediate=out,
        out=out,
        eps=vision.number("rms_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixel_form(clip_coloured(settings)),
        **blocks,
        side=max(vision.integer("image_size", 1, MAX_SIDE * MAX_PATCH, 336) // blocks["patch"], 1),
        last=vision.integer("intermediate_size", 1, MAX_WIDTH, 13696),
    )


def config_from_gguf(meta: Fields) -> Glm4vSizes:
    """Read the keys under `clip.`; the grid of positions is that of a square picture of `image_size`."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "silu")
    sizes = gguf_tower_sizes(meta, EPS)
    blocks = gguf_blocks(vision, PUBLISHED)
    return Glm4vSizes(
        **sizes | {"intermediate": sizes["out"]},
        **blocks,
        pixels=gguf_pixel_form(clip_coloured(vision)),
        side=max(vision.integer("image_size", 1, MAX_SIDE * MAX_PATCH) // blocks["patch"], 1),
        last=sizes["intermediate"],
    )


# --- sizes, positions, and rows that are joined -----------------------------------------------------------


def plan(cfg: Glm4vSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes: whole blocks, a side of less than one enlarged first."""
    check_ratio(width, height, RATIO)
    if min(width, height) < cfg.block:
        scale = max(cfg.block / height, cfg.block / width)
        width, height = int(width * scale), int(height * scale)
    return block_plan(cfg, width, height, budget)


def positions(cfg: Glm4vSizes, plan: PicturePlan, w: Values) -> F32:
    """Return the grid of learned positions stretched over the patches, block by block: float32 [patches, hidden]."""
    table = w["positions"].reshape(cfg.side, cfg.side, cfg.hidden)
    wide, high = (side // cfg.patch for side in plan.size)
    by_row = stretched(table, high, cubic)
    return in_blocks(stretched(by_row.swapaxes(0, 1), wide, cubic).swapaxes(0, 1), cfg.merge)


def join(cfg: Glm4vSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side, row by row: [tokens, joined]."""
    return leaving.reshape(plan.tokens, cfg.joined)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Glm4vEnds(TowerEnds):
    """Patches, a norm and positions before the first layer; a norm after the last."""

    cfg: Glm4vSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, of which a GGUF holds each frame's apart, the positions and two norms."""
        cfg, n, hf = self.cfg, self.cfg.hidden, "visual.patch_embed.proj"
        names = "v.position_embd.weight", "visual.embeddings.position_embedding.weight"
        table = [Cut(name, (cfg.side**2, n), take=np.ravel) for name in names]
        return {
            "patches": frames_matrix(cfg, hf),
            "patches_bias": vector("v.patch_embd.bias", f"{hf}.bias", n),
            "patches_norm": vector("v.norm_embd.weight", "visual.post_conv_layernorm.weight", n),
            "positions": vector(table[0], table[1], cfg.side**2 * n),
            "norm": vector("v.post_ln.weight", "visual.post_layernorm.weight", n),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product and its norm, and add their positions, columns after their pixels."""
        cfg, pixels = self.cfg, CHANNELS * self.cfg.patch**2
        (x,) = ops.linear(ops.features(pixels), (w["patches"],), (w["patches_bias"],))
        x = ops.norm(x, w["patches_norm"], cfg.eps)
        ops.add(x, ops.features(cfg.hidden, pixels))
        return x

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the norm."""
        ops.hidden(ops.norm(x, w["norm"], self.cfg.eps))


@dataclass(frozen=True, slots=True)
class Glm4vMerger(Merger):
    """down(silu(gate n) * up n),  n = gelu(layer norm(proj(convolution)))."""

    cfg: Glm4vSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the convolution as a matrix over a block's patches, four matrices and a norm."""
        cfg, hf = self.cfg, "visual.merger"
        shape = cfg.out, cfg.hidden, cfg.merge, cfg.merge
        kernel = [
            Cut(name, shape, take=lambda v: v.transpose(0, 2, 3, 1).reshape(len(v), -1))
            for name in ("mm.patch_merger.weight", "visual.downsample.weight")
        ]
        gated = {"gate": (cfg.last, cfg.out), "up": (cfg.last, cfg.out), "down": (cfg.out, cfg.last)}
        return {
            "merger_join": matrix(kernel[0], kernel[1], cfg.out, cfg.joined),
            "merger_join_bias": vector("mm.patch_merger.bias", "visual.downsample.bias", cfg.out),
            "merger_proj": matrix("mm.model.fc.weight", f"{hf}.proj.weight", cfg.out, cfg.out),
            **{
                f"merger_{key}": matrix(f"mm.{key}.weight", f"{hf}.{key}_proj.weight", *shape)
                for key, shape in gated.items()
            },
            **layer_norm("merger_norm", "mm.post_norm", f"{hf}.post_projection_norm", cfg.out),
        }

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose the products; a run may pause between them."""
        (x,) = ops.linear(ops.features(self.cfg.joined), (w["merger_join"],), (w["merger_join_bias"],))
        (x,) = ops.linear(x, (w["merger_proj"],), (None,))
        n = ops.layer_normed(x, w["merger_norm"], w["merger_norm_bias"], EPS)
        ops.gelu(n)
        ops.section()
        h = ops.gated(n, w["merger_gate"], w["merger_up"], "silu")
        ops.section()
        (y,) = ops.linear(h, (w["merger_down"],), (None,))
        ops.hidden(y)


def layer(cfg: Glm4vSizes, i: int) -> tuple[LayerPart, ...]:
    mlp = GatedMlp(
        hidden=cfg.hidden,
        intermediate=cfg.intermediate,
        eps=cfg.eps,
        norm_name="norm2",
        gguf_norm="ln2",
    )
    return RmsPictureAttention.of(cfg, biases=False, apart=False), mlp


TOWER = Tower(
    name="glm4v",
    projectors=("glm4v",),
    model_types=("glm4v", "glm46v", "glm4v_moe"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(RmsPictureAttention, GatedMlp),
    layer=layer,
    ends=Glm4vEnds,
    merger=Glm4vMerger,
    rope=axial_rope,
    plan=plan,
    rows=block_rows,
    positions=positions,
    join=join,
    mark="<|image|>",
    hf_layers="visual.blocks",
    hf_name=names_under("visual."),
)
