"""One page of the web by GET, from hosts that a user named, as text.

A host is checked by name against the list, and by every address that it stands for: no address of this machine or of a
private network answers, unless the list names localhost. Redirects are followed to listed hosts alone. The text of a
page is data for a model, never an instruction. Knows HTTP and HTML; knows no model and no permission.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

from freehold.base.errors import Offline, UpstreamFailed, UsageError
from freehold.serve.tools.mcp.configured import is_local, resolved

MAX_BYTES = 4 << 20  # of an answer
MAX_TEXT = 16_000  # characters for the model
MAX_URL = 2000
MAX_HOSTS = 64
REDIRECTS = 5
SECONDS = 30.0  # for the whole of it
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:\d{1,5})?")
_TEXTS = ("text/", "application/json", "application/xml", "application/xhtml", "application/javascript")


def checked_hosts(text: str) -> tuple[str, ...]:
    """Return the hosts of a list with commas. Raises UsageError for an empty one, or for what is not a host."""
    hosts = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if not hosts or len(hosts) > MAX_HOSTS:
        raise UsageError(
            f"the tool fetch names {len(hosts)} hosts; expected 1 to {MAX_HOSTS}",
            "for example --tool fetch=docs.python.org,*.gnu.org",
        )
    for host in hosts:
        if _HOST.fullmatch(host) is None:
            raise UsageError(
                f"{host[:60]!r} is not a host", "write example.org, *.example.org or localhost:8000"
            )
    return hosts


def fetched(url: str, hosts: Sequence[str], *, offline: bool = False) -> str:
    """Return the text of a page. Raises UsageError for a URL that is not allowed, UpstreamFailed for one that fails."""
    if offline:
        raise Offline("fetch needs the network, and offline mode forbids it")
    try:
        return asyncio.run(asyncio.wait_for(_fetched(url, hosts), SECONDS))
    except TimeoutError:
        raise UpstreamFailed(f"{url[:200]} did not answer whole within {SECONDS:g} s") from None


def allowed_host(url: str, hosts: Sequence[str]) -> str:
    """Return the host of a URL. Raises UsageError where the list does not have it, or the URL is not plain."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as e:
        raise UsageError(f"{url[:200]!r} is not a URL: {e}") from None
    if len(url) > MAX_URL or parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{url[:200]!r} is not a URL of http or https with at most {MAX_URL:,} characters")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"the URL of {host} holds a password")
    if parts.scheme == "http" and not is_local(host):
        raise UsageError(f"{host} would be asked without encryption", "use https://")
    named = host if port is None else f"{host}:{port}"
    if not any(fnmatch.fnmatchcase(named, each) for each in hosts):
        raise UsageError(f"{named} is not among the allowed hosts: {', '.join(hosts)}")
    return host


async def _fetched(url: str, hosts: Sequence[str]) -> str:
    import httpx2

    for _ in range(REDIRECTS + 1):
        host = allowed_host(url, hosts)
        parts = httpx2.URL(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await resolved(host, port, local=is_local(host), private=False)
        async with httpx2.AsyncHTTPTransport(trust_env=False) as transport:
            request = httpx2.Request(
                "GET",
                parts.copy_with(host=address),
                headers={
                    "host": parts.netloc.decode(),
                    "user-agent": "freehold",
                    "accept-encoding": "identity",
                },
                extensions={
                    "sni_hostname": host,
                    "timeout": dict.fromkeys(("connect", "read", "write", "pool"), SECONDS),
                },
            )
            try:
                response = await transport.handle_async_request(request)
                status, headers = response.status_code, response.headers
                if status in (301, 302, 303, 307, 308) and "location" in headers:
                    url = urljoin(url, headers["location"])
                    continue
                body = await _body(response, url)
            except httpx2.HTTPError as e:
                raise UpstreamFailed(f"{host} broke off: {e or type(e).__name__}") from e
        if status != 200:
            raise UpstreamFailed(f"{url[:200]} answered with status {status}")
        return _shown(body, headers.get("content-type", ""), url)
    raise UpstreamFailed(f"{url[:200]} redirects more than {REDIRECTS} times")


async def _body(response, url: str) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UpstreamFailed(f"{url[:200]} compresses its answer, whose size would be unknown")
    body = bytearray()
    async for piece in response.stream:
        body += piece
        if len(body) > MAX_BYTES:
            raise UpstreamFailed(f"{url[:200]} has more than {MAX_BYTES:,} bytes")
    return bytes(body)


def _shown(body: bytes, kind: str, url: str) -> str:
    if not kind.startswith(_TEXTS):
        raise UpstreamFailed(f"{url[:200]} is {kind[:60] or 'of no stated type'}, which is not text")
    match = re.search(r"charset=\"?([A-Za-z0-9_.:-]+)", kind)
    try:
        text = body.decode(match[1] if match else "utf-8", "replace")
    except LookupError:
        text = body.decode("utf-8", "replace")
    if "html" in kind:
        text = page_text(text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n[{len(text) - MAX_TEXT:,} more characters]"


def page_text(html: str) -> str:
    """Return the text of an HTML page, hidden parts as well: a model should not see less than a check does."""
    reader = _PageReader()
    try:
        reader.feed(html)
        reader.close()
    except (AssertionError, ValueError) as e:
        raise UpstreamFailed("the page is not HTML that can be read") from e
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", "".join(reader.pieces))).strip()


class _PageReader(HTMLParser):
    """Collects text; blocks begin on a line of their own."""

    _BLOCKS = frozenset(
        re.findall(r"\w+", "p div br li tr h1 h2 h3 h4 h5 h6 pre section article header footer table ul ol")
    )
    _LEFT_OUT = frozenset(("script", "style", "template", "noscript"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._within = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within += tag in self._LEFT_OUT
        if tag in self._BLOCKS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._within = max(self._within - (tag in self._LEFT_OUT), 0)
        if tag in self._BLOCKS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._within:
            self.pieces.append(data)
