"""How far a model has moved from its base on text of the base's own: the mean KL(base || tuned) a token, to be added.

The base's last activations on a group of rows are computed once, by themselves, so a resumed run has the same bits.
Knows replay rows and a trainee; knows no other loss.
Path: align -> Nearness.mean -> Trainee.states, head.divergence
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from freehold.adapt.teaching.replay import ReplayRow, group
from freehold.adapt.training.head import divergence
from freehold.adapt.training.trainee import Trainee

if TYPE_CHECKING:
    import torch


class Nearness:
    """Compares a trainee with its base on `count` of the rows a step."""

    def __init__(self, trainee: Trainee, rows: Sequence[ReplayRow], count: int) -> None:
        self._trainee, self._rows, self._count = trainee, rows, count
        self._base: dict[int, torch.Tensor] = {}

    def mean(self, step: int) -> torch.Tensor:
        """Return the mean divergence on the rows of a step; differentiable."""
        number, rows = group(self._rows, self._count, step)
        ids, wanted = [row.ids for row in rows], [row.wanted for row in rows]
        if number not in self._base:
            self._base[number] = self._trainee.states(ids, wanted=wanted, adapter=False).rows
        found = self._trainee.states(ids, wanted=wanted)
        return divergence(found.rows, found.head, self._base[number], found.head).mean()
