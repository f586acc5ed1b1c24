"""A tool as its server describes it, and what a user or key allowed: that tool as it was read, and nothing it becomes.

A file of JSON that its user alone can read, one for each key, written whole. What was allowed once is kept as well, so
that a change can be shown when the tool asks again. Knows descriptions and a file; starts no server.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from freehold.base import private
from freehold.base.errors import StoreError
from freehold.base.types import Tool
from freehold.serve.tools.mcp.configured import ToolServer

# --- a tool as its server describes it, and the digest of that: what a permission is for ------------
# Names and descriptions are the server's words, which a model reads as instructions; so the digest is over
# all of them, over the schema, and over the command or address that said them.
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


# --- permissions ------------------------------------------------------------------------------------

MOST = 2000  # entries; the oldest goes first
Scope = Literal["once", "chat", "always"]


class ToolPermission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was allowed, for what text of the tool, and when. `once` allows nothing any more."""

    digest: str
    server: str
    tool: str
    scope: Scope
    text: str  # all that the tool said of itself, as it was read
    at: float  # seconds since 1970
    chat: str = ""  # of scope chat


class _KeptPermissions(msgspec.Struct):
    permissions: list[ToolPermission] = []


def permissions_file(home: Path, key: str) -> Path:
    """Return where the permissions of a key lie; of the machine's user for "". Names of keys are names of files."""
    return home / "tools" / "keys" / f"{key}.json" if key else home / "tools" / "permissions.json"


class Permissions:
    """One file. Each call reads it again: the page and the terminal write it both."""

    def __init__(self, path: Path, home: Path) -> None:
        self._path, self._home = path, home

    @classmethod
    def of(cls, home: Path, key: str = "") -> Permissions:
        """Return those of a key, or of the machine's user."""
        return cls(permissions_file(home, key), home)

    def allows(self, tool: PinnedTool, chat: str) -> bool:
        """Return whether the tool, exactly as it is now, may be called without a question."""
        return any(
            each.digest == tool.digest
            and (each.scope == "always" or (each.scope == "chat" and chat != "" and each.chat == chat))
            for each in self._read()
        )

    def before(self, tool: PinnedTool) -> str:
        """Return what was last allowed under the tool's name, if it was another text than now; else ""."""
        same = [e for e in self._read() if (e.server, e.tool) == (tool.server, tool.name)]
        if not same or any(each.digest == tool.digest for each in same):
            return ""
        return max(same, key=lambda each: each.at).text

    def grant(self, tool: PinnedTool, scope: Scope, chat: str = "") -> None:
        """Note what was allowed; it takes the place of all that was allowed under this name for another text."""
        kept = ToolPermission(
            digest=tool.digest,
            server=tool.server,
            tool=tool.name,
            scope=scope,
            text=tool.text,
            at=time.time(),
            chat=chat if scope == "chat" else "",
        )
        with self._locked():
            entries = [e for e in self._read() if not _superseded(e, kept)]
            self._write([*entries, kept][-MOST:])

    def entries(self) -> list[ToolPermission]:
        """Return the standing ones, oldest first."""
        return [each for each in self._read() if each.scope != "once"]

    def revoke(self, digest: str) -> bool:
        """Take a permission back, in all chats; False if none was standing."""
        with self._locked():
            entries = self._read()
            left = [_once(e) if e.digest == digest and e.scope != "once" else e for e in entries]
            if left != entries:
                self._write(left)
        return left != entries

    def _locked(self) -> Any:
        from filelock import FileLock

        private.folder(self._path.parent, self._home)
        return FileLock(private.file(self._path.with_name(self._path.name + ".lock")), timeout=10)

    def _read(self) -> list[ToolPermission]:
        """Return what is kept; a file that cannot be read allows nothing."""
        with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(self._path.read_bytes(), type=_KeptPermissions).permissions
        return []

    def _write(self, entries: list[ToolPermission]) -> None:
        new = self._path.with_name(self._path.name + ".new")
        try:
            with open(new, "wb", opener=private.opener) as file:
                file.write(
                    msgspec.json.format(msgspec.json.encode(_KeptPermissions(entries)), indent=1) + b"\n"
                )
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as e:
            raise StoreError(f"{self._path} cannot be written: {e.strerror}") from e


def _superseded(old: ToolPermission, new: ToolPermission) -> bool:
    if (old.server, old.tool) != (new.server, new.tool):
        return False
    if old.digest != new.digest or old.scope == "once":
        return True
    return new.scope != "once" and (old.scope, old.chat) == (new.scope, new.chat)


def _once(entry: ToolPermission) -> ToolPermission:
    return msgspec.structs.replace(entry, scope="once", chat="")
