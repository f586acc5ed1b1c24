"""One vector of a text's last activations: their mean, the last token's or the first's, at unit length.

Knows rows of activations; knows no model and no step. Rows may come in any pieces: a sum's order is that of positions.
Path: Engine.embed or Encoder.embed -> Pool.add -> Pool.vector
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from freehold.errors import StepFailed, UsageError

F32 = NDArray[np.float32]
Pooling = Literal["mean", "last", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def checked_pooling(pooling: str) -> Pooling:
    """Return `pooling` if there is such a one; raise UsageError."""
    if pooling not in POOLINGS:
        raise UsageError(f"pooling is {pooling!r}; expected {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}")
    return cast(Pooling, pooling)


class Pool:
    """Takes one text's rows as steps give them."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling: Pooling = pooling
        self._kept: NDArray[np.float64] | None = None  # the sum so far, or the row that counts

    def add(self, rows: F32) -> None:
        """Take the next rows, float32 [T, width]."""
        if self._pooling == "mean":
            # One row after another, from the first on: NumPy adds along this axis in order.
            kept = [] if self._kept is None else [self._kept[None]]
            self._kept = np.concatenate([*kept, rows.astype(np.float64)]).sum(axis=0)
        elif self._pooling == "last" or self._kept is None:
            self._kept = rows[-1 if self._pooling == "last" else 0].astype(np.float64)

    @property
    def vector(self) -> F32:
        """The direction, float32 [width]. Raises StepFailed where there is none."""
        assert self._kept is not None, "a text has at least one token"
        length = np.sqrt(self._kept @ self._kept)
        if not (np.isfinite(length) and length > 0):
            raise StepFailed(
                "an embedding is no finite direction",
                "the weights may be damaged: freehold pull fetches them anew",
            )
        return (self._kept / length).astype(np.float32)
