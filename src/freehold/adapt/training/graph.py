"""The verbs of models/family.py in torch, over a batch of rows: what a family's forward pass computes, differentiable.

Knows what each verb means for rows that begin at position 0; knows no family, no loss and no cache. A buffer is an
object that holds its current tensor, so that verbs in place stay safe for autograd. A verb that is missing here is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.training.packed import AdaptedMatrix, Head
from freehold.base.errors import UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.models.config.rope import RopeTable

if TYPE_CHECKING:
    import torch


F32 = NDArray[np.float32]


class Activations:
    """Activations [rows of the batch, width] that verbs may replace."""

    __slots__ = ("value",)

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


class TorchOps:
    """ops.Ops executed at once. `name`: the model, for errors. Results: `rows` before the head, and the `head`."""

    def __init__(self, batch: RowBatch, layers: Sequence[LayerSpec], name: str, *, adapter: bool) -> None:
        self.rows: torch.Tensor | None = None
        self.head: Head | None = None
        self._batch, self._name, self._adapter = batch, name, adapter
        self._kv_heads = [spec.kv_heads for spec in layers]
        self._kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._turns: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __getattr__(self, verb: str) -> Any:
        raise UnsupportedModel(
            f"{self._name} is not trainable yet: its layers compute {verb}, which has no gradient here",
            "adapters train on dense models with attention",
        )

    # --- rows in, rows out -----------------------------------------------------------------------

    def embed(
        self, table: AdaptedMatrix, scale: float = 1.0, beyond: int = -1, shown: int = -1
    ) -> Activations:
        tokens = self._batch.tokens
        known = np.where(tokens < table.packed.rows, tokens, beyond) if beyond >= 0 else tokens
        return Activations(table.packed.take(known) * scale)

    def norm(self, x: Activations, weight: F32, eps: float) -> Activations:
        return Activations(
            _by_head(x.value, len(weight), lambda heads: rms_norm(heads, _floats(weight), eps))
        )

    def layer_normed(
        self, x: Activations, weight: F32 | None, bias: F32 | None, eps: float, group: int = 0
    ) -> Activations:
        plain = _by_head(x.value, group or x.value.shape[1], partial(layer_norm, eps=eps))
        if weight is not None:
            plain = plain * _wide(weight, plain)
        return Activations(plain if bias is None else plain + _wide(bias, plain))

    def linear(
        self,
        x: Activations,
        weights: Sequence[AdaptedMatrix],
        biases: Sequence[F32 | None],
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> list[Activations]:
        n = _normed(x, norm, eps)
        return [Activations(self._affine(n, w, b)) for w, b in zip(weights, biases, strict=True)]

    def linear_act(
        self,
        x: Activations,
        weight: AdaptedMatrix,
        act: str,
        bias: F32 | None = None,
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> Activations:
        return Activations(activation(act)(self._affine(_normed(x, norm, eps), weight, bias)))

    def gated(
        self,
        x: Activations,
        gate: AdaptedMatrix,
        up: AdaptedMatrix,
        act: str,
        norm: F32 | None = None,
        eps: float = 0.0,
        limit: float = 0.0,
    ) -> Activations:
        g, u = self.linear(x, (gate, up), (None, None), norm, eps)
        if limit:
            return Activations(activation(act)(g.value).clamp(max=limit) * u.value.clamp(-limit, limit))
        return Activations(gated(act, g.value, u.value))

    def _affine(self, x: torch.Tensor, weight: AdaptedMatrix, bias: F32 | None) -> torch.Tensor:
        y = weight.product(x, adapter=self._adapter)
        return y if bias is None else y + _floats(bias)

    # --- attention -------------------------------------------------------------------------------

    def rope_store(
        self,
        layer: int,
        q: Activations,
        k: Activations,
        v: Activations,
        rope: RopeTable | None,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        eps: float = 0.0,
    ) -> None:
        heads = self._kv_heads[layer]
        width = k.value.shape[1] // heads
        q.value = self._prepared(q.value, width, rope, q_norm, eps)
        keys = self._prepared(k.value, width, rope, k_norm, eps)
        self._kv[layer] = keys.unflatten(1, (heads, -1)), v.value.unflatten(1, (heads, -1))

    def _prepared(
        self, x: torch.Tensor, width: int, rope: RopeTable | None, norm: F32 | None, eps: float
    ) -> torch.Tensor:
        heads = x.unflatten(1, (-1, width))
        if norm is not None:
            heads = rms_norm(heads, _floats(norm), eps)
        return self._rotated(heads, rope).flatten(1)

    def _rotated(self, heads: torch.Tensor, rope: RopeTable | None) -> torch.Tensor:
        if rope is None:
            return heads
        if id(rope) not in self._turns:
            self._turns[id(rope)] = turns(rope, self._batch.positions)
        return rotate(heads, self._turns[id(rope)], adjacent=rope.adjacent)

    def rotate(self, x: Activations, rope: RopeTable, width: int) -> None:
        x.value = _by_head(x.value, width, lambda heads: self._rotated(heads, rope))

    def attention(
        self,
        layer: int,
        q: Activations,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: F32 | None = None,
        chunk: int = 0,
        both: bool = False,
    ) -> Activations:
        import torch

        k, v = self._kv[layer]
        heads = q.value.unflatten(1, (-1, k.shape[2]))
        sight, sink = Sight(scale, window, chunk, softcap), None if sinks is None else _floats(sinks)
        trees = [(tree, tree.span) for tree in self._batch.trees]
        each = [attend(heads[span], k[span], v[span], sight, sink, tree) for tree, span in trees]
        if not each:
            return Activations(q.value.new_zeros(0, heads.shape[1] * v.shape[2]))
        return Activations(torch.cat(each))

    def temper(self, x: Activations, beta: float, original: int, shift: int = 0) -> None:
        factor = 1 + beta * np.log1p((self._batch.positions + shift) // original)
        x.value = x.value * _floats(factor[:, None].astype(np.float32))

    # --- changes in place ------------------------------------------------------------------------

    def linear_add(
        self,
        x: Activations,
        weight: AdaptedMatrix,
        residual: Activations,
        bias: F32 | None = None,
        gate: Activations | None = None,
        scale: float = 1.0,
    ) -> None:
        y = self._affine(x.value, weight, bias)
        if gate is not None:
            y = gate.value.sigmoid() * y
        residual.value = residual.value.add(y, alpha=scale)

    def add_features(self, x: Activations, at: int) -> None:
        """Add nothing: a batch has words alone."""

    def add_norm(self, residual: Activations, x: Activations, weight: F32, eps: float) -> None:
        residual.value = residual.value + rms_norm(x.value, _floats(weight), eps)

    def layer_norm(self, x: Activations, weight: F32, bias: F32, eps: float) -> None:
        x.value = self.layer_normed(x, weight, bias, eps).value

    def norm_gate(
        self, y: Activations, gate: Activations, weight: F32 | None, eps: float = 0.0, *, act: str
    ) -> None:
        normed = y.value
        if weight is not None:
            normed = _by_head(y.value, len(weight), lambda heads: rms_norm(heads, _floats(weight), eps))
        factor = gate.value.sigmoid() if act == "sigmoid" else activation(act)(gate.value)
        y.value = normed * factor

    def xielu(self, x: Activations, positive: float, negative: float, beta: float, eps: float) -> None:
        v = x.value
        below = negative * (v.clamp(max=eps).expm1() - v)
        x.value = (positive * v.square()).where(v > 0, below) + beta * v

    def clamp(self, x: Activations, limit: float, low: float | None = None) -> None:
        x.value = x.value.clamp(-limit if low is None else low, limit)

    def scale(self, x: Activations, factor: float) -> None:
        x.value = x.value * factor

    # --- the end ---------------------------------------------------------------------------------

    def logits(
        self,
        x: Activations,
        weight: AdaptedMatrix,
        norm: F32 | None,
        eps: float = 0.0,
        scale: float = 1.0,
        softcap: float = 0.0,
        bias: F32 | None = None,
    ) -> None:
        import torch

        self.rows = _normed(x, norm, eps)[torch.from_numpy(self._batch.chosen)]
        self.head = Head(weight.packed, scale, softcap, None if bias is None else _floats(bias))


def _floats(values: F32) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


def _normed(x: Activations, norm: F32 | None, eps: float) -> torch.Tensor:
    return x.value if norm is None else rms_norm(x.value, _floats(norm), eps)


def _by_head(x: torch.Tensor, width: int, of: Any) -> torch.Tensor:
    """Apply `of` to parts of each row of this width, [rows, parts, width]."""
    return of(x.unflatten(1, (-1, width))).flatten(1)


def _wide(vector: F32, x: torch.Tensor) -> torch.Tensor:
    """Lay a vector as wide as a row, or as one group of it, over rows."""
    values = _floats(vector)
    return values.repeat(x.shape[1] // len(values)) if len(values) < x.shape[1] else values


# --- what the differentiable verbs are made of: norms, activations, rotation and attention, in torch


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
        "relu": f.relu,
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


# --- several token rows as one batch without padding ------------------------------------------------
# What neighbours begin with once, each with positions of its own.
# Neighbours that begin alike, as answers to one prompt do, are one tree: their common tokens are computed
# once. Rows see nothing of each other else.

Rows = Sequence[Sequence[int]]
# Of each row, for ids[1:]: whether that token's log-probability is computed.
Wanted = Sequence[Sequence[bool]]

I64 = NDArray[np.int64]


# What a pair of tokens in one tree's attention costs beside a token in all linears: 4 operations a value of the hidden
# size for a mask's whole square, against 24 hidden sizes squared; small models have 576 to 1,536.
PAIR_COST = 1 / 4096


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Neighbouring rows' inputs from `first` on: `shared` tokens that all of them begin with, then each row's rest."""

    first: int
    shared: int
    rests: tuple[int, ...]  # lengths, one a row; a lone row has all in `shared`

    @property
    def span(self) -> slice:
        """Where the inputs lie."""
        return slice(self.first, self.first + self.shared + sum(self.rests))

    @property
    def positions(self) -> I64:
        """The place of each input in its own row."""
        return _joined([range(self.shared), *(range(self.shared, self.shared + n) for n in self.rests)])

    @property
    def branches(self) -> I64:
        """The row of each input, counted within the tree; -1 for shared ones."""
        return np.repeat(np.arange(-1, len(self.rests)), (self.shared, *self.rests))


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Inputs ids[:-1] of every row, laid tree after tree."""

    tokens: I64
    positions: I64
    trees: tuple[TokenTree, ...]
    chosen: I64  # inputs whose next token is wanted, of all rows in turn; shared ones once for each row
    targets: I64  # those next tokens
    counts: tuple[int, ...]  # wanted tokens of each row

    @classmethod
    def of(cls, rows: Rows, wanted: Wanted | None = None) -> RowBatch:
        """Lay rows of two or more tokens."""
        arrays = [np.asarray(row, np.int64) for row in rows]
        assert min(map(len, arrays), default=2) >= 2, "a row has a first token and one that follows it"
        masks = (
            [np.ones(len(a) - 1, bool) for a in arrays]
            if wanted is None
            else [np.array(m, bool) for m in wanted]
        )
        assert [len(m) + 1 for m in masks] == [len(a) for a in arrays], (
            "a mask has one entry for each later token"
        )
        inputs = [array[:-1] for array in arrays]
        tokens: list[I64] = []
        places: list[I64] = []
        trees: list[TokenTree] = []
        first = 0
        for start, end, shared in _parted(inputs):
            rests = tuple(len(each) - shared for each in inputs[start:end]) if end - start > 1 else ()
            trees.append(TokenTree(first, shared, rests))
            tokens += [inputs[start][:shared], *(each[shared:] for each in inputs[start:end] if rests)]
            begin = first + shared
            for rest in rests or (0,):
                places.append(_joined([range(first, first + shared), range(begin, begin + rest)]))
                begin += rest
            first = begin
        return cls(
            tokens=_joined(tokens),
            positions=_joined([tree.positions for tree in trees]),
            trees=tuple(trees),
            chosen=_joined([place[mask] for place, mask in zip(places, masks, strict=True)]),
            targets=_joined([array[1:][mask] for array, mask in zip(arrays, masks, strict=True)]),
            counts=tuple(int(m.sum()) for m in masks),
        )

    @property
    def longest(self) -> int:
        """Inputs of the longest row."""
        return int(self.positions.max(initial=0)) + 1


def _parted(inputs: Sequence[I64]) -> list[tuple[int, int, int]]:
    """Cut rows into trees of neighbours, (first row, row after the last, shared tokens), at the least cost."""
    alike = [_common(a, b) for a, b in pairwise(inputs)]
    # Up to each row: cost, where its tree begins, what it shares.
    best: list[tuple[float, int, int]] = [(0.0, 0, 0)]
    for end in range(1, len(inputs) + 1):
        choices = []
        shared, total = len(inputs[end - 1]), 0
        for start in range(end - 1, -1, -1):
            shared = min(shared, alike[start]) if start < end - 1 else shared
            total += len(inputs[start])
            tokens = total - (end - 1 - start) * shared
            choices.append((best[start][0] + tokens + PAIR_COST * tokens**2, start, shared))
            if not shared:
                break
        best.append(min(choices))
    spans: list[tuple[int, int, int]] = []
    end = len(inputs)
    while end:
        _, start, shared = best[end]
        spans.append((start, end, shared))
        end = start
    return spans[::-1]


def _common(a: I64, b: I64) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _joined(parts: Sequence[Sequence[int] | I64]) -> I64:
    return np.concatenate([np.asarray(part, np.int64) for part in parts] or [np.zeros(0, np.int64)])
