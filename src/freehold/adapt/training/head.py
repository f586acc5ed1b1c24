"""The output head and what is computed from it in slices of the vocabulary: log-probabilities and divergences.

Knows rows of last activations and the head's matrix; knows no layer and no loss. Logits exist for one slice of the
vocabulary at a time, forward and backward: nothing as large as tokens times vocabulary is kept.
Path: trainee.Trainee.states -> Head.log_probs, divergence -> packed.PackedMatrix.unpack
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from freehold.adapt.training.packed import PackedMatrix

if TYPE_CHECKING:
    import torch

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
