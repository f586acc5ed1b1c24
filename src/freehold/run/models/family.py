"""A model is layers, a layer is parts: how parts declare weights, and what a family says of itself.

Knows declarations and the order in which parts run; knows no arithmetic, no file's bytes, no particular mixer.
A weight is declared once, with its name in both formats and its shape, so no model file has loading code.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import RopeSpec

if TYPE_CHECKING:
    from freehold._native import Plan

# The verbs that a part's `forward` may call are native.Plan's op methods, each declared once in csrc/ops: native.Plan
# records them, oracle.NumpyOps runs them at once; tests/models/test_ops.py compares names and parameters.
Ops: TypeAlias = "Plan"
Buffer: TypeAlias = Any  # activations [rows of the step, width], opaque to a part
# A layer's weights by key: matrices (native.Matrix, or the oracle's), float32 vectors, its rope as "rope".
Values: TypeAlias = Mapping[str, Any]
# Of a stored tensor: one name, several in turn, or none.
Name: TypeAlias = "str | Cut | tuple[str | Cut, ...] | None"


# --- declared weights --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A declared weight that is part of a stored tensor, or that a file holds in another form.

    `rows` names the rows of the stored tensor, all outer dimensions flattened (of a vector: its elements), in the
    weight's order; exact for every weight type. Else `take` makes float32 of the declared shape from float32 of
    `shape`, of tensors of floats alone, or with `decode` of what a quantised one stands for. The declared form of a
    weight is a GGUF's, so only safetensors need `take`.
    """

    name: str | tuple[str, ...]  # several: tensors of one type, one below another
    shape: tuple[int, ...]  # of the stored tensor, or of all
    rows: range | NDArray[np.int64] | None = None
    take: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    decode: bool = False

    def __post_init__(self) -> None:
        assert (self.rows is None) != (self.take is None), "a cut names rows or a function"


@dataclass(frozen=True, slots=True)
class Turns:
    """Heads along an axis of a matrix that safetensors lay group by group, and a GGUF in turns of the groups."""

    axis: int
    groups: int
    per: int  # heads of a group
    width: int = 1
    first: int = 0  # elements before them that stay

    def reordered(self, values: NDArray[Any], *, to_gguf: bool) -> NDArray[Any]:
        """Lay the heads as a GGUF has them, or back."""
        along = np.moveaxis(values, self.axis, 0)
        order = (self.groups, self.per) if to_gguf else (self.per, self.groups)
        heads = along[self.first :].reshape(*order, self.width, *along.shape[1:]).swapaxes(0, 1)
        moved = np.concatenate([along[: self.first], heads.reshape(-1, *along.shape[1:])])
        return np.ascontiguousarray(np.moveaxis(moved, 0, self.axis))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A declared weight: a vector (width,), a matrix (rows, columns), or experts (experts, rows, columns).

    Names are tried in order; `{e}` in one stands for an expert's number, where a file holds experts apart.
    """

    gguf: tuple[str | Cut, ...]  # empty: never in such a file
    hf: tuple[str | Cut, ...]
    shape: tuple[int, ...]
    optional: bool = False
    beside: str = ""  # key of the optional tensor that a file has with it, or both are missing
    default: str = ""  # key of the tensor that is used where a file has none: a tied head
    hf_offset: float = 0.0  # added to a safetensors' values: Gemma stores its norms around zero
    scaled_by: str = (
        ""  # key of a vector declared with it, whose elements its rows are multiplied by at loading
    )
    share: float = 1.0  # of it one token reads: of experts the chosen ones, of an embedding a row
    head: int = 0  # q and k whose rows a GGUF lays in adjacent rotary pairs, in heads of this width
    turns: Turns | None = None  # heads whose order differs between the formats; the network knows its file's
    adaptable: bool = True  # whether the op it goes to computes low-rank adapters
    floats: bool = False  # computed in floats, so a quantised one is refused: a router
    wide: bool = False  # rounded to int16 codes where a file has floats: see bind.Source.wide

    @classmethod
    def of_rows(
        cls, gguf: str, hf: str, whole: tuple[int, int], rows: range | NDArray[np.int64], **options: Any
    ) -> TensorSpec:
        """Declare a matrix that files hold as some rows of a larger one, whose shape is `whole`."""
        stored = [Cut(name, whole, rows=rows) for name in (gguf, hf)]
        return matrix(stored[0], stored[1], len(rows), whole[1], **options)

    @classmethod
    def of_convolution(cls, gguf: str, hf: str | tuple[str, ...], channels: int, kernel: int) -> TensorSpec:
        """Declare a convolution's weights as a vector: `kernel` of each channel, which files hold as a row."""
        stored = Cut(gguf, (channels, kernel), take=np.ravel)
        return vector(stored, Cut(hf, (channels, 1, kernel), take=np.ravel), channels * kernel)


