"""Opens a tiny model as an engine process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freehold.config import load_settings
from freehold.local import open_served
from freehold.local.opening import ServedModel
from freehold.store import Store


def served(path: Path, **options: Any) -> ServedModel:
    """Load the model at `path` for jobs."""
    return open_served(Store(load_settings()).resolve(str(path)), **options)
