"""What a GGUF does not state of its model, and the one rule by which it is made good.

A file whose shape is a model's of the catalogue is completed by the catalogue's facts. Else it is computed up to the
length at which what is missing makes no difference, and says so. Where no length is short enough, a family refuses.
Nothing in a `llama` file says that a window was lost, so a shape that the catalogue does not know counts as one of a
windowed model where its positions are stretched by nothing and reach far beyond what their rope's base was made for.
Knows shapes and the catalogue's names for them; knows no tensor.
Path: families.<family>.config_from_gguf -> completed -> Sizes.notes -> Source.notes, `freehold show`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from freehold import catalog
from freehold.layers import longest_window
from freehold.models.config.sizes import Sizes

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
    shape = _shape(cfg)
    if any(cfg.windows) or shape is None:
        return cfg
    if known := _WINDOWED.get(shape):
        window = longest_window(catalog.model(known).layers)
        note = f"the file does not state its sliding window: {window:,} tokens are the catalogue's of {known}"
        return replace(cfg, windows=(window,) * cfg.layers, notes=(*cfg.notes, note))
    if release := _UNSTATED.get(shape):
        return exact_up_to(cfg, release[1], f"the sliding windows of {release[0]}")
    if _may_slide(cfg) and not _known_whole(shape):
        return exact_up_to(cfg, _WINDOW, "whether it has a sliding window, as Mistral's first models do")
    return cfg


def _may_slide(cfg: Sizes) -> bool:
    rope = cfg.rope
    return rope is not None and rope.base == _BASE and rope.scaling == "default" and cfg.context > 2 * _WINDOW


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


def _shape(cfg: Sizes) -> Shape | None:
    if cfg.rope is None:
        return None
    return Shape(cfg.layers, cfg.hidden, cfg.intermediate[0], cfg.kv_heads[0], cfg.rope.base)
