"""A stand-in for a hub and its CDN on loopback: files with ranges, redirects, tags and every way to fail.

A test sets the fields of `Standin`; handlers read them. `sent` counts the body bytes handed to the socket.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@dataclass
class Standin:
    """What the server serves and how it misbehaves; failures are used up one per request."""

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"v1"'
    gated: str | bool = False
    token: str = ""  # required for file bodies when set
    ranges: bool = True
    redirect_to: str = ""  # base URL that file requests are sent to
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    close_after: list[int] = field(default_factory=list)  # body bytes after which a connection drops
    throttle_s: float = 0.0  # pause after each 64 kB
    digests: dict[str, str] = field(default_factory=dict)  # stated in place of the true ones
    licence: str = "apache-2.0"
    length: bool = True
    sent: int = 0
    sending: int = 0  # file bodies on their way
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def info(self) -> dict[str, object]:
        """Answer like the hub's model API with blobs."""
        siblings = [
            {
                "rfilename": name,
                "size": len(body),
                "blobId": hashlib.sha1(body).hexdigest(),
                **(
                    {"lfs": self._lfs(name, body)} if name.endswith((".gguf", ".safetensors", ".bin")) else {}
                ),
            }
            for name, body in self.files.items()
        ]
        return {
            "sha": COMMIT,
            "gated": self.gated,
            "siblings": siblings,
            "cardData": {"license": self.licence},
        }

    def _lfs(self, name: str, body: bytes) -> dict[str, object]:
        return {"sha256": self.digests.get(name) or hashlib.sha256(body).hexdigest(), "size": len(body)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    standin: Standin

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        s = self.standin
        with s.lock:
            s.requests.append((self.path, dict(self.headers)))
            status = s.statuses.pop(0) if s.statuses else None
        if status:
            return self._answer(status[0], status[1], b"{}")
        if self.path.startswith("/api/models/"):
            if "/missing/" in self.path:
                return self._answer(401, {"X-Error-Code": "RepoNotFound"}, b"{}")
            return self._answer(200, {}, json.dumps(s.info()).encode())
        name = self.path.split(f"/resolve/{COMMIT}/")[-1].removeprefix("/")
        if s.redirect_to:
            return self._answer(302, {"Location": f"{s.redirect_to}/{name}"}, b"")
        if s.token and self.headers.get("Authorization") != f"Bearer {s.token}":
            return self._answer(403 if self.headers.get("Authorization") else 401, {}, b"{}")
        if name not in s.files:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"}, b"{}")
        return self._file(s.files[name])

    def _file(self, body: bytes) -> None:
        s, total = self.standin, len(body)
        headers = {"ETag": s.etag} if s.etag else {}
        status, wanted = 200, self.headers.get("Range")
        if wanted and s.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= total:
                return self._answer(416, {"Content-Range": f"bytes */{total}"}, b"")
            end = min(int(last), total - 1) + 1
            body, status = body[int(first) : end], 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{total}"
        return self._answer(status, headers, body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        s = self.standin
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if s.length or status != 200:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        is_file = status in (200, 206) and not self.path.startswith("/api/")
        with s.lock:
            s.sending += is_file
            limit = s.close_after.pop(0) if is_file and s.close_after else len(body)
        try:
            for at in range(0, min(limit, len(body)), 65536):
                block = body[at : min(at + 65536, limit)]
                if is_file:
                    with s.lock:
                        s.sent += len(block)
                self.wfile.write(block)
                if s.throttle_s and is_file:
                    time.sleep(s.throttle_s)
        except OSError:
            limit = 0  # the client has gone
        finally:
            with s.lock:
                s.sending -= is_file
        if limit < len(body):
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: a client that was killed is expected."""


@contextmanager
def serving(standin: Standin) -> Iterator[Standin]:
    """Serve `standin` on a free loopback port while the block runs."""
    handler = type("Handler", (_Handler,), {"standin": standin})
    server = _Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    standin.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
