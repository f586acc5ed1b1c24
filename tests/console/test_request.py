"""The request that the page shows as curl and Python makes the prompt that the answer was made from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("playwright")

from tests.console.conftest import Served

FILE = "a first line\nit's a second one\n"
HIDDEN = "hello\u202e turned\u200b"


@pytest.fixture
def asked(standing: Served, page: Any, tmp_path: Path) -> Any:
    """The dialog of a request: a system prompt, a file, and text with characters that nothing shows."""
    (tmp_path / "notes.txt").write_text(FILE)
    page.goto(standing.url)
    page.get_by_role("button", name=re.compile("^Model: scripted")).wait_for()
    page.get_by_role("button", name="Chat settings").click()
    page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    page.locator("form.composer input[type=file]").set_input_files(tmp_path / "notes.txt")
    page.get_by_role("textbox", name="Message", exact=True).fill(HIDDEN)
    page.get_by_role("button", name="Send", exact=True).click()
    page.locator("article:not(.user):not([aria-busy])").wait_for()
    page.get_by_role("textbox", name="System prompt").fill("Changed since.")
    page.locator("article:not(.user)").get_by_role("button", name="More for this message").click()
    page.get_by_role("menuitem", name="As a program").click()
    page.locator("pre.request").get_by_text("-d '").wait_for()
    return page


@pytest.mark.heavy
def test_curl_has_what_the_server_was_asked_and_nothing_invisible(asked, standing):
    said = asked.locator("pre.request").inner_text()
    assert not re.search("[\u200b\u202e]", said)
    body = json.loads(said[said.index("-d '") + 4 : said.rindex("'")].replace("'\\''", "'"))
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"File notes.txt:\n```\n{FILE.rstrip()}\n```\n\n{HIDDEN}"},
    ]
    receipt = httpx2.get(f"{standing.url}/console/api/chats/{_chat(asked)}").json()["messages"][-1]["receipt"]
    answer = httpx2.post(
        f"{standing.url}/v1/chat/completions", json={**body, "stream": False}, timeout=60
    ).json()
    assert answer["usage"]["prompt_tokens"] == receipt["tokens"]["prompt"]


def test_python_prints_the_same_answer(asked, tmp_path):
    asked.get_by_role("button", name="Python", exact=True).click()
    asked.locator("pre.request").get_by_text("import json").wait_for()
    (tmp_path / "ask.py").write_text(asked.locator("pre.request").inner_text())
    command = [sys.executable, str(tmp_path / "ask.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == asked.locator("article:not(.user) .said").inner_text().strip()


def _chat(page: Any) -> str:
    return page.url.rpartition("/")[2]
