"""Hostile texts in every place of the page that shows text: nothing runs, nothing is asked for, nothing is hidden.

Chats with them are imported, opened, unfolded and looked through, a batch of payloads at a time.
Path: payloads.EVERYWHERE -> POST /console/api/import -> the page -> inspect.js
"""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.console.payloads import EVERYWHERE, LARGE

INSPECT = (Path(__file__).parent / "inspect.js").read_text()
OPEN = """async ([id, title, wanted]) => {
  const wait = (ms) => new Promise((go) => setTimeout(go, ms));
  const bad = {};
  const note = (what, found) => found.length && (bad[what] = found);
  location.hash = "#/chat/" + id;
  const log = () => document.querySelector("[role=log]");
  for (let n = 0; n < 200 && !document.querySelector(`[data-id="${title[0]}"]`); n++) await wait(20);
  const unseen = new Map(wanted);
  const until = performance.now() + 120_000;
  for (let n = 0; performance.now() < until && unseen.size; n++) {
    for (const fold of document.querySelectorAll("[role=log] button[aria-expanded=false]")) fold.click();
    await wait(40);
    for (const each of document.querySelectorAll("[data-id]")) {
      const words = unseen.get(each.dataset.id);
      if (words === undefined) continue;
      if (each.querySelector("button[aria-expanded=false]")) continue;
      if (each.querySelector(".loading-lines") || each.querySelector(".math:not(.failed) > .tex")) continue;
      unseen.delete(each.dataset.id);
      note(each.dataset.id, inspect(each, words));
    }
    log().scrollTo(0, Math.max(0, log().scrollTop - log().clientHeight * 0.6));
    await wait(20);
    if (log().scrollTop === 0 && n % 12 === 11) log().scrollTo(0, log().scrollHeight);
  }
  if (unseen.size) bad.unseen = [...unseen.keys()];
  note("page", inspect(document.getElementById("app"), title[1]));
  const box = document.querySelector("textarea").getBoundingClientRect();
  const over = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  if (over?.localName !== "textarea") bad.composer = [`covered by ${over?.outerHTML.slice(0, 80)}`];
  return bad;
}"""


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[A-Za-z0-9]{3,}", text)))[:300]


def _messages(n: int, text: str, parent: str | None) -> list[dict[str, Any]]:
    """Four messages with one text in each of their fields."""
    call = {"id": f"c{n}", "server": text, "name": text, "arguments": json.dumps({"text": text})}
    user, answer, tool, failed = (f"m{n}{role}" for role in "uatf")
    return [
        {
            "id": user,
            "parent": parent,
            "role": "user",
            "content": text,
            "files": [{"name": text, "text": text}],
        },
        {
            "id": answer,
            "parent": user,
            "role": "assistant",
            "content": text,
            "thinking": text,
            "model": text,
            "calls": [call],
        },
        {"id": tool, "parent": answer, "role": "tool", "content": text, "call": f"c{n}"},
        {
            "id": failed,
            "parent": tool,
            "role": "assistant",
            "content": "",
            "model": text,
            "state": "failed",
            "error": {"message": text, "hint": text},
        },
    ]


def _imported(url: str, texts: list[str]) -> tuple[str, list[tuple[str, list[str]]]]:
    """Import a chat with these texts; return its id, and for each message the words that it shows."""
    messages: list[dict[str, Any]] = []
    for n, text in enumerate(texts):
        messages += _messages(n, text, messages[-1]["id"] if messages else None)
    chat = {"messages": messages, "title": texts[0][:200], "model": texts[0][:60], "leaf": messages[-1]["id"]}
    body = json.dumps({"chat": chat}).encode()
    request = urllib.request.Request(
        f"{url}/console/api/import", body, {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        made = json.load(answer)
    kept = [(message["id"], _words(texts[i // 4])) for i, message in enumerate(messages)]
    return made["id"], kept


@pytest.fixture
def hostile(serving: Any, scripted: Path, page: Any) -> Any:
    server = serving(str(scripted))
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    went: list[str] = []
    page.on("framenavigated", lambda frame: went.append(frame.url))
    page.add_init_script("window.hits = 0; window.hit = window.alert = () => { window.hits++; };")
    page.add_init_script(f"window.inspect = {INSPECT};")
    page.goto(server.url)
    page.get_by_role("textbox", name="Message", exact=True).wait_for()
    page.server = server
    yield page
    assert dialogs == []
    assert all(url.startswith(f"{server.url}/") for url in went), went
    assert all(url.startswith((f"{server.url}/", "data:image/")) for url in page.asked), page.asked
    page.get_by_role("textbox", name="Message", exact=True).fill("the page is usable")


def _bad(page: Any, texts: list[str]) -> dict[str, Any]:
    id, wanted = _imported(page.server.url, texts)
    return page.evaluate(OPEN, [id, [wanted[-1][0], _words(texts[0])[:3]], wanted])


def test_hostile_texts_in_every_field_of_a_chat_stay_text(hostile):
    """A part of them; the next test has all."""
    assert _bad(hostile, EVERYWHERE[::40]) == {}


@pytest.mark.long
def test_all_hostile_texts_in_every_field_of_a_chat_stay_text(hostile):
    bad = {}
    for first in range(0, len(EVERYWHERE), 8):
        texts = EVERYWHERE[first : first + 8]
        for where, found in _bad(hostile, texts).items():
            number = re.fullmatch(r"m(\d+)[uatf]", where)
            bad[(texts[int(number[1])] if number else texts[0], where)] = found
    assert bad == {}


@pytest.mark.long
@pytest.mark.parametrize("name", ["a line of 1 MB", "1 MB of code", "1 MB of zero width", "brackets"])
def test_a_large_hostile_text_leaves_the_page_usable(hostile, name):
    text = LARGE[name]
    chat = {
        "messages": [{"id": "m0a", "parent": None, "role": "assistant", "content": text, "thinking": text}]
    }
    body = json.dumps({"chat": chat}).encode()
    request = urllib.request.Request(
        f"{hostile.server.url}/console/api/import", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        id = json.load(answer)["id"]
    hostile.evaluate("(id) => { location.hash = '#/chat/' + id }", id)
    hostile.wait_for_function(
        "(least) => document.querySelector('[data-id=m0a]')?.textContent.length >= least",
        arg=len(text) - text.count("\n") - 10,
    )
