"""What the differentiable verbs are made of: norms, activations, rotation and attention, in torch.

Knows formulas over float32 tensors, as models/oracle/arithmetic.py has them in NumPy; knows no model and no verb.
Path: graph.TorchOps -> rms_norm, rotate, attend
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from freehold.adapt.training.batch import TokenTree
from freehold.models.config.rope import RopeTable

if TYPE_CHECKING:
    import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    from torch.nn import functional

    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


def layer_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) over the last axis."""
    from torch.nn import functional

    return functional.layer_norm(x, (x.shape[-1],), None, None, eps)


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an activation by the name that parts give it."""
    from torch.nn import functional as f

    return {
        "silu": f.silu,
        "gelu": lambda x: f.gelu(x, approximate="tanh"),
        "gelu_erf": f.gelu,
        "relu2": lambda x: f.relu(x).square(),
    }[name]


def gated(name: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return act(gate) * up; of both halves no more than themselves is kept for the way back."""
    return _gated().apply(gate, up, activation(name))


@cache
def _gated() -> Any:
    import torch

    class Gated(torch.autograd.Function):
        """act(gate) * up, where the activation is computed again on the way back."""

        @staticmethod
        def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, act: Any) -> torch.Tensor:
            ctx.act = act
            ctx.save_for_backward(gate, up)
            return act(gate) * up

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
            gate, up = ctx.saved_tensors
            with torch.enable_grad():
                leaf = gate.detach().requires_grad_()
                active = ctx.act(leaf)
            (of_gate,) = torch.autograd.grad(active, leaf, grads[0] * up)
            return of_gate, grads[0] * active.detach(), None

    return Gated


def turns(rope: RopeTable, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine [rows, 1, pairs] of positions times frequencies, computed in double."""
    import torch

    angles = positions[:, None, None] * rope.inv_freq.astype(np.float64)
    both = (np.cos(angles) * rope.factor, np.sin(angles) * rope.factor)
    cos, sin = (torch.from_numpy(each.astype(np.float32)) for each in both)
    return cos, sin


def rotate(heads: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], *, adjacent: bool) -> torch.Tensor:
    """Turn the first elements of each head, [rows, heads, width]."""
    import torch

    cos, sin = turn
    width = 2 * cos.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if adjacent:
        first, second = turned[..., 0::2], turned[..., 1::2]
        both = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    else:
        first, second = turned.chunk(2, -1)
        both = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([both, rest], -1) if rest.shape[-1] else both


@dataclass(frozen=True, slots=True)
class Sight:
    """How a layer's attention scores: its scale, and what a query sees."""

    scale: float
    window: int = 0  # 0: all before it
    chunk: int = 0  # 0: not by chunks
    softcap: float = 0.0

    def is_plain(self, rows: int) -> bool:
        """Whether so few rows see all before them."""
        return rows <= (self.window or rows) and rows <= (self.chunk or rows)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sight: Sight,
    sinks: torch.Tensor | None,
    tree: TokenTree,
) -> torch.Tensor:
    """Attention of one tree: q [rows, heads, width], k and v [rows, kv heads, width] -> [rows, heads * v's width]."""
    import torch

    rows, heads, _ = q.shape
    q, k, v = (each.transpose(0, 1)[None] for each in (q, k, v))
    if not sight.softcap and sinks is None:
        plain = not tree.rests and sight.is_plain(rows)
        out = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            None if plain else _visible(tree, sight),
            is_causal=plain,
            scale=sight.scale,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1).reshape(rows, -1)
    group = heads // k.shape[1]
    k, v = (each.repeat_interleave(group, 1) for each in (k, v))
    scores = (q @ k.transpose(-1, -2)) * sight.scale
    if sight.softcap:
        scores = sight.softcap * torch.tanh(scores / sight.softcap)
    scores = scores.masked_fill(~_visible(tree, sight), float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, heads, 1, 1).expand(1, heads, rows, 1)], -1)
    weights = torch.softmax(scores, -1)[..., :rows]
    return (weights @ v)[0].transpose(0, 1).reshape(rows, -1)


def _visible(tree: TokenTree, sight: Sight) -> torch.Tensor:
    """Mask [rows, rows]: a query at i sees keys j <= i of its own row or shared, of its window or chunk alone."""
    import torch

    at, branch = torch.from_numpy(tree.positions), torch.from_numpy(tree.branches)
    i, j = at[:, None], at[None, :]
    seen = (j <= i) & ((branch[None, :] < 0) | (branch[None, :] == branch[:, None]))
    if sight.chunk:
        return seen & (j // sight.chunk == i // sight.chunk)
    return seen & (j > i - sight.window) if sight.window else seen
