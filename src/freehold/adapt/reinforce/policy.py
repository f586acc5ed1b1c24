"""The policy that learns: sampled by the engine with the step's adapter, updated by the trainee.

Knows prompts as token ids, answers with the sampler's log-probabilities, and advantages; knows no verifier and no
file. Every sample follows from (seed, step, number of the prompt), and every update from its arguments.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.sampling import SampledAnswer, SamplingModel
from freehold.adapt.settings import CAP, Loss
from freehold.adapt.teaching import Nearness
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee
from freehold.base.errors import UsageError
from freehold.run.models.lora import Adapter

if TYPE_CHECKING:
    import torch


# Tokens of one pass forward and backward. Activations take some 1.5 MB a token in a model of 135M weights; a matrix
# is unpacked twice a pass, which some hundred tokens pay for.
PASS_TOKENS = 640
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One answer to learn from. `sampled`: the log-probability of each of its tokens when it was drawn."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    sampled: F32
    advantage: float


@dataclass(frozen=True, slots=True)
class PolicyUpdate:
    """What an update was: `norm` of the gradient before its bound; `capped`: share of tokens whose weight was cut."""

    mismatch: Mismatch | None
    norm: float
    rate: float
    capped: float
    drift: float | None = None  # from the base on rehearsed text, nats per token; None: nothing is rehearsed


class Policy:
    """A trainee and the engine that samples with its pairs.

    `nearness`: to the base, on text of its own, which is added to the objective `weight` times.
    """

    def __init__(
        self,
        trainee: Trainee,
        sampler: SamplingModel,
        optimizer: Optimizer,
        objective: Objective,
        nearness: Nearness | None = None,
        weight: float = 0.0,
    ) -> None:
        self.trainee, self.sampler, self.optimizer = trainee, sampler, optimizer
        self.objective, self._nearness, self._weight = objective, nearness, weight

    def packed(self) -> Adapter:
        """Return the pairs as they are, packed for the engine."""
        return self.sampler.packed(self.trainee.pairs(), self.trainee.scale)

    def sample(
        self, prompts: Sequence[Sequence[int]], group: int, *, seeds: Sequence[int], max_tokens: int
    ) -> list[list[SampledAnswer]]:
        """Return a group of answers to each prompt, drawn from the policy's own distribution: nothing is cut off."""
        return self.sampler.sample(prompts, group, seeds=seeds, max_tokens=max_tokens, adapter=self.packed())

    def update(
        self,
        rows: Sequence[PolicyRow],
        *,
        answers: int,
        max_tokens: int,
        updates: int,
        bound: float,
        step: int = 0,
    ) -> PolicyUpdate:
        """Move the pairs by `updates` passes over `rows`. `answers`: of the step, those of dropped groups included.

        `step`: its number, which says what is rehearsed.

        Raises UsageError, and moves nothing, where the trainer's log-probabilities are further than `bound` from the
        sampler's, nats per token in the mean.
        """
        if not rows:
            return PolicyUpdate(None, 0.0, self.optimizer.rate, 0.0)
        tokens = sum(len(row.answer) for row in rows)
        divisor = self.objective.divisor(answers, max_tokens, tokens)
        rate = self.optimizer.rate
        starts = self._gradients(rows, divisor, None)
        mismatch = Mismatch.of(np.concatenate(starts), np.concatenate([row.sampled for row in rows]))
        if mismatch is not None and not mismatch.mean_size <= bound:
            raise UsageError(
                f"the trainer's log-probabilities are {mismatch.mean_size:.3f} nats per token from the sampler's, "
                f"more than {bound:g}",
                "both must read one file and one template; a higher bound is --most-mismatch",
            )
        drift = self._rehearse(step)
        norm = self.optimizer.step()
        for _ in range(updates - 1):
            self._gradients(rows, divisor, starts)
            self._rehearse(step)
            norm = self.optimizer.step()
        over = np.concatenate([s - row.sampled for row, s in zip(rows, starts, strict=True)])
        cap = self.objective.cap
        capped = float((np.exp(over) > cap).mean()) if cap else 0.0
        return PolicyUpdate(mismatch, norm, rate, capped, drift)

    def _rehearse(self, step: int) -> float | None:
        """Add the gradients of the distance from the base on its own text; return that distance."""
        if self._nearness is None:
            return None
        drift = self._nearness.mean(step)
        (self._weight * drift).backward()
        return float(drift.detach())

    def _gradients(
        self, rows: Sequence[PolicyRow], divisor: float, starts: Sequence[F32] | None
    ) -> list[F32]:
        """Add the gradients of all rows; return their tokens' log-probabilities, by row."""
        import torch

        collected: list[F32] = []
        for part in _passes(rows):
            held = None if starts is None else starts[len(collected) : len(collected) + len(part)]
            logprobs = self.trainee.log_probs(
                [(*row.prompt, *row.answer) for row in part],
                wanted=[[False] * (len(row.prompt) - 1) + [True] * len(row.answer) for row in part],
            )
            losses = [
                self.objective.sum(
                    now,
                    now.detach() if held is None else torch.from_numpy(held[i]),
                    torch.from_numpy(row.sampled),
                    torch.full_like(now, row.advantage),
                )
                for i, (row, now) in enumerate(zip(part, logprobs, strict=True))
            ]
            (torch.stack(losses).sum() / divisor).backward()
            collected += [now.detach().numpy().copy() for now in logprobs]
        return collected


