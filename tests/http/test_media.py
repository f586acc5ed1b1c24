"""--media-host: no packet leaves for a picture's URL by default; with it, only https to exactly that host.

An audit hook notes every name that this process resolves and every address that it connects to.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import UsageError
from freehold.base.types import MAX_PICTURE_BYTES, Image
from freehold.serve.http.core import media
from freehold.serve.http.core.media import MediaHosts, host_name, is_public
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.tools.hostile import png

HOST, PICTURE = "media.example", png()
SEES = Script("A cat.", sees=True)
# What no server may fetch, whatever host is allowed: each is one of 40 tries.
TRIES = [
    "http://media.example/a.png",
    "http://media.example:443/a.png",
    "https://example.com/a.png",
    "https://media.example.com/a.png",
    "https://notmedia.example/a.png",
    "https://sub.media.example/a.png",
    "https://media.example./a.png",
    "https://media.example:80/a.png",
    "https://media.example:8443/a.png",
    "https://media.example:/a.png",
    "https://media.example@evil.example/a.png",
    "https://evil.example@media.example/a.png",
    "https://user:word@media.example/a.png",
    "https://evil.example\\@media.example/a.png",
    "https://media.example\\.evil.example/a.png",
    "https://media.example%2eevil.example/a.png",
    "https://media.example%00.evil.example/a.png",
    "https://media.example\t.evil.example/a.png",
    "https://media.example\r\nhost: evil.example/a.png",
    "https://media.example /a.png",
    "https://media。example/a.png",
    "https://ｍedia.example/a.png",
    "https://mediа.example/a.png",  # its a is Cyrillic
    "https:///media.example/a.png",
    "https:media.example/a.png",
    "https://[::1]/a.png",
    "https://[::ffff:127.0.0.1]/a.png",
    "https://[::ffff:169.254.169.254]/latest/meta-data/",
    "https://[fe80::1%25eth0]/a.png",
    "https://[64:ff9b::7f00:1]/a.png",
    "https://127.0.0.1/a.png",
    "https://localhost/a.png",
    "https://2130706433/a.png",
    "https://0177.0.0.1/a.png",
    "https://0x7f.1/a.png",
    "https://127.1/a.png",
    "https://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/",
    "https://metadata.google.internal/computeMetadata/v1/",
    "file:///etc/passwd",
    "file://media.example/a.png",
    "ftp://media.example/a.png",
]


class Watch:
    """Names that were resolved and addresses that were connected to, but for those of the test's own client."""

    def __init__(self) -> None:
        self.on, self.seen, self.own = False, list[object](), set[int]()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or event not in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            return
        target = args[1] if event != "socket.getaddrinfo" else args[:2]
        if not (isinstance(target, tuple) and target[1] in self.own):
            self.seen.append(target)


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture
def watch() -> Watch:
    WATCH.seen = []
    return WATCH


