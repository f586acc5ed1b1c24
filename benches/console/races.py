"""Twelve tasks of a person at a chat page, on llama.cpp's page and on ours, in turns.

`python -m benches.console.races --llama-server PROGRAM [--rounds 3]`
Done or not, seconds, steps, bytes. Both servers run the same scripted model, so that an answer is the same text at
about the same speed and what differs is the page. A step is a click, a key that stands for one, or a text typed at
once. A task that a page has no control for is not done; why is in the JSON. Prints a table of Markdown and
ends in one JSON line.
Path: races.py -> OursPage, LlamaPage -> Chromium
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import say
from tests.console.conftest import Served
from tests.console.scripted import write_scripted

LINES = 1500
SCRIPTS = {
    "hello": "Hello! What shall I say?",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n\nThat was a table.",
    "long": "".join(f"Line {i} of a long answer.\n\n" for i in range(LINES)) + "The end of it.",
}
LAST = "The end of it."
OLD = "needle-in-the-oldest-message"
MESSAGES = 2000
PASTED = "\n".join(f"pasted line {i} with some words in it" for i in range(20_000))
WAIT_MS = 20_000


class NotThere(Exception):
    """The page has no control for the task."""


@dataclass
class Row:
    """What came of one task on one page."""

    task: str
    page: str
    done: bool
    seconds: float
    steps: int
    why: str = ""


class ChatPage:
    """What both pages have in common. `steps` counts what a person does."""

    name = ""
    user = assistant = ""  # selectors of messages

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url, self.steps, self.bytes = browser, url, 0, 0
        self.fresh()

    def fresh(self, width: int = 1200) -> None:
        """Open the page in a context without anything kept."""
        if hasattr(self, "context"):
            self.context.close()
        self.context = self.browser.new_context(viewport={"width": width, "height": 800})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("requestfinished", self._count)
        self.page.goto(self.url)
        self.box().wait_for()

    def _count(self, request: Any) -> None:
        try:
            self.bytes += request.sizes()["responseBodySize"]
        except Exception:  # a request of a page that is gone
            return

    def box(self) -> Any:
        """Return where a message is typed."""
        raise NotImplementedError

    def step(self, times: int = 1) -> None:
        self.steps += times

    def send(self, text: str) -> None:
        """Type and send."""
        self.box().fill(text)
        self.box().press("Enter")
        self.step(2)

    def click(self, name: str, within: Any = None) -> None:
        """Press a button by its name."""
        place = within if within is not None else self.page
        found = place.get_by_role("button", name=name, exact=True)
        if found.count() == 0:
            raise NotThere(f"no button {name}")
        found.last.click()
        self.step()

    def said(self, text: str, most_ms: int = WAIT_MS) -> None:
        """Wait until an answer contains a text."""
        self.page.locator(self.assistant, has_text=text).last.wait_for(timeout=most_ms)

    def last_answer(self) -> str:
        return self.page.locator(self.assistant).last.inner_text()

    def new_chat(self) -> None:
        raise NotImplementedError

    def fill_chat(self) -> str:
        """Store a chat of MESSAGES messages, not counted; return its address."""
        raise NotImplementedError

    def edit_last(self, text: str) -> None:
        """Change the last question, and send it."""
        message = self.page.locator(self.user).last
        message.hover()
        self.click("Edit", message)
        box = message.get_by_role("textbox")
        box.fill(text)
        box.press("Enter")
        self.step(2)

    def find(self, word: str) -> None:
        """Come to the oldest message of a long chat by a word that it has."""
        raise NotImplementedError

    def compare(self) -> None:
        raise NotThere("one model at a time")

    def pull(self) -> None:
        raise NotThere("models are chosen where the server is started")


class LlamaPage(ChatPage):
    """llama-server's page."""

    name = "llama.cpp"
    user, assistant = (
        '[aria-label="User message with actions"]',
        '[aria-label="Assistant message with actions"]',
    )

    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Type a message...")

    def new_chat(self) -> None:
        self.click("New chat")

    def fill_chat(self) -> str:
        self.send("hello")
        self.said("Hello!")
        self.page.evaluate(_FILL_LLAMA, [MESSAGES, OLD])
        return self.page.url

    def find(self, word: str) -> None:
        self.click("Search")
        box = self.page.get_by_role("searchbox")
        box.fill(word)
        self.step()
        found = self.page.get_by_role("complementary").get_by_text(word)
        found.first.wait_for(timeout=4000)
        found.first.click()
        self.step()
        self.page.get_by_role("main").get_by_text(word).first.wait_for(timeout=4000)


