"""A weight matrix that stays as its file holds it, and is unpacked each time it is used, forward and backward.

Knows rows of bytes, types and products; knows no layer and no adapter. The gradient goes to the input alone, so no
float copy of a matrix outlives its product.
Path: trainee.Trainee.open -> assemble -> PackedMatrix -> graph.TorchOps
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.formats import dequantize
from freehold.models.binding.stored import RowCut, Stored, flat

if TYPE_CHECKING:
    import torch

U8 = NDArray[np.uint8]

# Weights unpacked at a time. 4 M in bfloat16 are 8 MB: products of some hundred rows stay bound by arithmetic, and
# the largest linear of a 0.5b is one slice.
SLICE = 1 << 22


class PackedMatrix:
    """A matrix [rows, columns] in its file's bytes. `threads` unpack it; `half` unpacks to bfloat16, not float32."""

    def __init__(self, stored: Stored, threads: native.Threads, *, half: bool) -> None:
        self.name, self.type, self.half = stored.name, stored.type, half
        *outer, self.columns = stored.shape
        self.rows = int(np.prod(outer))
        self._threads = threads
        self._bytes, self._table = _bytes_of(stored), stored.table

    def unpack(self, first: int = 0, count: int | None = None) -> torch.Tensor:
        """Return rows as floats [count, columns]."""
        end = self.rows if count is None else first + count
        return self._floats(self._bytes[first:end])

    def take(self, ids: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return single rows, unpacking no others: float32 [ids, columns]."""
        return self._floats(self._bytes[np.asarray(ids, np.int64)]).float()

    def _floats(self, rows: U8) -> torch.Tensor:
        import torch

        if not native.unpacks(self.type.name):
            decoded = dequantize(np.ascontiguousarray(rows), self.type, self.columns, self._table)
            values = torch.from_numpy(decoded)
            return values.bfloat16() if self.half else values
        raw = flat(self._table, rows)
        out = torch.empty(len(rows), self.columns, dtype=torch.bfloat16 if self.half else torch.float32)
        if self.half:
            native.unpack_half(raw, self.type.name, out.view(torch.uint16).numpy(), self._threads)
        else:
            native.unpack(raw, self.type.name, out.numpy(), self._threads)
        return out

    def slices(self) -> Iterator[tuple[int, int]]:
        """Yield the first row and the count of each slice that is unpacked at a time."""
        step = max(1, SLICE // self.columns)
        for first in range(0, self.rows, step):
            yield first, min(step, self.rows - first)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T for float32 x [n, columns]: float32 [n, rows], differentiable in x."""
        if not len(x):
            return x.new_zeros(0, self.rows)
        return _product().apply(x, self)


def _bytes_of(stored: Stored) -> U8:
    """Return the rows' bytes: a view of the mapped file where it has them in order, else a copy."""
    if isinstance(stored, RowCut) and len(stored.index) and np.all(np.diff(stored.index) == 1):
        return stored.whole.rows[int(stored.index[0]) : int(stored.index[-1]) + 1]
    return stored.rows


@cache
def _product() -> Any:
    import torch

    class Product(torch.autograd.Function):
        """x W^T with W unpacked anew on both ways."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
            ctx.matrix = matrix
            read = x.bfloat16() if matrix.half else x
            out = x.new_empty(len(x), matrix.rows)
            for first, count in matrix.slices():
                out[:, first : first + count] = read @ matrix.unpack(first, count).T
            return out

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
            matrix: PackedMatrix = ctx.matrix
            grad = grads[0].bfloat16() if matrix.half else grads[0]
            total = None
            for first, count in matrix.slices():
                part = (grad[:, first : first + count] @ matrix.unpack(first, count)).float()
                total = part if total is None else total.add_(part)
            assert total is not None, "a matrix has rows"
            return total, None

    return Product
