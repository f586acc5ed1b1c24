"""The sizes of a decoder, as both file formats state them.

Knows the keys and the limits of sizes, one value for all layers or a list of one a layer, and what a GGUF does not
state; knows no tensor and no arithmetic. A family's own config adds what only it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from freehold.base import catalog
from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import longest_window
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeSpec, rope_from_gguf, rope_from_hf

MIN_EPS, MAX_EPS = 1e-12, 1e-1
WIDTH_STEP = 32  # native panels hold inputs in blocks of 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How a router chooses experts and weighs them, by the names that the op `route` has."""

    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    renormalise: bool = True  # whether the chosen experts' weights are divided by their sum
    bias: bool = False  # a value for each expert that joins its logit
    correction: bool = False  # one that joins its score where experts are compared, and no weight
    corrects_logits: bool = False  # or its logit, and logits are compared
    groups: int = 1
    kept: int = 1  # groups that experts are chosen from
    group_score: Literal["best", "top2"] = "best"  # what compares groups: the best expert, or the sum of two
    epsilon: float = 0.0  # joins the sum of weights
    least: float = 0.0  # the least that weights are divided by
    scale: float = 1.0  # multiplies weights
    jitter: float = 0.0  # of the sparse mixer
    weigh_input: bool = False  # weights multiply what experts read


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How a mixture of experts divides an MLP."""

    experts: int
    chosen: int  # experts a token is sent to
    intermediate: int  # of each
    shared: int = 0  # intermediate size of the expert that every token is sent to; 0: none
    shared_gate: bool = False  # whether a sigmoid of its own weighs it
    routing: Routing = Routing()
    sparse: tuple[bool, ...]  # for each layer, whether it has experts or a dense MLP


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes every decoder has; tuples hold a value for each layer."""

    vocab: int  # rows of the embedding; may exceed the tokenizer's
    hidden: int
    intermediate: tuple[int, ...]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_dim: int
    eps: float
    context: int  # positions the model was trained or extended for
    tied: bool  # a file without an output head uses the embedding
    windows: tuple[int, ...] = ()  # each layer's sliding window, 0 for none
    rope: RopeSpec | None = None
    mixture: Mixture | None = None
    notes: tuple[str, ...] = ()  # what a user should know of how the file was read

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.heads)


def gguf_sizes(
    meta: Fields,
    vocab: int,
    *,
    adjacent: bool,
    base: float = 10000.0,
    eps: str = "layer_norm_rms_epsilon",
    least_heads: int = 1,
    intermediate: int | None = None,
) -> dict[str, Any]:
    """Read the sizes of a GGUF as arguments for a config; `vocab` is the embedding's row count.

    A window, which few writers of these architectures state, holds on every layer. `eps` is its key under `attention.`;
    `least_heads` is 0 where a layer may have no attention; `intermediate` is the width of an MLP of a file without it.
    """
    hidden = meta.integer("embedding_length", 1, MAX_WIDTH)
    layers = gguf_layers(meta)
    heads = meta.each("attention.head_count", layers, least_heads, MAX_HEADS)
    head_dim = meta.integer("attention.key_length", 1, MAX_WIDTH, _default_head(meta, hidden, max(heads)))
    if meta.integer("attention.value_length", 1, MAX_WIDTH, head_dim) != head_dim:
        raise UnsupportedModel(f"{meta.name('attention.value_length')} differs from key_length, {head_dim}")
    kv_heads = meta.each("attention.head_count_kv", layers, least_heads, MAX_HEADS, heads)
    check_heads(meta.name("attention.head_count_kv"), heads, kv_heads)
    context = meta.integer("context_length", 1, MAX_CONTEXT)
    rope = rope_from_gguf(meta, head_dim=head_dim, adjacent=adjacent, context=context, base=base)
    return checked_sizes(
        vocab=vocab,
        hidden=hidden,
        intermediate=meta.each("feed_forward_length", layers, 1, MAX_WIDTH, intermediate),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=meta.number(f"attention.{eps}", MIN_EPS, MAX_EPS),
        context=_extended(context, rope),
        tied=True,
        windows=meta.each("attention.sliding_window", layers, 0, MAX_CONTEXT, 0),
        rope=rope,
    )


def gguf_layers(meta: Fields) -> int:
    """Read how many layers a model has; a file counts those after them that predict further tokens."""
    drafts = meta.integer("nextn_predict_layers", 0, MAX_LAYERS, 0)
    layers = meta.integer("block_count", 1, MAX_LAYERS) - drafts
    if layers < 1:
        raise BadModelFile(f"{meta.name('nextn_predict_layers')} is {drafts}, which leaves no layer")
    return layers


def gguf_ssm_heads(meta: Fields) -> tuple[int, int]:
    """Read how many heads a recurrent mixer has, and their width, from keys whose names are a Mamba's."""
    heads = meta.integer("ssm.time_step_rank", 1, MAX_HEADS)
    inner = meta.integer("ssm.inner_size", 1, MAX_WIDTH)
    if inner % heads:
        raise BadModelFile(
            f"{meta.name('ssm.inner_size')} is {inner}, which {heads} heads (ssm.time_step_rank) do not divide"
        )
    return heads, inner // heads


