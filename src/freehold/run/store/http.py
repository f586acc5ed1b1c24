"""The store's HTTP client: one place for redirects, retries, Retry-After, what a status means, and parallel ranges.

The client sends the hub's token to the hub's own origin only.

One file is fetched by parallel ranges, so that a kill at any byte costs at most 16 MB: connections x range size is at
most that (config.py), and only finished ranges are recorded: what is asked for and not yet recorded is never more.
Bytes are hashed in order as the finished prefix grows.

The shortest source is here too, a plain http(s) address of a GGUF file: one ranged request of four bytes tells size,
version, range support and whether it is a GGUF file at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import httpx2

from freehold.base import private
from freehold.base.config import Settings
from freehold.base.errors import AccessDenied, CapacityExceeded, DownloadFailed, ModelNotFound
from freehold.run.store import space
from freehold.run.store.contract import (
    Note,
    OnEvent,
    Part,
    Plan,
    PlannedFile,
    Progress,
    discard,
    held_bytes,
    part_path,
    state_path,
)
from freehold.run.store.manifest import HeldFile, sync_folder

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


# --- one file by parallel ranges -------------------------------------------------------------------

_POLL_S = 0.1
_LEAVE_S = 0.15  # how long Ctrl-C waits for the workers; they touch the file no more after it
_EXPIRED = (401, 403, 404, 410)  # what a signed address answers once its time is over
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

Say = Callable[[str], None]
OnBytes = Callable[[int], None]


class _NoRanges(Exception):
    """The server sends the whole file whatever range is asked for."""


class _Changed(Exception):
    """The file at the source is no longer the one this download began with."""


def fetch_file(
    http: Http, file: PlannedFile, target: Path, settings: Settings, on_bytes: OnBytes, say: Say
) -> HeldFile:
    """Bring one file to `target`, whole and checked; continue from an earlier run's part.

    `on_bytes` gets the bytes on disk so far. Raises DownloadFailed (also for a wrong digest, after deleting
    the part), AccessDenied, or CapacityExceeded with the part kept.
    """
    if target.is_file() and target.stat().st_size == file.bytes:
        state_path(target).unlink(missing_ok=True)
        return HeldFile(file.name, target.stat().st_size, file.sha256 or _sha256(target))
    for _ in range(3):
        try:
            if file.bytes is None:
                return _fetch_unsized(http, file, target, on_bytes)
            return _Ranges(http, file, target, file.bytes, settings, on_bytes, say).run()
        except _Changed as e:
            say(f"{file.name} changed at the source ({e}): starting it over")
            discard(target)
    raise DownloadFailed(f"{file.name} keeps changing at the source", "try again later")


@dataclass(slots=True)
class _RangeCursor:
    """How far one range has come: the next byte, and the byte after its last."""

    at: int
    end: int


class _Ranges:
    """One file on its way: the ranges still missing, the workers that fetch them, the digest.

    The main thread alone hashes, reports and fails; workers hand it range numbers (finished), None (the
    server honours ranges), text (to be said) and exceptions through `news`.
    """

    def __init__(
        self,
        http: Http,
        file: PlannedFile,
        target: Path,
        size: int,
        settings: Settings,
        on_bytes: OnBytes,
        say: Say,
    ) -> None:
        self.http, self.file, self.on_bytes, self.say = http, file, on_bytes, say
        self.part = Part(target, size, settings.range_bytes, file.etag or file.sha256 or "")
        self.connections = settings.connections
        self.waiting = self.part.missing()
        self.news: queue.SimpleQueue[int | str | BaseException | None] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.received = self.part.held()
        self.workers: list[threading.Thread] = []
        self.address = ""  # where redirects led, reused until it expires
        self.body_etag = ""  # the tag the bytes themselves came with
        self.honoured = False  # the server was seen to honour ranges
        self.hash = hashlib.sha256()
        self.hashed = 0  # ranges of the prefix that went into the hash
        if self.part.restarted:
            say(f"{file.name} is another version than the part on this machine: starting it over")

    def run(self) -> HeldFile:
        """Fetch what is missing, check the digest, rename."""
        folder = self.part.target.parent
        try:
            with space.full_disk(folder, f"finished ranges of {self.file.name} are kept"):
                try:
                    self._in_parallel()
                except _NoRanges:
                    self._in_one_stream()
                while self._hash_next():
                    self.on_bytes(self.received)
                return self._finish()
        except KeyboardInterrupt:
            self.on_bytes(self.part.held())  # the last word on what the next run need not fetch
            raise
        except CapacityExceeded as e:
            kept = f"{space.human(self.part.held())} of {space.human(self.part.size)}"
            raise CapacityExceeded(f"{e.message}: {kept}", e.hint) from e
        finally:
            self.stop.set()
            self.part.release()

    def _in_parallel(self) -> None:
        """Start one worker, and the others once it saw that ranges are honoured."""
        left = len(self.waiting)
        if left:
            self._start()
        try:
            while left:
                try:
                    news = self.news.get(timeout=0 if self._hash_next() else _POLL_S)
                except queue.Empty:
                    self.on_bytes(self.received)
                    continue
                if isinstance(news, BaseException):
                    raise news
                if isinstance(news, str):
                    self.say(news)
                elif news is None:
                    while len(self.workers) < min(self.connections, left):
                        self._start()
                else:
                    left -= 1
                    self.on_bytes(self.received)
        finally:
            self.stop.set()
            deadline = time.monotonic() + _LEAVE_S
            for worker in self.workers:
                worker.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        self.part.share()
        worker = threading.Thread(target=self._work, name="freehold-fetch", daemon=True)
        self.workers.append(worker)
        worker.start()

    def _work(self) -> None:
        """Fetch ranges until none waits; hand the first failure to the main thread."""
        try:
            while not self.stop.is_set():
                with self.lock:
                    if not self.waiting:
                        return
                    i = self.waiting.pop(0)
                self._fetch_range(i)
        except BaseException as e:
            self.news.put(e)
        finally:
            self.part.release()

    def _fetch_range(self, i: int) -> None:
        """Fetch range `i`, continuing after a broken connection from the byte it reached."""
        cursor = _RangeCursor(*self.part.bounds(i))
        backoff = Backoff(self.http.retry_s, stop=self.stop)
        while not self.stop.is_set():
            before = cursor.at
            try:
                self._receive(cursor)
                if cursor.at == cursor.end:
                    self.part.commit(i)
                    self.news.put(i)
                    return
                raise Transient("the connection closed early")
            except Transient as e:
                if cursor.at > before:
                    backoff.progressed()
                if not self.stop.is_set():
                    self.news.put(f"{e}: trying again")
                    backoff.wait(e, self.file.url)

    def _receive(self, cursor: _RangeCursor) -> None:
        """Ask for the cursor's bytes and write them; it has moved by what came, also after a failure."""
        url = self.address or self.file.url
        with self.http.stream(url, {"Range": f"bytes={cursor.at}-{cursor.end - 1}"}) as response:
            if url != self.file.url and response.status_code in _EXPIRED:
                with self.lock:
                    self.address = "" if self.address == url else self.address
                raise Transient("the download address expired", after=0.0)
            self._judge(response, url, cursor)
            for block in response.iter_raw():
                if self.stop.is_set():
                    return
                block = block[: cursor.end - cursor.at]
                self.part.write(cursor.at, block)
                cursor.at += len(block)
                with self.lock:
                    self.received += len(block)
                if cursor.at == cursor.end:
                    return

    def _judge(self, response: httpx2.Response, url: str, cursor: _RangeCursor) -> None:
        """Check that the answer is the range asked for, of the version this download began with."""
        if response.status_code == 416:
            raise _Changed("it is shorter now")
        check(response, url)
        if response.status_code != 206:
            raise _NoRanges
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if not match or int(match[1]) != cursor.at:
            raise DownloadFailed(f"{self.file.name}: asked for byte {cursor.at}, got {match and match[0]!r}")
        if match[3] not in ("*", str(self.part.size)):
            raise _Changed(f"{match[3]} bytes instead of {self.part.size}")
        self._same_version(response.headers.get("etag", ""))
        with self.lock:
            self.address = self.address or str(response.url)
            first, self.honoured = not self.honoured, True
        if first:
            self.news.put(None)

    def _same_version(self, etag: str) -> None:
        with self.lock:
            self.body_etag = self.body_etag or etag
            if etag and etag != self.body_etag:
                raise _Changed(f"version {etag} after {self.body_etag}")

    def _in_one_stream(self) -> None:
        """Take the whole file from a server that ignores ranges; finished ranges are not written again."""
        self.say(f"the server of {self.file.name} ignores ranges: fetching it in one stream from the start")
        backoff = Backoff(self.http.retry_s)
        while missing := self.part.missing():
            try:
                self._stream()
                raise Transient("the connection closed early")
            except Transient as e:
                if not self.part.missing():
                    return
                if len(self.part.missing()) < len(missing):
                    backoff.progressed()
                self.say(f"{e}: trying again")
                backoff.wait(e, self.file.url)

    def _stream(self) -> None:
        with self.http.stream(self.file.url) as response:
            check(response, self.file.url)
            self._same_version(response.headers.get("etag", ""))
            at, i = 0, 0
            for block in response.iter_raw():
                if at + len(block) > self.part.size:
                    raise _Changed(f"more than {self.part.size} bytes")
                self.part.write(at, block)
                at += len(block)
                while i < self.part.count and at >= self.part.bounds(i)[1]:
                    if not self.part.done[i]:
                        self.part.commit(i)
                    i += 1
                self.received = max(self.part.held(), at)
                self.on_bytes(self.received)

    def _hash_next(self) -> bool:
        """Hash the next range of the prefix if it is finished; tell whether there was one."""
        if self.hashed == self.part.count or not self.part.done[self.hashed]:
            return False
        for block in self.part.read(self.hashed):
            self.hash.update(block)
        self.hashed += 1
        return True

    def _finish(self) -> HeldFile:
        digest = self.hash.hexdigest()
        if self.file.sha256 and digest != self.file.sha256:
            discard(self.part.target)
            raise _wrong_digest(self.file, digest)
        self.part.finish()
        return HeldFile(self.file.name, self.part.size, digest)


