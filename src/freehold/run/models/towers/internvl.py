"""The tower of InternVL 2.5, 3 and 3.5: a ViT with a class row over square tiles of a picture and over the whole of it.

A picture is stretched to the grid of tiles whose shape is nearest to its own, 1 to 12 of them; where it is more than
one, the whole picture as a tile comes last. Each tile attends within itself, its class row first. Positions are
learned; layers have norms, an MLP with the exact GELU, and a factor for each column of what they add. The class row is
left out after the last layer, blocks of 2 x 2 patches are laid side by side, and pass a norm and two matrices.
The tower of 6 billion weights (38B and larger) has RMS norms, also of queries and keys, and no biases on q, k and v; a
GGUF does not say so, and is known by its sizes. A prompt has marks around all of a picture's rows, and none between.
Files of OpenGVLab's own class (`internvl_chat`) have other keys and names, and q, k and v as one matrix.
Sources: arXiv 2508.18265 (InternVL3.5), 2404.16821 (InternVL 1.5: tiles), 2312.14238 (InternViT-6B).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.blocks import gelu_between
from freehold.run.models.parts.vision import (
    CHANNELS,
    PictureAttention,
    PictureMlp,
    attend_in_parts,
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
    names_under,
)
from freehold.run.pictures.opening import Resize

MAX_PATCH, MAX_SIDE, MAX_TILES = 256, 4096, 64
TILES = 12  # where a file does not say
EPS = 1e-6
MERGER_EPS = 1e-5  # of the norm over joined rows, and of queries and keys 1e-6, whatever a file says
LARGEST = (3200, 45)  # width and layers of the tower with RMS norms
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # of `internvl_chat`
MARK, BEFORE, AFTER = "<IMG_CONTEXT>", "<img>", "</img>"
_NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class InternTowerSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    merge: int  # patches of a block's side
    tile: int  # pixels of a tile's side
    least: int  # tiles of a picture, without the whole
    most: int
    rms: bool  # RMS norms in place of layer norms
    biases: bool  # on q, k and v
    normed: bool  # an RMS norm over all heads of q, and of k

    def __post_init__(self) -> None:
        super(InternTowerSizes, self).__post_init__()
        if not self.grid or self.tile % self.patch or self.grid % self.merge:
            raise UnsupportedModel(
                f"a tile of {self.tile} pixels has {self.tile / self.patch:g} patches a side; "
                f"expected a multiple of {self.merge}"
            )
        if self.least > self.most:
            raise BadModelFile(
                f"pictures have {self.least} tiles at least and {self.most} at most, by the model's files"
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


def config_from_hf(config: Fields, settings: Fields) -> InternTowerSizes:
    """Read config.json and what is said of pixels beside it, whose `crop_to_patches` a chat does not heed."""
    if config.section("llm_config") is not None:
        return _chat_config(config, settings)
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    patch = vision.integer("patch_size", 1, MAX_PATCH, 14)
    tile = vision.integer("image_size", 1, MAX_SIDE, 448)
    _check_hf(config, vision)
    size = settings.section("size") or Fields({})
    for key in ("height", "width"):
        if size.integer(key, 1, MAX_SIDE, tile) != tile:
            raise UnsupportedModel(f"size.{key} is {size.get(key)} for pixels, and image_size {tile}")
    return InternTowerSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 24),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 1024),
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 16),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 4096),
        out=text.integer("hidden_size", 1, MAX_WIDTH, 4096),
        eps=vision.number("layer_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixel_form(clip_coloured(settings)),
        patch=patch,
        merge=_merge(config),
        tile=tile,
        least=settings.integer("min_patches", 1, MAX_TILES, 1),
        most=settings.integer("max_patches", 1, MAX_TILES, TILES),
        rms=vision.require("norm_type", _NORMS, _NORMS[0]) == "rms_norm",
        biases=vision.flag("attention_bias", False),
        normed=vision.flag("use_qk_norm", False),
    )


def _chat_config(config: Fields, settings: Fields) -> InternTowerSizes:
    """Read the config.json of OpenGVLab's own class, which states tiles itself."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("llm_config") or Fields({})
    vision.require("hidden_act", ("gelu",), "gelu")
    config.require("ps_version", ("v2",), "v2")
    if config.integer("select_layer", -MAX_LAYERS, MAX_LAYERS, -1) != -1:
        raise UnsupportedModel("select_layer is not -1; only the last layer's rows are supported")
    if not config.flag("use_thumbnail", True):
        raise UnsupportedModel("use_thumbnail is false: tiles without the whole picture are not supported")
    tile = vision.integer("image_size", 1, MAX_SIDE, 448)
    if config.integer("force_image_size", 1, MAX_SIDE, tile) != tile:
        raise UnsupportedModel(
            f"force_image_size is {config.get('force_image_size')} and image_size {tile}; learned positions are not "
            "stretched"
        )
    cuts = config.flag("dynamic_image_size", True)
    normed = vision.flag("qk_normalization", True)
    return InternTowerSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 48),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 3200),
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 25),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 12800),
        out=text.integer("hidden_size", 1, MAX_WIDTH),
        eps=vision.number("layer_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixel_form(settings.assuming(**IMAGENET)),
        patch=vision.integer("patch_size", 1, MAX_PATCH, 14),
        merge=_merge(config),
        tile=tile,
        least=config.integer("min_dynamic_patch", 1, MAX_TILES, 1) if cuts else 1,
        most=config.integer("max_dynamic_patch", 1, MAX_TILES, TILES) if cuts else 1,
        rms=vision.require("norm_type", _NORMS, _NORMS[1]) == "rms_norm",
        biases=vision.flag("qkv_bias", False),
        normed=normed,
    )


