"""What all model files share: the ops they are written in, sizes, weight declarations, the family record.

Knows the words of a decoder-only transformer; knows no file format's bytes and no arithmetic.
A weight is declared once, as a dataclass field that carries its name in both formats and its shape in terms
of the config; the loader reads the declarations, so a model file has no loading code.
Path: loader -> Family.config_from_* -> declared weights -> Family.forward(ops, cfg, w)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.errors import BadModelFile, UnsupportedModel
from freehold.layers import LayerSpec
from freehold.models.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.models.rope import RopeSpec, RopeTable

F32 = NDArray[np.float32]
Matrix: TypeAlias = Any  # whatever the ops multiply with: native.Matrix, or the oracle's
Rope: TypeAlias = Any  # likewise: native.Rope, or a RopeTable
Buffer: TypeAlias = Any  # activations [rows of the step, width], opaque to a model file

MIN_EPS, MAX_EPS = 1e-12, 1e-1
WIDTH_STEP = 32  # native panels hold inputs in blocks of 32


class Ops(Protocol):
    """The verbs a forward pass is written in; native.Plan records them, oracle.NumpyOps runs them at once."""

    def embed(self, table: Matrix, scale: float = 1.0) -> Buffer: ...
    def norm(self, x: Buffer, weight: F32, eps: float) -> Buffer: ...
    def linear(
        self,
        x: Buffer,
        weights: Sequence[Matrix],
        biases: Sequence[F32 | None],
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> list[Any]: ...
    def linear_add(self, x: Buffer, weight: Matrix, residual: Buffer, bias: F32 | None = None) -> None: ...
    def gated(
        self, x: Buffer, gate: Matrix, up: Matrix, act: str, norm: F32 | None = None, eps: float = 0.0
    ) -> Buffer: ...
    def rope_store(
        self,
        layer: int,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        rope: Rope | None,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        eps: float = 0.0,
    ) -> None: ...
    def attention(
        self, layer: int, q: Buffer, scale: float, window: int = 0, softcap: float = 0.0
    ) -> Buffer: ...
    def add_norm(self, residual: Buffer, x: Buffer, weight: F32, eps: float) -> None: ...
    def logits(
        self,
        x: Buffer,
        weight: Matrix,
        norm: F32 | None,
        eps: float,
        scale: float = 1.0,
        softcap: float = 0.0,
    ) -> None: ...

    # An encoder's: rows of a text see each other, and nothing is kept for another step.
    def embed_sum(self, words: Matrix, positions: Matrix, kinds: Matrix) -> Buffer: ...
    def layer_norm(self, x: Buffer, weight: F32, bias: F32, eps: float) -> None: ...
    def linear_gelu(self, x: Buffer, weight: Matrix, bias: F32 | None = None) -> Buffer: ...
    def attend_both(self, q: Buffer, k: Buffer, v: Buffer, heads: int, scale: float) -> Buffer: ...
    def hidden(self, x: Buffer) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Sizes every dense decoder has; a family's Config adds its own."""

    vocab: int  # rows of the embedding; may exceed the tokenizer's
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    context: int  # positions the model was trained or extended for
    tied: bool  # a file without an output head uses the embedding

    @property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim


def gguf_dims(meta: Fields, vocab: int) -> dict[str, Any]:
    """Read the sizes of a GGUF as arguments for a Config; `vocab` is the embedding's row count."""
    hidden = meta.integer("embedding_length", 1, MAX_WIDTH)
    heads = meta.integer("attention.head_count", 1, MAX_HEADS)
    head_dim = meta.integer("attention.key_length", 1, MAX_WIDTH, _default_head(meta, hidden, heads))
    if meta.integer("attention.value_length", 1, MAX_WIDTH, head_dim) != head_dim:
        raise UnsupportedModel(f"{meta.name('attention.value_length')} differs from key_length, {head_dim}")
    meta.refuse("expert_count", "a mixture of experts")
    return checked_dims(
        vocab=vocab,
        hidden=hidden,
        inner=meta.integer("feed_forward_length", 1, MAX_WIDTH),
        layers=meta.integer("block_count", 1, MAX_LAYERS),
        heads=heads,
        kv_heads=meta.integer("attention.head_count_kv", 1, MAX_HEADS, heads),
        head_dim=head_dim,
        eps=meta.number("attention.layer_norm_rms_epsilon", MIN_EPS, MAX_EPS),
        context=meta.integer("context_length", 1, MAX_CONTEXT),
        tied=True,
    )


def hf_dims(config: Fields, *, tied: bool = False, eps: float = 1e-6, **defaults: int) -> dict[str, Any]:
    """Read the sizes of a config.json; the keywords are what the family's class assumes for absent keys."""

    def size(key: str, high: int) -> int:
        return config.integer(key, 1, high, *([defaults[key]] if key in defaults else []))

    hidden = size("hidden_size", MAX_WIDTH)
    heads = size("num_attention_heads", MAX_HEADS)
    default = defaults.get("head_dim") or _default_head(config, hidden, heads)
    config.require("torch_dtype", ("float32", "float16", "bfloat16"), "float32")
    return checked_dims(
        vocab=size("vocab_size", MAX_VOCAB),
        hidden=hidden,
        inner=size("intermediate_size", MAX_WIDTH),
        layers=size("num_hidden_layers", MAX_LAYERS),
        heads=heads,
        kv_heads=config.integer(
            "num_key_value_heads", 1, MAX_HEADS, defaults.get("num_key_value_heads", heads)
        ),
        head_dim=config.integer("head_dim", 1, MAX_WIDTH, default),
        eps=config.number("rms_norm_eps", MIN_EPS, MAX_EPS, eps),
        context=size("max_position_embeddings", MAX_CONTEXT),
        tied=config.flag("tie_word_embeddings", tied),
    )


