"""`freehold open`: an address that makes one browser the owner's, once, and `serve --no-console` without any of it."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import httpx2
import pytest

from tests.cli.test_serve import freehold, server

OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("open")
    (home / "config.toml").write_text("adopt = false\n")
    return home


def test_address_makes_a_browser_the_owners_once(home, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    with server(home) as (_, url), httpx2.Client(base_url=url, headers=OWN) as client:
        done = freehold(home, "open", "--print")
        address = done.out.strip()
        assert (done.status, opened) == (0, []) and address.startswith(f"{url}/#/open/")
        assert "60 s" in done.err and "once" in done.err
        code = {"code": address.rpartition("/")[2]}
        assert client.post("/console/owner", json=code).json()["owner"]
        assert client.get("/admin/ps").status_code == 200
        assert client.post("/console/owner", json=code).status_code == 401
        shown = freehold(home, "open", DISPLAY=":1")
        assert opened == [shown.out.strip()] and shown.out != done.out and "opened" in shown.err
        said = json.loads(freehold(home, "open", "--json", DISPLAY=":1").out)
        assert said["seconds"] == 60 and said["url"].startswith(url) and len(opened) == 1


def test_browser_that_does_not_start_leaves_the_address(home, monkeypatch):
    def none(address: str) -> bool:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "open", none)
    with server(home) as (_, url):
        done = freehold(home, "open", DISPLAY=":1")
        assert done.status == 0 and done.out.startswith(url) and "open it in a browser" in done.err


def test_server_without_its_page_says_so(home):
    with server(home, "--no-console") as (_, url):
        done = freehold(home, "open")
        assert done.status != 0 and "--no-console" in done.err and done.out == ""
        page = httpx2.get(url, headers={"Accept": "text/html"})
        assert page.text == "Ollama is running"


def test_without_a_server_there_is_nothing_to_open(tmp_path):
    done = freehold(tmp_path, "open")
    assert done.status != 0 and "freehold serve" in done.err
