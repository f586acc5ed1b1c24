"""The policy's objective: advantages of a group's scores, and the loss of their tokens' log-probabilities.

    dr_grpo  A = r - mean(r of its group); sum over tokens / (answers of the step * most tokens)   (arXiv 2503.20783)
    dapo     A = (r - mean) / std;         sum over tokens / tokens of the step                    (arXiv 2503.14476)
    token    -weight * min(ratio * A, clip(ratio, 1 - 0.2, 1 + 0.28) * A)

`ratio` is the policy's now over its own at the step's start, 1 in the first update. `weight` is the start's over the
sampler's, at most `cap`: the sampler computes in 8 bits and the trainer in floats, and answers are drawn from the
sampler's distribution (truncated importance sampling). No term holds the policy at its base. A group whose scores are
equal has no gradient and is dropped. Knows scores and log-probabilities; knows no model.
Path: adapt/reinforce/course.py -> advantages, Objective.loss, Mismatch
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Loss = Literal["dr_grpo", "dapo"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
CAP = 2.0  # of a token's weight
SPREAD = 1e-6  # scores of a group that differ by less are equal
F32 = NDArray[np.float32]


def advantages(scores: Sequence[Sequence[float]], loss: Loss) -> list[list[float] | None]:
    """Return each answer's advantage by group; None for a group whose scores are equal."""
    return [_advantages(group, loss) for group in scores]


def _advantages(group: Sequence[float], loss: Loss) -> list[float] | None:
    if max(group) - min(group) < SPREAD:
        return None
    mean = math.fsum(group) / len(group)
    scale = 1.0
    if loss == "dapo":
        scale = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / len(group))
    return [(r - mean) / scale for r in group]


@dataclass(frozen=True, slots=True)
class Objective:
    """How a token counts. `cap` 0: every token weighs 1, as if sampler and trainer agreed."""

    loss: Loss = "dr_grpo"
    clip_low: float = CLIP_LOW
    clip_high: float = CLIP_HIGH
    cap: float = CAP

    def divisor(self, answers: int, most_tokens: int, tokens: int) -> float:
        """Return what a step's sum over tokens is divided by."""
        return float(answers * most_tokens if self.loss == "dr_grpo" else max(tokens, 1))

    def weights(self, start: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        """Return each token's weight, from its log-probability at the step's start and the sampler's."""
        if not self.cap:
            return start.new_ones(start.shape)
        return (start.detach() - sampled).exp().clamp(max=self.cap)

    def sum(
        self, now: torch.Tensor, start: torch.Tensor, sampled: torch.Tensor, advantage: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of tokens, float32 [tokens] each, before it is divided; differentiable in `now`."""
        import torch

        ratio = (now - start.detach()).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        gained = torch.minimum(ratio * advantage, clipped * advantage)
        return -(self.weights(start, sampled) * gained).sum()


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Trainer's less sampler's log-probability of sampled tokens, in nat: mean, mean and 99th percentile of size."""

    tokens: int
    mean: float
    mean_size: float
    p99_size: float

    @classmethod
    def of(cls, start: F32, sampled: F32) -> Mismatch | None:
        """Measure it; None without a token."""
        if not len(start):
            return None
        d = start.astype(np.float64) - sampled
        size = np.abs(d)
        return cls(len(d), float(d.mean()), float(size.mean()), float(np.quantile(size, 0.99)))
