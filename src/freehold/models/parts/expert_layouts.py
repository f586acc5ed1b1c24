"""Where files keep the matrices of experts: each apart, stacked, gate and up in one tensor, transposed, interleaved.

Knows names, shapes and rows; knows no router and no arithmetic.
Path: parts.moe.Moe.tensors -> a layout -> TensorSpec.gguf, TensorSpec.hf -> bind
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.models.family import Cut

F32 = NDArray[np.float32]
Key: TypeAlias = Literal["gate", "up", "down"]


class ExpertSizes(NamedTuple):
    """Of all experts of a layer: how many, how wide inside, and how wide what they read and give."""

    experts: int
    inner: int
    width: int


Layout: TypeAlias = Callable[[Key, ExpertSizes], tuple["str | Cut", ...]]


def apart(prefix: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Layout:
    """Each expert's matrices are tensors of their own; `{e}` in the prefix is its number."""
    names = {"gate": gate, "up": up, "down": down}
    return lambda key, sizes: (f"{prefix}.{names[key]}.weight",)


def fused(gate_up: str, down: str) -> Layout:
    """[E, 2I, H], the rows of a gate before those of up; and [E, H, I]."""

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        return (down,) if key == "down" else (half_rows(gate_up, key, sizes),)

    return names


def half_rows(name: str, key: Key, sizes: ExpertSizes) -> Cut:
    """Cut the rows of gate or of up out of a stack that holds both of each expert."""
    experts, inner, width = sizes
    first = np.arange(experts)[:, None] * (2 * inner) + (inner if key == "up" else 0)
    rows = (first + np.arange(inner)).reshape(-1)
    return Cut(name, (experts, 2 * inner, width), rows=rows)


def transposed(gate_up: str, down: str, *, interleaved: bool) -> Layout:
    """[E, H, 2I] and [E, I, H]; columns of gate and up are halves, or take turns."""

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        experts, inner, width = sizes
        if key == "down":
            return (Cut(down, (experts, inner, width), take=_turned),)
        first = inner if key == "up" else 0
        part = slice(int(key == "up"), None, 2) if interleaved else slice(first, first + inner)
        return (Cut(gate_up, (experts, width, 2 * inner), take=lambda v: _turned(v[..., part])),)

    return names


def interleaved_blocks(gate_up: str, down: str) -> Layout:
    """[E, 2I, H], rows of gate and up in turns, and [E, H, I]."""

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        experts, inner, width = sizes
        if key == "down":
            return (down,)
        rows = np.arange(int(key == "up"), 2 * experts * inner, 2)
        return (Cut(gate_up, (experts, 2 * inner, width), rows=rows),)

    return names


def either(*layouts: Layout) -> Layout:
    """The first of several layouts that a file has."""
    return lambda key, sizes: tuple(name for layout in layouts for name in layout(key, sizes))


def interleaved_biases(gate_up: str, down: str) -> Layout:
    """[E, 2I], gate and up in turns, and [E, H], each as one vector of all experts."""

    def names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
        if key == "down":
            return (flat(down, sizes.experts, sizes.width),)
        first = int(key == "up")
        return (Cut(gate_up, (sizes.experts, 2 * sizes.inner), take=lambda v: v[:, first::2].reshape(-1)),)

    return names


def flat(name: str, *shape: int) -> Cut:
    """A tensor of any shape as one vector."""
    return Cut(name, shape, take=lambda v: v.reshape(-1))


def gguf_names(key: Key, sizes: ExpertSizes) -> tuple[str | Cut, ...]:
    """Stacked; or each apart, as in early 2024; or, of newer files, gate and up in one tensor."""
    names = (f"ffn_{key}_exps.weight", f"ffn_{key}.{{e}}.weight")
    return names if key == "down" else (*names, half_rows("ffn_gate_up_exps.weight", key, sizes))


def _turned(values: F32) -> F32:
    return values.transpose(0, 2, 1)
