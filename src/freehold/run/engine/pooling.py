"""One vector of a text's last hidden states: their mean, the last token's or the first's, at unit length.

Knows rows of hidden states; knows no model and no step. They may come in any chunks: a sum's order is of positions.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import StepFailed, UsageError

F32 = NDArray[np.float32]
Pooling = Literal["mean", "last", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def checked_pooling(pooling: str) -> Pooling:
    """Return `pooling` if it is a known name; raise UsageError."""
    if pooling not in POOLINGS:
        raise UsageError(f"pooling is {pooling!r}; expected {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}")
    return cast(Pooling, pooling)


class Pool:
    """Receives one text's rows as steps compute them."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling: Pooling = pooling
        self._kept: NDArray[np.float64] | None = None  # the sum so far, or the chosen row

    def add(self, rows: F32) -> None:
        """Add the next rows, float32 [T, width]."""
        if self._pooling == "mean":
            # In order of position: NumPy adds along this axis row by row.
            kept = [] if self._kept is None else [self._kept[None]]
            self._kept = np.concatenate([*kept, rows.astype(np.float64)]).sum(axis=0)
        elif self._pooling == "last" or self._kept is None:
            self._kept = rows[-1 if self._pooling == "last" else 0].astype(np.float64)

    @property
    def vector(self) -> F32:
        """The vector, float32 [width]. Raises StepFailed where it is zero or not finite."""
        assert self._kept is not None, "a text has at least one token"
        length = np.sqrt(self._kept @ self._kept)
        if not (np.isfinite(length) and length > 0):
            raise StepFailed(
                "the embedding is zero or not finite",
                "the weights may be damaged: freehold pull fetches them anew",
            )
        return (self._kept / length).astype(np.float32)
