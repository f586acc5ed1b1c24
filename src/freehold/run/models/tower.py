"""A tower makes features of a picture or a sound, rows that a text model reads in place of words.

It is declared as a family is.

Knows declarations, the order in which parts run, and what is said of a picture before it is opened; knows no tower's
numbers, no file's bytes and no kernel. Two plans compute it: the layers over patches, and the merger over rows that
were joined between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeTable
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, WIDTH_STEP
from freehold.run.models.family import (
    Buffer,
    Cut,
    Layer,
    LayerPart,
    NetworkWeights,
    Ops,
    TensorSpec,
    Values,
    matrix,
    vector,
)
from freehold.run.pictures.opening import Filter, Resize

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

MAX_TOKENS = (
    1 << 20
)  # of a picture, whatever a model's files say: 64 times what the largest published one makes
HEAD_WIDTH = 16  # the least that attention both ways computes
NORM_STEP = 16  # inputs that a layer norm's kernel takes at once

# --- a picture before it is opened -------------------------------------------------------------------


class TokenBudget(NamedTuple):
    """How many rows a picture may become, in place of the limits that a model's files state."""

    least: int
    most: int

    def checked(self, most: int) -> TokenBudget:
        """Return it; raise UsageError unless it is at least one row and at most `most`, the model's own limit."""
        if not 1 <= self.least <= self.most <= most:
            raise UsageError(
                f"a picture may become {self.least:,} to {self.most:,} tokens; expected two counts up to {most:,}",
                "name the smaller count first",
            )
        return self


