"""Fetch one file by parallel ranges, so that a kill at any byte costs at most 16 MB. (Records first.)"""

from __future__ import annotations

import json
from pathlib import Path


def state_path(target: Path) -> Path:
    """Return where the record of `target`'s finished ranges lies."""
    return target.with_name(f"{target.name}.part.json")


def recorded_bytes(target: Path) -> int:
    """Count the bytes of `target`'s part that its record vouches for."""
    try:
        return max(0, int(json.loads(state_path(target).read_bytes())["bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0
