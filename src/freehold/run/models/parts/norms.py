"""The norms before a mixer, an MLP or the head.

An RMS norm with a weight costs no op of its own: the products that read it normalise their rows themselves. A layer
norm does, once for all that read it. Sources: arXiv 1607.06450 (layer norm), 1910.07467 (RMS norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.run.models.family import Buffer, Ops, TensorSpec, Values, vector

# Rows, and the RMS weight that products of them apply first.
Read: TypeAlias = tuple[Buffer, NDArray[np.float32] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormForm:
    """How a family normalises; `none`: it does not, as where norms follow each half instead."""

    kind: Literal["rms", "layer", "none"] = "rms"
    weight: bool = True
    bias: bool = False
    offset: float = 0.0  # added to weights of safetensors
    apart: bool = False  # an RMS norm makes rows of its own, for what reads them after x has changed

    def tensors(self, key: str, gguf: str, hf: str, width: int) -> dict[str, TensorSpec]:
        """Declare what it has of a weight and a bias, under `key` and `key`_bias."""
        if self.kind == "none":
            return {}
        specs = {}
        if self.weight:
            specs[key] = vector(f"{gguf}.weight", f"{hf}.weight", width, hf_offset=self.offset)
        if self.bias:
            specs[f"{key}_bias"] = vector(f"{gguf}.bias", f"{hf}.bias", width)
        return specs

    def before(self, ops: Ops, x: Buffer, w: Values, key: str, eps: float) -> Read:
        """Give what products read of x."""
        if self.kind == "layer":
            return ops.layer_normed(x, w.get(key), w.get(f"{key}_bias"), eps), None
        if self.apart:
            return ops.norm(x, w[key], eps), None
        return x, w.get(key)


RMS = NormForm()
NO_NORM = NormForm(kind="none")
