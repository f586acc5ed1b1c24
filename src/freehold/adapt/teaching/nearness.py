"""How far a model has moved from its base on text of the base's own: the mean KL(base || tuned) a token, to be added.

The base's last activations on a group of rows are computed once, by themselves, so a resumed run has the same bits.
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


class BaseActivations:
    """The last activations of a trainee without its adapter, kept by the number of the group of rows."""

    def __init__(self, trainee: Trainee) -> None:
        self._trainee = trainee
        self._held: dict[int, torch.Tensor] = {}

    def of(self, number: int, rows: Sequence[ReplayRow]) -> torch.Tensor:
        """Return those of a group: a row for each of its tokens that count."""
        if number not in self._held:
            ids, wanted = [row.ids for row in rows], [row.wanted for row in rows]
            self._held[number] = self._trainee.states(ids, wanted=wanted, adapter=False).rows
        return self._held[number]


class Nearness:
    """Compares a trainee with its base on `count` of the rows a step."""

    def __init__(self, trainee: Trainee, rows: Sequence[ReplayRow], count: int) -> None:
        self._trainee, self._rows, self._count = trainee, rows, count
        self._base = BaseActivations(trainee)

    def mean(self, step: int) -> torch.Tensor:
        """Return the mean divergence on the rows of a step; differentiable."""
        number, rows = group(self._rows, self._count, step)
        base = self._base.of(number, rows)
        found = self._trainee.states([row.ids for row in rows], wanted=[row.wanted for row in rows])
        return divergence(found.rows, found.head, base, found.head).mean()
