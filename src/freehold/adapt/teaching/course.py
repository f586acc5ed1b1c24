"""A step of teaching: the loss on a batch of answers, and how far the model has moved on the text of its base.

The loss is the mean negative log-probability of the answers' tokens, over the whole batch; to it is added the mean
KL(base || tuned) at the tokens of a few replay rows, over the whole vocabulary. Knows rows; knows no file and no text.
Path: finetune -> TeachingCourse.step -> TrainingLoop
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from freehold.adapt.rows import AnswerRow
from freehold.adapt.teaching.nearness import BaseActivations
from freehold.adapt.teaching.replay import ReplayRow
from freehold.adapt.training.head import divergence
from freehold.adapt.training.order import PASS_TOKENS, Order, parts
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee

if TYPE_CHECKING:
    import torch


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
    _base: BaseActivations = field(init=False)

    def __post_init__(self) -> None:
        self._base = BaseActivations(self.trainee)

    def step(self, step: int) -> dict[str, Any]:
        """Learn from one batch; return its line."""
        batch = [self.rows[i] for i in self.order.of(step)]
        if self.rehearsed and self.replay:
            line = self.learn(batch, *self._base.of(self.replay, self.rehearsed, step))
        else:
            line = self.learn(batch)
        rate = self.optimizer.rate
        return {**line, "gradient": self.optimizer.step(), "rate": rate}

    def learn(
        self,
        batch: Sequence[AnswerRow],
        replay: Sequence[ReplayRow] = (),
        base: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Add a batch's gradients, in passes that memory holds: of replay rows with the first, which costs the least.

        Return the mean loss and how many tokens count, and `drift`, the mean divergence from the base.
        """
        tokens, total, drift = sum(len(row.answer) for row in batch), 0.0, None
        for part in parts(batch, lambda row: len(row.ids), PASS_TOKENS):
            rows = [*part, *replay]
            states = self.trainee.states([row.ids for row in rows], wanted=[row.wanted for row in rows])
            taught = sum(states.counts[: len(part)])
            loss = -states.head.log_probs(states.rows[:taught], states.targets[:taught]).sum() / tokens
            total += float(loss.detach())
            if replay and base is not None:
                mean = divergence(states.rows[taught:], states.head, base, states.head).mean()
                loss, drift, replay = loss + self.weight * mean, float(mean.detach()), ()
            loss.backward()
        line = {"loss": total, "tokens": tokens}
        return line if drift is None else {**line, "drift": drift}