class MediaSite(BaseHTTPRequestHandler):
    """A host of pictures that answers as the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["host"]))  # type: ignore[attr-defined]
        status, body, more = 200, PICTURE, dict[str, str]()
        match self.path.split("?")[0]:
            case "/redirect":
                status, more = 302, {"location": "https://media.example/a.png"}
            case "/missing":
                status = 404
            case "/zip":
                more = {"content-encoding": "gzip"}
            case "/text":
                body, more = b"<svg/>", {"content-type": "image/png"}
            case "/large":
                body = PICTURE + bytes(MAX_PICTURE_BYTES)
            case "/slow":
                self.server.gate.wait(60)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("media")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*words.split(), *subject, *files], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def site(certificate: tuple[Path, Path]) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), MediaSite)
    server.asked, server.gate = [], threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    thread.join(60)
    server.server_close()


@pytest.fixture
def fetching(
    serving: Callable[..., Running], site: Any, certificate: tuple[Path, Path]
) -> Callable[..., Running]:
    """A server that may fetch from HOST, which stands for the site on loopback. `names`: addresses by lookup."""

    def begin(*names: list[str], allowed: Callable[[str], bool] | None = None) -> Running:
        server = serving(SEES, media_hosts=(HOST,))
        lookups = [*names] or [["127.0.0.1"]]

        async def resolver(host: str) -> list[str]:
            assert host == HOST
            return lookups.pop(0) if len(lookups) > 1 else lookups[0]

        hosts = MediaHosts(
            [HOST],
            resolver=resolver,
            allowed=allowed or (lambda address: address == "127.0.0.1" or is_public(address)),
            tls=ssl.create_default_context(cafile=str(certificate[0])),
            port=site.server_port,
        )
        server.doors.server.parts[MediaHosts] = hosts
        return server

    return begin


def ask(server: Running, *urls: str) -> Any:
    content = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    body = {"model": "fake:1b", "messages": [{"role": "user", "content": content}]}
    WATCH.own, WATCH.on = {server.port}, True
    try:
        return server.client.post("/v1/chat/completions", json=body)
    finally:
        WATCH.on = False


def refused(answer: Any) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "messages[0].content[0]"
    return error["message"]


def last(server: Running) -> tuple[str | Image, ...]:
    messages = server.models.served["fake:1b"].jobs[-1].messages
    assert messages is not None
    return messages[0].parts


@pytest.mark.parametrize("url", ["https://media.example/a.png", *TRIES], ids=repr)
def test_by_default_no_packet_leaves_and_the_option_is_named(serving, watch, url: str):
    message = refused(ask(serving(SEES), url))
    assert watch.seen == []
    if url.startswith(("http://", "https://")):
        assert "none is fetched here" in message and "freehold serve --media-host HOST" in message


@pytest.mark.parametrize("url", TRIES, ids=repr)
def test_with_a_host_allowed_no_packet_leaves_to_another(fetching, site, watch, url: str):
    server = fetching()
    message = refused(ask(server, url))
    assert watch.seen == [] and site.asked == []
    if url.startswith(("http://", "https://")):
        assert f"only by https from {HOST}" in message


def test_a_picture_of_the_allowed_host_is_fetched_from_the_address_that_was_checked(fetching, site, watch):
    server = fetching(["127.0.0.1"], ["10.0.0.1"])  # the name changes its meaning after the first lookup
    url = "https://MEDIA.example:443/a.png?size=2#top"
    assert ask(server, url, url).status_code == 200
    assert last(server) == (replace(Image.of(PICTURE), detail="low"),) * 2
    assert site.asked == [("/a.png?size=2", HOST)]  # once, by its own name
    assert watch.seen == [("127.0.0.1", site.server_port)]
    assert "not public" in refused(ask(server, url))
    assert len(watch.seen) == 1


def test_a_text_model_refuses_before_anything_is_fetched(fetching, site, watch):
    server = fetching()
    server.models.play(Script())
    assert "cannot read pictures" in refused(ask(server, f"https://{HOST}/a.png"))
    assert watch.seen == [] and site.asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.1.2.3"], ["172.16.0.1"], ["192.168.1.1"], ["100.64.0.1"], ["169.254.169.254"],
        ["0.0.0.0"], ["224.0.0.1"], ["192.0.0.8"], ["::1"], ["::"], ["fe80::1"], ["fd00:ec2::254"],
        ["::ffff:127.0.0.1"], ["::ffff:10.0.0.1"], ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["::127.0.0.1"],
        ["93.184.215.14", "10.0.0.1"], ["nonsense"], [],
    ],
    ids=repr,
)  # fmt: skip
def test_a_name_that_stands_for_an_address_that_is_not_public_is_not_asked(fetching, watch, addresses):
    message = refused(ask(fetching(addresses, allowed=is_public), f"https://{HOST}/a.png"))
    assert "not public" in message or "has no address" in message
    assert watch.seen == []


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_addresses_of_the_internet_are_public(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/redirect", "redirects, and redirects are not followed"),
        ("/missing", "answered with status 404"),
        ("/zip", "compresses"),
        ("/text", "is not a PNG, JPEG, GIF, WebP or AVIF picture"),
        ("/large", f"more than {MAX_PICTURE_BYTES:,} bytes"),
    ],
)
def test_what_the_host_sends_is_judged(fetching, site, path: str, part: str):
    assert part in refused(ask(fetching(), f"https://{HOST}{path}"))
    assert [asked for asked, _ in site.asked] == [path]


def test_a_slow_host_is_given_up_and_other_clients_are_answered_meanwhile(fetching, monkeypatch):
    monkeypatch.setattr(media, "ONE_S", 0.3)
    server = fetching()
    assert "within 0.3 s" in refused(ask(server, f"https://{HOST}/slow"))
    assert server.client.get("/health").status_code == 200


def test_a_certificate_of_another_name_is_refused(fetching, site):
    server = fetching()
    hosts = server.doors.server.parts[MediaHosts]
    hosts.hosts = frozenset({"other.example"})

    async def resolver(host: str) -> list[str]:
        return ["127.0.0.1"]

    hosts._resolver = resolver
    assert "certificate" in refused(ask(server, "https://other.example/a.png")).lower()
    assert site.asked == []


def test_the_bytes_are_charged_to_the_client(fetching, monkeypatch):
    server = fetching()
    held: list[int] = []
    monkeypatch.setattr(media.HttpCall, "hold", lambda call, more: held.append(more))
    ask(server, f"https://{HOST}/a.png")
    assert held == [3 * len(PICTURE)]


def test_all_pictures_of_a_request_have_one_limit(fetching, monkeypatch):
    monkeypatch.setattr(media, "MAX_PICTURES_BYTES", len(PICTURE) + 1)
    answer = ask(fetching(), f"https://{HOST}/a.png", f"https://{HOST}/b.png")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[0].content[1]"


def test_tokens_are_counted_of_what_was_fetched(fetching, site):
    server = fetching()
    source = {"type": "url", "url": f"https://{HOST}/a.png"}
    body = {
        "model": "fake:1b",
        "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}],
    }
    assert server.client.post("/v1/messages/count_tokens", json=body).status_code == 200
    assert server.client.post("/v1/messages", json={**body, "max_tokens": 9}).status_code == 200
    assert last(server) == (Image.of(PICTURE),) and len(site.asked) == 2


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost", "10.0.0.1", "::1", "2130706433", "0x7f.1", "127.1", "example.com.", "example.com:443",
        "https://example.com", "example.com/a", "user@example.com", "*.example.com", "exa mple.com", "a" * 300,
    ],
)  # fmt: skip
def test_a_host_is_a_name(text: str):
    with pytest.raises(UsageError, match="not the name of a host"):
        host_name(text)


def test_a_host_of_other_letters_is_its_ascii_form():
    assert (
        host_name("Bücher.Example") == "xn--bcher-kva.example"
        and host_name("a.b-c.Example") == "a.b-c.example"
    )
    with pytest.raises(UsageError, match="limit is 64"):
        MediaHosts([f"a{i}.example" for i in range(65)])


def test_the_system_is_asked_for_the_port_of_https(monkeypatch):
    asked: list[tuple[Any, ...]] = []

    def getaddrinfo(*args: Any, **_: Any) -> list[Any]:
        asked.append(args)
        return [(socket.AF_INET6, 1, 6, "", ("2001:db8::1%eth0", 443, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert asyncio.run(media.system_addresses("media.example")) == ["2001:db8::1"]
    assert asked[0][:2] == ("media.example", 443)