def matrix(gguf: Name, hf: Name, *shape: int, **options: Any) -> TensorSpec:
    """Declare a weight matrix (rows, columns)."""
    return TensorSpec(gguf=_names(gguf), hf=_names(hf), shape=shape, **options)


def vector(gguf: Name, hf: Name, width: int, **options: Any) -> TensorSpec:
    """Declare a float32 vector (width,)."""
    return TensorSpec(gguf=_names(gguf), hf=_names(hf), shape=(width,), **options)


def _names(name: Name) -> tuple[str | Cut, ...]:
    if isinstance(name, tuple):
        return name
    return (name,) if name else ()


def renamed(specs: Mapping[str, TensorSpec], names: Mapping[str, str]) -> dict[str, TensorSpec]:
    """Give declared weights of the modules in `names` what those are called instead."""

    def own(name: str) -> str:
        for old, new in names.items():
            if name.startswith(f"{old}."):
                name = new + name.removeprefix(old)
        return name

    def new(name: str | Cut) -> str | Cut:
        if isinstance(name, str):
            return own(name)
        joined = name.name
        return replace(name, name=own(joined) if isinstance(joined, str) else tuple(map(own, joined)))

    return {
        key: replace(spec, gguf=tuple(map(new, spec.gguf)), hf=tuple(map(new, spec.hf)))
        for key, spec in specs.items()
    }


# --- parts, layers, networks ---------------------------------------------------------------------------


class LayerPart(ABC):
    """A piece of a layer: a mixer or an MLP, with the norms around it. It adds to the residual stream `x`."""

    kinds: ClassVar[frozenset[str]] = frozenset()  # what such a part may keep of a sequence (layers.KINDS)
    experts: ClassVar[bool] = False  # whether it sends a token to some of many experts
    rope: RopeSpec | None = None

    @property
    def keeps(self) -> LayerSpec | None:
        """What it keeps of a sequence; None for a part that mixes no tokens."""
        return None

    @abstractmethod
    def tensors(self) -> dict[str, TensorSpec]:
        """Declare its weights; keys are unique within a layer."""

    @abstractmethod
    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose its share of one step."""


class Ends(ABC):
    """What is computed before the first layer and after the last."""

    @abstractmethod
    def tensors(self) -> dict[str, TensorSpec]:
        """Declare its weights; the matrix that logits come from has the key `head`."""

    @abstractmethod
    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Turn a step's tokens into the residual stream."""

    def beside(self, ops: Ops, x: Buffer, w: Values) -> Mapping[str, Buffer]:
        """Return what layers read beside the stream, made of its beginning; parts find it among their weights."""
        return {}

    @abstractmethod
    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Turn the residual stream into what a step returns."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Parts that run one after another."""

    parts: tuple[LayerPart, ...]
    names: Mapping[str, str] = field(default_factory=dict)  # Family.names

    @property
    def keeps(self) -> LayerSpec:
        """What the layer keeps of a sequence; a state beside keys and values is added to them."""
        kept = [p.keeps for p in self.parts if p.keeps is not None]
        attends = [spec for spec in kept if not spec.recurrent]
        states = [spec for spec in kept if spec.recurrent]
        assert len(attends) <= 1 and len(states) <= 1, "one cache entry of each sort a layer"
        if attends and states:
            return replace(attends[0], state=states[0].state, conv=states[0].conv)
        return kept[0] if kept else LayerSpec("plain")

    @property
    def rope(self) -> RopeSpec | None:
        """How its mixer turns positions, if it does."""
        return next((p.rope for p in self.parts if p.rope is not None), None)

    def tensors(self) -> dict[str, TensorSpec]:
        """List the declared weights of all parts."""
        specs = {key: spec for part in self.parts for key, spec in part.tensors().items()}
        return renamed(specs, self.names)


@dataclass(frozen=True, slots=True)
class RopeChoice:
    """The two ropes of a longrope. A context is on one side as a whole, so that all keys of a cache turn alike."""

    short: Any  # for contexts up to `original`
    long: Any
    original: int


@dataclass(frozen=True, slots=True)
class NetworkWeights:
    """The values of a network's declared weights, by key."""

    ends: Values
    layers: tuple[Values, ...]

    @property
    def choice(self) -> RopeChoice | None:
        """What a context decides, if anything."""
        return next((w["rope"] for w in self.layers if isinstance(w.get("rope"), RopeChoice)), None)

    def at(self, context: int) -> NetworkWeights:
        """Choose the rope for sequences of up to `context` tokens, where there are two."""
        if self.choice is None:
            return self

        def chosen(w: Values) -> Values:
            rope = w.get("rope")
            if not isinstance(rope, RopeChoice):
                return w
            return {**w, "rope": rope.long if context > rope.original else rope.short}

        return NetworkWeights(self.ends, tuple(chosen(w) for w in self.layers))