def hf_sizes(
    config: Fields, *, tied: bool = False, eps: float = 1e-6, eps_key: str = "rms_norm_eps", **defaults: int
) -> dict[str, Any]:
    """Read the sizes of a config.json, its rope apart; the keywords are what the family's class assumes."""

    def size(key: str, high: int) -> int:
        return config.integer(key, 1, high, *([defaults[key]] if key in defaults else []))

    hidden = size("hidden_size", MAX_WIDTH)
    layers = size("num_hidden_layers", MAX_LAYERS)
    heads = config.each("num_attention_heads", layers, 1, MAX_HEADS, defaults.get("num_attention_heads"))
    head_dim = defaults.get("head_dim") or _default_head(config, hidden, heads[0])
    key = "num_key_value_heads"
    kv_heads = config.each(key, layers, 1, MAX_HEADS, defaults.get(key, heads))
    check_heads(config.name(key), heads, kv_heads)
    for key in ("torch_dtype", "dtype"):
        config.require(key, ("float32", "float16", "bfloat16"), "float32")
    return checked_sizes(
        vocab=size("vocab_size", MAX_VOCAB),
        hidden=hidden,
        intermediate=config.each(
            "intermediate_size", layers, 1, MAX_WIDTH, defaults.get("intermediate_size")
        ),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.integer("head_dim", 1, MAX_WIDTH, head_dim),
        eps=config.number(eps_key, MIN_EPS, MAX_EPS, eps),
        context=size("max_position_embeddings", MAX_CONTEXT),
        tied=config.flag("tie_word_embeddings", tied),
    )


def hf_decoder(
    config: Fields,
    windows: Callable[[Fields, int], tuple[int, ...]] | None = None,
    *,
    act: str = "silu",
    base: float = 10000.0,
    partial: float = 1.0,
    adjacent: bool = False,
    **assumed: Any,
) -> dict[str, Any]:
    """Read a config.json whose layers share one rope and activation; `windows` gives each layer's (None: none)."""
    config.require("hidden_act", (act,), act)
    sizes = hf_sizes(config, **assumed)
    layers = len(sizes["heads"])
    rope = rope_from_hf(
        config, head_dim=sizes["head_dim"], context=sizes["context"], base=base, partial=partial
    )
    rope = replace(rope, adjacent=adjacent)
    return sizes | {
        "rope": rope,
        "context": _extended(sizes["context"], rope),
        "windows": windows(config, layers) if windows else (0,) * layers,
    }


def _default_head(fields: Fields, hidden: int, heads: int) -> int:
    stated = any(fields.get(key) is not None for key in ("attention.key_length", "head_dim"))
    if not stated and hidden % max(heads, 1):
        raise BadModelFile(f"{heads} attention heads do not divide the hidden width, {hidden}")
    return max(hidden // max(heads, 1), 1)


def _extended(context: int, rope: RopeSpec) -> int:
    """Return the positions a model is good for: YaRN stretches the original ones by its factor."""
    if rope.scaling == "yarn":
        return max(context, min(int(rope.original * rope.factor), MAX_CONTEXT))
    return context


def checked_sizes(**sizes: Any) -> dict[str, Any]:
    """Return `sizes` when they fit the kernels."""
    if sizes["vocab"] > MAX_VOCAB:
        raise BadModelFile(f"the vocabulary has {sizes['vocab']} rows; the limit is {MAX_VOCAB}")
    check_width("hidden", sizes["hidden"])
    for width in {*sizes["intermediate"]}:
        check_width("intermediate", width)
    for heads in {*sizes["heads"]}:
        check_width("attention", heads * sizes["head_dim"])
    return sizes


def check_heads(key: str, heads: tuple[int, ...], kv_heads: tuple[int, ...]) -> None:
    """Raise unless every layer's key heads divide its query heads; `key` is what states the key heads."""
    for queries, keys in zip(heads, kv_heads, strict=True):
        if queries % max(keys, 1):
            raise BadModelFile(f"{key} is {keys}: {keys} key/value heads do not divide {queries} query heads")


def check_width(name: str, width: int) -> None:
    """Raise unless the kernels take matrices with this many columns."""
    if width > MAX_WIDTH:
        raise BadModelFile(f"the {name} width is {width}; the limit is {MAX_WIDTH}")
    if width % WIDTH_STEP:
        raise UnsupportedModel(f"the {name} width is {width}; only multiples of {WIDTH_STEP} are supported")


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


def gguf_windows(meta: Fields, layers: int, slides: Callable[[int], bool]) -> tuple[int, ...]:
    """Give each layer's window by the file's pattern, a period or a list of those that slide, or else by `slides`."""
    window = meta.integer("attention.sliding_window", 0, MAX_CONTEXT, 0)
    pattern = meta.get("attention.sliding_window_pattern")
    if isinstance(pattern, int | np.integer) and not isinstance(pattern, bool):
        every = meta.integer("attention.sliding_window_pattern", 1, MAX_LAYERS)
        return tuple(window if (i + 1) % every else 0 for i in range(layers))
    which = gguf_flags(meta, "attention.sliding_window_pattern", layers) or tuple(map(slides, range(layers)))
    return tuple(window if slide else 0 for slide in which)


def gguf_flags(meta: Fields, key: str, layers: int) -> tuple[bool, ...]:
    """Read a list of one flag a layer; empty: the file has none."""
    value = meta.get(key)
    flags = value.tolist() if isinstance(value, np.ndarray) else value
    if flags is None:
        return ()
    if not isinstance(flags, list) or len(flags) != layers or any(flag not in (0, 1) for flag in flags):
        raise BadModelFile(f"{meta.name(key)} is {str(flags)[:60]}; expected {layers} flags")
    return tuple(map(bool, flags))


def qwen_windows(config: Fields, layers: int) -> tuple[int, ...]:
    """Layers from `max_window_layers` on slide, but only where `use_sliding_window` says so."""
    if not config.flag("use_sliding_window", False):
        return (0,) * layers
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 4096)
    first = config.integer("max_window_layers", 0, MAX_LAYERS, 28)
    return sliding_windows(config, layers, window, lambda i: i >= first)


