"""Access: the rule for binding, keys, sessions, audiences of routes, and the guard against web pages.

Knows names of hosts and the headers of a request; knows no body and no model, and of a session only whom it stands for.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from pathlib import Path
from typing import Literal, Protocol

from freehold.base import private
from freehold.base.errors import StoreError, UsageError
from freehold.serve.http.core.keys import Key, Ring, hashed
from freehold.serve.http.core.problems import Refused

Headers = Mapping[bytes, bytes]
# Keys that a route accepts. page: any, or no key: a file of the page. all: any, or no key. any: any key. client: keys
# that may run models. operator: keys that may list every model, so a client key without a scope or an admin key.
# admin: an admin key, or the owner's access by Unix socket, token or session; a local program that may run models
# without a key may still not change the disk.
Audience = Literal["page", "all", "any", "client", "operator", "admin"]
# Liveness, the page's files, and what turns a key into a session: public information only.
OPEN = ("/health", "/", "/console/api/me", "/console/login", "/console/owner", "/console/logout")
ASSETS, CONSOLE = "/assets/", "/console/"
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")  # which our page sends a recording


@dataclass(frozen=True, slots=True)
class SessionHolder:
    """Whom a session stands for. `key` None: the owner."""

    key: Key | None


class FindSession(Protocol):
    """Whom the session in a Cookie header stands for. `used`: a request came with it, so it is not idle."""

    def __call__(self, cookies: bytes, *, used: bool = True) -> SessionHolder | None: ...


def check_bind(host: str, keys: Ring, *, insecure: bool = False) -> None:
    """Raise UsageError for an address that other machines reach without a key, unless `insecure`."""
    if insecure and keys:
        raise UsageError("--insecure requires no key, and keys are set", "leave out one of them")
    if not is_loopback(host) and not keys and not insecure:
        raise UsageError(
            f"{host or 'every address'} can be reached from other machines, and no key is set",
            "freehold keys add NAME makes one; or bind 127.0.0.1 and reach it through ssh -L",
        )


@lru_cache(256)  # a client sends one Host header with all its requests
def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host` (an address or a name; a port after it is cut off)."""
    name = host_name(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """Return the name in a Host header or an address: no port, no brackets, small letters, no last dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name = host if host.count(":") > 1 else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Guard:
    """The check every request passes. `origins`: web origins whose pages may ask (CORS)."""

    keys: Ring
    hosts: tuple[str, ...] = ()  # names besides loopback's that this server may be called without a key
    origins: tuple[str, ...] = ()
    trusted: bool = False  # the Unix socket in a folder of 0700: only the owner can connect
    insecure: bool = False  # other machines reach it without a key
    owner: str = ""  # the hash of the owner's token; "": there is none
    tls: bool = False
    sessions: FindSession | None = None  # None: there are none

    def owns(self, headers: Headers) -> bool:
        """Return whether the owner sent the request: through the Unix socket, or with the owner's token."""
        return self.trusted or (bool(self.owner) and compare_digest(hashed(_key_in(headers)), self.owner))

    def check(self, path: str, headers: Headers, method: str = "GET") -> tuple[Key | None, bool]:
        """Return (the key that came, None where none is needed; whether the owner asks); raise Refused, 401 or 403.

        A header with a key wins over a session, so that a wrong one is refused.
        """
        if self.owns(headers):
            return None, True
        if path.startswith(CONSOLE):
            self._check_page(headers, method)
        if path in OPEN or path.startswith(ASSETS):
            return None, False
        if (holder := self._session(headers)) is not None and path not in FORMS:
            _check_json(headers, method)
        if not self.keys:
            self._local(headers)
        elif holder is None:
            return self._keyed(headers), False
        return (None, False) if holder is None else (holder.key, holder.key is None)

    def admits(self, headers: Headers, key: Key | None, *, owner: bool, used: bool = False) -> bool:
        """Return whether what `check` found still holds: a stream ends with its caller's key or session.

        `used`: it brings something, so that its session is not idle.
        """
        if owner and self.owns(headers):
            return True
        if (holder := self._session(headers, used=used)) is not None:
            return owner == (holder.key is None) and (key and key.sha256) == (
                holder.key and holder.key.sha256
            )
        if key is None:
            return not owner and not self.keys
        return bool(_key_in(headers)) and self.keys.of_hash(key.sha256) is not None

    def _session(self, headers: Headers, *, used: bool = True) -> SessionHolder | None:
        """Return whom the cookie stands for; None without one, and where another page may have sent it."""
        cookie = headers.get(b"cookie", b"")
        if not cookie or self.sessions is None or _key_in(headers):
            return None
        return self.sessions(cookie, used=used) if from_own_page(headers, tls=self.tls) else None

    def _check_page(self, headers: Headers, method: str) -> None:
        """Refuse other pages the routes that only our page asks, whatever they bring along."""
        if from_another_page(headers, tls=self.tls):
            raise Refused(403, "pages of this origin may not ask this server", code="foreign_origin")
        if method != "GET" and not self.keys:
            self._local(headers)
        _check_json(headers, method)

    def check_audience(self, audience: Audience, key: Key | None, *, owner: bool = False) -> None:
        """Refuse (403) a route that `key` does not open, unless the owner asks."""
        if owner or self.trusted or audience in ("page", "all", "any"):
            return
        if key is None:
            if audience == "admin":
                raise _forbidden(
                    "only the owner may use this route: it needs Authorization: Bearer TOKEN, which "
                    "freehold keys owner prints on the server's machine, an admin key, or the Unix socket"
                )
        elif key.kind == "admin":
            if audience == "client":
                raise _forbidden(
                    f"the key {key.name} is an admin key, which cannot use models; use a client key"
                )
        elif audience == "admin":
            raise _forbidden(
                f"the key {key.name} is a client key; this route needs an admin key or the owner's socket"
            )
        elif audience == "operator" and key.models:
            raise _forbidden(f"the key {key.name} has a scope; this route lists every model")

    def check_unload(self, key: Key | None, *, owner: bool = False) -> None:
        """Refuse (403) to take a model out of memory for a key that shares it, and for strangers."""
        if key is not None or self.insecure:
            self.check_audience("admin", key, owner=owner)

    def check_upload(self, headers: Headers) -> None:
        """Raise Refused (403) for an upload from a web page of an origin that is not allowed.

        A browser sends a form to another origin unasked, and JSON only if that origin allows it. A page from another
        local port is another origin.
        """
        origin = headers.get(b"origin", b"").decode("latin-1")
        own = origin.partition("://")[2] == headers.get(b"host", b"").decode("latin-1")
        if origin and not own and origin not in self.origins:
            raise Refused(403, "pages of this origin may not upload to this server", code="foreign_origin")

    def check_asked(self, headers: Headers) -> None:
        """Raise Refused (403) for a GET that a web page of an origin that is not allowed has sent, as by a picture.

        For those that make the server compute: what they answer no such page can read.
        """
        allowed = headers.get(b"origin", b"").decode("latin-1") in self.origins
        if not allowed and from_another_page(headers, tls=self.tls):
            raise Refused(403, "pages of this origin may not ask this server", code="foreign_origin")

    def _keyed(self, headers: Headers) -> Key:
        token = _key_in(headers)
        key = self.keys.find(token) if token else None
        if key is None:
            problem = "the key is not one of this server's" if token else "this server needs a key"
            message = f"{problem}; send Authorization: Bearer KEY"
            raise Refused(401, message, code="invalid_api_key", headers=((b"www-authenticate", b"Bearer"),))
        return key

    def _local(self, headers: Headers) -> None:
        """Refuse what a page in a browser sends: a name rebound to an address of ours, or a foreign origin."""
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not self._ours(host):
            raise Refused(403, f"this server is not called {host_name(host)[:100]!r}", code="foreign_host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self.origins and not is_loopback(origin.partition("://")[2]):
            raise Refused(403, "pages of this origin may not ask this server", code="foreign_origin")

    def _ours(self, host: str) -> bool:
        name = host_name(host)
        # DNS rebinding changes what a name resolves to; an address in the Host header cannot be rebound.
        return is_loopback(host) or name in self.hosts or (self.insecure and _is_address(name))


def _key_in(headers: Headers) -> bytes:
    """Return the secret that came; b"" for none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def _check_json(headers: Headers, method: str) -> None:
    """Refuse (415) a body that a page could send without being asked for permission, such as a form."""
    if method != "GET" and has_body(headers) and not is_json(headers):
        raise Refused(
            415,
            "in a session, and on the console's routes, a body must come with Content-Type: application/json",
            code="not_json",
            headers=((b"accept", b"application/json"),),
        )


def _forbidden(message: str) -> Refused:
    return Refused(403, message, code="not_permitted")


# --- whether a request comes from this server's own page, by what a browser says of it and no page can forge
# A browser adds Sec-Fetch-Site where the address is encrypted or this machine's, and Origin to what may change
# something. Another port of this host is another origin and the same site, so only `same-origin` counts, and Origin
# with its port.


def from_own_page(headers: Headers, *, tls: bool) -> bool:
    """Return whether a page of this server's own origin sent this; False where the browser does not say."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is None:
        return origin is not None and _is_ours(origin, headers, tls=tls)
    # A proxy that ends TLS changes the scheme that we see, so beside same-origin only host and port are compared.
    return site == b"same-origin" and (origin is None or _is_ours(origin, headers, tls=None))


def from_another_page(headers: Headers, *, tls: bool) -> bool:
    """Return whether a page of another origin sent this; False for programs, and for an address that was typed."""
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is None:
        return origin is not None and not _is_ours(origin, headers, tls=tls)
    return site not in (b"same-origin", b"none") or (
        origin is not None and not _is_ours(origin, headers, tls=None)
    )


def is_json(headers: Headers) -> bool:
    """Return whether the body is called JSON, which a page may not send to another origin unasked."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"application/json"


def has_body(headers: Headers) -> bool:
    """Return whether a body comes."""
    return headers.get(b"content-length", b"0").strip() != b"0" or b"transfer-encoding" in headers


def _is_ours(origin: bytes, headers: Headers, *, tls: bool | None) -> bool:
    """Compare an Origin with the Host; `tls` None: whatever its scheme."""
    scheme, _, authority = origin.lower().partition(b"://")
    expected = {True: (b"https",), False: (b"http",), None: (b"http", b"https")}[tls]
    return scheme in expected and bool(authority) and authority == headers.get(b"host", b"").lower()


# --- the owner's token, which opens the owner's routes to programs without access to the Unix socket
# It is in a file that only its user can read. The first server of a home makes it and the next ones keep it, so a
# client gets it once. It opens what the socket opens: who can read it can reach the socket too.

PREFIX = "fh-owner-"
_MAX = 256  # bytes of the file


def owner_token(path: Path) -> str:
    """Return the token in `path`, made where there is none; UsageError for a file that others can read."""
    try:
        private.folder(path.parent)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{PREFIX}{secrets.token_urlsafe(24)}\n")
    except FileExistsError:
        pass
    except OSError as e:
        raise StoreError(f"the owner's token {path} cannot be written: {e.strerror}") from e
    return _read(path)


def _read(path: Path) -> str:
    way_out = f"rm {path}, and the next server makes another one"
    try:
        with path.open("rb") as file:
            status, data = os.fstat(file.fileno()), file.read(_MAX + 1)
    except OSError as e:
        raise UsageError(f"the owner's token {path} cannot be read: {e.strerror}", way_out) from e
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise UsageError(f"others can read or replace the owner's token {path}", way_out)
    token = data.decode("ascii", "replace").strip()
    if not token.startswith(PREFIX) or len(token) < len(PREFIX) + 32 or len(data) > _MAX:
        raise UsageError(f"{path} does not hold an owner's token", way_out)
    return token
