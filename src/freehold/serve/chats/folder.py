"""The chats of one caller: a folder with one file each. Lists, reads, makes, deletes and restores them.

Whose chats they are is decided by the folder alone, so an id leads to no other caller's chat. A deleted chat stays
in `.deleted` for UNDO_S, whatever restarts meanwhile, and is gone at the first look after that.
Knows files; knows no request and no terminal.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct

from freehold.base import private
from freehold.base.errors import CapacityExceeded, FreeholdError, StoreError, UsageError
from freehold.base.regular import open_regular
from freehold.serve.chats.pictures import FOLDER as PICTURES
from freehold.serve.chats.pictures import ChatPictures, abandoned, bytes_of, decoded_url, filled, folder_of
from freehold.serve.chats.types import (
    VERSION,
    ChatCard,
    ChatChange,
    ChatLine,
    ChatMatch,
    ChatSettings,
    SavedChat,
    encoded,
    replay,
)
from freehold.serve.chats.writer import FOR_ENDS, MAX_CHAT_BYTES, ChatWriter, failures, is_held, live, no_chat

if TYPE_CHECKING:
    import sqlite3


UNDO_S = 600
FILE_BYTES = (
    4096  # that a file counts at least: an empty chat takes a block of the disk, and a place in each list
)
READ_BYTES = (
    64 << 20
)  # of a file that is read: chats were written up to this size before MAX_CHAT_BYTES was set
CHAT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class ChatFolder:
    """The chats of one caller alone. Methods block, and may be called from any thread.

    `most`: bytes that they may have, those deleted within UNDO_S too; 0: what the disk has.
    """

    def __init__(self, path: Path, home: Path, most: int = 0) -> None:
        self.path, self._home, self._most = path, home, most
        self._index = ChatIndex(path, home, self.read)

    @classmethod
    def of(cls, home: Path, key: str = "", most: int = 0) -> ChatFolder:
        """Return the folder of a key, which may have `most` bytes, or of the machine's user, who is not limited.

        A key's folder is called by its name as far as that is letters and digits, and by a digest of it, so no name
        leaves the folder and no two share one where letters of both cases are alike.
        """
        mine = home / "sessions"
        if not key:
            return cls(mine, home)
        plain = re.sub(r"[^A-Za-z0-9]+", "-", key).strip("-")[:40] or "key"
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return cls(mine / "keys" / f"{plain}-{digest}", home, most)

    def cards(self) -> list[ChatCard]:
        """Return the chats, the one with the newest message first; unreadable ones are left out."""
        self.purge()
        return sorted(self._index.cards(), key=lambda card: (card.updated, card.id), reverse=True)

    def page(self, limit: int, after: str = "") -> tuple[list[ChatCard], str | None]:
        """Return up to `limit` cards, pinned ones first, and what continues after them (None: nothing).

        `after`: what the page before returned. A place in the order, so chats that came or went since do no harm.
        """
        place = _place(after)
        cards = sorted(self._index.cards() if after else self.cards(), key=_order, reverse=True)
        rest = [card for card in cards if place is None or _order(card) < place]
        more = len(rest) > limit > 0
        return rest[:limit], _cursor(rest[limit - 1]) if more else None

    def search(self, text: str, limit: int = 50) -> list[ChatMatch]:
        """Find messages that contain `text`, in any case, newest chat first, and chats with such a title."""
        wanted, hits = text.casefold(), []
        for card in sorted(self._index.having(text), key=lambda card: (card.updated, card.id), reverse=True):
            with suppress(FreeholdError):  # deleted meanwhile
                hits += islice(_matches(self.read(card.id), card, wanted), limit - len(hits))
            if len(hits) >= limit:
                break
        return hits[:limit]

    def exists(self, id: str) -> bool:
        """Return whether there is a chat of this id."""
        return self.file(id).exists()

    def create(
        self, *, model: str = "", title: str = "", settings: ChatSettings | None = None, id: str = ""
    ) -> ChatCard:
        """Create an empty chat. `id`: a name for it; UsageError where it is not valid, or in use."""
        change = ChatChange()
        if title:
            change.title = title
        if settings is not None:
            change.settings = settings
        lines = [ChatLine(set=change)] if title or settings is not None else []
        return self.write(id, model, lines)

    def write(
        self,
        id: str,
        model: str,
        lines: Sequence[ChatLine],
        pictures: Mapping[str, bytes | Path] | None = None,
    ) -> ChatCard:
        """Make a chat of these lines, all at once: it is there whole or not at all.

        `pictures`: that the lines name, by reference, as bytes or as another chat's file; such a chat has no `id` of
        the caller's. Raises UsageError where the lines are more than a chat holds.
        """
        self.check_room()
        data = b"".join(map(encoded, lines))
        if len(data) > MAX_CHAT_BYTES - FOR_ENDS:
            most = MAX_CHAT_BYTES - FOR_ENDS
            raise UsageError(
                f"the chat has {len(data):,} bytes, and a new chat may have {most:,}", field="chat"
            )
        created = datetime.now().astimezone().isoformat(timespec="seconds")
        aside, seen = self.path / f".new-{secrets.token_hex(8)}", None
        taken = {path.name.partition("~")[2] for _, path in self._deleted()}  # restore wants the name back
        with failures(id or "(new)"):
            private.folder(self.path, self._home)
            try:
                seen = filled(self.path, self._home, pictures) if pictures else None
                for name in [id] if id else (name for name in _names() if f"{name}.jsonl" not in taken):
                    path, head = (
                        self.file(name),
                        ChatLine(chat=name, created=created, version=VERSION, model=model),
                    )
                    with open(aside, "wb", opener=private.opener) as file:
                        file.write(encoded(head) + data)
                        file.flush()
                        os.fsync(file.fileno())
                    if _linked_with(aside, path, seen):
                        return self.read(name).card
            finally:
                aside.unlink(missing_ok=True)
                if seen is not None:
                    shutil.rmtree(seen, ignore_errors=True)
        raise UsageError(f"a chat named {id} exists already", f"freehold run --session {id} continues it")

    def read(self, id: str) -> SavedChat:
        """Read a chat; ChatNotFound where there is none, StoreError where its file makes no chat."""
        path = self.file(id)
        try:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
                if status.st_size > READ_BYTES:
                    raise StoreError(f"{path} is larger than {READ_BYTES >> 20} MiB and not a chat")
                chat = replay(file.read(READ_BYTES), id)
        except FileNotFoundError:
            raise no_chat(id) from None
        except OSError as e:
            raise StoreError(f"chat {path} cannot be read: {e.strerror}") from e
        except ValueError as e:
            raise StoreError(f"chat {path} is damaged: {e}", "move the file away to continue") from e
        chat.card.updated = chat.card.updated or status.st_mtime
        for message in chat.messages.values():
            if message.state == "open":
                running = is_held(live(path, message.id))
                message.state = "open" if running else "lost"
                chat.card.running = chat.card.running or running
        return chat

    def pictures(self, id: str) -> ChatPictures:
        """Return the pictures of a chat; UsageError for what cannot be an id."""
        return ChatPictures(self.file(id))

    def add_picture(self, id: str, url: str) -> str:
        """Store the picture of a data: URL, which a message will name, and return its reference.

        Those that no message came to name are removed. Raises ChatNotFound; UsageError for no picture.
        """
        named = self.read(id).pictures
        self.check_room()
        data, pictures = decoded_url(url), self.pictures(id)
        with failures(id):
            pictures.tidy(named)
            return pictures.put(data)

    def writer(self, id: str) -> ChatWriter:
        """Open a chat to write to it; ChatNotFound where there is none. Close it, or use it with `with`."""
        return ChatWriter(self.file(id), self.check_room)

    def check_room(self, *, small: bool = False) -> None:
        """Raise CapacityExceeded where the chats have as many bytes as they may.

        `small`: for a line of some hundred bytes, such as a pin or another branch. A tenth more is left for these, so
        that full chats can still be looked through and set in order.
        """
        most = self._most + self._most // 10 if small else self._most
        if most and (used := self._used()) >= most:
            raise CapacityExceeded(
                f"the chats of this key have {used:,} bytes, and console.chats_per_key allows {self._most:,}",
                f"delete some (they count for {UNDO_S // 60} minutes more, while that can be undone), "
                "or have the limit raised in config.toml",
            )

    def _used(self) -> int:
        used = 0
        for folder in (self.path, self.path / ".deleted"):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for each in entries:
                    with suppress(FileNotFoundError):
                        size = each.stat(follow_symlinks=False).st_size if each.is_file() else 0
                        used += max(size, FILE_BYTES)
        for folder in (self.path / PICTURES, self.path / ".deleted"):
            used += sum(max(size, FILE_BYTES) for size in bytes_of(folder))
        return used

    def delete(self, id: str) -> None:
        """Delete a chat; for UNDO_S `restore` takes that back."""
        self.purge()
        path, bin = self.file(id), self.path / ".deleted"
        with failures(id):
            private.folder(bin, self._home)
            gone = bin / f"{time.time():.0f}~{path.name}"
            try:
                os.rename(path, gone)
            except FileNotFoundError:
                raise no_chat(id) from None
            with suppress(FileNotFoundError):
                os.rename(folder_of(path), _pictures_of(gone))

    def restore(self, id: str) -> ChatCard:
        """Take the deletion of a chat back; ChatNotFound where it was not deleted, or too long ago."""
        self.purge()
        path = self.file(id)
        for _, gone in sorted(self._deleted(), reverse=True):
            if gone.name.partition("~")[2] == path.name:
                with failures(id):
                    if not _linked_with(gone, path, _pictures_of(gone)):
                        raise UsageError(f"a chat named {id} exists already", "rename it first")
                    gone.unlink(missing_ok=True)
                return self.read(id).card
        raise no_chat(id)

    def purge(self) -> None:
        """Remove for good what was deleted longer ago than UNDO_S, and pictures whose chat is gone."""
        for at, path in self._deleted():
            if not -UNDO_S < time.time() - at < UNDO_S:
                if path.suffix == PICTURES:
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        path.unlink()
        if (self.path / PICTURES).is_dir():
            for path in abandoned(self.path / PICTURES, [id for id, _ in _files(self.path)]):
                shutil.rmtree(path, ignore_errors=True)

    def _deleted(self) -> list[tuple[float, Path]]:
        """Return when each deleted chat was deleted, and its file."""
        deleted = []
        with suppress(OSError):
            for path in (self.path / ".deleted").iterdir():
                at = path.name.partition("~")[0]
                deleted.append((float(at) if at.isdecimal() else 0.0, path))
        return deleted

    @staticmethod
    def is_id(id: str) -> bool:
        """Return whether a chat may be called so."""
        return CHAT_ID.fullmatch(id) is not None

    def file(self, id: str) -> Path:
        """Return where a chat lies; UsageError for what cannot be an id."""
        if not self.is_id(id):
            raise UsageError(
                f"{id[:80]!r} is not a valid session name",
                "use letters, digits, '.', '_' and '-', at most 80",
            )
        return self.path / f"{id}.jsonl"


def _order(card: ChatCard) -> tuple[bool, float, str]:
    return card.pinned, card.updated, card.id


def _cursor(card: ChatCard) -> str:
    return f"{card.pinned:d}~{card.updated!r}~{card.id}"


def _place(cursor: str) -> tuple[bool, float, str] | None:
    """Read what `_cursor` wrote; None for none. Raises UsageError."""
    if not cursor:
        return None
    with suppress(ValueError):
        pinned, updated, id = cursor.split("~")
        return pinned == "1", float(updated), id
    raise UsageError(
        f"after={cursor[:40]!r} is not a place in the list", "take `next` of the page before", field="after"
    )


def _matches(chat: SavedChat, card: ChatCard, wanted: str) -> Iterator[ChatMatch]:
    """Yield the messages of a chat that have `wanted`, each once, and its title if that was set and has it."""
    messages = list(chat.messages.values())
    if card.named and messages and wanted in card.title.casefold():
        yield ChatMatch(chat=card, message=messages[0].id, role=messages[0].role, excerpt=card.title)
    for message in messages:
        if wanted in message.content.casefold():
            excerpt = _excerpt(message.content, wanted)
            yield ChatMatch(chat=card, message=message.id, role=message.role, excerpt=excerpt)


def _excerpt(text: str, wanted: str, around: int = 30) -> str:
    """Return the line with `wanted`, or what is near it; letters that fold to two may move it by a few."""
    line = next((line for line in text.splitlines() if wanted in line.casefold()), "") or " ".join(
        text.split()
    )
    at = line.casefold().find(wanted)
    begin, end = max(at - around, 0), min(at + len(wanted) + around, len(line))
    return ("…" if begin else "") + line[begin:end].strip() + ("…" if end < len(line) else "")


def _linked(aside: Path, path: Path) -> bool:
    """Give a file that is whole its name; False where the name is in use."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except PermissionError:  # a disk without hard links
        if path.exists():
            return False
        os.rename(aside, path)
    return True


