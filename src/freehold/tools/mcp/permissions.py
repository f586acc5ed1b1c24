"""Standing permissions of one user or key: for a tool as it was read, and for nothing that it becomes.

A file of JSON that its user alone can read, one for each key, written whole. What was allowed once is kept as well, so
that a change can be shown when the tool asks again. Knows digests and a file; knows no server.
Path: RunTools.use -> Permissions.allows, grant
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from freehold import private
from freehold.errors import StoreError
from freehold.tools.mcp.pinning import PinnedTool

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