@dataclass(frozen=True, slots=True)
class PicturePlan:
    """What a picture of one size becomes.

    `places`: time, row and column of each row, from 0 on, for a text model whose positions have three numbers; None:
    each row is one position further, and `advance` is `tokens`.
    """

    resizes: tuple[tuple[Resize, ...], ...]  # of each array of pixels, one resize after another
    patches: int  # rows that the tower computes
    tokens: int  # rows that the text model reads
    layout: tuple[int | str, ...]  # in place of the mark in a prompt: counts of rows, and texts between them
    places: I32 | None = field(compare=False, repr=False)  # [tokens, 3]
    advance: int  # positions between its first row and the text after it

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first array of pixels."""
        last = self.resizes[0][-1]
        return last.width, last.height


@dataclass(frozen=True, slots=True, eq=False)
class TowerRows:
    """What enters the layers."""

    values: F32  # [patches, columns]
    groups: tuple[int, ...]  # how many rows attend to each other, one group after another
    places: I32 | None = None  # [patches, 3], as a rope's axes read them
    windows: tuple[int, ...] = ()  # as groups, in the layers that Tower.windowed names


def check_ratio(width: int, height: int, most: int) -> None:
    """Raise UsageError for a picture without pixels, or with a side more than `most` times the other."""
    if min(width, height) < 1 or max(width, height) > most * min(width, height):
        raise UsageError(
            f"the picture is {width} x {height} pixels; one side may be {most} times the other at most",
            "cut it into several",
        )


def check_tokens(tokens: int) -> None:
    """Raise UsageError for more tokens of a picture than any model makes."""
    if tokens > MAX_TOKENS:
        raise UsageError(
            f"by the model's files the picture would become {tokens:,} tokens; the limit is {MAX_TOKENS:,}",
            "the sizes in the model's files may be damaged: freehold pull downloads them again",
        )


def raster_places(rows: int, columns: int) -> I32:
    """Return time (0), row and column of each row of a grid: int32 [rows * columns, 3].

    Raises UsageError for more rows than MAX_TOKENS.
    """
    check_tokens(rows * columns)
    places = np.zeros((rows, columns, 3), np.int32)
    places[..., 1] = np.arange(rows)[:, None]
    places[..., 2] = np.arange(columns)
    return places.reshape(-1, 3)


def in_blocks(grid: NDArray[Any], side: int) -> NDArray[Any]:
    """Return a grid's rows, [rows, columns, ...], block by block of `side` x `side`: [rows * columns, ...]."""
    rows, columns, *rest = grid.shape
    blocks = grid.reshape(rows // side, side, columns // side, side, *rest).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).reshape(rows * columns, *rest)


# --- pixels as a model's files say that they enter ------------------------------------------------------

_FILTERS: Mapping[int, Filter] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the colours, where no file says (arXiv 2103.00020)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class PixelForm:
    """How bytes of red, green and blue become values: value = (byte / 255 - mean) / deviation of the colour."""

    mean: tuple[float, ...] = HALF
    deviation: tuple[float, ...] = HALF
    filter: Filter = "bicubic"  # of the resize before

    def values(self, pixels: U8) -> F32:
        """Return [height, width, 3] as float32; in transformers' order, which scales mean and deviation instead."""
        mean, deviation = (np.array(v, np.float32) * np.float32(255) for v in (self.mean, self.deviation))
        return np.asarray((pixels.astype(np.float32) - mean) / deviation, np.float32)


def hf_pixel_form(settings: Fields) -> PixelForm:
    """Read preprocessor_config.json, or what stands in its place. Raises UnsupportedModel for another order of work."""
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not settings.flag(key, True):
            raise UnsupportedModel(f"{settings.name(key)} is false, which is not supported")
    if abs(settings.number("rescale_factor", 0.0, 1.0, 1 / 255) * 255 - 1) > 1e-6:
        raise UnsupportedModel(f"{settings.name('rescale_factor')} is not 1/255, which is not supported")
    number = settings.integer("resample", 0, 5, 3)
    if number not in _FILTERS:
        raise UnsupportedModel(
            f"{settings.name('resample')} is {number}; supported: 1 (Lanczos), 2 (bilinear), 3 (bicubic)"
        )
    return PixelForm(_colours(settings, "image_mean"), _colours(settings, "image_std"), _FILTERS[number])


def clip_coloured(fields: Fields) -> Fields:
    """Return what files say of pixels, and CLIP's mean and deviation where they do not."""
    return fields.assuming(image_mean=list(CLIP_MEAN), image_std=list(CLIP_DEVIATION))


def gguf_pixel_form(vision: Fields) -> PixelForm:
    """Read the keys of a GGUF, which states no filter."""
    return PixelForm(_colours(vision, "image_mean"), _colours(vision, "image_std"))


def _colours(fields: Fields, key: str) -> tuple[float, ...]:
    stated = fields.get(key)
    values = stated.tolist() if isinstance(stated, np.ndarray) else stated
    if values is None:
        return HALF
    least = 1e-6 if key == "image_std" else 0.0
    if (
        not isinstance(values, list)
        or len(values) != 3
        or any(type(v) not in (int, float) or not least <= v <= 1 for v in values)
    ):
        raise BadModelFile(f"{fields.name(key)} is {str(values)[:60]}; expected three numbers from 0 to 1")
    return tuple(float(v) for v in values)


# --- declared weights that towers share -----------------------------------------------------------------


def affine(key: str, gguf: str, hf: str, rows: int, columns: int) -> dict[str, TensorSpec]:
    """Declare a matrix and its bias."""
    return {
        key: matrix(f"{gguf}.weight", f"{hf}.weight", rows, columns),
        f"{key}_bias": vector(f"{gguf}.bias", f"{hf}.bias", rows),
    }


def affine_rows(key: str, gguf: str, hf: str, whole: tuple[int, int], rows: range) -> dict[str, TensorSpec]:
    """Declare rows of a matrix, and of its bias, that files hold with others as one of the shape `whole`."""
    biases = [Cut(f"{name}.bias", whole[:1], rows=rows) for name in (gguf, hf)]
    return {
        key: TensorSpec.of_rows(f"{gguf}.weight", f"{hf}.weight", whole, rows),
        f"{key}_bias": vector(biases[0], biases[1], len(rows)),
    }


def affine_apart(key: str, gguf: str, hf: str, whole: tuple[int, int], rows: range) -> dict[str, TensorSpec]:
    """Declare a matrix and its bias, each by itself in a GGUF, and rows of one of the shape `whole` in safetensors."""
    weight, bias = Cut(f"{hf}.weight", whole, rows=rows), Cut(f"{hf}.bias", whole[:1], rows=rows)
    return {
        key: matrix(f"{gguf}.weight", weight, len(rows), whole[1]),
        f"{key}_bias": vector(f"{gguf}.bias", bias, len(rows)),
    }


def affine_padded(
    key: str, gguf: str, hf: str, stored: tuple[int, int], rows: int, columns: int
) -> dict[str, TensorSpec]:
    """Declare a matrix and its bias with zeros after what files hold: int8 panels take inputs by 32."""
    if stored == (rows, columns):
        return affine(key, gguf, hf, rows, columns)
    wide, long = ((0, rows - stored[0]), (0, columns - stored[1])), (0, rows - stored[0])
    matrices = [
        Cut(f"{name}.weight", stored, take=lambda v: np.pad(v, wide), decode=True) for name in (gguf, hf)
    ]
    biases = [Cut(f"{name}.bias", stored[:1], take=lambda v: np.pad(v, long)) for name in (gguf, hf)]
    return {
        key: matrix(matrices[0], matrices[1], rows, columns),
        f"{key}_bias": vector(biases[0], biases[1], rows),
    }


def layer_norm(key: str, gguf: str, hf: str, width: int) -> dict[str, TensorSpec]:
    """Declare a layer norm."""
    return {
        key: vector(f"{gguf}.weight", f"{hf}.weight", width),
        f"{key}_bias": vector(f"{gguf}.bias", f"{hf}.bias", width),
    }


# --- the network ------------------------------------------------------------------------------------------


class TowerEnds(ABC):
    """What is computed before the first layer and after the last."""

    @abstractmethod
    def tensors(self) -> dict[str, TensorSpec]:
        """Declare its weights; keys are none of the merger's."""

    @abstractmethod
    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Turn what enters into the residual stream."""

    @abstractmethod
    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Give the stream, and its copies that were kept, to what joins rows."""


class Merger(ABC):
    """What is computed of joined rows."""

    @abstractmethod
    def tensors(self) -> dict[str, TensorSpec]:
        """Declare its weights."""

    @abstractmethod
    def forward(self, ops: Ops, w: Values) -> None:
        """Turn joined rows into features."""


@dataclass(frozen=True, slots=True)
class TowerNetwork:
    """A whole tower as its parts: the one description of its two forward passes."""

    ends: TowerEnds
    layers: tuple[Layer, ...]
    merger: Merger
    rope: RopeTable | None  # of all layers
    width: int  # of the residual stream
    kept: tuple[int, ...]  # numbers of the layers after which a copy of it is kept
    windowed: frozenset[int]  # numbers of the layers whose rows attend within their window alone

    def forward(self, ops: Ops, weights: NetworkWeights, within: Callable[[bool], None]) -> None:
        """Compose the layers over patches; a run may pause between any two parts.

        `within` is called before each layer, with whether its rows attend within windows instead of groups.
        """
        x = self.ends.begin(ops, weights.ends)
        kept: list[Buffer] = []
        for i, (layer, w) in enumerate(zip(self.layers, weights.layers, strict=True)):
            within(i in self.windowed)
            for part in layer.parts:
                ops.section()
                part.forward(ops, i, x, w)
            if i in self.kept:
                kept.append(ops.part(x, 0, self.width))
        self.ends.finish(ops, x, kept, weights.ends)

    def merge(self, ops: Ops, weights: NetworkWeights) -> None:
        """Compose the merger over joined rows."""
        self.merger.forward(ops, weights.ends)

    def turned(self, weights: NetworkWeights, rope: Callable[[RopeTable], Any]) -> NetworkWeights:
        """Give every layer its rope, made of the table by `rope`."""
        turn = None if self.rope is None else rope(self.rope)
        return NetworkWeights(weights.ends, tuple({**w, "rope": turn} for w in weights.layers))


# --- a tower ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSizes:
    """Sizes every tower has."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    out: int  # width of the text model that reads the features
    eps: float
    pixels: PixelForm
    mark: str = ""  # in place of Tower.mark, where a file names another

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.head < HEAD_WIDTH:
            raise UnsupportedModel(
                f"the encoder has {self.heads} heads over a width of {self.hidden}; heads of {HEAD_WIDTH} and more are "
                "supported"
            )
        if self.hidden % NORM_STEP:
            raise UnsupportedModel(
                f"the encoder's width is {self.hidden}; only multiples of {NORM_STEP} are supported"
            )

    def check_turned(self) -> None:
        """Raise UnsupportedModel for heads that a rope by row and column does not divide."""
        if self.head % 4:
            raise UnsupportedModel(
                f"the encoder's heads are {self.head} wide; only multiples of 4 are supported"
            )

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def inner(self) -> int:
        """Width of an MLP with the zeros that fill it up: int8 panels take inputs by 32."""
        return -(-self.intermediate // WIDTH_STEP) * WIDTH_STEP

    @property
    def feature_width(self) -> int:
        """Columns of a row of features: once or several times `out`."""
        return self.out

    @property
    def row_floats(self) -> int:
        """How many floats a patch takes in the layers, about: what enters, attention, the MLP, and what leaves."""
        return 9 * self.hidden + self.inner


def gguf_tower_sizes(meta: Fields, eps: float) -> dict[str, Any]:
    """Read what every tower's GGUF states of TowerSizes, pixels excepted, from the keys under `clip.`."""
    vision = Fields(meta.values, meta.name("vision."))
    return {
        "layers": vision.integer("block_count", 1, MAX_LAYERS),
        "hidden": vision.integer("embedding_length", 1, MAX_WIDTH),
        "heads": vision.integer("attention.head_count", 1, MAX_HEADS),
        "intermediate": vision.integer("feed_forward_length", 1, MAX_WIDTH),
        "out": vision.integer("projection_dim", 1, MAX_WIDTH),
        "eps": vision.number("attention.layer_norm_epsilon", MIN_EPS, MAX_EPS, eps),
    }


def check_gguf_act(meta: Fields, act: Literal["gelu", "silu"]) -> None:
    """Raise UnsupportedModel for a GGUF whose MLPs have another activation."""
    other = "silu" if act == "gelu" else "gelu"
    if meta.flag(f"use_{other}", False) or not meta.flag(f"use_{act}", False):
        name = {"gelu": "GELU", "silu": "SiLU"}[act]
        raise UnsupportedModel(
            f"{meta.name(f'use_{act}')} is not true; only encoders with {name} are supported"
        )


def names_under(*modules: str) -> Callable[[str], str]:
    """Return a Tower.hf_name: tensors of these modules, without the `model.` that newer files put before them."""

    def hf_name(name: str) -> str:
        own = name.removeprefix("model.")
        return own if own.startswith(modules) else ""

    return hf_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """What a tower's file offers to bind.py and to those that run it."""

    name: str  # as Family.towers has it
    projectors: tuple[str, ...]  # clip.projector_type of its GGUFs
    model_types: tuple[str, ...]  # config.json's names for the models that have it
    # Of the sounds in a chat: the width that it plans is a sound's samples at 16 kHz, and its only array holds them.
    hears: bool = False
    most_seconds: float = 0.0  # of such a sound
    config_from_gguf: Callable[[Fields], Any]  # from keys under `clip.`
    config_from_hf: Callable[[Fields, Fields], Any]  # from config.json, and what is said of pixels beside it
    parts: tuple[type[LayerPart], ...]  # what its layers are made of
    layer: Callable[[Any, int], tuple[LayerPart, ...]]  # config, number -> its parts
    ends: Callable[[Any], TowerEnds]
    merger: Callable[[Any], Merger]
    rope: Callable[[Any], RopeTable | None] = lambda cfg: None
    kept: Callable[[Any], tuple[int, ...]] = lambda cfg: ()
    windowed: Callable[[Any], frozenset[int]] = lambda cfg: frozenset()
    # Config, width and height of a picture, and what may stand in place of its limits; raises UsageError.
    plan: Callable[[Any, int, int, TokenBudget | None], PicturePlan]
    # What enters of a picture, by its arrays of pixels, uint8 [height, width, 3] each.
    rows: Callable[[Any, PicturePlan, Sequence[U8]], TowerRows]
    # Rows that learned positions make for a plan, of the ends' vectors; columns after those of `rows`.
    positions: Callable[[Any, PicturePlan, Values], F32 | None] = lambda cfg, plan, w: None
    # What `finish` gave of one picture, [patches, ...], as the merger reads it: [tokens, ...].
    join: Callable[[Any, PicturePlan, F32], F32]
    # Joined rows after what the ends' vectors do to them.
    standardised: Callable[[Any, F32, Values], F32] = lambda cfg, joined, w: joined
    mark: str  # what stands for a picture in a prompt, and in most templates' text
    # Of templates that write something else, and of marks with texts around them that join their neighbours in a token:
    written: str = ""  # what such a template writes,
    spelled: str = ""  # and what takes its place before the prompt is cut into tokens, the mark in it
    row: str = ""  # what published prompts have for each row of a picture, where that is not the mark
    # Rows that a picture becomes at most within a budget, where the text model computes them together (Family.both).
    span_rows: Callable[[Any, TokenBudget | None], int] = lambda cfg, budget: 0
    hf_layers: str  # what layers' names begin with in a safetensors
    hf_name: Callable[[str], str]  # of a wrapper's tensor; "" for what is not the tower's
    # Keys that a GGUF lacks, or states otherwise, and the tensors whose rows they count.
    rows_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def gguf_layers(self) -> str:
        """What layers' names begin with in a GGUF."""
        return "a.blk" if self.hears else "v.blk"

    def network(self, cfg: Any) -> TowerNetwork:
        """Build the parts of a tower with this config."""
        layers = tuple(Layer(self.layer(cfg, i)) for i in range(cfg.layers))
        return TowerNetwork(
            self.ends(cfg),
            layers,
            self.merger(cfg),
            self.rope(cfg),
            cfg.hidden,
            self.kept(cfg),
            self.windowed(cfg),
        )

    def entering(self, cfg: Any, plan: PicturePlan, pixels: Sequence[U8], w: Values) -> TowerRows:
        """Return what enters the layers of one picture; `w`: the ends' weights, of which vectors are read."""
        rows = self.rows(cfg, plan, pixels)
        beside = self.positions(cfg, plan, w)
        if beside is None:
            return rows
        return replace(rows, values=np.concatenate([rows.values, beside], axis=1))

    def declared(self, cfg: Any) -> Iterator[tuple[str, str, str, TensorSpec]]:
        """Yield every declared weight: the prefixes of its names in safetensors and in a GGUF, its key, the spec."""
        network = self.network(cfg)
        for specs in (network.ends.tensors(), network.merger.tensors()):
            yield from (("", "", key, spec) for key, spec in specs.items())
        for i, layer in enumerate(network.layers):
            prefixes = f"{self.hf_layers}.{i}.", f"{self.gguf_layers}.{i}."
            yield from ((*prefixes, key, spec) for key, spec in layer.tensors().items())
