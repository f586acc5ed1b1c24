"""What a GGUF does not state of its model, and the one rule by which it is made good.

A file whose shape is a model's of the catalogue is completed by the catalogue's facts. Else it is computed up to the
length at which what is missing makes no difference, and says so. Where no length is short enough, a family refuses.
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
    if found := _UNSTATED.get(shape):
        return exact_up_to(cfg, found[1], f"the sliding windows of {found[0]}")
    return cfg


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
