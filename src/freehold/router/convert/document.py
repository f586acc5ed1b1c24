"""Reads a YAML file safely: plain values only, no object is made. An error names its line and quotes nothing.

Knows YAML; knows no other program. Path: cli/gateway.py -> read_yaml -> convert/litellm.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freehold.errors import UsageError
from freehold.router.toml.outside import EXTRA

MOST_BYTES = 1 << 20


def read_yaml(path: Path) -> Any:
    """Return what a file holds. Raises UsageError."""
    try:
        import yaml
    except ImportError:
        raise UsageError("reading YAML needs the package pyyaml", EXTRA) from None
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "its name is not valid"
        raise UsageError(f"{path} cannot be read: {why}", "name a config.yaml") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} is longer than {MOST_BYTES:,} bytes", "name the config.yaml of a proxy")
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(e, "problem", None) or "it cannot be parsed"
        raise UsageError(
            f"{path} is not YAML{where}: {problem}", "correct it, or take out what is wrong"
        ) from None
