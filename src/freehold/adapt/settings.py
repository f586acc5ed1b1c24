"""Settings that every verb shares that trains an adapter: its rank, rate and seed, and what computes it.

Each verb's settings add its own. Knows how a trainee and an optimizer are made of them; knows no loss and no data.
Path: cli -> FinetuneSettings, AlignSettings, ReinforceSettings, DistilSettings -> trainee, optimizer
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import ACTIVATIONS, Trainee

WARMUP = 0.1  # share of the steps


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """How an adapter is trained. Every field is in the receipt."""

    rate: float = 2e-4
    rank: int = 16
    alpha: float = 32.0
    seed: int = 0
    threads: int | None = None
    half: bool = False  # products in bfloat16

    def trainee(self, model: Path, memory: int = ACTIVATIONS) -> Trainee:
        """Bind a model with new pairs. Raises what Trainee.open raises."""
        return Trainee.open(
            model,
            rank=self.rank,
            alpha=self.alpha,
            seed=self.seed,
            threads=self.threads,
            half=self.half,
            memory=memory,
        )

    def optimizer(self, trainee: Trainee, steps: int) -> Optimizer:
        """Make an optimizer whose rate grows over the first tenth of `steps` and then falls to zero."""
        warmup = max(1, round(WARMUP * steps))
        return Optimizer(trainee.parameters(), self.rate, warmup=warmup, total=steps)
