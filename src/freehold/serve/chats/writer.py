"""Writes to a chat's file: lines are appended, each whole or not at all, by any number of programs at once.

A writer locks the file for the moment of an append, not for a run: two tabs and a terminal write to one chat in turns,
and since each line names its parent, what they write at once becomes branches. While an answer is written, a second
lock is taken too (`live`), so that a reader can tell an answer in progress from one whose writer died.

What is flushed to the disk: a message, an end and a change, which cannot be made again. What an answer grew by is
left to the kernel: it survives this program's death, and after a power cut the answer can be made again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from msgspec import UNSET

from freehold.base import private
from freehold.base.errors import CapacityExceeded, ChatNotFound, StoreError
from freehold.serve.chats.pictures import ChatPictures, decoded_url, is_reference
from freehold.serve.chats.types import (
    AskedTool,
    AttachedFile,
    ChatChange,
    ChatFinish,
    ChatLine,
    Role,
    SavedMessage,
    ToolState,
    Verdict,
    encoded,
)

# Locks of a chat: one for the moment of an append, one for as long as an answer is written.
# Both are the kernel's (flock), which ends them with their holder however that ends, so there is nothing
# stale to find.
WAIT_S = 10.0  # an append takes well under a millisecond, and a flush of a busy disk a second or two
_LOOK_S = 0.005


@contextmanager
def appending(fd: int, what: str) -> Iterator[None]:
    """Hold the lock of an open file; StoreError where another program holds it for WAIT_S."""
    until = time.monotonic() + WAIT_S
    while not _taken(fd, fcntl.LOCK_EX):
        if time.monotonic() > until:
            raise StoreError(
                f"{what} is locked by another program for {WAIT_S:g} seconds",
                "end that program if it is stopped, then try again",
            )
        time.sleep(_LOOK_S)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def hold(path: Path) -> int:
    """Make the file `path` and hold it until `release`; return its descriptor. Raises OSError."""
    private.folder(path.parent)
    fd = private.opener(str(path), os.O_RDWR | os.O_CREAT)
    if not _taken(fd, fcntl.LOCK_EX):
        os.close(fd)
        raise OSError(errno.EAGAIN, "locked by another program", str(path))
    return fd


def release(fd: int, path: Path) -> None:
    """End what `held` began."""
    with suppress(OSError):
        path.unlink()
    os.close(fd)


def is_held(path: Path) -> bool:
    """Return whether a living program holds `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        if not _taken(fd, fcntl.LOCK_SH):  # shared: other readers may look at once
            return True
        with suppress(OSError):
            path.unlink()  # its holder died
        return False
    finally:
        os.close(fd)


def _taken(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# Of a file: read whole in 0.2 s, and far beyond any context. Its export has no more, and can be imported.
MAX_CHAT_BYTES = 32 << 20
FOR_ENDS = 4 << 20  # of them only for answers that began: they can always be written to their end
_FULL = (errno.ENOSPC, errno.EDQUOT)


def live(path: Path, message: str) -> Path:
    """Return the file that the writer of an open answer holds; a chat's name has no `~`."""
    return path.parent / ".live" / f"{path.stem}~{message}"


class CheckRoom(Protocol):
    """Raises CapacityExceeded where the chats of the caller are full. `small`: for a line of some hundred bytes."""

    def __call__(self, *, small: bool = False) -> None: ...


def _unlimited(*, small: bool = False) -> None:
    """Let everything begin."""


class ChatWriter:
    """The end of one chat's file. Every method writes one line, and returns once it is there.

    Raises CapacityExceeded where the disk or the file is full, StoreError where it cannot be written: then nothing was
    written, and the same call may be made again. One thread at a time.
    """

    def __init__(self, path: Path, check_room: CheckRoom = _unlimited) -> None:
        """Open a chat's file; `check_room` raises where no more messages may begin."""
        self.path, self.chat, self._check_room = path, path.stem, check_room
        self.pictures = ChatPictures(path)
        self._answers: dict[str, int] = {}  # id of an open answer -> the descriptor of its lock
        try:
            self._fd = private.opener(str(path), os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            raise no_chat(self.chat) from None
        except OSError as e:
            raise StoreError(f"chat {self.chat} cannot be written: {e.strerror}") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def message(
        self,
        role: Role,
        content: str,
        *,
        parent: str | None,
        model: str = "",
        thinking: str = "",
        files: Sequence[AttachedFile] = (),
        images: Sequence[str] = (),
        calls: Sequence[AskedTool] = (),
        call: str = "",
        outcome: ToolState | None = None,
        edited: bool = False,
        id: str = "",
    ) -> SavedMessage:
        """Append a whole message after `parent` (None: as a root), and return it. `id`: the caller's own, if new.

        `images`: references of pictures that the chat has, and data: URLs, which are stored. Raises UsageError for
        any other.
        """
        self._check_room()
        references = tuple([self.picture(each) for each in images])
        message = SavedMessage(
            id=id or _new_id(),
            parent=parent,
            role=role,
            content=content,
            thinking=thinking,
            at=_now(),
            model=model,
            files=tuple(files),
            images=references,
            calls=tuple(calls),
            call=call,
            outcome=outcome,
            edited=edited,
        )
        self._append(line_of(message), MAX_CHAT_BYTES - FOR_ENDS)
        return message

    def picture(self, image: str) -> str:
        """Store the picture of a data: URL, before a message names it, and return its reference; keep a reference."""
        if is_reference(image):
            return image
        self._check_room()
        data = decoded_url(image)
        with failures(self.chat):
            return self.pictures.put(data)

    def open_answer(
        self, *, parent: str | None, model: str, content: str = "", thinking: str = "", id: str = ""
    ) -> SavedMessage:
        """Begin an answer, with what it continues; it is being written until `end`, or until this program dies."""
        self._check_room()
        message = SavedMessage(
            id=id or _new_id(),
            parent=parent,
            role="assistant",
            content=content,
            thinking=thinking,
            at=_now(),
            model=model,
            state="open",
        )
        path = live(self.path, message.id)
        try:
            fd = hold(path)
        except OSError as e:
            raise _failed(self.chat, e) from e
        try:
            self._append(line_of(message), MAX_CHAT_BYTES - FOR_ENDS)
        except BaseException:
            release(fd, path)
            raise
        self._answers[message.id] = fd
        return message

    def more(self, id: str, *, text: str = "", thinking: str = "") -> None:
        """Append what an open answer grew by; at least every second while it grows."""
        if text or thinking:
            self._append(ChatLine(more=id, text=text, thinking=thinking), MAX_CHAT_BYTES, flush=False)

    def end(
        self,
        id: str,
        finish: ChatFinish,
        *,
        text: str = "",
        thinking: str = "",
        receipt: dict[str, Any] | None = None,
        calls: Sequence[AskedTool] = (),
        error: dict[str, Any] | None = None,
    ) -> None:
        """End an open answer; `text` and `thinking` are what it grew by since `more`, written with its end."""
        last = [ChatLine(more=id, text=text, thinking=thinking)] if text or thinking else []
        end = ChatLine(end=id, finish=finish, receipt=receipt, calls=tuple(calls), error=error)
        self._append([*last, end], MAX_CHAT_BYTES)
        if (fd := self._answers.pop(id, None)) is not None:
            release(fd, live(self.path, id))

    def take_out(self, ids: Sequence[str], *, back: bool = False) -> None:
        """Leave messages out of the chat from now on, or put them `back`; the file keeps their lines."""
        self._check_room(small=True)
        self._append(ChatLine(gone=tuple(ids), back=back), MAX_CHAT_BYTES - FOR_ENDS)

    def judge(self, id: str, verdict: Verdict) -> None:
        """Note what the user thinks of an answer; "" takes it back."""
        self._check_room(small=True)
        self._append(ChatLine(judged=id, verdict=verdict), MAX_CHAT_BYTES - FOR_ENDS)

    def set(self, change: ChatChange) -> None:
        """Change what a chat has besides messages: title, pin, the branch that is shown, model, settings."""
        self._check_room(small=change.settings is UNSET)  # a system prompt may be as long as a request
        self._append(ChatLine(set=change), MAX_CHAT_BYTES - FOR_ENDS)

    def close(self) -> None:
        """Close the file. Answers that were not ended are shown as lost from now on."""
        for id, fd in self._answers.items():
            release(fd, live(self.path, id))
        self._answers.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, lines: ChatLine | Sequence[ChatLine], most: int, *, flush: bool = True) -> None:
        data = b"".join(map(encoded, [lines] if isinstance(lines, ChatLine) else lines))
        try:
            with appending(self._fd, f"chat {self.chat}"):
                self._check_there(most == MAX_CHAT_BYTES)
                append(self._fd, data, self.chat, most, flush=flush)
        except OSError as e:
            raise _failed(self.chat, e) from e

    def _check_there(self, ending: bool) -> None:
        """Raise ChatNotFound where the chat was deleted; an answer that began is written to its end all the same."""
        if ending:
            return
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                return
        raise ChatNotFound(f"chat {self.chat} was deleted by another program", "start another one")


def append(fd: int, data: bytes, chat: str, most: int, *, flush: bool) -> None:
    """Append whole lines, under the lock; where that fails, nothing of them stays.

    A torn line that a killed writer left is closed first, so it spoils itself alone.
    """
    size = os.fstat(fd).st_size
    if size + len(data) > most:
        raise CapacityExceeded(
            f"chat {chat} has {size:,} bytes, and a chat holds {most:,}", "start another chat"
        )
    if size and os.pread(fd, 1, size - 1) != b"\n":
        data = b"\n" + data
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
        if flush:
            os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(fd, size)
        raise


def line_of(message: SavedMessage) -> ChatLine:
    """Return the line of a message, without what comes with an answer's end."""
    return ChatLine(
        id=message.id,
        parent=message.parent,
        role=message.role,
        content=message.content,
        thinking=message.thinking,
        at=message.at,
        model=message.model,
        files=message.files,
        images=message.images,
        calls=message.calls,
        call=message.call,
        outcome=message.outcome,
        open=message.state != "whole" or bool(message.receipt or message.error),
        edited=message.edited,
        verdict=message.verdict,
    )


def no_chat(chat: str) -> ChatNotFound:
    """Return the error of an id that leads to no chat of the caller."""
    return ChatNotFound(f"there is no chat {chat[:80]!r}", "the list of chats has those there are")


@contextmanager
def failures(chat: str) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except OSError as e:
        raise _failed(chat, e) from e


def _failed(chat: str, e: OSError) -> StoreError | CapacityExceeded:
    if e.errno in _FULL:
        return CapacityExceeded(
            f"the disk is full: chat {chat} is saved up to here", "free some space; it is tried again"
        )
    return StoreError(f"chat {chat} cannot be saved: {e.strerror or e}")


def _new_id() -> str:
    return secrets.token_hex(8)


def _now() -> float:
    return round(time.time(), 3)
