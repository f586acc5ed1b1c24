"""What a tool answered, as text for a model: cut at 64 kB, and other content is named.

Knows blocks of content as JSON; knows no connection. Path: ToolConnection.call -> shown -> use.py
"""

from __future__ import annotations

import json
from typing import Any

MAX_RESULT = 64_000  # bytes of UTF-8


def shown(result: dict[str, Any]) -> str:
    """Return the text of a result."""
    parts = [_block(each) for each in result.get("content") or []]
    if not parts and (whole := result.get("structuredContent")) is not None:
        parts = [json.dumps(whole, ensure_ascii=False)]
    return cut("\n".join(parts))


def cut(text: str, most: int = MAX_RESULT) -> str:
    """Return `text`, or its beginning and a word that says what is missing."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return data.decode("utf-8")
    kept = data[:most].decode("utf-8", "ignore")
    return f"{kept}\n[cut here: {most:,} of {len(data):,} bytes are shown]"


def _block(block: dict[str, Any]) -> str:
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "image" | "audio" as kind:
            size = len(block.get("data") or "") * 3 // 4
            return f"[{kind} of type {str(block.get('mimeType'))[:60]}, {size:,} bytes: not shown]"
        case "resource_link":
            return f"[{str(block.get('name'))[:200]}: {str(block.get('uri'))[:1000]}]"
        case "resource":
            inside = block.get("resource") or {}
            if "text" in inside:
                return str(inside["text"])
            size = len(inside.get("blob") or "") * 3 // 4
            return f"[{str(inside.get('uri'))[:1000]}, {size:,} bytes: not shown]"
        case kind:
            return f"[content of type {str(kind)[:60]}: not shown]"
