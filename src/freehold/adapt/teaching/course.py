"""A step of teaching: the loss on a batch of answers, and how far the model has moved on the text of its base.

The loss is the mean negative log-probability of the answers' tokens, over the whole batch; to it is added the mean
KL(base || tuned) at the tokens of a few replay rows, over the whole vocabulary. Knows rows; knows no file and no text.
Path: finetune -> TeachingCourse.step -> TrainingLoop
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from freehold.adapt.distillation.learning import PASS_TOKENS, Order, parts
from freehold.adapt.rows import AnswerRow
from freehold.adapt.teaching.replay import ReplayRow, chosen
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee


@dataclass(slots=True)
class TeachingCourse:
    """Learns answers. `replay`: the base's own text, `rehearsed` rows of it a step, which count `weight` times."""

    trainee: Trainee
    optimizer: Optimizer
    rows: Sequence[AnswerRow]
    order: Order
    replay: Sequence[ReplayRow] = ()
    rehearsed: int = 0
    weight: float = 0.0

    def step(self, step: int) -> dict[str, Any]:
        """Learn from one batch; return its line."""
        batch = [self.rows[i] for i in self.order.of(step)]
        loss, tokens = self.learn(batch)
        drift = self._rehearse(step)
        rate = self.optimizer.rate
        line = {"loss": loss, "tokens": tokens, "gradient": self.optimizer.step(), "rate": rate}
        return line if drift is None else {**line, "drift": drift}

    def learn(self, batch: Sequence[AnswerRow]) -> tuple[float, int]:
        """Add a batch's gradients, in passes that memory holds; return its mean loss and how many tokens count."""
        tokens, total = sum(len(row.answer) for row in batch), 0.0
        for part in parts(batch, lambda row: len(row.ids), PASS_TOKENS):
            found = self.trainee.log_probs([row.ids for row in part], wanted=[row.wanted for row in part])
            loss = -sum((one.sum() for one in found[1:]), found[0].sum()) / tokens
            loss.backward()
            total += float(loss.detach())
        return total, tokens

    def _rehearse(self, step: int) -> float | None:
        """Add the gradients of the step's replay rows; return the mean divergence, None where nothing is rehearsed."""
        if not self.rehearsed or not self.replay:
            return None
        rows = chosen(self.replay, self.rehearsed, self.order.seed, step)
        found = self.trainee.kl([row.ids for row in rows], wanted=[row.wanted for row in rows])
        mean = sum((one.sum() for one in found[1:]), found[0].sum()) / sum(len(one) for one in found)
        (self.weight * mean).backward()
        return float(mean.detach())