_OWN_NAMES = (
    ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.patch_embedding.", "vision_tower.embeddings.patch_embeddings.projection."),
    ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
    ("vision_model.encoder.layers.", "vision_tower.encoder.layer."),
    ("mlp1.0.", "multi_modal_projector.layer_norm."),
    ("mlp1.1.", "multi_modal_projector.linear_1."),
    ("mlp1.3.", "multi_modal_projector.linear_2."),
)
_IN_LAYERS = (
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.", ".attention."),
)


def hf_name(name: str) -> str:
    """Return a tensor's name as transformers' class has it; "" for the text half's."""
    for own, renamed in _OWN_NAMES:
        if name.startswith(own):
            name = renamed + name.removeprefix(own)
            for each, inner in _IN_LAYERS if renamed.endswith("layer.") else ():
                name = name.replace(each, inner)
            return name
    return names_under("vision_tower.", "multi_modal_projector.")(name)


def _check_hf(config: Fields, vision: Fields) -> None:
    """Raise UnsupportedModel for what no published model of this class has."""
    vision.require("hidden_act", ("gelu",), "gelu")
    config.require("projector_hidden_act", ("gelu",), "gelu")
    config.require("vision_feature_select_strategy", ("default",), "default")
    vision.refuse("use_mask_token", "rows that are masked")
    if vision.integer("num_channels", 1, 1024, CHANNELS) != CHANNELS:
        raise UnsupportedModel(f"num_channels is {vision.get('num_channels')}; only {CHANNELS} are supported")
    if config.integer("vision_feature_layer", -MAX_LAYERS, MAX_LAYERS, -1) != -1:
        raise UnsupportedModel("vision_feature_layer is not -1; only the last layer's rows are supported")
    for key, meaning in (
        ("use_mean_pooling", "a norm after the last layer"),
        ("use_absolute_position_embeddings", "an encoder without positions"),
    ):
        if not vision.flag(key, True):
            raise UnsupportedModel(f"{vision.name(key)} is false: {meaning} is not supported")


def _merge(config: Fields) -> int:
    """Return how many patches of a block's side `downsample_ratio` joins."""
    ratio = config.number("downsample_ratio", 1 / MAX_PATCH, 1.0, 0.5)
    if abs(1 / ratio - round(1 / ratio)) > 1e-6:
        raise UnsupportedModel(f"downsample_ratio is {ratio}; only one over a whole number is supported")
    return round(1 / ratio)


def config_from_gguf(meta: Fields) -> InternTowerSizes:
    """Read the keys under `clip.`."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    sizes = gguf_tower_sizes(meta, EPS)
    largest = (sizes["hidden"], sizes["layers"]) == LARGEST
    return InternTowerSizes(
        **sizes,
        pixels=gguf_pixel_form(vision),
        patch=vision.integer("patch_size", 1, MAX_PATCH),
        merge=vision.integer("projector.scale_factor", 1, MAX_PATCH, 2),
        tile=vision.integer("image_size", 1, MAX_SIDE),
        least=vision.integer("preproc_min_tiles", 1, MAX_TILES, 1),
        most=vision.integer("preproc_max_tiles", 1, MAX_TILES, TILES),
        rms=largest,
        biases=not largest,
        normed=largest,
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: InternTowerSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes; a budget makes its tiles fewer."""
    most = cfg.most if budget is None else _tiles_within(cfg, budget)
    columns, rows = nearest_grid(width, height, cfg.tile, min(cfg.least, most), most)
    kind = cfg.pixels.filter
    resizes = [(Resize(columns * cfg.tile, rows * cfg.tile, kind),)]
    if columns * rows > 1:
        resizes.append((Resize(cfg.tile, cfg.tile, kind),))
    tiles = _with_whole(columns * rows)
    tokens = tiles * cfg.tokens
    return PicturePlan(
        resizes=tuple(resizes),
        patches=tiles * cfg.rows,
        tokens=tokens,
        layout=(BEFORE, tokens, AFTER),
        places=None,
        advance=tokens,
    )


