"""Who may ask: keys, the rule for binding, and the guard against web pages that reach for loopback.

Knows hashes, names of hosts and the headers of a request; knows no route and no body.
Path: cli/serve -> check_bind, read_keys; Gate -> Guard.check -> tenant
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from freehold.errors import UsageError
from freehold.server.problems import Refused

MIN_KEY = 16  # characters; 16 of base64 hold 96 bits
Headers = Mapping[bytes, bytes]


class Keys:
    """API keys by name, held as hashes. A key's name is its tenant: shares and cached prefixes go by it."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        for name, key in keys.items():
            if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError(
                    f"the key {name!r} has {len(key)} characters; expected {MIN_KEY} or more, of ASCII and no space",
                    "make one: python -c 'import secrets; print(secrets.token_urlsafe(24))'",
                )
        self._digests = [(hashlib.sha256(key.encode()).digest(), name) for name, key in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, given: bytes) -> str | None:
        """Return the name of the key `given`, or None. Takes as long for a right key as for a wrong one."""
        digest = hashlib.sha256(given).digest()
        found = None
        for known, name in self._digests:
            if hmac.compare_digest(known, digest):
                found = name
        return found


def check_bind(host: str, keys: Keys) -> None:
    """Refuse an address that others can reach unless a key guards it."""
    if not is_loopback(host) and not keys:
        raise UsageError(
            f"{host} can be reached from other machines, and no key is set",
            "name a key file, or bind 127.0.0.1 and reach it through ssh -L",
        )


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


@dataclass(frozen=True, slots=True)
class Guard:
    """The check every request passes. `origins`: web origins whose pages may ask (CORS)."""

    keys: Keys
    hosts: tuple[
        str, ...
    ] = ()  # names besides loopback's under which this server may be called without a key
    origins: tuple[str, ...] = ()
    trusted: bool = False  # the Unix socket in a folder of 0700: whoever reaches it is the owner

    def check(self, path: str, headers: Headers) -> str:
        """Return the tenant; raise Refused with 401 or 403."""
        if path == "/health" or self.trusted:
            return ""
        if self.keys:
            return self._keyed(headers)
        self._local(headers)
        return ""

    def _keyed(self, headers: Headers) -> str:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        tenant = self.keys.tenant(given) if given else None
        if tenant is None:
            said = "the key is not one of this server's" if given else "this server needs a key"
            raise Refused(
                401,
                f"{said}; send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers=((b"www-authenticate", b"Bearer"),),
            )
        return tenant

    def _local(self, headers: Headers) -> None:
        """Refuse what a page in a browser sends: a name rebound to 127.0.0.1, or a foreign origin."""
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not is_loopback(host) and host_name(host) not in self.hosts:
            raise Refused(403, f"this server is not called {host_name(host)[:100]!r}", code="foreign_host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self.origins and not is_loopback(origin.partition("://")[2]):
            raise Refused(403, "pages of this origin may not ask this server", code="foreign_origin")
