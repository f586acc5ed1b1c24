"""Hostile text made visible for a terminal: what would be obeyed, or not be seen, is shown by its number.

Knows characters. Path: cli/mcp, cli/chat/tools -> visible, visible_json
"""

from __future__ import annotations

import json
import unicodedata
from contextlib import suppress

_KEPT = frozenset("\n\t ")
# Not control or format characters, and yet blank: fillers and selectors by which texts are hidden.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5")


def visible(text: str, *, lines: bool = True) -> str:
    """Return `text` with invisible, control and direction characters as \\u{...}. `lines` False: line ends too."""
    return "".join(c if _seen(c, lines) else f"\\u{{{ord(c):x}}}" for c in text)


def visible_json(text: str) -> str:
    """Return a text of JSON over several lines with all of it visible; other text as it is."""
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return visible(text)


def _seen(c: str, lines: bool) -> bool:
    if c in _KEPT:
        return lines or c == " "
    if c in _BLANK or 0xFE00 <= ord(c) <= 0xFE0F or 0xE0100 <= ord(c) <= 0xE01EF:
        return False
    return unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