def _linked_with(aside: Path, path: Path, pictures: Path | None) -> bool:
    """Give a file its name, and its pictures theirs before it; False where one of the names is in use."""
    if pictures is None or not pictures.is_dir():
        return _linked(aside, path)
    if path.exists():
        return False
    private.folder(folder_of(path).parent)
    try:
        os.rename(pictures, folder_of(path))
    except OSError as e:
        if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    linked = False
    try:
        linked = _linked(aside, path)
    finally:
        if not linked:
            os.rename(folder_of(path), pictures)
    return linked


def _pictures_of(gone: Path) -> Path:
    """Return where the pictures of a deleted chat are, by its deleted file."""
    return gone.with_suffix(PICTURES)


def _names() -> Iterable[str]:
    """Yield names made of the time, such as 2026-11-24-1638, then -2 and so on."""
    stem = datetime.now().strftime("%Y-%m-%d-%H%M")
    yield stem
    for n in range(2, 1000):
        yield f"{stem}-{n}"
    while True:
        yield f"{stem}-{secrets.token_hex(4)}"


# --- what a list and a search need of every chat ----------------------------------------------------
# Kept in SQLite beside the chats so that neither opens them all.
# A cache: each look compares sizes and times of the files with what is kept and reads those that changed, by
# any program. A database that is damaged, or cannot be written, is made again or kept in memory. Text is kept
# folded to one case, a row a chat, and searched by reading it all: 44 MB take 31 ms, while a trigram index
# (FTS5) of them took two minutes to make.

T = TypeVar("T")
NAME = ".index.db"
TABLE_VERSION = 2  # another one is thrown away
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
        return msgspec.structs.replace(card, running=any(is_held(live(path, id)) for id in open))

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
        if db.execute("PRAGMA user_version").fetchone()[0] != TABLE_VERSION:
            db.execute("DROP TABLE IF EXISTS chats")
            db.execute(f"PRAGMA user_version = {TABLE_VERSION}")
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
