"""The tower of Gemma 3, 4b to 27b: SigLIP over one square, whatever a picture's shape, pooled to a few hundred rows.

A picture is stretched to a square of 896 pixels. Positions are learned, one for each patch; layers have layer norms,
biases and GELU. After the last norm, blocks of 4 x 4 patches become their mean, pass an RMS norm and one matrix. The
text model sees the rows of a picture both ways, in all layers. A template writes one token for a picture, which stands
before its rows; empty lines around it join the line ends beside them in one token, so they are set before the prompt
is cut into tokens. Pan and scan, which cuts further squares out of long pictures, is off in published files.
Sources: arXiv 2503.19786 (Gemma 3), 2303.15343 (SigLIP).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS
from freehold.run.models.family import Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.vision import CHANNELS, PictureAttention, PictureMlp, SiglipEnds
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
)
from freehold.run.pictures.opening import Resize

MAX_PATCH, MAX_SIDE = 256, 4096
ROWS = 256  # that a picture becomes, where a file does not say
POOL = 4  # patches of a block's side, where a GGUF does not say
EPS = 1e-6
_BILINEAR = 2  # as Pillow numbers filters
MARK, BEFORE, AFTER = "<image_soft_token>", "<start_of_image>", "<end_of_image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaTowerSizes(TowerSizes):
    """The tower's sizes."""

    patch: int  # pixels of a patch's side
    image: int  # pixels of the square's side
    pool: int  # patches of a block's side

    def __post_init__(self) -> None:
        super(GemmaTowerSizes, self).__post_init__()
        if not self.grid or self.image % self.patch or self.grid % self.pool:
            raise UnsupportedModel(
                f"a square of {self.image} pixels has {self.image / self.patch:g} patches a side; "
                f"expected a multiple of {self.pool}"
            )

    @property
    def grid(self) -> int:
        """Patches of the square's side."""
        return self.image // self.patch

    @property
    def rows(self) -> int:
        """Rows that the text model reads of a picture."""
        return (self.grid // self.pool) ** 2


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> GemmaTowerSizes:
    """Read config.json and what is said of pixels beside it."""
    vision = config.section("vision_config") or Fields({})
    text = config.section("text_config") or Fields({})
    patch = vision.integer("patch_size", 1, MAX_PATCH, 14)
    image = vision.integer("image_size", 1, MAX_SIDE, 896)
    vision.require("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    settings.refuse("do_pan_and_scan", "pictures that are cut into squares")
    size = settings.section("size") or Fields({})
    for key in ("height", "width"):
        if size.integer(key, 1, MAX_SIDE, image) != image:
            raise UnsupportedModel(f"size.{key} is {size.get(key)} for pixels, and image_size {image}")
    rows = config.integer("mm_tokens_per_image", 1, MAX_SIDE, ROWS)
    side = math.isqrt(rows)
    if side * side != rows or not patch * side <= image:
        raise UnsupportedModel(
            f"mm_tokens_per_image is {rows}; expected a square number that the patches allow"
        )
    return GemmaTowerSizes(
        layers=vision.integer("num_hidden_layers", 1, MAX_LAYERS, 12),
        hidden=vision.integer("hidden_size", 1, MAX_WIDTH, 768),
        heads=vision.integer("num_attention_heads", 1, MAX_HEADS, 12),
        intermediate=vision.integer("intermediate_size", 1, MAX_WIDTH, 3072),
        out=text.integer("hidden_size", 1, MAX_WIDTH, 2304),
        eps=vision.number("layer_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=hf_pixel_form(settings.assuming(resample=_BILINEAR)),
        patch=patch,
        image=image,
        pool=image // patch // side,
    )


def config_from_gguf(meta: Fields) -> GemmaTowerSizes:
    """Read the keys under `clip.`."""
    vision = Fields(meta.values, meta.name("vision."))
    check_gguf_act(meta, "gelu")
    return GemmaTowerSizes(
        **gguf_tower_sizes(meta, EPS),
        pixels=replace(gguf_pixel_form(vision), filter="bilinear"),
        patch=vision.integer("patch_size", 1, MAX_PATCH),
        image=vision.integer("image_size", 1, MAX_SIDE),
        pool=vision.integer("projector.scale_factor", 1, MAX_PATCH, POOL),
    )


# --- sizes and pixels -----------------------------------------------------------------------------------


def plan(cfg: GemmaTowerSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a picture becomes: always the same."""
    if budget is not None:
        budget.checked(cfg.rows)
    return PicturePlan(
        resizes=((Resize(cfg.image, cfg.image, cfg.pixels.filter),),),
        patches=cfg.grid**2,
        tokens=cfg.rows,
        layout=(cfg.rows,),
        places=None,
        advance=cfg.rows,
    )


def rows(cfg: GemmaTowerSizes, plan: PicturePlan, pixels: Sequence[U8]) -> TowerRows:
    """Return the patches row by row, their columns by colour, row and column."""
    (picture,) = pixels
    patches = cfg.pixels.values(picture).reshape(cfg.grid, cfg.patch, cfg.grid, cfg.patch, CHANNELS)
    values = patches.transpose(0, 2, 4, 1, 3).reshape(plan.patches, -1)
    return TowerRows(np.ascontiguousarray(values), (plan.patches,))


def positions(cfg: GemmaTowerSizes, plan: PicturePlan, w: Values) -> F32:
    """Return each patch's learned position: float32 [patches, hidden]."""
    return w["positions"].reshape(plan.patches, cfg.hidden)


def join(cfg: GemmaTowerSizes, plan: PicturePlan, leaving: F32) -> F32:
    """Return the mean of each block's patches, row by row: float32 [tokens, hidden]."""
    side = cfg.grid // cfg.pool
    blocks = leaving.reshape(side, cfg.pool, side, cfg.pool, cfg.hidden)
    return np.ascontiguousarray(blocks.mean(axis=(1, 3), dtype=np.float32)).reshape(plan.tokens, cfg.hidden)


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GemmaMerger(Merger):
    """An RMS norm and one matrix over a block's mean."""

    cfg: GemmaTowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm, and a matrix that files hold transposed."""
        cfg = self.cfg
        names = "mm.input_projection.weight", "multi_modal_projector.mm_input_projection_weight"
        stored = [Cut(name, (cfg.hidden, cfg.out), take=np.transpose, decode=True) for name in names]
        norm = "mm.soft_emb_norm.weight", "multi_modal_projector.mm_soft_emb_norm.weight"
        return {
            "merger_norm": vector(*norm, cfg.hidden, hf_offset=1.0),
            "merger": matrix(stored[0], stored[1], cfg.out, cfg.hidden),
        }

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose norm and product."""
        x = ops.features(self.cfg.hidden)
        (y,) = ops.linear(x, (w["merger"],), (None,), w["merger_norm"], self.cfg.eps)
        ops.hidden(y)


def ends(cfg: GemmaTowerSizes) -> SiglipEnds:
    return SiglipEnds(hidden=cfg.hidden, patch=cfg.patch, side=cfg.grid, eps=cfg.eps, module="vision_tower")


def layer(cfg: GemmaTowerSizes, i: int) -> tuple[LayerPart, ...]:
    return PictureAttention.of(cfg), PictureMlp.of(cfg, "gelu", swapped=True)


def hf_name(name: str) -> str:
    """Give the tower's names one form: files of several years put other modules around it."""
    own = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.", 1)
    return own if own.startswith(("vision_tower.", "multi_modal_projector.")) else ""


TOWER = Tower(
    name="gemma3",
    projectors=("gemma3",),
    model_types=("gemma3",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(PictureAttention, PictureMlp),
    layer=layer,
    ends=ends,
    merger=GemmaMerger,
    plan=plan,
    rows=rows,
    positions=positions,
    join=join,
    mark=MARK,
    written=BEFORE,
    spelled=f"\n\n{BEFORE}{MARK}{AFTER}\n\n",
    span_rows=lambda cfg, budget: cfg.rows,
    hf_layers="vision_tower.encoder.layers",
    hf_name=hf_name,
)