def _fetch_unsized(http: Http, file: PlannedFile, target: Path, on_bytes: OnBytes) -> HeldFile:
    """Fetch a file whose length the server does not tell: one stream, from the start each time."""
    backoff = Backoff(http.retry_s)
    private.folder(target.parent)
    while True:
        try:
            with (
                space.full_disk(
                    target.parent, "nothing of this file is kept: its server does not tell its length"
                ),
                open(part_path(target), "wb", opener=private.opener) as out,
                http.stream(file.url) as response,
            ):
                check(response, file.url)
                digest = _copy(response, out, on_bytes)
                size = out.tell()
                os.fsync(out.fileno())
        except Transient as e:
            backoff.wait(e, file.url)
            continue
        if file.sha256 and digest != file.sha256:
            part_path(target).unlink()
            raise _wrong_digest(file, digest)
        os.replace(part_path(target), target)
        sync_folder(target.parent)
        return HeldFile(file.name, size, digest)


def _copy(response: httpx2.Response, out: BinaryIO, on_bytes: OnBytes) -> str:
    digest = hashlib.sha256()
    for block in response.iter_raw():
        out.write(block)
        digest.update(block)
        on_bytes(out.tell())
    out.flush()
    return digest.hexdigest()


def _wrong_digest(file: PlannedFile, digest: str) -> DownloadFailed:
    return DownloadFailed(
        f"{file.name} has digest {digest[:12]}..., its source promised {(file.sha256 or '')[:12]}...",
        "the damaged file was deleted; the same command fetches it again",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# --- fetch the files of a plan over HTTP, one after the other, as one progress ----------------------


def fetch_files(
    http: Http, plan: Plan, folder: Path, settings: Settings, on_event: OnEvent
) -> tuple[HeldFile, ...]:
    """Bring the plan's files into `folder`; refuse before the first byte if the disk has no room."""
    space.require(folder, max(plan.bytes - held_bytes(plan, folder), 0), plan.name)
    total = plan.bytes if all(f.bytes is not None for f in plan.files) else 0
    held: list[HeldFile] = []
    for file in plan.files:
        on_bytes = _counter(plan, file, sum(h.bytes for h in held), total, on_event)
        say = _speaker(plan.name, on_event)
        held.append(fetch_file(http, file, folder / file.name, settings, on_bytes, say))
        on_event(Progress(plan.name, file.name, sum(h.bytes for h in held), total, file.sha256 or ""))
    return tuple(held)


def _counter(
    plan: Plan, file: PlannedFile, base: int, total: int, on_event: OnEvent
) -> Callable[[int], None]:
    return lambda n: on_event(Progress(plan.name, file.name, base + n, total, file.sha256 or ""))


def _speaker(name: str, on_event: OnEvent) -> Callable[[str], None]:
    return lambda text: on_event(Note(name, text))


# --- an address as a source ------------------------------------------------------------------------

_MAGIC = b"GGUF"
_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")


class UrlSource:
    """One address."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._settings = url, settings
        self._http = Http()

    def plan(self) -> Plan:
        """Look at the first four bytes and the headers they come with."""
        backoff = Backoff(self._http.retry_s)
        while True:
            try:
                file = self._look()
                break
            except Transient as e:
                backoff.wait(e, self._url)
        detail = "sha256 is recorded; the address gives none to compare with"
        return Plan(self._url, "gguf", f"url: {self._url}", (file,), detail=detail)

    def fetch(self, plan: Plan, folder: Path, on_event: OnEvent) -> tuple[HeldFile, ...]:
        """Fetch the file by parallel ranges."""
        return fetch_files(self._http, plan, folder, self._settings, on_event)

    def close(self) -> None:
        """Give back connections."""
        self._http.close()

    def _look(self) -> PlannedFile:
        with self._http.stream(self._url, {"Range": "bytes=0-3"}) as response:
            check(response, self._url)
            start = b""
            for block in response.iter_raw(4):
                start += block
                if len(start) >= 4:
                    break
            if start[:4] != _MAGIC:
                raise DownloadFailed(
                    f"{self._url} is not a GGUF file: it starts with {start[:4]!r}", "check the address"
                )
            etag = response.headers.get("etag") or response.headers.get("last-modified", "")
            return PlannedFile(_file_name(self._url), _size(response), None, self._url, etag)


def _size(response: httpx2.Response) -> int | None:
    if response.status_code == 206:
        match = _TOTAL.fullmatch(response.headers.get("content-range", ""))
        return int(match[1]) if match else None
    length = response.headers.get("content-length", "")
    return int(length) if length.isdigit() and "content-encoding" not in response.headers else None


def _file_name(url: str) -> str:
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name)[-120:].lstrip(".")
    return name if name.endswith(".gguf") else f"{name or 'model'}.gguf"