def _with_whole(tiles: int) -> int:
    return tiles + (tiles > 1)


def _tiles_within(cfg: InternTowerSizes, budget: TokenBudget) -> int:
    """Return how many tiles a budget allows beside the whole."""
    budget = budget.checked(_with_whole(cfg.most) * cfg.tokens)
    for tiles in range(cfg.most, 0, -1):
        if _with_whole(tiles) * cfg.tokens <= budget.most:
            return tiles
    raise UsageError(
        f"a picture may become {budget.most:,} tokens; this model makes {cfg.tokens:,} of one at least",
        f"allow {cfg.tokens:,} or more",
    )


def rows(cfg: InternTowerSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return of each tile a row of zeros for the class, and its patches block by block."""
    values = np.zeros((plan.patches // cfg.rows, cfg.rows, CHANNELS * cfg.patch**2), np.float32)
    for row, tile in zip(values, _tiles(cfg, pixels), strict=True):
        row[1:] = block_patches(cfg.pixels.values(tile), cfg.patch, cfg.merge)
    return TowerRows(values.reshape(plan.patches, -1), (cfg.rows,) * len(values))


def _tiles(cfg: InternTowerSizes, pixels: Sequence[U8]) -> Iterator[U8]:
    """Yield the tiles of all arrays, the whole picture's last."""
    for picture in pixels:
        yield from tiles_of(picture, cfg.tile)


def positions(cfg: InternTowerSizes, plan: PicturePlan, w: Values) -> F32:
    """Return the class row and what is added to each patch, of all tiles: float32 [patches, hidden].

    The bias of the patches' product is part of it: the class row passes the product too, as zeros.
    """
    table = w["positions"].reshape(cfg.rows, cfg.hidden)
    patches = table[1:].reshape(cfg.grid, cfg.grid, cfg.hidden) + w["patches_bias"]
    tile = np.concatenate([table[:1] + w["class_row"], in_blocks(patches, cfg.merge)])
    return np.tile(tile, (plan.patches // cfg.rows, 1))


def join(cfg: InternTowerSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Leave the class rows out, and lay the patches of a block side by side: [tokens, joined]."""
    patches = leaving.reshape(-1, cfg.rows, cfg.hidden)[:, 1:]
    return patches.reshape(plan.tokens, cfg.joined)


# --- parts ------------------------------------------------------------------------------------------------


def _thirds(name: str, width: int) -> dict[str, Cut]:
    """Return where one matrix and its bias have those of q, k and v."""
    cuts: dict[str, Cut] = {}
    for i, key in enumerate("qkv"):
        rows = range(i * width, (i + 1) * width)
        cuts[key] = Cut(f"{name}.weight", (3 * width, width), rows=rows)
        cuts[f"{key}_bias"] = Cut(f"{name}.bias", (3 * width,), rows=rows)
    return cuts


def _scale(
    specs: dict[str, TensorSpec], names: tuple[str, str], key: str, matrix: str
) -> dict[str, TensorSpec]:
    """Declare a factor for each row of a matrix and of its bias, which are multiplied by it when they are loaded."""
    width = specs[matrix].shape[0]
    scaled = {each: replace(specs[each], scaled_by=key) for each in (matrix, f"{matrix}_bias")}
    return {**specs, **scaled, key: vector(*names, width)}


def _normed(ops: Ops, x: Buffer, w: Values, key: str, eps: float) -> Buffer:
    """Compose a layer norm, or an RMS norm where it has no bias."""
    if f"{key}_bias" in w:
        return ops.layer_normed(x, w[key], w[f"{key}_bias"], eps)
    return ops.norm(x, w[key], eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class InternAttention(PictureAttention):
    """x += f * o(attention(norm(q n), norm(k n), v n)),  n = norm(x), f a factor for each column."""

    rms: bool
    biases: bool
    normed: bool

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare norms, four projections, and a factor for each column of what is added."""
        specs = super(InternAttention, self).tensors()
        whole = _thirds("attention.qkv", self.hidden)  # as OpenGVLab's own class has them
        specs |= {key: replace(specs[key], hf=(*specs[key].hf, whole[key])) for key in whole}
        dropped = {"attn_norm_bias"} if self.rms else set()
        dropped |= set() if self.biases else {f"{key}_bias" for key in "qkv"}
        specs = {key: spec for key, spec in specs.items() if key not in dropped}
        for key in ("q", "k") if self.normed else ():
            names = f"attn_{key}_norm.weight", f"attention.{key}_norm.weight"
            specs[f"{key}_norm"] = vector(*names, self.hidden)
        return _scale(specs, ("ls1.weight", "lambda_1"), "attn_scale", "o")

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norms, projections, attention and residual."""
        n = _normed(ops, x, w, "attn_norm", self.eps)
        biases = tuple(w.get(f"{key}_bias") for key in "qkv")
        q, k, v = ops.linear(n, (w["q"], w["k"], w["v"]), biases)
        if self.normed:
            q, k = (ops.norm(each, w[f"{key}_norm"], EPS) for each, key in ((q, "q"), (k, "k")))
        ops.linear_add(attend_in_parts(ops, q, k, v, self.heads, self.head), w["o"], x, w["o_bias"])


@dataclass(frozen=True, slots=True, kw_only=True)
class InternMlp(PictureMlp):
    """x += f * down(gelu(up n)),  n = norm(x), f a factor for each column."""

    rms: bool

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm, two matrices, and a factor for each column of what is added."""
        specs = super(InternMlp, self).tensors()
        if self.rms:
            del specs["mlp_norm_bias"]
        return _scale(specs, ("ls2.weight", "lambda_2"), "mlp_scale", "down")

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, up, activation, down and residual."""
        n = _normed(ops, x, w, "mlp_norm", self.eps)
        h = ops.linear_act(n, w["up"], self.act, w["up_bias"])
        ops.linear_add(h, w["down"], x, w["down_bias"])


@dataclass(frozen=True, slots=True)
class InternEnds(TowerEnds):
    """Patches, positions and the class row before the first layer; nothing after the last."""

    cfg: InternTowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the patches' matrix, which files hold as a convolution's, the class row and the positions."""
        cfg, n, hf = self.cfg, self.cfg.hidden, "vision_tower.embeddings"
        shape = (n, CHANNELS, cfg.patch, cfg.patch)
        names = "v.patch_embd.weight", f"{hf}.patch_embeddings.projection.weight"
        kernel = [Cut(name, shape, take=lambda v: v.reshape(n, -1)) for name in names]
        names = "v.position_embd.weight", f"{hf}.position_embeddings"
        table = [Cut(name, (1, cfg.rows, n), take=np.ravel) for name in names]
        first = [Cut(name, (1, 1, n), take=np.ravel) for name in ("v.class_embd", f"{hf}.cls_token")]
        return {
            "patches": matrix(kernel[0], kernel[1], n, CHANNELS * cfg.patch**2, floats=True),
            "patches_bias": vector("v.patch_embd.bias", f"{hf}.patch_embeddings.projection.bias", n),
            "class_row": vector(first[0], first[1], n),
            "positions": vector(table[0], table[1], cfg.rows * n),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the patches' product, and add what `positions` gives."""
        pixels = CHANNELS * self.cfg.patch**2
        (x,) = ops.linear(ops.features(pixels), (w["patches"],), (None,))
        ops.add(x, ops.features(self.cfg.hidden, pixels))
        return x

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Give the stream as it is."""
        ops.hidden(x)


@dataclass(frozen=True, slots=True)
class InternMerger(Merger):
    """down(gelu(up n)) of joined rows, n their layer norm."""

    cfg: InternTowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm and two matrices with biases."""
        out, wide = self.cfg.out, self.cfg.joined
        gguf, hf = "mm.model.mlp", "multi_modal_projector"
        specs = layer_norm("merger_norm", f"{gguf}.0", f"{hf}.layer_norm", wide)
        specs |= affine("merger_up", f"{gguf}.1", f"{hf}.linear_1", out, wide)
        return specs | affine("merger_down", f"{gguf}.3", f"{hf}.linear_2", out, out)

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose norm and both matrices."""
        x = ops.features(self.cfg.joined)
        n = ops.layer_normed(x, w["merger_norm"], w["merger_norm_bias"], MERGER_EPS)
        ops.hidden(gelu_between(ops, n, "merger", w))


def layer(cfg: InternTowerSizes, i: int) -> tuple[LayerPart, ...]:
    names: dict[str, Any] = {
        "norm": "layernorm_before",
        "qkv": tuple(f"attention.{key}_proj" for key in "qkv"),
        "out": "attention.projection_layer",
    }
    attention = InternAttention.of(cfg, **names, rms=cfg.rms, biases=cfg.biases, normed=cfg.normed)
    return attention, InternMlp.of(cfg, "gelu_erf", norm="layernorm_after", rms=cfg.rms)


TOWER = Tower(
    name="internvl",
    projectors=("internvl",),
    model_types=("internvl", "internvl_chat"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(InternAttention, InternMlp),
    layer=layer,
    ends=InternEnds,
    merger=InternMerger,
    plan=plan,
    rows=rows,
    positions=positions,
    join=join,
    mark=MARK,
    hf_layers="vision_tower.encoder.layer",
    hf_name=hf_name,
)
