"""One tensor of a model file: its name, type, shape and bytes.

Knows how to view and decode its bytes; knows no file format and no model.
Path: gguf.open_gguf or safetensors.open_safetensors -> Tensor -> models (weight map), pack
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from freehold.formats.quant import QuantType, dequantize, row_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as stored. `shape` is row-major, outermost first: a matrix is [N, K] with K contiguous.

    `raw` is a read-only uint8 [nbytes] view of the mapped file; it keeps the mapping alive.
    """

    name: str
    type: QuantType
    shape: tuple[int, ...]
    raw: npt.NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return self.raw.size

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """The bytes as uint8 [N, row_bytes], all outer dimensions flattened into N."""
        k = self.shape[-1] if self.shape else 1
        return self.raw.reshape(-1, row_bytes(self.type, k))

    def numpy(self) -> npt.NDArray[np.float32]:
        """Decode to a fresh float32 array of `shape`: slow and large, for oracles and small tensors."""
        if not self.raw.size:
            return np.empty(self.shape, np.float32)
        k = self.shape[-1] if self.shape else 1
        return dequantize(self.rows, self.type, k).reshape(self.shape)