class OursPage(ChatPage):
    """The console."""

    name = "Freehold"
    user, assistant = 'article[aria-label^="You"]', 'article:not([aria-label^="You"])'
    code = ""  # of `freehold open`

    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    def new_chat(self) -> None:
        self.click("New chat")

    def fill_chat(self) -> str:
        messages = []
        for i in range(MESSAGES):
            text = f"{OLD}: question {i}" if i == 0 else f"Message {i}: " + "some words of it. " * 8
            messages.append(
                {
                    "id": f"m{i}",
                    "parent": f"m{i - 1}" if i else None,
                    "role": ("user", "assistant")[i % 2],
                    "content": text,
                }
            )
        body = {"chat": {"title": "long", "model": "", "messages": messages}}
        made = self.page.evaluate(_IMPORT, body)
        return f"{self.url}/#/chat/{made['id']}"

    def find(self, word: str) -> None:
        box = self.page.get_by_role("searchbox")
        box.first.fill(word)
        self.step()
        found = self.page.get_by_role("navigation").get_by_text(word)
        found.first.wait_for(timeout=4000)
        found.first.click()
        self.step()
        self.page.locator(self.user, has_text=word).first.wait_for(timeout=4000)


_IMPORT = """async body => (await fetch('/console/api/import', {method: 'POST',
  headers: {'content-type': 'application/json'}, body: JSON.stringify(body)})).json()"""
_PASTE = """text => {
  const clipboardData = new DataTransfer(); clipboardData.setData('text/plain', text);
  document.activeElement.dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true, cancelable: true}));
}"""
_FILL_LLAMA = """async ([count, old]) => {
  const db = await new Promise(r => { const q = indexedDB.open('LlamaUi'); q.onsuccess = () => r(q.result) });
  const t = db.transaction(['conversations', 'messages'], 'readwrite');
  const all = s => new Promise(r => { const q = t.objectStore(s).getAll(); q.onsuccess = () => r(q.result) });
  const chat = (await all('conversations'))[0], kept = await all('messages');
  const root = kept.find(m => m.type === 'root');
  for (const m of kept) if (m !== root) t.objectStore('messages').delete(m.id);
  let parent = root; root.children = [];
  for (let i = 0; i < count; i++) {
    const content = i ? `Message ${i}: ` + 'some words of it. '.repeat(8) : `${old}: question 0`;
    const m = {id: `m${i}`, convId: chat.id, parent: parent.id, children: [], content, type: 'text', toolCalls: '',
      role: i % 2 ? 'assistant' : 'user', timestamp: Date.now() + i, extra: []};
    parent.children = [m.id]; t.objectStore('messages').put(parent); parent = m;
  }
  t.objectStore('messages').put(parent); chat.currNode = parent.id; t.objectStore('conversations').put(chat);
  await new Promise(r => t.oncomplete = r);
}"""

# --- the tasks ------------------------------------------------------------------------------------------

Task = Callable[[ChatPage], float | None]  # seconds that are not the whole task's, where those say more


def first_answer(page: ChatPage) -> None:
    page.fresh()
    page.send("hello")
    page.said("Hello! What shall I say?")


def stop(page: ChatPage) -> float:
    page.send("a long one")
    page.said("Line 1 ")
    began = time.monotonic()
    page.click("Stop")
    grown = page.last_answer()
    while (now := page.last_answer()) != grown:
        grown = now
    assert LAST not in grown, "the answer ended before it was stopped"
    return time.monotonic() - began


def edit(page: ChatPage) -> None:
    page.new_chat()
    page.send("hello")
    page.said("Hello!")
    page.edit_last("a table please")
    page.said("That was a table.")


def branch(page: ChatPage) -> None:
    page.click("Previous version")
    page.said("Hello!")


def long_chat(page: ChatPage) -> float:
    address = page.fill_chat()
    page.page.goto("about:blank")
    began = time.monotonic()
    page.page.goto(address)
    page.page.get_by_text(f"Message {MESSAGES - 1}:").first.wait_for()
    page.box().fill("x")
    took = time.monotonic() - began
    page.box().fill("")
    return took


def find_old(page: ChatPage) -> None:
    page.find(OLD)


def reload(page: ChatPage) -> None:
    page.fresh()
    page.send("a long one")
    page.said("Line 5 ")
    page.page.reload()
    page.said(LAST)
    text = page.last_answer()
    missing = [i for i in range(LINES) if f"Line {i} of" not in text]
    if missing:  # a virtual list may hold what is seen only; the answer is one message, so all of it is there
        raise AssertionError(f"{len(missing)} lines are missing")


def paste(page: ChatPage) -> float:
    page.new_chat()
    page.box().focus()
    began = time.monotonic()
    page.page.evaluate(_PASTE, PASTED)
    page.step()
    page.box().press("a")
    page.page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    return time.monotonic() - began


