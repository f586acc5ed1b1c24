"""Sessions of the page: a random cookie in place of a key, on disk as a hash, so that sessions outlive a restart.

A session keeps the hash of its key, or of the owner's token, and ends with it. Knows times, hashes and one file; knows
no request but its Cookie header. Path: login.py -> PageSessions.begin; auth.Guard -> PageSessions.find -> SessionHolder
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from freehold import private
from freehold.server.core.auth import SessionHolder
from freehold.server.core.keys import Key, Ring, hashed

IDLE_S, LIFE_S = 12 * 3600.0, 30 * 86400.0
PER_KEY = 20  # sessions; a login beyond ends the one that was not used for longest
SEEN_S = 60.0  # the last use is kept to the minute, so that a request rarely means a write
SAVE_S = 5.0
MAX_FILE = 4 << 20  # bytes; a session takes about 200
_log = logging.getLogger("freehold.server")


class _Session(msgspec.Struct):
    """One session. `stands_for`: the hash of its key, or of the owner's token."""

    sha256: str
    stands_for: str
    began: float
    seen: float

    def ended(self, now: float) -> bool:
        """Return whether it is too old, or of a time that is not yet: the clock was wrong then, or is now."""
        return abs(now - self.seen) > IDLE_S or abs(now - self.began) > LIFE_S


class _SessionFile(msgspec.Struct):
    """What the file holds. `server` tells the cookies of two servers of one host apart, which share all of them."""

    server: str
    sessions: list[_Session]
    version: Literal[1] = 1


class PageSessions:
    """The sessions of one server. `path` None: forgotten with the process."""

    def __init__(
        self,
        path: Path | None,
        keys: Ring,
        owner: str = "",
        *,
        tls: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`owner`: the hash of the owner's token; without one there are no sessions of the owner."""
        self._path, self._keys, self._owner, self._tls, self._now = path, keys, owner, tls, now
        self._read: dict[str, _Session] | None = None  # by hash, once they were wanted
        self._server = ""
        self._unsaved = False
        self._saving = asyncio.Lock()

    @property
    def cookie(self) -> str:
        """The cookie's name."""
        self._known()
        # A browser takes a cookie of this prefix only with Secure and Path=/, and from no other host of the domain.
        return f"{'__Host-' if self._tls else ''}freehold-{self._server}"

    def find(self, cookies: bytes, *, used: bool = True) -> SessionHolder | None:
        """Return whom the session in a Cookie header stands for; None if there is none, or it has ended.

        Not `used`: a stream that has nothing to bring asks whether it may continue, which leaves its session idle.
        """
        session = self._session(cookies)
        if session is None:
            return None
        now = self._now()
        holder = None if session.ended(now) else self._holder(session)
        if holder is None:
            self._forget(session)
        elif used and now - session.seen >= SEEN_S:
            session.seen, self._unsaved = now, True
        return holder

    def begin(self, key: Key | None, *, encrypted: bool = False) -> bytes:
        """Begin a session of a key, None for the owner's; return the Set-Cookie header that carries it.

        `encrypted`: the browser speaks TLS, with us or with a proxy; it then sends the cookie to no plain address.
        """
        stands_for = self._owner if key is None else key.sha256
        token, known, now = secrets.token_urlsafe(32), self._known(), self._now()
        mine = sorted((s for s in known.values() if s.stands_for == stands_for), key=lambda s: s.seen)
        for each in mine[: max(0, len(mine) + 1 - PER_KEY)]:
            self._forget(each)
        session = _Session(hashed(token.encode()), stands_for, now, now)
        known[session.sha256], self._unsaved = session, True
        return self._written(token, int(LIFE_S), encrypted=encrypted)

    def end(self, cookies: bytes) -> bytes:
        """End the session in a Cookie header; return the Set-Cookie header that takes the cookie away."""
        if (session := self._session(cookies)) is not None:
            self._forget(session)
        return self._written("", 0)

    async def keep(self) -> None:
        """Save what changed, again and again until cancelled."""
        while True:
            await asyncio.sleep(SAVE_S)
            await self.save()

    async def save(self) -> None:
        """Write the file anew, if there is something to write; a disk that is full is tried again later."""
        async with self._saving:
            if self._path is None or not self._unsaved:
                return
            self._unsaved = False
            try:
                await asyncio.to_thread(_write, self._path, self._encoded())
            except OSError as e:
                self._unsaved = True
                _log.error("sessions of the page cannot be saved, and are kept in memory: %s", e)

    def close(self) -> None:
        """Save what is left."""
        if self._path is not None and self._unsaved:
            with suppress(OSError):
                _write(self._path, self._encoded())

    def _holder(self, session: _Session) -> SessionHolder | None:
        if self._owner and session.stands_for == self._owner:
            return SessionHolder(None)
        key = self._keys.of_hash(session.stands_for)
        return None if key is None else SessionHolder(key)

    def _session(self, cookies: bytes) -> _Session | None:
        known, name = self._known(), self.cookie.encode()
        for part in cookies.split(b";"):
            cookie, _, token = part.strip().partition(b"=")
            if cookie == name and (session := known.get(hashed(token))) is not None:
                return session
        return None

    def _forget(self, session: _Session) -> None:
        self._unsaved = self._known().pop(session.sha256, None) is not None or self._unsaved

    def _written(self, token: str, seconds: int, *, encrypted: bool = False) -> bytes:
        secure = "; Secure" if self._tls or encrypted else ""
        return f"{self.cookie}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}".encode()

    def _known(self) -> dict[str, _Session]:
        if self._read is None:
            stored = _stored(self._path) if self._path else None
            self._server = stored.server if stored else secrets.token_hex(4)
            self._read = {s.sha256: s for s in stored.sessions} if stored else {}
        return self._read

    def _encoded(self) -> bytes:
        now = self._now()
        lasting = [s for s in self._known().values() if not s.ended(now)]
        return msgspec.json.encode(_SessionFile(self._server, lasting))


def _stored(path: Path) -> _SessionFile | None:
    """Read the file; None where there is none, and for one that others could have written: all log in again then."""
    try:
        with path.open("rb") as file:
            status, data = os.fstat(file.fileno()), file.read(MAX_FILE + 1)
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            _log.error("%s can be read or written by others: every session of the page has ended", path)
            return None
        return msgspec.json.decode(data, type=_SessionFile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
        _log.error("%s cannot be read, and every session of the page has ended: %s", path, e)
        return None


def _write(path: Path, data: bytes) -> None:
    """Put the file there whole, for its user alone, or not at all."""
    private.folder(path.parent)
    new = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        new.unlink()
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, private.FILE), "wb") as file:
        file.write(data)
    new.replace(path)
