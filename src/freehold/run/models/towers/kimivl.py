"""The tower of Kimi-VL, Kimi K2.5 and K2.6 (MoonViT): a ViT that takes pictures in their own size, black at two edges.

A picture is never enlarged. One of more patches than the limit, or of a longer side, is made smaller with its aspect
kept; black to its right and below fills the last block of 2 x 2 patches. Learned positions of a 64 x 64 grid are
stretched by cubic kernels (a = -0.75, corners not aligned, the edge repeated). Of a head's pairs every other turns by
the column and those between by the row, with equal frequencies. Layers have layer norms and an MLP with the tanh GELU;
a picture attends within itself. After the last norm each patch passes another, blocks are laid side by side, and pass
two matrices with the exact GELU between them.
Files lay rows of q and k in three orders: pairs in halves of a head (transformers), side by side (as published, and in
Kimi-VL's GGUFs), and side by side with all columns' pairs before the rows' (K2.5's GGUFs). They are read as halves.
K2.5 shrinks a side beyond 512 patches; Kimi-VL refuses it. GGUFs of Kimi-VL do not state the limit of patches.
Sources: arXiv 2504.07491 (Kimi-VL), 2307.06304 (NaViT), 2104.09864 (rope), Kimi K2.5's card and code of January 2026.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeTable
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.blocks import MAX_AREA, MAX_PATCH, MAX_SIDE, cubic, gelu_between, stretched
from freehold.run.models.parts.vision import (
    CHANNELS,
    PictureAttention,
    PictureMlp,
    block_patches,
    embedded_patches,
)
from freehold.run.models.tower import (
    F32,
    U8,
    Merger,
    PicturePlan,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    TowerSizes,
    affine,
    check_gguf_act,
    clip_coloured,
    gguf_pixel_form,
    gguf_tower_sizes,
    hf_pixel_form,
    in_blocks,
    layer_norm,
    raster_places,
)
from freehold.run.pictures.opening import Resize

BASE = 10_000.0  # of the rope
EPS = 1e-5
LIMIT, LIMIT_VL = 16_384, 4096  # patches where a file does not say, of K2.5 and of Kimi-VL
ACROSS = 512  # patches of a side
MARK = "<|media_pad|>"
_VL, _K25 = "kimi_vl", "kimi_k25"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoonSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    merge: int  # patches of a block's side
    side: int  # of the grid of learned positions
    limit: int  # patches of a picture, before black fills the last blocks
    across: int  # patches of a side
    shrinks: bool  # whether a longer side is shrunk, else refused
    fused: bool  # whether a GGUF holds q, k and v as one, and columns' pairs before rows'
    merger_eps: float

    def __post_init__(self) -> None:
        super(MoonSizes, self).__post_init__()
        self.check_turned()

    @property
    def block(self) -> int:
        """Pixels of a block's side: one token."""
        return self.patch * self.merge

    @property
    def joined(self) -> int:
        """Width of a block's patches side by side."""
        return self.hidden * self.merge**2


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> MoonSizes:
    """Read config.json and what is said of pixels beside it: K2.5's class and transformers' name them otherwise."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    newer = config.text("model_type", _K25) != _VL
    _check_hf(vision)
    stated = settings.section("media_proc_cfg") or settings
    patch = vision.integer("patch_size", 1, MAX_PATCH, 14)
    merge = vision.integer("merge_kernel_size", 1, MAX_PATCH, 2)  # or two equal ones
    _check_pixels(stated, patch, merge)
    size = stated.section("size") or Fields({})
    across = size.integer("max_height", 1, MAX_SIDE, ACROSS)
    if size.integer("max_width", 1, MAX_SIDE, across) != across:
        raise UnsupportedModel(f"size.max_width is {size.get('max_width')} and size.max_height {across}")
    eps = vision.number("projector_ln_eps", MIN_EPS, MAX_EPS, EPS)
    return MoonSizes(
        layers=_integer(vision, "num_hidden_layers", MAX_LAYERS, 27),
        hidden=_integer(vision, "hidden_size", MAX_WIDTH, 1152),
        heads=_integer(vision, "num_attention_heads", MAX_HEADS, 16),
        intermediate=_integer(vision, "intermediate_size", MAX_WIDTH, 4304),
        out=text.integer("hidden_size", 1, MAX_WIDTH),
        eps=EPS,
        pixels=hf_pixel_form(stated if newer else clip_coloured(stated)),
        patch=patch,
        merge=merge,
        side=_grid(vision),
        limit=_limit(stated, LIMIT if newer else LIMIT_VL),
        across=stated.integer("patch_limit_on_one_side", 1, MAX_SIDE, across),
        shrinks=newer,
        fused=newer,
        merger_eps=config.number("projection_layer_norm_eps", MIN_EPS, MAX_EPS, eps),
    )


def _integer(vision: Fields, key: str, most: int, assumed: int) -> int:
    """Read a size, which K2.5's published config.json names with `vt_` before."""
    return vision.integer(key, 1, most, vision.integer(f"vt_{key}", 1, most, assumed))


