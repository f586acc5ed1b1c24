"""AdamW with a warm-up and a bound on the gradient, its state as arrays so that a run can continue.

Knows parameters, gradients and counts; knows no model and no loss. Nothing in it is random.
Source: arXiv 1711.05101 (AdamW).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


BETAS, EPSILON = (0.9, 0.999), 1e-8


class Optimizer:
    """Moves parameters along their gradients.

    `lr` is reached after `warmup` steps, growing evenly; with `total` it falls to zero along a line after them.
    Gradients of more than `clip` in norm, all parameters together, are scaled down to it. `decay`: of weights, a step,
    times the rate.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        lr: float,
        *,
        warmup: int = 0,
        total: int = 0,
        clip: float = 1.0,
        decay: float = 0.0,
    ) -> None:
        import torch

        self.steps = 0  # made up to now
        self._parameters, self._lr, self._warmup, self._total = list(parameters), lr, warmup, total
        self._clip, self._decay = clip, decay
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        step = self.steps + 1
        if step <= self._warmup:
            return self._lr * step / self._warmup
        if not self._total:
            return self._lr
        return self._lr * max(self._total - self.steps, 0) / max(self._total - self._warmup, 1)

    def step(self, loss: torch.Tensor | None = None) -> float:
        """Compute the loss's gradients, if one is given, and move; return the gradients' norm before the bound.

        Without a loss the parameters hold gradients already, of a batch that was computed in parts.
        """
        if loss is not None:
            loss.backward()
        import torch

        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        norm = float(
            torch.sqrt(sum((g.double().square().sum() for g in grads), torch.zeros((), dtype=torch.float64)))
        )
        factor = min(1.0, self._clip / norm) if norm > 0 else 1.0
        rate, self.steps = self.rate, self.steps + 1
        with torch.no_grad():
            for p, grad, first, second in zip(
                self._parameters, grads, self._first, self._second, strict=True
            ):
                self._move(p, grad * factor, first, second, rate)
                p.grad = None
        return norm

    def _move(
        self, p: torch.Tensor, grad: torch.Tensor, first: torch.Tensor, second: torch.Tensor, rate: float
    ) -> None:
        (b1, b2), n = BETAS, self.steps
        first.mul_(b1).add_(grad, alpha=1 - b1)
        second.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        scale = (second / (1 - b2**n)).sqrt_().add_(EPSILON)
        if self._decay:
            p.mul_(1 - rate * self._decay)
        p.addcdiv_(first, scale, value=-rate / (1 - b1**n))

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what a continued run needs beside the parameters; `steps` is the caller's to keep."""
        moments = {"first": self._first, "second": self._second}
        return {f"{key}.{i}": t.numpy().copy() for key, each in moments.items() for i, t in enumerate(each)}

    def restore(self, arrays: Mapping[str, NDArray[np.float32]], steps: int) -> None:
        """Take the state that `arrays` returned after this many steps."""
        import torch

        for key, each in (("first", self._first), ("second", self._second)):
            for i, t in enumerate(each):
                t.copy_(torch.from_numpy(np.array(arrays[f"{key}.{i}"])))
        self.steps = steps


# --- which items a step takes, and which of them are computed together ------------------------------
# Both follow from their arguments alone, so a resumed run has the same.

PASS_TOKENS = 2048  # of rows computed in one pass: activations of 30 layers of 576 take 0.6 MB a token

T = TypeVar("T")


class Order:
    """Which items each step takes, from the seed and the step alone: every epoch all of them, in another order."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self.steps_an_epoch = math.ceil(count / batch)
        self._epoch, self._drawn = -1, np.zeros(0, np.int64)

    def of(self, step: int) -> NDArray[np.int64]:
        """Return the items of a step."""
        epoch, place = divmod(step, self.steps_an_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._drawn = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return self._drawn[place * self.batch : (place + 1) * self.batch]


def parts(items: Sequence[T], size: Callable[[T], int], most: int) -> Iterator[Sequence[T]]:
    """Cut items into runs of `most` together, one item at least."""
    first, held = 0, 0
    for i, item in enumerate(items):
        if i > first and held + size(item) > most:
            yield items[first:i]
            first, held = i, 0
        held += size(item)
    if first < len(items):
        yield items[first:]
