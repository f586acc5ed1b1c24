"""A server process with a scripted model, and Debian's Chromium in front of it.

Skipped where no Chromium is installed: `apt-get install chromium` brings it. Path: serving -> `freehold serve`; page
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.console.scripted import write_scripted

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LIMIT_MS = 60_000  # that a browser is waited for: the machine may do much else
SCRIPTS = {
    "hello": "Hello! What shall I say?",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n\nThat was **a table**, and `code`: 漢字.",
    "long": "".join(f"Line {i} of a long answer.\n\n" for i in range(400)),
}


@dataclass
class Served:
    """A running `freehold serve`. `again` starts it anew on the same home and port after an end or a kill."""

    home: Path
    args: tuple[str, ...]
    url: str = ""
    process: subprocess.Popen[str] | None = None
    log: list[str] = field(default_factory=list)

    def start(self, port: str = "0") -> None:
        """Start it, and wait until its models are loaded."""
        code = "from freehold.cli.main import main; main()"
        command = [sys.executable, "-c", code, "serve", *self.args, "--port", port, "--json"]
        env = {**os.environ, "FREEHOLD_HOME": str(self.home)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if line.startswith("{") and "url" in (said := json.JSONDecoder().raw_decode(line)[0]):
                self.url = said["url"]
                return
        raise AssertionError("the server ended:\n" + "".join(self.log))

    def again(self) -> None:
        """Start it on the port it had."""
        self.start(self.url.rpartition(":")[2])

    def stop(self, sign: int = signal.SIGTERM) -> None:
        """Send a signal to the server alone, and wait for its end."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, sign)
            self.process.wait(60)
            assert self.process.stdout is not None
            self.log.extend(self.process.stdout)
            self.process.stdout.close()
            self.process = None


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of SCRIPTS."""
    return write_scripted(tmp_path_factory.mktemp("scripted") / "scripted.gguf", SCRIPTS)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start servers, each on a home of its own unless `home` is given; they end with the test."""
    running: list[Served] = []

    def start(*args: str, home: Path | None = None, config: str = "") -> Served:
        home = home or tmp_path / f"home{len(running)}"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text("adopt = false\nconsole.titles = false\n" + config)
        server = Served(home, args)
        running.append(server)
        server.start()
        return server

    yield start
    for server in running:
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def standing(scripted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests that leave it as it was."""
    home = tmp_path_factory.mktemp("standing")
    kept = 'keep_alive = "24h"\n'  # else the model leaves memory once no test has used it for 5 min
    (home / "config.toml").write_text("adopt = false\nconsole.titles = false\n" + kept)
    server = Served(home, (str(scripted),))
    server.start()
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for the tests of a module: while it is open its loop runs here, and asyncio.run fails elsewhere."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM,
            # A camera without hardware: it shows a clock; a page still has to be allowed to use it.
            args=["--no-sandbox", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream"],
        )
        playwright.expect.set_options(timeout=LIMIT_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page in a context of its own. Any console error or request to another origin fails the test at its end."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(LIMIT_MS)
    page, errors, asked = context.new_page(), [], []
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("request", lambda request: asked.append(request.url))
    page.errors, page.asked = errors, asked  # a test that provokes one clears the list
    yield page
    context.close()
    assert not errors, errors
    strange = [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert not strange, strange