def _default_head(fields: Fields, hidden: int, heads: int) -> int:
    explicit = fields.get("attention.key_length") or fields.get("head_dim")
    if not explicit and hidden % heads:
        raise BadModelFile(f"{heads} attention heads do not divide the hidden width, {hidden}")
    return max(hidden // heads, 1)


def checked_dims(**dims: Any) -> dict[str, Any]:
    """Return `dims` when they fit together and fit the kernels."""
    if dims["heads"] % dims["kv_heads"]:
        raise BadModelFile(f"{dims['kv_heads']} key/value heads do not divide {dims['heads']} query heads")
    if dims["vocab"] > MAX_VOCAB:
        raise BadModelFile(f"the vocabulary has {dims['vocab']} rows; the limit is {MAX_VOCAB}")
    widths = {"hidden": dims["hidden"], "inner": dims["inner"], "attention": dims["heads"] * dims["head_dim"]}
    for name, width in widths.items():
        if width > MAX_WIDTH:
            raise BadModelFile(f"the {name} width is {width}; the limit is {MAX_WIDTH}")
        if width % WIDTH_STEP:
            raise UnsupportedModel(
                f"the {name} width is {width}; only multiples of {WIDTH_STEP} are supported"
            )
    return dims


def attention_layers(cfg: Any) -> tuple[LayerSpec, ...]:
    """Give what the layers of a decoder keep: keys and values, of a window where `cfg.windows` names one."""
    return tuple(
        LayerSpec("window" if w else "full", 1, cfg.kv_heads, cfg.head_dim, window=w) for w in cfg.windows
    )


def extended_context(context: int, rope: RopeSpec) -> int:
    """Return the positions a model is good for: YaRN stretches the original ones by its factor."""
    if rope.scaling == "yarn":
        return max(context, min(int(rope.original * rope.factor), MAX_CONTEXT))
    return context


def sliding_windows(
    config: Fields, layers: int, window: int, slides: Callable[[int], bool]
) -> tuple[int, ...]:
    """Give each layer's window (0: none), by config.json's `layer_types` or else by the rule `slides`."""
    kinds = config.texts("layer_types", layers)
    if kinds is None:
        return tuple(window if slides(i) else 0 for i in range(layers))
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(
                f"layer_types names {kind!r}; supported: full_attention, sliding_attention"
            )
    if "sliding_attention" in kinds and not window:
        raise BadModelFile("layer_types names sliding_attention, but sliding_window is missing")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


# --- weight declarations ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A declared weight: names in both formats (None: never there), and Config attributes as its shape."""

    gguf: str | None
    hf: str | None
    shape: tuple[str, ...]  # (rows, columns) or (width,)
    optional: bool = False
    hf_offset: float = 0.0  # added to a safetensors' values: Gemma stores its norms around zero


def _declare(spec: TensorSpec) -> Any:
    metadata = {"tensor": spec}
    if spec.optional:
        return dataclasses.field(default=None, metadata=metadata)
    return dataclasses.field(metadata=metadata)


def matrix(gguf: str, hf: str, rows: str, columns: str, *, optional: bool = False) -> Any:
    """Declare a weight matrix [rows, columns], sizes given as names of Config attributes."""
    return _declare(TensorSpec(gguf, hf, (rows, columns), optional))


def vector(
    gguf: str | None, hf: str | None, width: str, *, optional: bool = False, hf_offset: float = 0.0
) -> Any:
    """Declare a float32 vector [width]."""
    return _declare(TensorSpec(gguf, hf, (width,), optional, hf_offset))


def declared(weights: type[Any]) -> dict[str, TensorSpec]:
    """List the tensors a weights dataclass declares: field name -> spec."""
    fields = dataclasses.fields(weights)
    return {f.name: f.metadata["tensor"] for f in fields if "tensor" in f.metadata}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model file's offer to the loader."""

    gguf_architecture: str
    hf_classes: tuple[str, ...]
    config_from_gguf: Callable[
        [Fields, int], Any
    ]  # metadata under the architecture's prefix, vocabulary rows
    config_from_hf: Callable[[Fields], Any]
    weights: type[Any]  # a dataclass with a field `blocks` and one per entry of `ropes`
    block: type[Any]
    ropes: Callable[[Any, F32 | None], Mapping[str, RopeTable]]  # config, rope_freqs.weight -> field -> table
    forward: Callable[[Ops, Any, Any], None]
    layers: Callable[[Any], tuple[LayerSpec, ...]]  # config -> what each layer keeps
    gguf_pairs: bool = False  # a GGUF lays rows of q and k in adjacent rotary pairs, safetensors in halves
    model_types: tuple[str, ...] = ()  # config.json's names for it beside the GGUF's
    keeps: frozenset[str] = frozenset({"full", "window"})  # kinds of layers, as the catalogue has them
    encoder: bool = False  # makes embeddings of whole texts, and no token
    hf_layers: str = "model.layers"  # what layers' names begin with in a safetensors
    gathered: tuple[str, ...] = ("embed",)  # matrices of `weights` read by row; multiplied only as a head
    left_out: tuple[tuple[str, str], ...] = ()  # prefixes of tensors that are not computed, and what to say
