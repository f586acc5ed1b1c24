"""Names of LoRA adapters: which are valid in `base+adapter`, and the errors for others.

Knows texts; knows no file, no model and no engine.
"""

from __future__ import annotations

import re

from freehold.base.config import nearest
from freehold.base.errors import ModelNotFound, UsageError

MAX_ADAPTERS = 64  # beside one model
# Without a plus, so that the only plus in `base+adapter` is the one between the two.
ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def check_adapter_name(name: str) -> None:
    """Raise UsageError for a name that is not valid after a plus."""
    if not re.fullmatch(ADAPTER_NAME, name):
        raise UsageError(
            f"{name[:80]!r} cannot be an adapter's name", "use up to 64 letters, digits, dots, dashes and _"
        )


def unknown_adapter(model: str, name: str, held: list[str]) -> ModelNotFound:
    """Build the error for an adapter that a model does not have."""
    near = nearest(name, held)
    spelled = ", ".join(f"{model}+{each}" for each in sorted(held)[:10])
    known = f"its adapters: {spelled}" if held else "it has none at all"
    # Others are named in the hint alone: http/core/problems.py replaces it for a key whose scope does not hold them.
    hint = f"did you mean {model}+{near}?" if near else known
    return ModelNotFound(f"{model} has no adapter {name[:80]!r}", hint)