def seeds_of(seed: int, step: int, prompts: int) -> list[int]:
    """Return the seed of each prompt's first answer at a step; the others of its group follow it one by one."""
    told = [hashlib.sha256(f"{seed} {step} {i}".encode()).digest() for i in range(prompts)]
    return [int.from_bytes(each[:7], "little") << 7 for each in told]


def _passes(rows: Sequence[PolicyRow]) -> Iterator[list[PolicyRow]]:
    """Cut rows into passes of up to PASS_TOKENS, a prompt that neighbours share counted once."""
    part: list[PolicyRow] = []
    size = 0
    for row in rows:
        shared = bool(part) and part[-1].prompt == row.prompt
        need = len(row.answer) + (0 if shared else len(row.prompt))
        if part and size + need > PASS_TOKENS:
            yield part
            part, size, need = [], 0, len(row.answer) + len(row.prompt)
        part.append(row)
        size += need
    if part:
        yield part


# --- the policy's objective -------------------------------------------------------------------------
# Advantages of a group's scores, and the loss of their tokens' log-probabilities.
#     dr_grpo  A = r - mean(r of its group); sum over tokens / (answers of the step * most tokens)   (arXiv 2503.20783)
#     dapo     A = (r - mean) / std;         sum over tokens / tokens of the step                    (arXiv 2503.14476)
#     token    -weight * min(ratio * A, clip(ratio, 1 - 0.2, 1 + 0.28) * A)
# `ratio` is the policy's now over its own at the step's start, 1 in the first update. `weight` is the start's
# over the sampler's, at most `cap`: the sampler computes in 8 bits and the trainer in floats, and answers are
# drawn from the sampler's distribution (truncated importance sampling). Policy adds a divergence from the base on
# other text, where something is rehearsed.
# A group whose scores are equal has no gradient and is dropped.

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
SPREAD = 1e-6  # scores of a group that differ by less are equal


def advantages(scores: Sequence[Sequence[float]], loss: Loss) -> list[list[float] | None]:
    """Return each answer's advantage by group; None for a group whose scores are equal."""
    by_group: list[list[float] | None] = []
    for group in scores:
        if max(group) - min(group) < SPREAD:
            by_group.append(None)
            continue
        mean = math.fsum(group) / len(group)
        scale = 1.0
        if loss == "dapo":
            scale = math.sqrt(math.fsum((r - mean) ** 2 for r in group) / len(group))
        by_group.append([(r - mean) / scale for r in group])
    return by_group


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
