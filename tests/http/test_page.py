"""The page at `/`: for browsers alone, by exact headers, and gone with --no-console."""

from __future__ import annotations

import gzip
import re

import httpx2
import pytest

from freehold.serve.http.app import routes
from freehold.serve.http.console.page import STATIC
from freehold.serve.http.core.keys import Ring
from tests.http.test_door import bearer, key

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "media-src blob:; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
pytestmark = pytest.mark.skipif(not (STATIC / "index.html").exists(), reason="the page is not built")


def get(server, path: str = "/", **headers: str) -> httpx2.Response:
    answer = server.client.get(path, headers={**BROWSER, **headers})
    assert answer.status_code == 200
    return answer


def assets() -> list[str]:
    return re.findall(r'(?:src|href)="(/assets/[^"]+)"', (STATIC / "index.html").read_text())


def test_browser_reads_the_page_and_its_files(serving):
    server = serving()
    assert get(server).headers["content-type"] == "text/html; charset=utf-8"
    assert {path.rpartition(".")[2] for path in assets()} == {"js", "css"}
    for path in assets():
        answer = get(server, path)
        assert answer.content == (STATIC / path.removeprefix("/")).read_bytes()
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/plain"])
def test_others_find_what_ollamas_clients_look_for(serving, accept):
    headers = {"Accept": accept} if accept else {}
    answer = serving().client.get("/", headers=headers)
    assert answer.text == "Ollama is running" and answer.headers["content-type"].startswith("text/plain")
    assert "content-security-policy" not in answer.headers


def test_head_is_ollamas_for_browsers_too(serving):
    answer = serving().client.head("/", headers=BROWSER)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-length"] == str(len("Ollama is running"))


def test_headers_keep_the_page_to_itself(serving):
    for path in ("/", *assets()):
        headers = get(serving(), path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert (
            headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        )
        allowed = [one for one in headers["permissions-policy"].split(", ") if not one.endswith("=()")]
        assert allowed == [
            "camera=(self)",
            "clipboard-read=(self)",
            "clipboard-write=(self)",
            "microphone=(self)",
        ]
    assert get(serving()).headers["cache-control"] == "no-cache"


def test_page_has_no_script_or_style_inside_it():
    text = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|<style|\sstyle=|\son\w+=", text)
    assert all(link.startswith(("/", "data:,")) for link in re.findall(r'(?:src|href)="([^"]+)"', text))


def test_no_other_page_may_read_it_even_where_its_origin_was_named(serving):
    server = serving(origins=("https://chat.example",))
    for path in ("/", assets()[0], "/console/api/me"):
        answer = server.client.get(path, headers={**BROWSER, "Origin": "https://chat.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")], path
        asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "GET"}
        assert server.client.options(path, headers=asked).status_code in (403, 405)


def test_files_come_packed_to_those_that_unpack_them(serving):
    path = next(each for each in assets() if each.endswith(".js"))
    with serving().client.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
    plain = get(serving(), path, **{"Accept-Encoding": "identity"})
    assert gzip.decompress(packed) == plain.content and len(packed) < len(plain.content) / 2
    assert "content-encoding" not in plain.headers and "accept-encoding" in plain.headers["vary"]


@pytest.mark.parametrize(
    "name", ["nope.js", "..%2findex.html", "%2e%2e/manifest.json", "..%2f..%2fpage.py", "%00", "index.html"]
)
def test_path_reaches_no_other_file(serving, name):
    assert serving().client.get(f"/assets/{name}").status_code == 404


def test_strangers_are_shown_no_models(serving):
    server = serving(keys=Ring([key("ann", models=("fake:*",))]))
    assert get(server).text == get(server, **bearer("ann")).text  # the same for everyone
    stranger = server.client.get("/console/api/me").json()
    assert stranger["keyed"] and stranger["can"] == [] and stranger["key"] is None
    assert server.client.get("/v1/models").status_code == 401


def test_rebound_name_is_told_why_and_shown_nothing(serving):
    said = serving().client.get("/console/api/me", headers={"Host": 'evil.example"><script>'}).json()
    assert said["can"] == [] and "not called" in said["refused"]


def test_no_console_takes_all_of_it_away(serving):
    server = serving(console=False)
    answer = server.client.get("/", headers=BROWSER)
    assert answer.text == "Ollama is running" and answer.headers["content-type"].startswith("text/plain")
    gone = {route.path for route in routes()} - {route.path for route in routes(console=False)}
    assert gone and all(path.startswith(("/console/", "/assets/")) for path in gone)
    assert not [path for path in server.client.get("/openapi.json").json()["paths"] if path in gone]
    for path in gone:
        for method in ("GET", "POST", "DELETE"):
            asked = server.admin.request(method, re.sub(r"\{\w+\}", "x", path), json={})
            assert asked.status_code == 404, path
