"""The page's files: `/` for a browser, and `/assets/*`, with the headers that keep them to themselves.

Everything a file's name could reach is read once from the package; a path names a file of that list or nothing.
Knows files and headers; knows no model, no key and no chat. Path: Gate -> app.root -> page; route -> asset
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused

STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"clipboard-read=(self), clipboard-write=(self)"),
    (b"vary", b"accept"),
)
_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
}


@cache
def _files() -> dict[str, bytes]:
    """Return every file of the page by its path below `static`."""
    return {
        str(path.relative_to(STATIC)): path.read_bytes()
        for path in STATIC.rglob("*")
        if path.suffix in _KINDS
    }


async def page(call: HttpCall) -> None:
    """Answer a browser with the page."""
    await _answer(call, "index.html", b"no-cache")


async def asset(call: HttpCall) -> None:
    """Answer with a file of the page; its name holds a digest of what is in it."""
    await _answer(call, f"assets/{call.scope['path_params']['name']}", b"public, max-age=31536000, immutable")


async def _answer(call: HttpCall, name: str, kept: bytes) -> None:
    data = _files().get(name)
    if data is None:
        raise Refused(404, "the page has no such file", code="no_route")
    headers = [*HEADERS, (b"cache-control", kept)]
    await call.answer(data, 200, headers, _KINDS[Path(name).suffix])
