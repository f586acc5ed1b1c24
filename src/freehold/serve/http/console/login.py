"""Who asks the console: logging in and out, what a caller may do, and sessions, which stand for a key or the owner.

Knows keys, codes and how often an address was wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from msgspec import Meta, Struct

from freehold.adapt import registry
from freehold.base import private
from freehold.base.types import MAX_PICTURE_BYTES
from freehold.base.version import __version__
from freehold.run.pictures.limits import MAX_PIXELS, MAX_SIDE
from freehold.serve.http.core.auth import SessionHolder, from_own_page
from freehold.serve.http.core.call import HttpCall, Server
from freehold.serve.http.core.fields import MAX_PICTURES
from freehold.serve.http.core.keys import Key, Ring, hashed
from freehold.serve.http.core.limits import one_address
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.core.tools import may_use_tools
from freehold.serve.worker.wire import MAX_PICTURES_BYTES

CODE_S = 60.0  # that a code of `freehold open` is good for,
START_CODE_S = 3600.0  # and the one that `freehold serve` prints at its start
MOST_CODES = 16  # of `freehold open`, waiting to be used
WRONG, WRONG_S = 10, 60.0  # wrong keys or codes of an address, and for how long they count
MOST_ADDRESSES = 4096  # that are remembered
Tried = Literal["key", "code"]
NO_STORE = (b"cache-control", b"no-store")


class LoginRequest(Struct, kw_only=True):
    """The key to log in with."""

    key: Annotated[str, Meta(min_length=1, max_length=1024)]


class OwnerRequest(Struct, kw_only=True):
    """The code of `freehold open`."""

    code: Annotated[str, Meta(min_length=1, max_length=256)]


class NothingAsked(Struct, kw_only=True):
    """An empty object."""


class Login:
    """What logging in needs besides the sessions: codes of the owner, and the wrong tries of each address."""

    def __init__(self, sessions: PageSessions, clock: Callable[[], float] = time.monotonic) -> None:
        self.sessions, self._clock = sessions, clock
        self._codes: dict[str, float] = {}  # hash -> until when
        self._wrong: dict[tuple[Tried, str], deque[float]] = {}

    def new_code(self, seconds: float = CODE_S) -> str:
        """Return a code that makes one session of the owner, within `seconds`."""
        now, code = self._clock(), secrets.token_urlsafe(24)
        self._codes = {each: until for each, until in self._codes.items() if until > now}
        while len(self._codes) >= MOST_CODES:
            del self._codes[next(iter(self._codes))]
        self._codes[hashed(code.encode())] = now + seconds
        return code

    def redeem(self, code: str) -> bool:
        """Return whether a code is good, which it is once."""
        return self._codes.pop(hashed(code.encode()), 0.0) > self._clock()

    def check(self, tried: Tried, address: str) -> None:
        """Refuse (429) an address whose keys, or whose codes, were wrong too often within a minute."""
        times = self._wrong.get((tried, address))
        while times and self._clock() - times[0] >= WRONG_S:
            times.popleft()
        if times and len(times) >= WRONG:
            wait = WRONG_S - (self._clock() - times[0])
            raise Refused(
                429,
                f"{WRONG} wrong {tried}s came from this address within a minute; the next try in {wait:.0f} s",
                code="too_many_tries",
                headers=((b"retry-after", b"%d" % (wait + 1)),),
            )

    def wrong(self, tried: Tried, address: str) -> None:
        """Count a wrong try."""
        if len(self._wrong) >= MOST_ADDRESSES and (tried, address) not in self._wrong:
            del self._wrong[next(iter(self._wrong))]
        self._wrong.setdefault((tried, address), deque(maxlen=WRONG)).append(self._clock())


async def login(call: HttpCall) -> None:
    """Exchange a key for a session; 429 for an address with ten wrong keys in a minute."""
    request, _ = await call.struct(LoginRequest)
    known, address = _login_of(call), _address(call)
    known.check("key", address)
    key = call.server.guard.keys.find(request.key.strip().encode())
    if key is None:
        known.wrong("key", address)
        raise Refused(401, "the key is not one of this server's", code="invalid_api_key")
    await _begin(call, known, key)


async def owner(call: HttpCall) -> None:
    """Exchange the one-time code of `freehold open` or `serve` for a session of the owner.

    Wrong codes do not block a later right one: a code has 192 random bits, and any local page could otherwise lock
    the owner out.
    """
    request, _ = await call.struct(OwnerRequest)
    known, address = _login_of(call), _address(call)
    if not known.redeem(request.code):
        known.check("code", address)
        known.wrong("code", address)
        message = "this link was used already, or is too old; freehold open makes another"
        raise Refused(401, message, code="invalid_code")
    await _begin(call, known, None)


async def logout(call: HttpCall) -> None:
    """End the session."""
    await call.struct(NothingAsked)
    sessions = _login_of(call).sessions
    taken = sessions.end(call.headers.get(b"cookie", b""))
    await sessions.save()
    await call.answer(described(call.server, None, owner=False), 200, [(b"set-cookie", taken), NO_STORE])


async def code(call: HttpCall) -> None:
    """Create a one-time code for `freehold open`; only for the owner, because it gives the owner's rights."""
    await call.struct(NothingAsked)
    if not call.owner:
        raise Refused(403, "only the owner may use this route: freehold open calls it", code="not_permitted")
    new_code = call.part(Login, 404, "this server has no page", "no_route").new_code()
    await call.answer({"code": new_code, "seconds": CODE_S}, 200, [NO_STORE])


