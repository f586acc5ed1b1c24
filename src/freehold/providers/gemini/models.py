"""What each generation of Gemini takes, by the version in its name.

From ai.google.dev/gemini-api/docs (thinking, thought signatures, function calling; read 2026-11-27). A name without a
version is taken for the newest. Path: GeminiWire.request -> gemini_of
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

_NAME = re.compile(r"gemini-(\d{1,2})(?:\.(\d{1,2}))?")


@dataclass(frozen=True, slots=True)
class Gemini:
    """What a model does. `least`: the least it thinks when asked not to, in tokens (2.5) or as a level."""

    thinks: Literal["no", "budget", "level"]
    least: int | str
    medium: bool  # knows the level between low and high
    signs: bool  # refuses calls of tools in the current turn whose signature is missing
    formats_with_tools: bool
    pictures_in_results: bool


@lru_cache(maxsize=256)
def gemini_of(name: str) -> Gemini:
    """Return what a model of this name does."""
    version = _version(name)
    old = version < (3, 0) or "gemini" not in name
    pro = "pro" in name
    return Gemini(
        thinks="no" if version < (2, 5) or "gemini" not in name else "budget" if old else "level",
        least=(128 if pro else 0) if old else ("LOW" if pro else "MINIMAL"),
        medium=not (pro and version == (3, 0)),
        signs=not old,
        formats_with_tools=not old,
        pictures_in_results=not old,
    )


def _version(name: str) -> tuple[int, int]:
    match = _NAME.search(name)
    return (99, 0) if match is None else (int(match[1]), int(match[2] or 0))