def pull(page: ChatPage) -> None:
    page.pull()


def compare(page: ChatPage) -> None:
    page.compare()


def phone(page: ChatPage) -> None:
    page.fresh(width=390)
    page.send("a table please")
    page.said("That was a table.")
    wide = page.page.evaluate("document.scrollingElement.scrollWidth")
    assert wide <= 390, f"the page is {wide} px wide"
    page.fresh()


def keyboard(page: ChatPage) -> None:
    """From the loaded page to a changed question, without a pointer."""
    page.fresh()
    keys = page.page.keyboard
    for _ in range(60):
        if page.page.evaluate("document.activeElement.matches('textarea, input, [contenteditable=true]')"):
            break
        keys.press("Tab")
        page.step()
    keys.type("hello")
    keys.press("Enter")
    page.step(2)
    page.said("Hello!")
    for _ in range(60):
        if page.page.evaluate(
            "(document.activeElement.ariaLabel || document.activeElement.innerText || '').trim() === 'Edit'"
        ):
            break
        keys.press("Shift+Tab")
        page.step()
    else:
        raise NotThere("Edit is not reached by Shift-Tab")
    keys.press("Enter")
    keys.press("Control+a")
    keys.type("a table please")
    keys.press("Enter")
    page.step(4)
    page.said("That was a table.")


TASKS: dict[str, Task] = {
    "first answer": first_answer,
    "stop": stop,
    "edit": edit,
    "branch": branch,
    "long chat": long_chat,
    "find an old message": find_old,
    "reload in mid-stream": reload,
    "paste 20,000 lines": paste,
    "pull": pull,
    "compare": compare,
    "phone": phone,
    "keyboard": keyboard,
}


def attempted(task: str, page: ChatPage) -> Row:
    """Do a task; whatever stops it is its result."""
    page.steps, began = 0, time.monotonic()
    try:
        took = TASKS[task](page)
    except NotThere as e:
        return Row(task, page.name, False, 0.0, 0, str(e))
    except Exception as e:  # a selector that never came, or a claim that failed
        return Row(task, page.name, False, 0.0, page.steps, str(e).splitlines()[0][:200])
    return Row(task, page.name, True, took or time.monotonic() - began, page.steps)


# --- the servers ----------------------------------------------------------------------------------------


@contextmanager
def llama_server(program: Path, model: Path) -> Iterator[str]:
    """Run llama-server on a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [str(program), "-m", str(model), "--port", str(port), "-c", "32768", "-ngl", "0"]
    env = {**os.environ, "LD_LIBRARY_PATH": str(program.parent)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                time.sleep(0.1)
                try:
                    with urllib.request.urlopen(f"{url}/health"):
                        break
                except OSError:
                    continue
            yield url
        finally:
            process.kill()


@contextmanager
def freehold_server(model: Path, home: Path) -> Iterator[Served]:
    """Run ours."""
    home.mkdir()
    (home / "config.toml").write_text("adopt = false\n")
    server = Served(home, (str(model),))
    server.start()
    try:
        yield server
    finally:
        server.stop(9)


def main() -> None:
    """Race."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", action="append", choices=list(TASKS))
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    rows: list[Row] = []
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as started:
        model = write_scripted(Path(folder) / "race.gguf", SCRIPTS)
        browser = started.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        with (
            llama_server(args.llama_server, model) as theirs,
            freehold_server(model, Path(folder) / "home") as ours,
        ):
            for round in range(args.rounds):
                pages: list[ChatPage] = [LlamaPage(browser, theirs), OursPage(browser, ours.url)]
                for page in pages:
                    sizes.setdefault(page.name, page.bytes)
                for task in args.task or TASKS:
                    for page in pages if round % 2 else pages[::-1]:
                        rows.append(attempted(task, page))
                        say(f"{rows[-1]}")
                for page in pages:
                    page.context.close()
        browser.close()
    print(table(rows))
    result = {
        "bench": "races",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "first_load_bytes": sizes,
    }
    print(json.dumps(result | {"rows": [row.__dict__ for row in rows]}))


def table(rows: list[Row]) -> str:
    """Write the medians as a table of Markdown."""
    names = list(dict.fromkeys(row.page for row in rows))
    lines = [f"| task | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for task in dict.fromkeys(row.task for row in rows):
        cells = []
        for name in names:
            found = [row for row in rows if row.task == task and row.page == name]
            good = [row for row in found if row.done]
            if good:
                seconds = statistics.median(row.seconds for row in good)
                of = "" if len(good) == len(found) else f", {len(good)} of {len(found)}"
                cells.append(f"{seconds:.2f} s, {good[0].steps} steps{of}")
            else:
                cells.append(f"no: {found[0].why}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
