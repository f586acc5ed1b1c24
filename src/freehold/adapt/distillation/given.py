"""A teacher's logits as the engine computed them, where training/head.py expects a head.

The divergence of a student from its teacher is taken over the whole vocabulary, slice by slice. A teacher in torch
would need all its layers there; the engine's prompt pass is several times cheaper. Knows logits; knows no model.
Path: distillation.learning -> given_states -> head.divergence
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.training.head import VOCAB_SLICE, Head, HeadSlice
from freehold.adapt.training.trainee import States

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class GivenHead:
    """A head whose rows of activations are logits already. `rows`: of the student's vocabulary."""

    rows: int
    matrix: None = None  # no student's head is the same

    def slices(self) -> Iterator[HeadSlice]:
        """Yield slices that match those of a head with as many rows."""
        for first in range(0, self.rows, VOCAB_SLICE):
            yield cast(HeadSlice, _GivenSlice(first, min(VOCAB_SLICE, self.rows - first)))


@dataclass(frozen=True, slots=True)
class _GivenSlice:
    first: int
    count: int

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the columns of this slice."""
        return rows[:, self.first : self.first + self.count]


def given_states(logits: list[NDArray[np.float32]], vocabulary: int) -> States:
    """Return a teacher's states from the logits of each row's wanted tokens, [wanted tokens, V] each.

    `vocabulary`: rows of the student's head. Columns after it are padding of a longer one, and left out; a shorter
    one's missing columns are padding as well, and have no probability.
    """
    import torch

    rows = np.concatenate(logits)[:, :vocabulary]
    if rows.shape[1] < vocabulary:
        rows = np.pad(rows, ((0, 0), (0, vocabulary - rows.shape[1])), constant_values=-1e4)
    head = cast(Head, GivenHead(vocabulary))
    return States(torch.from_numpy(rows), head, torch.zeros(0, dtype=torch.int64), tuple(map(len, logits)))