def every_window(config: Fields, layers: int) -> tuple[int, ...]:
    """A window, which few files state, holds on every layer."""
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0)
    return sliding_windows(config, layers, window, lambda i: True)


def window_within(config: Fields, layers: int) -> tuple[int, ...]:
    """A window holds on every layer; one as long as the context hides nothing."""
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0)
    window = 0 if window >= config.integer("max_position_embeddings", 1, MAX_CONTEXT) else window
    return sliding_windows(config, layers, window, lambda i: True)


# --- what a GGUF does not state of its model, and the one rule by which it is made good -------------
# A file whose shape is a model's of the catalogue is completed by the catalogue's facts. Else it is computed
# up to the length at which what is missing makes no difference, and says so. Where no length is short enough,
# a family refuses. Nothing in a `llama` file says that a window was lost, so a shape that the catalogue does
# not know counts as one of a windowed model where its positions are stretched by nothing and reach far beyond
# what their rope's base was made for.

S = TypeVar("S", bound=Sizes)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that together are one model's, and those of what was fine-tuned from it."""

    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    base: float  # of its rope


# Models of one window on all layers, which their files do not state.
_WINDOWED: Mapping[Shape, str] = {Shape(32, 4096, 14336, 8, 1e4): "mistralai/Mistral-7B-Instruct-v0.1"}
# Llamas of this base without a window were made for 4,096 tokens at most, and longer ones have a greater base or scale
# it. One that was made for more is like Mistral's first, whose window of 4,096 converters dropped.
_BASE, _WINDOW = 1e4, 4096
# Models whose windows are known by their cards alone, and how wide they are.
_UNSTATED: Mapping[Shape, tuple[str, int]] = {Shape(36, 4096, 12288, 8, 1e8): ("Ministral 8B", 32_768)}


def completed(cfg: S) -> S:
    """Return a config as the catalogue completes it, if its shape is known to lose something."""
    if any(cfg.windows) or cfg.rope is None:
        return cfg
    shape = Shape(cfg.layers, cfg.hidden, cfg.intermediate[0], cfg.kv_heads[0], cfg.rope.base)
    if known := _WINDOWED.get(shape):
        window = longest_window(catalog.model(known).layers)
        note = f"the file does not state its sliding window: {window:,} tokens are the catalogue's of {known}"
        return replace(cfg, windows=(window,) * cfg.layers, notes=(*cfg.notes, note))
    if release := _UNSTATED.get(shape):
        return exact_up_to(cfg, release[1], f"the sliding windows of {release[0]}")
    unscaled = cfg.rope.base == _BASE and cfg.rope.scaling == "default"
    if unscaled and cfg.context > 2 * _WINDOW and not _known_whole(shape):
        return exact_up_to(cfg, _WINDOW, "whether it has a sliding window, as Mistral's first models do")
    return cfg


def _known_whole(shape: Shape) -> bool:
    """Say whether a model of the catalogue has this shape, as far as it is stated there, and no window."""
    return any(
        m.architecture == "llama"
        and (m.hidden, sum(g.count for g in m.layers)) == (shape.hidden, shape.layers)
        and {(g.kind, g.kv_heads) for g in m.layers} == {("full", shape.kv_heads)}
        for m in catalog.models()
    )


def exact_up_to(cfg: S, length: int, missing: str) -> S:
    """Cut the context to the length at which what the file does not state makes no difference, and say so."""
    if cfg.context <= length:
        return cfg
    note = f"the file does not state {missing}; its context is cut to {length:,} tokens, where it is exact"
    return replace(cfg, context=length, notes=(*cfg.notes, note))
