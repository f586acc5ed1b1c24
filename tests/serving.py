"""Opens a tiny model as an engine process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freehold.base.config import load_settings
from freehold.run.local import open_served
from freehold.run.local.opening import ServedModel
from freehold.run.store import Store


def served(path: Path, **options: Any) -> ServedModel:
    """Load the model at `path` for jobs."""
    return open_served(Store(load_settings()).resolve(str(path)), **options)
