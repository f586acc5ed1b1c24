"""Logging in and out: a key, or the owner's one-time code, in exchange for a session.

Knows keys, codes and how often an address was wrong; how sessions are kept is sessions.py's.
Path: page -> login, owner, logout -> PageSessions; `freehold open` -> owner's socket -> code
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta, Struct

from freehold.server.console.me import described
from freehold.server.console.sessions import PageSessions
from freehold.server.core.auth import from_own_page
from freehold.server.core.call import HttpCall
from freehold.server.core.keys import Key, hashed
from freehold.server.core.limits import one_address
from freehold.server.core.problems import Refused

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
    """Change a key for a session; 429 for an address with ten wrong keys in a minute."""
    request, _ = await call.struct(LoginRequest)
    known, address = _login_of(call), _address(call)
    known.check("key", address)
    key = call.server.guard.keys.find(request.key.strip().encode())
    if key is None:
        known.wrong("key", address)
        raise Refused(401, "the key is not one of this server's", code="invalid_api_key")
    await _begin(call, known, key)


async def owner(call: HttpCall) -> None:
    """Change the one-time code of `freehold open` or `serve` for a session of the owner.

    A right code opens whatever came before it: it has 192 random bits, and a page on the owner's own machine could
    otherwise lock the owner out with ten wrong ones.
    """
    request, _ = await call.struct(OwnerRequest)
    known, address = _login_of(call), _address(call)
    if not known.redeem(request.code):
        known.check("code", address)
        known.wrong("code", address)
        raise Refused(
            401,
            "this link was used already, or is too old; freehold open makes another",
            code="invalid_code",
        )
    await _begin(call, known, None)


async def logout(call: HttpCall) -> None:
    """End the session."""
    await call.struct(NothingAsked)
    sessions = _login_of(call).sessions
    taken = sessions.end(call.headers.get(b"cookie", b""))
    await sessions.save()
    await call.answer(described(call.server, None, owner=False), 200, [(b"set-cookie", taken), NO_STORE])


async def code(call: HttpCall) -> None:
    """Make a one-time code for `freehold open`; for the owner alone, as it opens what the owner may do."""
    await call.struct(NothingAsked)
    if not call.owner:
        raise Refused(403, "only the owner may use this route: freehold open calls it", code="not_permitted")
    new_code = (call.server.part(Login) or _absent()).new_code()
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
        raise Refused(
            403,
            "only this server's own page logs in; programs send Authorization: Bearer KEY",
            code="foreign_origin",
        )
    return call.server.part(Login) or _absent()


def _absent() -> Login:
    raise Refused(404, "this server has no page", code="no_route")


def _address(call: HttpCall) -> str:
    client = call.scope.get("client")
    return one_address(client[0]) if client else ""
