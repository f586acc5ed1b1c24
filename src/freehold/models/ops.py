"""The verbs a forward pass is written in, and the opaque things they act on.

The verbs are native.Plan's op methods, each declared once in csrc/ops: native.Plan records them, oracle.NumpyOps runs
them at once. Knows no arithmetic and no architecture.
Path: parts.<part>.forward -> Ops -> native.Plan
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from freehold._native import Plan

Ops: TypeAlias = (
    "Plan"  # what a part's `forward` may call; tests/models/test_ops.py compares the oracle's verbs
)

F32 = NDArray[np.float32]
Matrix: TypeAlias = Any  # whatever the ops multiply with: native.Matrix, or the oracle's
Rope: TypeAlias = Any  # likewise: native.Rope, or a RopeTable
Buffer: TypeAlias = Any  # activations [rows of the step, width], opaque to a part
