"""torch, where training needs it: found when it is used, and asked for by name where it is missing.

Knows the extra and how many threads to compute with; knows no model.
Path: training, align, reinforce, distil -> load_torch
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import Any

from freehold.errors import UsageError
from freehold.version import __version__

INSTALL = 'pip install "freehold[adapt]"'


def load_torch(threads: int) -> Any:
    """Return the module torch, set to `threads` and to algorithms that give the same bits again.

    Threads that wait must not spin: the engine's own would wait for the cores they hold. Raises UsageError where torch
    is not installed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        torch = importlib.import_module("torch")
    except ImportError as e:
        raise UsageError(
            f"training needs torch, which cannot be imported: {e}", f"install it: {INSTALL}"
        ) from e
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills every new tensor: a tenth of a step, against reads that our code does not do.
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch


def arithmetic(threads: int | None) -> dict[str, Any]:
    """Return what a run's bits follow from besides its inputs: the code's versions, and the number of threads."""
    from freehold.machine import default_threads

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:  # load_torch says so
        torch = ""
    return {"freehold": __version__, "torch": torch, "threads": threads or default_threads()}


def half_helps() -> bool:
    """Say whether this processor multiplies bfloat16 faster than float32.

    Intel's tiles (AMX) and AMD's AVX512_BF16 compute at least twice the products of float32. Intel's AVX512_BF16
    computes as many, and the conversions made torch's passes 1.4 times as long (Emerald Rapids, without its tiles).
    """
    from freehold.machine import processor

    cpu = processor()
    return "amx_bf16" in cpu.features or ("avx512_bf16" in cpu.features and "AMD" in cpu.name)
