"""Weight matrices that stay as their file holds them, unpacked each time they are used, forward and backward.

Low-rank pairs beside them, and the output head in slices of the vocabulary. Knows rows of bytes; knows no layer. The
gradient goes to the input alone, so no float copy of a matrix outlives its product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.run.formats import dequantize
from freehold.run.models.binding.bind import Source
from freehold.run.models.binding.binder import GGUF_LAYERS, RowCut, Stored, flat
from freehold.run.models.family import TensorSpec

if TYPE_CHECKING:
    import torch


U8 = NDArray[np.uint8]

# Weights unpacked at a time. 4 M in bfloat16 are 8 MB: products of some hundred rows stay bound by arithmetic, and
# the largest linear of a 0.5b is one slice.
SLICE = 1 << 22


class PackedMatrix:
    """A matrix [rows, columns] in its file's bytes. `threads` unpack it; `half` unpacks to bfloat16, not float32."""

    def __init__(self, stored: Stored, threads: native.Threads, *, half: bool) -> None:
        self.name, self.type, self.half = stored.name, stored.type, half
        *outer, self.columns = stored.shape
        self.rows = int(np.prod(outer))
        self._threads = threads
        self._table = stored.table
        if isinstance(stored, RowCut) and len(stored.index) and np.all(np.diff(stored.index) == 1):
            # The file has them in order: a view of it, and no copy.
            self._bytes: U8 = stored.whole.rows[int(stored.index[0]) : int(stored.index[-1]) + 1]
        else:
            self._bytes = stored.rows

    def unpack(self, first: int = 0, count: int | None = None) -> torch.Tensor:
        """Return rows as floats [count, columns]."""
        end = self.rows if count is None else first + count
        return self._floats(self._bytes[first:end])

    def take(self, ids: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return single rows, unpacking no others: float32 [ids, columns]."""
        return self._floats(self._bytes[np.asarray(ids, np.int64)]).float()

    def _floats(self, rows: U8) -> torch.Tensor:
        import torch

        if not native.unpacks(self.type.name):
            decoded = dequantize(np.ascontiguousarray(rows), self.type, self.columns, self._table)
            values = torch.from_numpy(decoded)
            return values.bfloat16() if self.half else values
        raw = flat(self._table, rows)
        out = torch.empty(len(rows), self.columns, dtype=torch.bfloat16 if self.half else torch.float32)
        if self.half:
            native.unpack_half(raw, self.type.name, out.view(torch.uint16).numpy(), self._threads)
        else:
            native.unpack(raw, self.type.name, out.numpy(), self._threads)
        return out

    def slices(self) -> Iterator[tuple[int, int]]:
        """Yield the first row and the count of each slice that is unpacked at a time."""
        step = max(1, SLICE // self.columns)
        for first in range(0, self.rows, step):
            yield first, min(step, self.rows - first)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T for float32 x [n, columns]: float32 [n, rows], differentiable in x."""
        if not len(x):
            return x.new_zeros(0, self.rows)
        return _product().apply(x, self)


@cache
def _product() -> Any:
    import torch

    class Product(torch.autograd.Function):
        """x W^T with W unpacked anew on both ways."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
            ctx.matrix = matrix
            read = x.bfloat16() if matrix.half else x
            out = x.new_empty(len(x), matrix.rows)
            for first, count in matrix.slices():
                out[:, first : first + count] = read @ matrix.unpack(first, count).T
            return out

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
            matrix: PackedMatrix = ctx.matrix
            grad = grads[0].bfloat16() if matrix.half else grads[0]
            total = None
            for first, count in matrix.slices():
                part = (grad[:, first : first + count] @ matrix.unpack(first, count)).float()
                total = part if total is None else total.add_(part)
            assert total is not None, "a matrix has rows"
            return total, None

    return Product


# --- low-rank pairs beside packed matrices: W x becomes W x + alpha / rank * B (A x) ----------------
# Source: arXiv 2106.09685 (LoRA); A begins as PEFT draws it, uniform within 1 / sqrt(inputs), B as zero.


@dataclass(frozen=True, slots=True)
class AdaptedPlace:
    """A declared weight that an adapter changes."""

    layer: int
    key: str
    spec: TensorSpec
    module: str  # its name in safetensors, without ".weight"
    gguf: str  # its tensor's name in a GGUF


@dataclass(frozen=True, slots=True, eq=False)
class AdapterPair:
    """A [rank, columns] and B [rows, rank], trained in float32. Rows of B lie as the base's file has them."""

    place: AdaptedPlace
    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class LowerPair:
    """The pair of an adapter beneath the one that is trained: constants. `replaced`: by the trained pair, its copy."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    replaced: bool


class AdaptedMatrix:
    """A packed matrix with the pair beside it, if it has one, and the pair of an adapter beneath."""

    def __init__(
        self, packed: PackedMatrix, pair: AdapterPair | None = None, lower: LowerPair | None = None
    ) -> None:
        self.packed, self.pair, self.lower = packed, pair, lower

    def product(self, x: torch.Tensor, *, adapter: bool) -> torch.Tensor:
        """Return float32 [n, rows] for float32 x [n, columns]. Without `adapter` the base's: with the lower pair."""
        y, lower = self.packed.product(x), self.lower
        if lower is not None and not (adapter and lower.replaced):
            y = y.add((x @ lower.a.T) @ lower.b.T, alpha=lower.scale)
        if not adapter or self.pair is None:
            return y
        return y.add((x @ self.pair.a.T) @ self.pair.b.T, alpha=self.pair.scale)


def places(source: Source) -> Iterator[AdaptedPlace]:
    """Yield the weights of a model that take a pair: every linear that the engine computes with adapters.

    A weight that is only a part of a stored tensor has no name of its own in a saved adapter and takes none.
    """
    for layer, bound in enumerate(source.layers):
        for key, (spec, _) in bound.items():
            hf = next((name for name in spec.hf if isinstance(name, str)), None)
            gguf = next((name for name in spec.gguf if isinstance(name, str)), None)
            if len(spec.shape) == 2 and spec.adaptable and hf and gguf:
                module = f"{source.family.hf_layers}.{layer}.{hf.removesuffix('.weight')}"
                yield AdaptedPlace(layer, key, spec, module, f"{GGUF_LAYERS}.{layer}.{gguf}")


def new_pair(place: AdaptedPlace, number: int, rank: int, alpha: float, seed: int) -> AdapterPair:
    """Draw the pair of the module with this number: the same floats for the same seed on every machine."""
    import torch

    rows, columns = place.spec.shape
    bound = columns**-0.5
    drawn = np.random.default_rng((seed, number)).uniform(-bound, bound, (rank, columns))
    a = torch.nn.Parameter(torch.from_numpy(drawn.astype(np.float32)))
    return AdapterPair(place, a, torch.nn.Parameter(torch.zeros(rows, rank)), alpha / rank)


# --- the output head and what is computed from it in slices of the vocabulary -----------------------
# Log-probabilities and divergences.
# Logits exist for one slice of the vocabulary at a time, forward and backward: nothing as large as tokens
# times vocabulary is kept.

VOCAB_SLICE = 16_384  # rows of the head at a time: for 256 tokens 17 MB of float32 logits


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """logits = softcap * tanh((W n + bias) * scale / softcap); without a cap (W n + bias) * scale."""

    matrix: PackedMatrix
    scale: float = 1.0
    softcap: float = 0.0
    bias: torch.Tensor | None = None

    def log_probs(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return log p(target) of each row of last activations: float32 [n], differentiable in `rows`."""
        return _log_probs().apply(rows, targets, self)

    def slices(self) -> Iterator[HeadSlice]:
        """Yield the head's rows, unpacked a slice at a time."""
        for first in range(0, self.matrix.rows, VOCAB_SLICE):
            count = min(VOCAB_SLICE, self.matrix.rows - first)
            yield HeadSlice(self, first, self.matrix.unpack(first, count))


@dataclass(frozen=True, slots=True, eq=False)
class HeadSlice:
    """Some rows of a head as floats."""

    head: Head
    first: int
    weights: torch.Tensor

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this slice's logits, float32 [n, rows of the slice]."""
        head = self.head
        z = (rows.to(self.weights.dtype) @ self.weights.T).float()
        if head.bias is not None:
            z = z + head.bias[self.first : self.first + len(self.weights)]
        if head.scale != 1.0:
            z = z * head.scale
        return head.softcap * (z / head.softcap).tanh() if head.softcap else z

    def grad(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the rows from that of this slice's logits."""
        head = self.head
        if head.softcap:
            grad = grad * (1 - (logits / head.softcap).square())
        if head.scale != 1.0:
            grad = grad * head.scale
        return (grad.to(self.weights.dtype) @ self.weights).float()

    def within(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which rows have their target in this slice, and at which of its columns."""
        inside = (targets >= self.first) & (targets < self.first + len(self.weights))
        place = inside.nonzero()[:, 0]
        return place, targets[place] - self.first


def divergence(
    rows: torch.Tensor, head: Head, other_rows: torch.Tensor, other: Head, *, reverse: bool = False
) -> torch.Tensor:
    """Return KL(other || own) of each row, or with `reverse` KL(own || other): float32 [n].

    Over the whole vocabulary, in slices. Differentiable in `rows` alone; `other_rows` are another model's last
    activations on the same tokens, or the same model's without its adapter.
    """
    return _divergence().apply(rows, head, other_rows.detach(), other, reverse)


def _both(head: Head, other: Head) -> Iterator[tuple[HeadSlice, HeadSlice]]:
    """Yield both heads' slices; a matrix that is both heads' is unpacked once."""
    if head.matrix is not other.matrix:
        yield from zip(head.slices(), other.slices(), strict=True)
        return
    for part in head.slices():
        yield part, HeadSlice(other, part.first, part.weights)


def _log_sum(total: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    part = logits.logsumexp(1)
    return part if total is None else total.logaddexp(part)


@cache
def _log_probs() -> Any:
    import torch

    class LogProbs(torch.autograd.Function):
        """Log-probabilities of targets; backward computes each slice's logits again."""

        @staticmethod
        def forward(ctx: Any, rows: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
            total, chosen = None, rows.new_zeros(len(rows))
            for part in head.slices() if len(rows) else ():
                logits = part.logits(rows)
                total = _log_sum(total, logits)
                place, column = part.within(targets)
                chosen[place] = logits[place, column]
            ctx.head = head
            ctx.save_for_backward(rows, targets, total)
            return chosen if total is None else chosen - total

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            rows, targets, total = ctx.saved_tensors
            out = torch.zeros_like(rows)
            for part in ctx.head.slices() if len(rows) else ():
                logits = part.logits(rows)
                grad = (logits - total[:, None]).exp_().mul_(-grads[0][:, None])
                place, column = part.within(targets)
                grad[place, column] += grads[0][place]
                out += part.grad(grad, logits)
            return out, None, None

    return LogProbs


@cache
def _divergence() -> Any:
    import torch

    class Divergence(torch.autograd.Function):
        """One pass over both heads, in which the mean gap is weighed anew as the sums grow; backward makes another."""

        @staticmethod
        def forward(
            ctx: Any, rows: torch.Tensor, head: Head, others: torch.Tensor, other: Head, reverse: bool
        ) -> torch.Tensor:
            own_sum = other_sum = mean = None
            for a, b in _both(head, other):
                own, theirs = a.logits(rows), b.logits(others)
                left, gap = (own, own - theirs) if reverse else (theirs, theirs - own)
                before = own_sum if reverse else other_sum
                own_sum, other_sum = _log_sum(own_sum, own), _log_sum(other_sum, theirs)
                now = own_sum if reverse else other_sum
                part = ((left - now[:, None]).exp_() * gap).sum(1)
                mean = part if mean is None or before is None else mean * (before - now).exp() + part
            assert own_sum is not None and other_sum is not None and mean is not None, "a head has rows"
            kl = mean + (other_sum - own_sum if reverse else own_sum - other_sum)
            ctx.heads, ctx.reverse = (head, other), reverse
            ctx.save_for_backward(rows, others, own_sum, other_sum, kl)
            return kl

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
            rows, others, own_sum, other_sum, kl = ctx.saved_tensors
            out = torch.zeros_like(rows)
            for a, b in _both(*ctx.heads):
                logits = a.logits(rows)
                own = logits - own_sum[:, None]
                theirs = b.logits(others) - other_sum[:, None]
                if ctx.reverse:  # d KL(own || other) / d z = p_own (log p_own - log p_other - KL)
                    grad = own.exp() * (own - theirs - kl[:, None])
                else:  # d KL(other || own) / d z = p_own - p_other
                    grad = own.exp() - theirs.exp()
                out += a.grad(grad * grads[0][:, None], logits)
            return out, None, None, None, None

    return Divergence
