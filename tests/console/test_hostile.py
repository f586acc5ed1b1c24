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

from tests.console.conftest import SCRIPTS
from tests.console.owner import as_owner
from tests.console.payloads import EVERYWHERE, LARGE
from tests.console.scripted import write_scripted

INSPECT = (Path(__file__).parent / "inspect.js").read_text()
OPEN = """async ([id, title, wanted]) => {
  const wait = (ms) => new Promise((go) => setTimeout(go, ms));
  const bad = {};
  const note = (what, found) => found.length && (bad[what] = found);
  location.hash = "#/chat/" + id;
  const log = () => document.querySelector("[role=log]");
  const until = performance.now() + 120_000;
  while (performance.now() < until && !log()?.querySelector(`[data-id="${title[0]}"]`)) await wait(20);
  const places = new Map(wanted.map(([id], i) => [id, i]));
  const unseen = new Map(wanted);
  const folded = "button[aria-expanded=false]:not([aria-haspopup])"; // a menu would close what is below it
  const ready = (each) => !each.querySelector(`.loading-lines, .math:not(.failed) > .tex, ${folded}`);
  while (performance.now() < until && unseen.size) {
    const drawn = [...log().querySelectorAll("[data-id]")];
    for (const each of drawn) {
      if (!unseen.has(each.dataset.id)) continue;
      for (const fold of each.querySelectorAll(folded)) fold.click();
    }
    await wait(10);
    const late = [];
    for (const each of drawn) {
      const words = unseen.get(each.dataset.id);
      if (words === undefined || !each.isConnected) continue;
      if (!ready(each)) late.push(each);
      else if (unseen.delete(each.dataset.id)) note(each.dataset.id, inspect(each, words));
    }
    if (late.length) {
      late[0].scrollIntoView({ block: "nearest" });
      continue;
    }
    const last = Math.max(...[...unseen.keys()].map((id) => places.get(id))); // the chat opens at its end
    const now = [...log().querySelectorAll("[data-id]")];
    if (now.some((each) => places.get(each.dataset.id) === last)) continue;
    const [first, block] = places.get(now[0].dataset.id) > last ? [now[0], "end"] : [now.at(-1), "start"];
    first.scrollIntoView({ block });
    await wait(10);
  }
  if (unseen.size) bad.unseen = [...unseen.keys()];
  note("page", inspect(document.getElementById("app"), title[1]));
  const box = document.querySelector("textarea").getBoundingClientRect();
  const over = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  if (over?.localName !== "textarea") bad.composer = [`covered by ${over?.outerHTML.slice(0, 80)}`];
  return bad;
}"""
HIDDEN = """() => {
  const hidden = /[\\u202a-\\u202e\\u2066-\\u2069\\u200b]/;
  const walk = document.createTreeWalker(document.getElementById("app"), NodeFilter.SHOW_TEXT);
  const found = [...document.querySelectorAll(".name :not(span)")].map((each) => each.localName);
  for (let node = walk.nextNode(); node; node = walk.nextNode())
    if (hidden.test(node.data) && !node.parentElement.closest(".revealed"))
      found.push(node.parentElement.outerHTML.slice(0, 120));
  for (const each of document.querySelectorAll("[title], [aria-label]"))
    if (hidden.test(each.title + each.ariaLabel)) found.push(each.outerHTML.slice(0, 120));
  return found;
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


@pytest.mark.heavy
def test_hostile_texts_in_every_field_of_a_chat_stay_text(hostile):
    """A part of them; the next test has all."""
    assert _bad(hostile, EVERYWHERE[::40]) == {}


@pytest.mark.heavy
def test_a_model_file_s_name_and_licence_stay_text(serving, tmp_path, page):
    """A file of a stranger's, pulled or served: its name is a model's in every page, its licence stands in Models."""
    name = "<img src=x onerror=hit()> \u202etxt\u200b <b>x<b>"
    licence = " ".join(EVERYWHERE[::6])
    about = {"general.license": licence, "general.name": name}
    server = serving(str(write_scripted(tmp_path / f"{name}.gguf", SCRIPTS, about=about)))
    page.add_init_script("window.hits = 0; window.hit = window.alert = () => { window.hits++; };")
    page.add_init_script(f"window.inspect = {INSPECT};")
    as_owner(server, page)
    shown = ["img", "onerror", "txt"]
    bad: dict[str, list[str]] = {}

    def look(where: str, words: list[str]) -> None:
        page.locator("#app").get_by_text("onerror").first.wait_for(state="attached")
        found = page.evaluate("(words) => inspect(document.getElementById('app'), words)", words)
        # Of the page, which draws the engine once it was looked at twice; a name holds spans alone, as HIDDEN checks.
        own = {f"an element {each}" for each in ("dialog", "figure", "figcaption", "canvas")}
        bad[where] = [each for each in found if each not in own] + page.evaluate(HIDDEN)

    page.goto(server.url + "/#/models?tab=here")
    look("models", shown)
    page.locator(".model-name a").first.click()
    page.get_by_role("dialog").get_by_text("Licence", exact=True).wait_for(timeout=90_000)
    look("why", shown + _words(licence))
    page.keyboard.press("Escape")
    page.goto(server.url + "/#/chat")
    page.get_by_role("textbox", name="Message", exact=True).fill("hello")
    page.keyboard.press("Enter")
    page.get_by_role("log").get_by_text("What shall I say?").wait_for()
    page.get_by_role("button", name="Receipt").click()
    look("chat", shown)
    for where in ("engine", "compare"):
        page.goto(f"{server.url}/#/{where}")
        look(where, shown)
    assert not any(bad.values()), bad
    assert all(url.startswith((f"{server.url}/", "data:image/")) for url in page.asked), page.asked


@pytest.mark.heavy
@pytest.mark.long
def test_all_hostile_texts_in_every_field_of_a_chat_stay_text(hostile):
    bad = {}
    for first in range(0, len(EVERYWHERE), 8):
        texts = EVERYWHERE[first : first + 8]
        for where, found in _bad(hostile, texts).items():
            number = re.fullmatch(r"m(\d+)[uatf]", where)
            bad[(texts[int(number[1])] if number else texts[0], where)] = found
    assert bad == {}


@pytest.mark.heavy
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
