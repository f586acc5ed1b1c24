"""What each generation of Claude takes and refuses, by the version in its name.

From Anthropic's model pages and migration guides (platform.claude.com/docs, read 2026-11-27). A name without a version
is taken for the newest. Path: AnthropicWire.request -> claude_of
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Thinks = Literal["no", "budget", "adaptive"]
_NAME = re.compile(r"claude-(?:(opus|sonnet|haiku|fable|mythos)-)?(\d{1,2})(?:[-.](\d{1,2})(?!\d))?(?!\d)")
_NEWEST = (5, 5)


@dataclass(frozen=True, slots=True)
class Claude:
    """What a model does. `off`: how its thinking is switched off; "" where it is off unless asked for."""

    thinks: Thinks
    off: Literal["", "disabled", "between_tools", "never"]
    efforts: bool  # output_config.effort
    sampling: bool  # temperature, top_p, top_k
    both: bool  # temperature and top_p together
    prefill: bool  # continues an assistant's turn
    forced_tools: bool  # tool_choice any and tool
    schemas: bool  # output_config.format, and strict tools


@lru_cache(maxsize=256)
def claude_of(name: str) -> Claude:
    """Return what a model of this name does."""
    family, version = _version(name)
    return Claude(
        thinks="no" if version < (3, 7) else "budget" if version < (4, 6) else "adaptive",
        off=_off(family, version),
        efforts=version >= (4, 6) or (family == "opus" and version == (4, 5)),
        sampling=version < (4, 7),
        both=version < (4, 1),
        prefill=version < (4, 6),
        forced_tools=version < (5, 1),
        schemas=version >= (4, 5) or (family == "opus" and version == (4, 1)),
    )


def _off(family: str, version: tuple[int, int]) -> Literal["", "disabled", "between_tools", "never"]:
    if version < (5, 0):
        return ""
    if family in ("fable", "mythos") or (family == "opus" and version >= (5, 5)):
        return "never"
    return "disabled" if version < (5, 5) else "between_tools"


def _version(name: str) -> tuple[str, tuple[int, int]]:
    match = _NAME.search(name)
    return ("", _NEWEST) if match is None else (match[1] or "", (int(match[2]), int(match[3] or 0)))
