"""The page's files: `/` for a browser, and `/assets/*`, with the headers that keep them to themselves.

Every file is read once, with the first request for one: a path names a file of that list or nothing, and a page that is
open keeps its files while others are installed. Knows files and headers; knows no model, no key and no chat.
"""

from __future__ import annotations

import asyncio
import gzip
from functools import cache
from pathlib import Path

from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.problems import Refused

STATIC = Path(__file__).parent / "static"
LICENCES = "THIRD_PARTY.txt"  # of what is built into the page
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "media-src blob:; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# What a page may ask of a browser, as Chromium lists it: the clipboard alone, and camera and microphone on a click.
REFUSED_FEATURES = (
    *("accelerometer", "autoplay", "display-capture", "encrypted-media", "fullscreen"),
    *(
        "gamepad",
        "geolocation",
        "gyroscope",
        "hid",
        "idle-detection",
        "local-fonts",
        "magnetometer",
    ),
    *("midi", "payment", "picture-in-picture", "publickey-credentials-get", "screen-wake-lock", "serial"),
    *("storage-access", "sync-xhr", "usb", "window-management", "xr-spatial-tracking"),
)
FEATURES = ", ".join(
    [
        *(f"{name}=()" for name in REFUSED_FEATURES),
        "camera=(self)",
        "clipboard-read=(self)",
        "clipboard-write=(self)",
        "microphone=(self)",
    ]
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", FEATURES.encode()),
    (b"vary", b"accept, accept-encoding"),
)
_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".txt": b"text/plain; charset=utf-8",
}
_KEPT, _ASKED_AGAIN = b"public, max-age=31536000, immutable", b"no-cache"


@cache
def _files() -> dict[str, bytes]:
    """Return every file of the page by its path below `static`."""
    return {
        path.relative_to(STATIC).as_posix(): path.read_bytes()
        for path in STATIC.rglob("*")
        if path.suffix in _KINDS
    }


@cache
def _packed(name: str) -> bytes:
    """Return a file as gzip: made once, as the wheel holds each file once."""
    return gzip.compress(_files()[name], mtime=0)


async def page(call: HttpCall) -> None:
    """Answer a browser with the page."""
    await _answer(call, "index.html", _ASKED_AGAIN)


async def asset(call: HttpCall) -> None:
    """Return a file of the web console; its name contains a digest of its contents."""
    name = call.scope["path_params"]["name"]
    if name == LICENCES:
        await _answer(call, LICENCES, _ASKED_AGAIN)
    else:
        await _answer(call, f"assets/{name}", _KEPT)


async def _answer(call: HttpCall, name: str, kept: bytes) -> None:
    data = _files().get(name)
    if data is None:
        raise Refused(404, "the page has no such file", code="no_route")
    headers = [*HEADERS, (b"cache-control", kept)]
    if b"gzip" in call.headers.get(b"accept-encoding", b""):
        data = await asyncio.to_thread(_packed, name)
        headers.append((b"content-encoding", b"gzip"))
    await call.answer(data, 200, headers, _KINDS[Path(name).suffix])