def _grid(vision: Fields) -> int:
    """Read the side of the grid of learned positions, which is a square."""
    high, wide = (
        vision.integer(f"init_pos_emb_{key}", 1, MAX_SIDE, vision.integer(f"pos_emb_{key}", 1, MAX_SIDE, 64))
        for key in ("height", "width")
    )
    if high != wide:
        raise UnsupportedModel(f"there are {high} x {wide} learned positions; only squares are supported")
    return high


def _check_hf(vision: Fields) -> None:
    """Raise UnsupportedModel for what no published model of these classes has."""
    vision.require("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    vision.require("projector_hidden_act", ("gelu",), "gelu")
    vision.require("mm_projector_type", ("patchmerger",), "patchmerger")
    vision.require("pos_emb_type", ("divided_fixed",), "divided_fixed")


def _check_pixels(stated: Fields, patch: int, merge: int) -> None:
    """Raise for pixels that another tower would read, or in another order of work."""
    stated.refuse("fixed_output_tokens", "a fixed count of tokens")
    if not stated.flag("pad_input", True):
        raise UnsupportedModel("pad_input is false: a cut to whole patches is not supported")
    for key, needed in (("patch_size", patch), ("merge_kernel_size", merge), ("merge_size", merge)):
        if (value := stated.integer(key, 1, MAX_PATCH, needed)) != needed:
            raise BadModelFile(f"{key} is {value} for pixels, and {needed} in vision_config")


def _limit(stated: Fields, assumed: int) -> int:
    for key in ("in_patch_limit", "in_token_limit", "max_patches"):
        assumed = stated.integer(key, 1, MAX_AREA, assumed)
    return assumed


def config_from_gguf(meta: Fields) -> MoonSizes:
    """Read the keys under `clip.`."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    sizes = gguf_tower_sizes(meta, EPS)
    fused = (meta.text("projector_type", "") or vision.text("projector_type")) == "kimik25"
    patch = vision.integer("patch_size", 1, MAX_PATCH)
    image = vision.integer("image_size", 1, MAX_SIDE * MAX_PATCH)
    if image % patch:
        raise BadModelFile(f"{vision.name('image_size')} is {image}, not a multiple of the patches' {patch}")
    most = vision.integer("image_max_pixels", 1, MAX_AREA, (LIMIT if fused else LIMIT_VL) * patch**2)
    return MoonSizes(
        **sizes,
        pixels=gguf_pixel_form(vision),
        patch=patch,
        merge=vision.integer("projector.scale_factor", 1, MAX_PATCH, 2),
        side=image // patch,
        limit=max(most // patch**2, 1),
        across=ACROSS,
        shrinks=fused,
        fused=fused,
        merger_eps=sizes["eps"],
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: MoonSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes; a budget makes it smaller, and none makes it larger."""
    limit = cfg.limit
    wide, high = _fitted(cfg, width, height, limit)
    if budget is not None:
        most = budget.checked(max(cfg.limit // cfg.merge**2, 1)).most
        limit = min(limit, most * cfg.merge**2)
        wide, high = _fitted(cfg, width, height, limit)
        while _blocks(cfg, wide) * _blocks(cfg, high) > most:  # with what fills the last blocks
            limit -= max(limit // 64, 1)
            wide, high = _fitted(cfg, width, height, limit)
    _check_sides(cfg, wide, high)
    tokens = _blocks(cfg, wide) * _blocks(cfg, high)
    return PicturePlan(
        resizes=((Resize(wide, high, cfg.pixels.filter),),),
        patches=tokens * cfg.merge**2,
        tokens=tokens,
        layout=(tokens,),
        places=None,
        advance=tokens,
    )


def _fitted(cfg: MoonSizes, width: int, height: int, limit: int) -> tuple[int, int]:
    """Return a picture's size within `limit` patches and a side's, its aspect kept."""
    patches = max(width // cfg.patch, 1) * max(height // cfg.patch, 1)
    scale, longest = min(1.0, math.sqrt(limit / patches)), cfg.across * cfg.patch
    if cfg.shrinks:
        scale = min(scale, longest / height, longest / width)
    wide, high = (max(int(side * scale), 1) for side in (width, height))
    return (min(wide, longest), min(high, longest)) if cfg.shrinks else (wide, high)


def _blocks(cfg: MoonSizes, side: int) -> int:
    return -(-side // cfg.block)


def _check_sides(cfg: MoonSizes, wide: int, high: int) -> None:
    longest = max(_blocks(cfg, side) * cfg.merge for side in (wide, high))
    if not cfg.shrinks and longest >= cfg.across:
        raise UsageError(
            f"the picture is {wide} x {high} pixels, {longest:,} patches along its longer side; this model takes fewer "
            f"than {cfg.across}",
            "make it smaller, or cut it into several",
        )


def rows(cfg: MoonSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return patches block by block with black in the last ones, and which place each has."""
    (picture,) = pixels
    wide, high = (_blocks(cfg, side) * cfg.merge for side in plan.size)
    padded = np.zeros((high * cfg.patch, wide * cfg.patch, CHANNELS), np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    places = raster_places(high, wide).reshape(high, wide, 3)
    values = block_patches(cfg.pixels.values(padded), cfg.patch, cfg.merge)
    return TowerRows(values, (plan.patches,), in_blocks(places, cfg.merge))


def positions(cfg: MoonSizes, plan: PicturePlan, w: Values) -> F32:
    """Return each patch's position, stretched from the learned ones: float32 [patches, hidden]."""
    wide, high = (_blocks(cfg, side) * cfg.merge for side in plan.size)
    table = w["positions"].reshape(cfg.side, cfg.side, cfg.hidden)
    tall = stretched(table, high, cubic)
    return in_blocks(stretched(tall.swapaxes(0, 1), wide, cubic).swapaxes(0, 1), cfg.merge)


def join(cfg: MoonSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Lay the patches of a block side by side: [tokens, joined]."""
    return leaving.reshape(plan.tokens, cfg.joined)


def rope(cfg: MoonSizes) -> RopeTable:
    """Return the table of a head: even pairs turn by the column, odd ones by the row."""
    freq = BASE ** -(np.arange(0, cfg.head, 4, dtype=np.float64) / cfg.head)
    axes: NDArray[np.uint8] = np.tile(np.array([2, 1], np.uint8), len(freq))
    return RopeTable(np.repeat(freq, 2).astype(np.float32), 1.0, False, axes)


# --- parts ------------------------------------------------------------------------------------------------


def halves_of_pairs(heads: int, head: int) -> NDArray[np.int64]:
    """Return which row of q or k, its pairs side by side, each row of halves is: [heads * head]."""
    return np.arange(heads * head).reshape(heads, head // 2, 2).swapaxes(1, 2).reshape(-1)


def halves_of_axes(heads: int, head: int) -> NDArray[np.int64]:
    """Return the same of rows whose columns' pairs come before the rows'."""
    return np.arange(heads * head).reshape(heads, 2, head // 4, 2).transpose(0, 3, 2, 1).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoonAttention(PictureAttention):
    """Attention of every patch to all of its picture; rows of q and k are read as halves."""

    fused: bool

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and four projections, three of which published files hold as one."""
        specs = super(MoonAttention, self).tensors()
        for i, key in enumerate("qkv"):
            for name, end in ((key, "weight"), (f"{key}_bias", "bias")):
                specs[name] = self._declared(i, key, end)
        return specs

    def _declared(self, i: int, key: str, end: str) -> TensorSpec:
        n = self.hidden
        plain: NDArray[np.int64] = np.arange(n)
        pairs = plain if key == "v" else halves_of_pairs(self.heads, self.head)
        shape, whole = ((n, n), (3 * n, n)) if end == "weight" else ((n,), (3 * n,))
        if self.fused:
            order = plain if key == "v" else halves_of_axes(self.heads, self.head)
            gguf = Cut(f"attn_qkv.{end}", whole, rows=order + i * n)
        else:
            gguf = Cut(f"attn_{key}.{end}", shape, rows=pairs)
        hf = f"attn.{key}_proj.{end}", Cut(f"wqkv.{end}", whole, rows=pairs + i * n)
        return TensorSpec(gguf=(gguf,), hf=hf, shape=shape)


@dataclass(frozen=True, slots=True)
class MoonEnds(TowerEnds):
    """Patches and positions before the first layer; a norm, and that before blocks are joined, after the last."""

    cfg: MoonSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, which files hold as a convolution's, the positions and two norms."""
        cfg, n, hf = self.cfg, self.cfg.hidden, "vision_tower.patch_embed"
        shape = (n, CHANNELS, cfg.patch, cfg.patch)
        names = "v.patch_embd.weight", f"{hf}.proj.weight"
        kernel = [Cut(name, shape, take=lambda v: v.reshape(n, -1)) for name in names]
        flat = Cut("v.position_embd.weight", (cfg.side**2, n), take=np.ravel)
        grid = Cut("v.position_embd.weight", (cfg.side, cfg.side, n), take=np.ravel)
        own = Cut(f"{hf}.pos_emb.position_embeddings", (cfg.side, cfg.side, n), take=np.ravel)
        return {
            "patches": matrix(kernel[0], kernel[1], n, CHANNELS * cfg.patch**2, floats=True),
            "patches_bias": vector("v.patch_embd.bias", f"{hf}.proj.bias", n),
            "positions": vector(grid if cfg.fused else flat, own, cfg.side**2 * n),
            **layer_norm("norm", "v.post_ln", "vision_tower.final_layernorm", n),
            **layer_norm("merger_norm", "mm.input_norm", "mm_projector.pre_norm", n),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product, and add their positions."""
        return embedded_patches(ops, w, self.cfg.patch, self.cfg.hidden)

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose both norms."""
        x = ops.layer_normed(x, w["norm"], w["norm_bias"], self.cfg.eps)
        ops.hidden(ops.layer_normed(x, w["merger_norm"], w["merger_norm_bias"], self.cfg.merger_eps))


@dataclass(frozen=True, slots=True)
class MoonMerger(Merger):
    """down(gelu(up x))."""

    cfg: MoonSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices and their biases."""
        cfg, hf = self.cfg, "mm_projector"
        up = affine("merger_up", "mm.1", f"{hf}.in_proj", cfg.joined, cfg.joined)
        return up | affine("merger_down", "mm.2", f"{hf}.out_proj", cfg.out, cfg.joined)

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose the products."""
        ops.hidden(gelu_between(ops, ops.features(self.cfg.joined), "merger", w))


def layer(cfg: MoonSizes, i: int) -> tuple[LayerPart, ...]:
    attention = MoonAttention.of(cfg, norm="norm1", out="attn.proj", fused=cfg.fused)
    return attention, PictureMlp.of(cfg, "gelu", norm="norm2")


# What published files call a layer's tensors, and transformers in their place.
_OLDER = (
    ("norm0.", "norm1."),
    ("norm1.", "norm2."),
    ("mlp.fc0.", "mlp.fc1."),
    ("mlp.fc1.", "mlp.fc2."),
    ("wo.", "attn.proj."),
)
_OLDER_ENDS = (
    ("vision_tower.encoder.", "vision_tower."),
    ("vision_tower.patch_embed.pos_emb.weight", "vision_tower.patch_embed.pos_emb.position_embeddings"),
    ("multi_modal_projector.", "mm_projector."),
)
_OLDER_MERGER = {"proj.0": "in_proj", "proj.2": "out_proj", "linear_1": "in_proj", "linear_2": "out_proj"}


def hf_name(name: str) -> str:
    """Return what transformers calls a tensor of the tower; "" for what is not the tower's, or is not read."""
    blocks, own = "vision_tower.encoder.blocks.", name.removeprefix("model.")
    if own.startswith(blocks):
        number, _, inner = own.removeprefix(blocks).partition(".")
        return f"vision_tower.layers.{number}.{_renamed(inner, _OLDER)}"
    own = _renamed(own, _OLDER_ENDS)
    if own.startswith("mm_projector."):
        module, _, end = own.removeprefix("mm_projector.").rpartition(".")
        return f"mm_projector.{_OLDER_MERGER.get(module, module)}.{end}"
    frames = own.endswith(("time_weight", "time_position_embeddings"))  # of videos alone
    return own if own.startswith("vision_tower.") and not frames else ""


def _renamed(name: str, older: Sequence[tuple[str, str]]) -> str:
    return next((new + name.removeprefix(old) for old, new in older if name.startswith(old)), name)


TOWER = Tower(
    name="kimivl",
    projectors=("kimivl", "kimik25"),
    model_types=(_VL, _K25),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(MoonAttention, PictureMlp),
    layer=layer,
    ends=MoonEnds,
    merger=MoonMerger,
    rope=rope,
    plan=plan,
    rows=rows,
    positions=positions,
    join=join,
    mark=MARK,
    hf_layers="vision_tower.layers",
    hf_name=hf_name,
)
