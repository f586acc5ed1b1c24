"""Saved chats: one JSON-lines file per session in the data folder, readable by its owner only.

Line 1 describes the session, each further line is a message. A file is rewritten whole after each turn
(write aside, then rename), so a crash leaves the last complete turn. Knows no model and no terminal.
Path: chat.Chat -> Sessions.save; run --continue/--session/--search -> Sessions.latest/load/search
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from freehold import private
from freehold.config import nearest
from freehold.errors import StoreError, UsageError
from freehold.types import Message

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MAX_BYTES = 64 << 20  # larger files were not written by this program
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ChatSession:
    """A chat as saved on disk. `name` is the file's stem; `updated` is seconds since the epoch."""

    name: str
    model: str
    messages: tuple[Message, ...] = ()
    created: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))
    updated: float = 0.0

    @property
    def title(self) -> str:
        """The first line the user wrote, shortened."""
        said = next((m.content for m in self.messages if m.role == "user"), "(empty)")
        line = " ".join(said.split())
        return line if len(line) <= 60 else line[:59] + "…"


@dataclass(frozen=True, slots=True)
class SessionMatch:
    """A message that contains the text searched for; `excerpt` is the line around it."""

    session: ChatSession
    role: str
    excerpt: str


class Sessions:
    """The folder of sessions in a data home."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "sessions"

    def new_name(self, now: datetime | None = None) -> str:
        """Return a free name made of the time, such as 2026-11-24-1638."""
        stem = (now or datetime.now()).strftime("%Y-%m-%d-%H%M")
        name, n = stem, 2
        while self._path(name).exists():
            name, n = f"{stem}-{n}", n + 1
        return name

    def save(self, session: ChatSession) -> None:
        """Write the session; raise StoreError when the folder cannot be written."""
        path = self._path(session.name)
        head = {"session": session.name, "model": session.model, "created": session.created}
        lines = [head, *(asdict(m) for m in session.messages)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            private.folder(self.folder)
            handle, aside = tempfile.mkstemp(dir=self.folder, prefix=".saving-")  # mode 0600
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as f:
                f.write(text)
            os.replace(aside, path)
        except OSError as e:
            raise StoreError(f"session {session.name} cannot be saved to {path}: {e.strerror}") from e

    def exists(self, name: str) -> bool:
        """Return whether a session is called exactly `name`."""
        return self._path(name).exists()

    def rename(self, session: ChatSession, name: str) -> ChatSession:
        """Save the session under `name` and drop its old file; a name in use is refused."""
        if self._path(name).exists():
            raise UsageError(f"a session named {name} exists already", f"/load {name} continues it")
        renamed = replace(session, name=name)
        self.save(renamed)
        self._path(session.name).unlink(missing_ok=True)
        return renamed

    def load(self, name: str) -> ChatSession:
        """Read a session by its name or an unambiguous beginning of it."""
        names = [p.stem for p in self._files()]
        if name not in names:
            begins = [n for n in names if n.startswith(name)]
            if len(begins) != 1:
                near = ", ".join(begins[:4]) or nearest(name, names)
                hint = f"did you mean {near}?" if near else "/load in a chat lists the saved ones"
                raise UsageError(f"{name!r} is not a session", hint)
            name = begins[0]
        return self._read(self._path(name))

    def latest(self) -> ChatSession:
        """Return the session written last; raise UsageError when there is none."""
        for path in self._files():
            return self._read(path)
        raise UsageError("there is no session to continue", "a chat is saved as soon as it has an answer")

    def recent(self, count: int = 20) -> list[ChatSession]:
        """Return the sessions written last, newest first; unreadable files are left out."""
        return list(self._sound(self._files()[:count]))

    def search(self, text: str, limit: int = 50) -> list[SessionMatch]:
        """Find messages that contain `text`, ignoring case, newest session first."""
        wanted, found = text.casefold(), []
        for session in self._sound(self._files()):
            for message in session.messages:
                for line in message.content.splitlines():
                    if wanted in line.casefold():
                        found.append(SessionMatch(session, message.role, _excerpt(line, wanted)))
                        break
                if len(found) >= limit:
                    return found
        return found

    def _files(self) -> list[Path]:
        try:
            files = [(p.stat().st_mtime, p) for p in self.folder.glob("*.jsonl")]
        except OSError:
            return []
        return [p for _, p in sorted(files, reverse=True)]

    def _sound(self, paths: Sequence[Path]) -> Iterator[ChatSession]:
        for path in paths:
            try:
                yield self._read(path)
            except StoreError:
                continue

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is not a valid session name", "use letters, digits, '.', '_' and '-', at most 80"
            )
        return self.folder / f"{name}.jsonl"

    def _read(self, path: Path) -> ChatSession:
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise StoreError(f"{path} is larger than {_MAX_BYTES >> 20} MiB and not a session")
            head, *rest = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            session = ChatSession(
                path.stem, str(head["model"]), tuple(map(_message, rest)), str(head["created"])
            )
            return replace(session, updated=path.stat().st_mtime)
        except OSError as e:
            raise StoreError(f"session {path} cannot be read: {e.strerror}") from e
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise StoreError(f"session {path} is damaged: {e}", "move the file away to continue") from e


def _message(raw: dict) -> Message:
    if raw["role"] not in _ROLES:
        raise ValueError(f"role {raw['role']!r}")
    return Message(raw["role"], str(raw["content"]), str(raw.get("thinking", "")))


def _excerpt(line: str, wanted: str, around: int = 30) -> str:
    at = line.casefold().find(wanted)
    begin, end = max(at - around, 0), min(at + len(wanted) + around, len(line))
    return ("…" if begin else "") + line[begin:end].strip() + ("…" if end < len(line) else "")
