"""Whether a request comes from this server's own page, by what a browser says of it and no page can forge.

A browser adds Sec-Fetch-Site where the address is encrypted or this machine's, and Origin to what may change something.
Another port of this host is another origin and the same site, so only `same-origin` counts, and Origin with its port.
Knows three headers; knows no key and no route. Path: auth.Guard, console/login.py -> from_own_page, from_another_page
"""

from __future__ import annotations

from collections.abc import Mapping

Headers = Mapping[bytes, bytes]


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
