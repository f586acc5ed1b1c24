"""The HTTP client of the store: one place for redirects, retries, Retry-After, and what a status means.

Sends the hub's token to the hub's own origin only. Knows no files.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from freehold.base.errors import AccessDenied, DownloadFailed, ModelNotFound

RETRY_S = 0.5  # the first pause after a failure; each next one is twice as long
MAX_TRIES = 6  # in a row without a single byte of progress
MAX_JSON = 64 << 20
CONNECT_S = 5.0
STALL_S = 30.0  # without a byte: the connection is given up and the request repeated
MAX_WAIT_S = 120.0  # a server that asks for more patience gets an error that says so
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}


class Transient(Exception):
    """A failure worth another try; `after` seconds if the server asked for that."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Backoff:
    """Counts failures in a row and waits longer after each; `stop` cuts a wait short."""

    def __init__(self, first_s: float, tries: int = MAX_TRIES, stop: threading.Event | None = None) -> None:
        self._first_s = first_s
        self._tries = tries
        self._stop = stop or threading.Event()
        self._failed = 0

    def progressed(self) -> None:
        """Forget the failures so far."""
        self._failed = 0

    def wait(self, failure: Transient, url: str) -> None:
        """Wait before the next try, or raise DownloadFailed when there were enough."""
        self._failed += 1
        if self._failed >= self._tries:
            times = f" ({self._failed} tries)" if self._failed > 1 else ""
            raise DownloadFailed(f"{_host(url)}: {failure}{times}", "the same command resumes")
        delay = failure.after if failure.after is not None else self._first_s * 2 ** (self._failed - 1)
        if delay > MAX_WAIT_S:
            raise DownloadFailed(
                f"{_host(url)}: {failure}, and asks to wait {delay:.0f} s", "try again later"
            )
        self._stop.wait(delay)


class Http:
    """A client for many threads."""

    def __init__(self, *, token: str = "", token_origin: str = "") -> None:
        self.retry_s = RETRY_S
        self._token = token
        self._token_origin = _origin(token_origin) if token_origin else ""
        timeout = httpx2.Timeout(STALL_S, connect=CONNECT_S)
        self._client = httpx2.Client(follow_redirects=True, timeout=timeout, max_redirects=10)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def get_json(self, url: str, tries: int = MAX_TRIES) -> Any:
        """Fetch JSON of bounded size; `tries` failures in a row end it."""
        backoff = Backoff(self.retry_s, tries)
        while True:
            try:
                with self.stream(url) as response:
                    check(response, url)
                    return json.loads(_bounded(response, url))
            except Transient as e:
                backoff.wait(e, url)
            except ValueError as e:
                raise DownloadFailed(
                    f"{_host(url)} answered {url} with something other than JSON: {e}"
                ) from e

    @contextmanager
    def stream(self, url: str, headers: dict[str, str] | None = None) -> Iterator[httpx2.Response]:
        """Open a GET and give its response, body unread; transport failures become Transient."""
        sent = {"Accept-Encoding": "identity", "User-Agent": "freehold", **(headers or {})}
        if self._token and _origin(url) == self._token_origin:
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            with self._client.stream("GET", url, headers=sent) as response:
                yield response
        except httpx2.TooManyRedirects as e:
            raise DownloadFailed(f"{_host(url)} redirects in a circle") from e
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as e:
            raise DownloadFailed(f"{url} cannot be opened: {e}") from e
        except httpx2.TransportError as e:
            raise Transient(_reason(e)) from e


def check(response: httpx2.Response, url: str) -> None:
    """Raise what the status means: AccessDenied, ModelNotFound, Transient or DownloadFailed."""
    status = response.status_code
    if status < 300:
        return
    if status in _TRANSIENT:
        raise Transient(f"HTTP {status}", _retry_after(response))
    code = response.headers.get("x-error-code", "")
    if status == 404 or code in ("RepoNotFound", "EntryNotFound", "RevisionNotFound"):
        login = "if it is private, set HF_TOKEN" if status == 401 else "check the spelling"
        raise ModelNotFound(f"{_host(url)} has nothing at {urlsplit(url).path}", login)
    if status in (401, 403):
        raise AccessDenied(
            f"{_host(url)} refuses {urlsplit(url).path} (HTTP {status})",
            "set HF_TOKEN to a token that may read it",
        )
    raise DownloadFailed(f"{_host(url)} answered HTTP {status} for {urlsplit(url).path}")


def _bounded(response: httpx2.Response, url: str) -> bytes:
    body = bytearray()
    for block in response.iter_bytes():
        body += block
        if len(body) > MAX_JSON:
            raise DownloadFailed(f"{_host(url)} answered with more than {MAX_JSON:,} bytes of JSON")
    return bytes(body)


def _retry_after(response: httpx2.Response) -> float | None:
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reason(e: Exception) -> str:
    return str(e) or type(e).__name__


def _host(url: str) -> str:
    return urlsplit(url).netloc or url


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"
