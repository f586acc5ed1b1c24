"""What a list and a search need of every chat, kept in SQLite beside the chats so that neither opens them all.

A cache: each look compares sizes and times of the files with what is kept and reads those that changed, by any
program. A database that is damaged, or cannot be written, is made again or kept in memory. Text is kept folded to one
case, a row a chat, and searched by reading it all: 44 MB take 31 ms, while a trigram index (FTS5) of them took two
minutes to make. Knows files' sizes; knows no line of a chat.
Path: ChatFolder.cards, ChatFolder.search -> ChatIndex -> ChatFolder.read for what changed
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct

from freehold import private
from freehold.chats import locks
from freehold.chats.types import ChatCard, SavedChat
from freehold.chats.writer import live
from freehold.errors import FreeholdError

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")
NAME = ".index.db"
VERSION = 2  # of the table; another one is thrown away
_TABLE = "CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, size INT, changed INT, kept BLOB, said BLOB)"
# Pages that hold the text of most chats whole, mapped: 31 ms for 44 MB, 57 ms with pages of 4 kB read by calls. What is
# deleted is overwritten. A power cut may damage a cache, which is then made again.
_PRAGMAS = (
    *("page_size = 32768", "journal_mode = WAL", "synchronous = OFF"),
    *("secure_delete = ON", "mmap_size = 1073741824"),
)
_BATCH = 500  # rows a transaction: what a killed first look has to do again
_APART = "\n\0\n"  # between messages: no text that is searched for has it


class KeptCard(Struct, array_like=True):
    """What is kept of a file. `card`: None where it makes no chat. `open`: answers without an end."""

    size: int
    changed: int  # mtime, ns
    card: ChatCard | None
    open: tuple[str, ...] = ()


class ChatIndex:
    """The index of a folder. `read` reads a chat by its id."""

    def __init__(self, folder: Path, home: Path, read: Callable[[str], SavedChat]) -> None:
        self._folder, self._home, self._read = folder, home, read
        self._db: sqlite3.Connection | None = None
        self._kept: dict[str, KeptCard] = {}
        self._lock = threading.Lock()

    def cards(self) -> list[ChatCard]:
        """Return a card of every chat that can be read, unordered and as the files are now."""
        with self._lock:
            self._safely(self._refresh)
            return self._cards(self._kept)

    def having(self, text: str) -> list[ChatCard]:
        """Return a card of every chat that may contain `text`, in upper or lower case."""
        wanted = folded(text)
        with self._lock:
            self._safely(self._refresh)
            return self._cards(self._safely(lambda: self._scan(wanted)))

    def _cards(self, ids: Iterable[str]) -> list[ChatCard]:
        kept_cards = (self._kept[id] for id in ids if id in self._kept)
        return [self._current(kept.card, kept.open) for kept in kept_cards if kept.card is not None]

    def _scan(self, wanted: bytes) -> list[str]:
        """Leave out the chats whose kept text is the file's and lacks `wanted`.

        Another program may have written an older text than the file's after ours: its size and time say so.
        """
        if self._db is None:
            return []
        kept, without = self._kept, set()
        for id, size, changed, searchable in self._db.execute("SELECT id, size, changed, said FROM chats"):
            mine = kept.get(id)
            if wanted not in searchable and mine and (mine.size, mine.changed) == (size, changed):
                without.add(id)
        return [id for id in kept if id not in without]

    def _current(self, card: ChatCard, open: tuple[str, ...]) -> ChatCard:
        if not open:
            return card
        path = self._folder / f"{card.id}.jsonl"
        return msgspec.structs.replace(card, running=any(locks.is_held(live(path, id)) for id in open))

    def _refresh(self) -> None:
        """Bring what is kept up to the files."""
        if self._db is None:
            if not self._folder.is_dir():
                return  # nothing is made before there are chats
            self._db = self._opened(self._folder / NAME)
            rows = self._db.execute("SELECT id, kept FROM chats")
            self._kept = {id: msgspec.json.decode(kept, type=KeptCard) for id, kept in rows}
        there = dict(_files(self._folder))
        gone = [id for id in self._kept if id not in there]
        for id in gone:
            del self._kept[id]
        if gone:
            with self._db:
                self._db.executemany("DELETE FROM chats WHERE id = ?", [(id,) for id in gone])
        stale = [
            id
            for id, stamp in there.items()
            if (kept := self._kept.get(id)) is None or (kept.size, kept.changed) != stamp
        ]
        for start in range(0, len(stale), _BATCH):
            self._take({id: there[id] for id in stale[start : start + _BATCH]})

    def _take(self, files: dict[str, tuple[int, int]]) -> None:
        """Read these chats and keep what a list and a search need of them."""
        assert self._db is not None
        rows, taken = [], {}
        for id, stamp in files.items():
            chat = None
            with suppress(FreeholdError):
                chat = self._read(id)
            kept = KeptCard(*stamp, chat and chat.card, _open(chat))
            rows.append((id, *stamp, msgspec.json.encode(kept), _searchable(chat)))
            taken[id] = kept
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO chats VALUES (?, ?, ?, ?, ?)", rows)
        self._kept |= taken

    def _safely(self, work: Callable[[], T]) -> T:
        """Do `work`; where the database fails, once more with a new one, then with one in memory."""
        import sqlite3

        for again in (self._anew, self._in_memory, None):
            try:
                return work()
            except (sqlite3.Error, msgspec.DecodeError):
                if again is None:
                    raise
                again()
                with suppress(sqlite3.Error):
                    self._refresh()
        raise AssertionError("unreachable")

    def _anew(self) -> None:
        """Throw the database away."""
        self._forget()
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                (self._folder / f"{NAME}{suffix}").unlink()

    def _in_memory(self) -> None:
        self._forget()
        self._db = self._opened(None)

    def _forget(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db, self._kept = None, {}

    def _opened(self, path: Path | None) -> sqlite3.Connection:
        import sqlite3

        if path is not None:
            private.file(path)
        db = sqlite3.connect(path or ":memory:", timeout=5, check_same_thread=False)
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            db.execute("DROP TABLE IF EXISTS chats")
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute(_TABLE)
        db.commit()
        return db


def folded(text: str) -> bytes:
    """Return text as it is compared: letters of both cases alike."""
    return text.casefold().encode("utf-8", "replace")


def _files(folder: Path) -> Iterable[tuple[str, tuple[int, int]]]:
    """Yield the id of each chat of a folder with its file's size and time."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if not name.endswith(".jsonl") or name[0] == ".":
                continue
            try:  # with 10,000 chats this loop is most of a list's time
                status = entry.stat()
            except OSError:
                continue
            if S_ISREG(status.st_mode):  # a pipe would be read for ever
                yield name[:-6], (status.st_size, status.st_mtime_ns)


def _open(chat: SavedChat | None) -> tuple[str, ...]:
    if chat is None:
        return ()
    return tuple(m.id for m in chat.messages.values() if m.state in ("open", "lost"))


def _searchable(chat: SavedChat | None) -> bytes:
    if chat is None:
        return b""
    return folded(_APART.join([chat.card.title, *(m.content for m in chat.messages.values())]))