@dataclass(frozen=True, slots=True)
class Network:
    """A whole model as its parts: the one description of its forward pass."""

    ends: Ends
    layers: tuple[Layer, ...]

    def forward(self, ops: Ops, weights: NetworkWeights) -> None:
        """Compose one step."""
        x = self.ends.begin(ops, weights.ends)
        beside = self.ends.beside(ops, x, weights.ends)
        for i, (layer, w) in enumerate(zip(self.layers, weights.layers, strict=True)):
            for part in layer.parts:
                part.forward(ops, i, x, {**w, **beside} if beside else w)
        self.ends.finish(ops, x, weights.ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What an architecture's file offers to bind.py."""

    gguf_architecture: str
    hf_classes: tuple[str, ...]
    config_from_gguf: Callable[[Fields, int], Any]  # from keys without the architecture, vocabulary rows
    config_from_hf: Callable[[Fields], Any]
    parts: tuple[type[LayerPart], ...]  # what its layers are made of
    layer: Callable[[Any, int], tuple[LayerPart, ...]]  # config, number -> its parts; layers may differ
    ends: Callable[[Any], Ends]
    model_types: tuple[str, ...] = ()  # config.json's names for it beside the GGUF's
    hf_when: Callable[[Fields], bool] = lambda config: True  # which files of its classes are its own
    wrappers: tuple[str, ...] = ()  # classes of text and pictures whose `text_config` may be one of it
    names: Mapping[str, str] = field(default_factory=dict)  # of modules that files call otherwise than parts
    encoder: bool = False  # makes embeddings of whole texts, and no token
    towers: tuple[
        str, ...
    ] = ()  # names of the towers (models/towers) whose features it reads in place of words
    both: Callable[[Any], bool] = lambda cfg: False  # config -> whether rows of a picture see each other
    feature_width: Callable[[Any], int] = lambda cfg: cfg.hidden  # of a row of them; config -> columns
    # Composes what is kept of rows of features that stand before every text, and are no words: of sound
    prefix: Callable[[Any, Ops, NetworkWeights], None] | None = None
    head: Callable[[Any], Network] | None = None  # its own drafting head, of one layer; config -> network
    hf_layers: str = "model.layers"  # what layers' names begin with in a safetensors
    hf_outer: str = ""  # what some files put before every name, and others do not
    tied_note: str = ""  # what a GGUF without a head of its own has lost
    left_out: tuple[Rule, ...] = ()  # tensors of a safetensors that are not computed, and what to say
    left_out_of: Callable[[Any], tuple[Rule, ...]] = lambda cfg: ()  # of either format, by the config

    @property
    def keeps(self) -> frozenset[str]:
        """Kinds of layers it computes, as the catalogue has them."""
        return frozenset().union(*(part.kinds for part in self.parts))

    @property
    def experts(self) -> bool:
        """Whether it is a mixture of experts: a GGUF calls Mixtral `llama` too."""
        return any(part.experts for part in self.parts)

    def layers(self, cfg: Any) -> tuple[Layer, ...]:
        """Give each layer its parts, from which follows what it keeps."""
        return tuple(Layer(self.layer(cfg, i), self.names) for i in range(cfg.layers))

    def network(self, cfg: Any) -> Network:
        """Build the parts of a model with this config."""
        return Network(self.ends(cfg), self.layers(cfg))


# --- tensors of a file that are left out, with a note: a family's own, and towers of pictures -------

_OTHER_HALVES = re.compile(
    r"(model\.)?(vision_tower|vision_model|vision_embedder|visual|multi_modal_projector|connector|audio_tower|embed_vision"
    r"|embed_audio|projector|mm_projector|mlp_AR|mlp1|vision_adapter|vision_projection|vit_large_projector)"
    r"\..*"
)
_TEXT_HALF = re.compile(r"model\.(language|text)_model\.")

TEXT_ALONE = "the vision parts of this model are left out; it reads text only"

T = TypeVar("T")
Rule: TypeAlias = tuple[str, str]  # a regular expression that names begin with, and what to say


def leave_out(tensors: Mapping[str, T], rules: Iterable[Rule]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Return the tensors that no rule names, and the notes of the rules that named one."""
    left, notes = dict(tensors), []
    for pattern, note in rules:
        kept = {name: tensor for name, tensor in left.items() if not re.match(pattern, name)}
        if len(kept) < len(left):
            notes.append(note)
        left = kept
    return left, tuple(notes)


def plain_name(name: str) -> str:
    """Return what a tensor of a multimodal model's text half is called in a model of text alone."""
    return _TEXT_HALF.sub("model.", name.removeprefix("language_model."), count=1)


def text_half(tensors: Mapping[str, T], notes: tuple[str, ...]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Give a multimodal file's text tensors their plain names; leave the vision parts out, and say so."""
    out: dict[str, T] = {}
    for name, tensor in tensors.items():
        if _OTHER_HALVES.fullmatch(name):
            continue
        if (plain := plain_name(name)) in out:
            raise BadModelFile(f"tensor {plain} occurs twice, in the text half and beside it")
        out[plain] = tensor
    return out, (*notes, TEXT_ALONE) if len(out) < len(tensors) else notes
