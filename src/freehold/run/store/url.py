"""A plain http(s) address of a GGUF file as a source.

One ranged request of four bytes tells size, version, range support and whether it is a GGUF file at all.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx2

from freehold.base.config import Settings
from freehold.base.errors import DownloadFailed
from freehold.run.store.contract import OnEvent, Plan, PlannedFile
from freehold.run.store.http import Backoff, Http, Transient, check
from freehold.run.store.manifest import HeldFile
from freehold.run.store.ranges import fetch_files

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
