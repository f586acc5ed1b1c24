"""`freehold open` and the link of `serve`: an address that makes one browser the owner's, once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.cli.test_serve import environment, freehold, program, server

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


@pytest.mark.heavy
def test_browser_that_does_not_start_leaves_the_address(home, monkeypatch):
    def none(address: str) -> bool:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "open", none)
    with server(home) as (_, url):
        done = freehold(home, "open", DISPLAY=":1")
        assert done.status == 0 and done.out.startswith(url) and "open it in a browser" in done.err


@pytest.mark.heavy
def test_server_without_its_page_says_so(home):
    with server(home, "--no-console") as (_, url):
        done = freehold(home, "open")
        assert done.status != 0 and "--no-console" in done.err and done.out == ""
        page = httpx2.get(url, headers={"Accept": "text/html"})
        assert page.text == "Ollama is running"


def test_without_a_server_there_is_nothing_to_open(tmp_path):
    done = freehold(tmp_path, "open")
    assert done.status != 0 and "freehold serve" in done.err


@contextmanager
def on_a_terminal(home: Path, *args: str, **more: str) -> Iterator[Iterator[str]]:
    """Run `freehold serve` with its messages on a terminal; yields their lines."""
    ours, theirs = os.openpty()
    command = program("serve", "--port", "0", *args)
    process = subprocess.Popen(
        command, env=environment(home) | more, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    with closing(open(ours, encoding="utf-8", errors="replace")) as screen:
        try:
            yield iter(screen.readline, "")
        finally:
            process.kill()
            process.wait(60)


def linked(lines: Iterator[str]) -> tuple[str, str]:
    """Return the address and the code of the line that opens the page."""
    for line in lines:
        if found := re.search(r"open the page: (http://\S+)/#/open/(\S+)", line):
            return found[1], found[2]
    raise AssertionError("no line opens the page")


def test_serve_prints_a_link_on_a_terminal_that_signs_its_browser_in_once(home):
    with on_a_terminal(home) as lines:
        url, code = linked(lines)
        with httpx2.Client(base_url=url, headers=OWN) as client:
            assert client.post("/console/owner", json={"code": code}).json()["owner"]
            assert client.get("/admin/ps").status_code == 200
        with httpx2.Client(base_url=url, headers=OWN) as other:
            assert other.post("/console/owner", json={"code": code}).status_code == 401


@pytest.mark.heavy
def test_serve_opens_the_page_as_the_owner_in_the_browser(home, tmp_path):
    seen, browser = tmp_path / "seen", tmp_path / "browser"
    os.mkfifo(seen)
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o700)
    with on_a_terminal(home, "--open", BROWSER=str(browser), DISPLAY=":1") as lines:
        url, code = linked(lines)
        opened = seen.read_text().strip()
        assert opened.startswith(f"{url}/#/open/") and not opened.endswith(code)
        with httpx2.Client(base_url=url, headers=OWN) as client:
            opened_code = {"code": opened.rpartition("/")[2]}
            assert client.post("/console/owner", json=opened_code).json()["owner"]


def test_serve_writes_no_code_into_a_file_or_a_journal(home):
    with server(home) as (process, url):
        process.terminate()
        said = process.communicate(timeout=60)[1]
        assert f"the page: {url}/ (freehold open" in said and "#/open/" not in said