async def _begin(call: HttpCall, known: Login, key: Key | None) -> None:
    """Answer as `me` does, with a new session; the one that the browser had ends."""
    sessions = known.sessions
    sessions.end(call.headers.get(b"cookie", b""))
    # Behind a proxy that ends TLS the browser's page alone knows of it.
    cookie = sessions.begin(key, encrypted=call.headers.get(b"origin", b"").lower().startswith(b"https://"))
    await sessions.save()
    description = described(call.server, key, owner=key is None)
    await call.answer(description, 200, [(b"set-cookie", cookie), NO_STORE])


def _login_of(call: HttpCall) -> Login:
    """Return what logging in needs, for requests of our own page: another one could log its visitor in as itself."""
    if not from_own_page(call.headers, tls=call.server.guard.tls):
        message = "only this server's own page logs in; programs send Authorization: Bearer KEY"
        raise Refused(403, message, code="foreign_origin")
    return call.part(Login, 404, "this server has no page", "no_route")


def _address(call: HttpCall) -> str:
    client = call.scope.get("client")
    return one_address(client[0]) if client else ""


# --- what a caller may do, and which pages have something to show it --------------------------------

STORE = ("pull", "delete", "load")  # what the owner and admin keys do to models


async def me(call: HttpCall) -> None:
    """Return who the caller is; also without a key, so that the page can ask for one."""
    await call.answer(description(call), 200, [NO_STORE])


def description(call: HttpCall) -> dict[str, Any]:
    """Describe the caller, or say why it may do nothing."""
    server = call.server
    if call.owner:
        return described(server, None, owner=True)
    try:
        key, owner = server.guard.check("/v1/models", call.headers)
    except Refused as e:
        return {**described(server, None, owner=False), "can": [], "refused": e.message}
    return described(server, key, owner=owner)


def described(server: Server, key: Key | None, *, owner: bool) -> dict[str, Any]:
    """Describe a caller: version, name of the key, whether it is the owner, whether a key is wanted, what it can.

    `has`: of the pages that a home begins without, those with something in them.
    """
    keyed = bool(server.guard.keys)
    stranger = keyed and key is None and not owner
    admin = owner or (key is not None and key.kind == "admin")
    chat = not stranger and (key is None or key.kind == "client")
    tools = ["tools"] if may_use_tools(server, key, owner=owner) else []
    return {
        "version": __version__,
        "key": key.name if key else None,
        "owner": owner,
        "keyed": keyed,
        "has": [*_filled(server, key, owner=owner)],
        "can": [*(["chat"] if chat else []), *(STORE if admin else ()), *tools, *(["keys"] if admin else [])],
        "pictures": picture_limits(),
        "refused": "",
    }


class PictureLimits(TypedDict):
    """What pictures a page may send."""

    most: int  # of a message
    together: int  # bytes of all in a chat's branch
    bytes: int  # of one
    pixels: int
    side: int  # pixels


def picture_limits() -> PictureLimits:
    """Return the limits of this server."""
    return {
        "most": MAX_PICTURES,
        "together": MAX_PICTURES_BYTES,
        "bytes": MAX_PICTURE_BYTES,
        "pixels": MAX_PIXELS,
        "side": MAX_SIDE,
    }


def _filled(server: Server, key: Key | None, *, owner: bool) -> Iterator[str]:
    """Name the pages with something in them; only the owner sees deployed engines."""
    keyed = bool(server.guard.keys)
    operator = owner or (key.kind == "admin" if key else not keyed)
    if keyed:
        yield "keys"
    if (home := server.home) is None:
        return
    if keyed or _any(home / "sessions", "*.jsonl") or _any(home, "ledger*"):
        yield "usage"
    if operator and (home / registry.FILE).exists():
        yield "runs"
    if owner and (_any(home / "deployments", "*") or _any(home / "engines", "*")):
        yield "deployments"


def _any(folder: Path, pattern: str) -> bool:
    with suppress(OSError):
        return next(folder.glob(pattern), None) is not None
    return False


# --- sessions: a random cookie in place of a key, on disk as a hash, so that they outlive a restart --
# A session keeps the hash of its key, or of the owner's token, and ends with it.

IDLE_S, LIFE_S = 12 * 3600.0, 30 * 86400.0
PER_KEY = 20  # sessions; a login beyond ends the one that was not used for longest
SEEN_S = 60.0  # the last use is kept to the minute, so that a request rarely means a write
SAVE_S = 5.0
MAX_FILE = 4 << 20  # bytes; a session takes about 200
_log = logging.getLogger("freehold.serve.http")


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
