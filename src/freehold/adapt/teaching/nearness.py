"""How far a model has moved from its base on text of the base's own: the mean KL(base || tuned) a token, to be added.

The base's last activations on a group of rows are computed once.
Knows replay rows and a trainee; knows no other loss.
Path: align -> Nearness.mean -> Trainee.states, head.divergence; TeachingCourse.step -> BaseActivations.of
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from freehold.adapt.teaching.replay import ReplayRow, group
from freehold.adapt.training.head import divergence
from freehold.adapt.training.trainee import Trainee

if TYPE_CHECKING:
    import torch


TOGETHER = 8  # rows in one pass of the base, which unpacks all weights: two alone cost half as much


class BaseActivations:
    """The last activations of a trainee without its adapter, kept by the number of the group of rows.

    Neighbouring groups are computed in one pass, the same ones wherever a run begins, so a resumed one has the same
    bits.
    """

    def __init__(self, trainee: Trainee) -> None:
        self._trainee = trainee
        self._held: dict[int, torch.Tensor] = {}

    def of(
        self, rows: Sequence[ReplayRow], count: int, step: int
    ) -> tuple[Sequence[ReplayRow], torch.Tensor]:
        """Return the rows that a step rehearses, and the activations: one for each of their tokens that count."""
        number, chosen = group(rows, count, step)
        if number not in self._held:
            self._compute(rows, count, number)
        return chosen, self._held[number]

    def _compute(self, rows: Sequence[ReplayRow], count: int, number: int) -> None:
        together = max(TOGETHER // count, 1)
        first = number - number % together
        # Past the last group the first ones follow again: those belong to another pass.
        near = (group(rows, count, step) for step in range(first, first + together))
        missing = {each: chosen for each, chosen in near if each >= first}
        all_rows = [row for each in missing.values() for row in each]
        ids, wanted = [row.ids for row in all_rows], [row.wanted for row in all_rows]
        states = self._trainee.states(ids, wanted=wanted, adapter=False).rows
        sizes = [sum(sum(row.wanted) for row in each) for each in missing.values()]
        self._held |= zip(missing, states.split(sizes), strict=True)


class Nearness:
    """Compares a trainee with its base on `count` of the rows a step."""

    def __init__(self, trainee: Trainee, rows: Sequence[ReplayRow], count: int) -> None:
        self._trainee, self._rows, self._count = trainee, rows, count
        self._base = BaseActivations(trainee)

    def mean(self, step: int) -> torch.Tensor:
        """Return the mean divergence on the rows of a step; differentiable."""
        rows, base = self._base.of(self._rows, self._count, step)
        states = self._trainee.states([row.ids for row in rows], wanted=[row.wanted for row in rows])
        return divergence(states.rows, states.head, base, states.head).mean()
