"""Sampling parameters that a family's authors recommend, by the name that a file states.

Knows names and dated facts (data/sampling.toml); knows no file and no sampler.
Path: store.sampling.sampling_defaults -> recommended -> fields of SamplingParams
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

FIELDS = ("temperature", "top_k", "top_p", "min_p")


def recommended(*names: str) -> tuple[dict[str, Any], str]:
    """Return the sampling that the family of these names recommends, and who says so; nothing for an unknown one."""
    stated = ["-".join(name.lower().split()) for name in names if name]
    fitting = [(len(begin), row) for begin, row in _table() if any(s.startswith(begin) for s in stated)]
    if not fitting:
        return {}, ""
    row = max(fitting, key=lambda pair: pair[0])[1]
    return {name: row[name] for name in FIELDS if name in row}, str(row["source"])


@cache
def _table() -> tuple[tuple[str, dict[str, Any]], ...]:
    text = (resources.files("freehold.catalog") / "data" / "sampling.toml").read_text(encoding="utf-8")
    return tuple((begin, row) for row in tomllib.loads(text)["family"] for begin in row["names"])
