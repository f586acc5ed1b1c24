"""The base of a run: a model itself, not one that `freehold create` made of it.

A created model is a base with a system text, a template, an adapter or settings around it. The engine applies them and
a trainer reads the file alone, so what is measured and served would not be what was trained. Knows records of the
store; reads no file.
Path: finetune, align, reinforce, distil, quantise -> check_base
"""

from __future__ import annotations

from freehold.errors import UsageError
from freehold.store import ModelRef


def check_base(model: ModelRef) -> None:
    """Raise UsageError for a created model, with the one that it was made from."""
    if model.overlay is None:
        return
    base = model.overlay.base
    raise UsageError(
        f"{model.name} was created from {base}: its system text, template and adapter are not in the file that is read",
        f"name {base}; freehold create puts them around the result again",
    )
