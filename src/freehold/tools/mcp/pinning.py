"""A tool as its server describes it, and the digest of that: what a standing permission is for.

Names and descriptions are the server's words, which a model reads as instructions; so the digest is over all of them,
over the schema, and over the command or address that said them. Knows descriptions; knows no approval.
Path: ToolConnection.listed -> pinned -> PinnedTool -> Permissions; offered -> the names that a model sees
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.tools.mcp.configured import ToolServer
from freehold.types import Tool

MAX_NAME, MAX_DESCRIPTION, MAX_SCHEMA = 128, 16_000, 64_000  # characters; of a schema, bytes of JSON
# OpenAI's limits on names of functions, which templates and grammars keep to as well.
_PUBLIC, _STRANGE = 64, re.compile(r"[^A-Za-z0-9_-]")
_DESCRIBED = ("name", "title", "description", "inputSchema", "annotations")


@dataclass(frozen=True, slots=True)
class PinnedTool:
    """One tool of one server, as read. `text` is all of it, as JSON for people, without secrets."""

    server: str
    name: str
    description: str
    schema: Mapping[str, Any]
    annotations: Mapping[str, Any]
    digest: str
    text: str

    def shown(self) -> dict[str, Any]:
        """Return it as JSON for lists."""
        return {
            "name": self.name,
            "description": self.description,
            "annotations": dict(self.annotations),
            "input_schema": dict(self.schema),
            "digest": self.digest,
        }


def pinned(server: ToolServer, listed: Iterable[Mapping[str, Any]]) -> tuple[list[PinnedTool], list[str]]:
    """Return a server's tools, and a sentence for each that is left out."""
    pins: dict[str, PinnedTool] = {}
    left_out = []
    for each in listed:
        name = str(each.get("name", ""))
        if why := _fault(each, name in pins):
            left_out.append(f"{server.name} offers {name[:60]!r}, which is left out: {why}")
        else:
            pins[name] = _pin(server, each)
    return list(pins.values()), left_out


def _fault(each: Mapping[str, Any], known: bool) -> str:
    name, description = each.get("name"), each.get("description") or ""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        return f"its name has not 1 to {MAX_NAME} characters"
    if known:
        return "another tool of the server has its name"
    if len(description) > MAX_DESCRIPTION:
        return f"its description has more than {MAX_DESCRIPTION:,} characters"
    if len(json.dumps(each.get("inputSchema") or {})) > MAX_SCHEMA:
        return f"its schema has more than {MAX_SCHEMA:,} bytes"
    return ""


def _pin(server: ToolServer, each: Mapping[str, Any]) -> PinnedTool:
    described = {key: each[key] for key in _DESCRIBED if each.get(key) is not None}
    whole = {"server": server.identity(), "tool": described}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
    where = {"command": list(server.command)} if server.command else {"url": server.url}
    text = json.dumps({**where, **described}, indent=1, ensure_ascii=True, sort_keys=True)
    return PinnedTool(
        server=server.name,
        name=each["name"],
        description=each.get("description") or "",
        schema=each.get("inputSchema") or {},
        annotations=each.get("annotations") or {},
        digest=digest,
        text=text,
    )


def offered(tools: Sequence[PinnedTool]) -> dict[str, tuple[Tool, PinnedTool]]:
    """Return tools by the names that a model is given: one name, one tool.

    A name that several servers have gets the server's name first, for each of them; what a name of a function may not
    hold becomes `_`.
    """
    counts = Counter(_public(tool.name) for tool in tools)
    by_name: dict[str, tuple[Tool, PinnedTool]] = {}
    for tool in tools:
        name = _public(tool.name)
        if counts[name] > 1:
            name = _public(f"{tool.server}__{tool.name}")
        name = _free(name, by_name)
        by_name[name] = Tool(name, tool.description, tool.schema), tool
    return by_name


def _public(name: str) -> str:
    return _STRANGE.sub("_", name)[:_PUBLIC]


def _free(name: str, taken: Mapping[str, object]) -> str:
    """Return the name, or with a number if it is taken after all: `a.b` and `a_b` of one server."""
    number = 2
    free = name
    while free in taken:
        free = f"{name[: _PUBLIC - 4]}_{number}"
        number += 1
    return free
