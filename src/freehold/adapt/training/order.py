"""Which items a step takes, and which of them are computed together.

Knows counts, seeds and sizes; knows no item. Both follow from their arguments alone, so a resumed run has the same.
Path: finetune, align, distil -> Order.of, parts -> a course's step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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
