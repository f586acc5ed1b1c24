"""An hour of a person's use of every page: errors, requests to other origins, and what grows.

`python benches/console/hour.py [--minutes 60]`, with Chromium. Four tabs of one server, dark and light, narrow and
wide, are used in turns, with pauses and idle spells, while the others stay open. Counted: what the browser's console
calls an error, exceptions, requests to another origin, scenes that did not end. Growth is taken after garbage
collection with every tab on an empty chat, from the end of the first pass through all scenes to the last one.
Prints a line a measurement and one JSON line; exit 1 on an error, a foreign request or a scene that did not end.
Path: hour.main -> Tab -> SCENES -> `freehold serve`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benches.lib.machine import say  # noqa: E402
from tests.console.conftest import CHROMIUM, Served  # noqa: E402
from tests.console.owner import as_owner  # noqa: E402
from tests.console.scripted import write_scripted  # noqa: E402

LONG = "".join(f"Line {i} of a long answer.\n\n" for i in range(600))
SCRIPTS = {
    "hello": "Hello! What shall I say?",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint(1)\n```\n\nThat was a table: $x^2$.",
    "long": LONG + "The end of it.",
}
SIZES = {"narrow": {"width": 390, "height": 800}, "wide": {"width": 1200, "height": 800}}
IDLE_S = 45.0
WAIT_MS = 60_000


@dataclass
class Tab:
    """One open tab, and what was counted of it."""

    name: str
    page: Any
    url: str
    rate: float  # pauses are multiplied by it
    dice: random.Random
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    requests: int = 0

    def watch(self, page: Any) -> None:
        """Count what a page does from now on."""
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda said: self._trouble(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda e: self._trouble(f"exception: {e}"))
        page.on("crash", lambda _: self._trouble("the tab crashed"))
        page.on("request", lambda request: self._asked(request.url))

    def _trouble(self, what: str) -> None:
        self.errors.append(f"{self.name} at {self.page.url.partition('#')[2]}: {what[:300]}")

    def _asked(self, url: str) -> None:
        self.requests += 1
        if not url.startswith((self.url + "/", "data:", "blob:")):
            self.foreign.append(f"{self.name}: {url[:200]}")

    def go(self, place: str) -> None:
        """Open a page by its address, and wait until it shows something."""
        self.page.evaluate("place => { location.hash = '#/' + place }", place)
        self.page.locator("main h1, main h2, main [role=log]").first.wait_for()
        self.page.locator(".waiting").wait_for(state="detached")

    def pause(self, least: float = 2.0, most: float = 7.0) -> None:
        """Do nothing for as long as a person reads."""
        self.page.wait_for_timeout(1e3 * self.rate * self.dice.uniform(least, most))

    def click(self, name: str, within: Any = None) -> None:
        (within or self.page).get_by_role("button", name=name, exact=True).last.click()

    def fresh(self) -> None:
        """Come to an empty chat."""
        self.list()
        self.click("New chat")
        self.page.locator("article").first.wait_for(state="detached")
        self.box().wait_for()

    def list(self) -> Any:
        """Open the list of chats, which is a drawer in a narrow window; return it."""
        self.go("chat")
        found = self.page.get_by_role("navigation", name="Chats")
        if found.count() == 0:
            self.click("Show or hide the list of chats")
        found.wait_for()
        return found

    def box(self) -> Any:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    def ask(self, text: str) -> None:
        self.box().fill(text)
        self.box().press("Enter")

    def said(self, text: str) -> None:
        """Wait for a text of the last answer."""
        self.page.locator("article:not([aria-label^=You])").last.get_by_text(text).first.wait_for()

    def heap(self) -> int:
        """Return the bytes of the page's JavaScript that are in use after garbage collection."""
        session = self.page.context.new_cdp_session(self.page)
        for _ in range(3):
            session.send("HeapProfiler.collectGarbage")
        used = session.send("Runtime.getHeapUsage")["usedSize"]
        session.detach()
        return int(used)


# --- scenes: each begins and ends anywhere ------------------------------------------------------------


def conversation(tab: Tab) -> None:
    tab.fresh()
    for question, answer in (("hello", "What shall I say?"), ("a table, please", "That was a table")):
        tab.ask(question)
        tab.said(answer)
        tab.pause()
    tab.click("Regenerate")
    tab.click("Previous version")
    tab.pause()
    tab.click("Receipt")
    tab.click("Same bits again")
    tab.page.get_by_text("Equal: all").wait_for()
    tab.page.keyboard.press("Escape")


def stopped(tab: Tab) -> None:
    tab.fresh()
    tab.ask("a long one")
    tab.said("Line 3 ")
    tab.click("Stop")
    tab.page.get_by_role("button", name="Send", exact=True).wait_for()
    tab.box().press("ArrowUp")  # the question itself may have left the window by now
    tab.page.get_by_text("Editing a message").wait_for()
    tab.page.keyboard.press("Control+a")
    tab.page.keyboard.type("hello")
    tab.page.keyboard.press("Enter")
    tab.said("What shall I say?")


def wandering(tab: Tab) -> None:
    """An answer goes on while other pages are looked at, and is there at the return."""
    tab.fresh()
    tab.ask("a long one")
    tab.said("Line 1 ")
    at = tab.page.url.partition("#/")[2]
    tab.go("engine")
    tab.pause()
    tab.go("usage")
    tab.go(at)
    tab.said("The end of it.")


def second_tab(tab: Tab) -> None:
    """A chat is open in two tabs; one is reloaded in mid-stream and closed."""
    tab.fresh()
    tab.ask("a long one")
    tab.said("Line 1 ")
    other = tab.page.context.new_page()
    tab.watch(other)
    other.goto(tab.page.url)
    other.get_by_text("Line 2 ").first.wait_for()
    other.reload()
    other.get_by_text("Line 2 ").first.wait_for()
    other.close()
    tab.page.bring_to_front()
    tab.said("The end of it.")


def search(tab: Tab) -> None:
    tab.fresh()
    tab.ask("hello, whom I look for")
    tab.said("What shall I say?")
    chats = tab.list()
    box = chats.get_by_role("searchbox", name="Search chats")
    box.fill("whom I look")
    chats.get_by_text("whom I look for").first.wait_for()
    tab.pause()
    box.fill("")
    tab.page.keyboard.press("Escape")


def compare(tab: Tab) -> None:
    tab.go("compare")
    if (fresh := tab.page.get_by_role("button", name="New comparison")).count():
        fresh.click()
    tab.box().fill("a table, please")
    tab.click("Compare")
    tab.page.get_by_text("Equal: all").first.wait_for()


def models(tab: Tab) -> None:
    tab.go("models?tab=here")
    tab.page.locator("table.table tbody tr").first.wait_for()
    tab.pause()
    tab.go("models?tab=catalogue")
    tab.page.locator("table.table tbody tr").first.wait_for()
    box = tab.page.get_by_role("searchbox", name="Search models")
    box.fill("smollm2 135m")
    tab.page.get_by_role("link", name="smollm2:135m", exact=True).click()
    tab.page.get_by_role("dialog").wait_for()
    tab.pause()
    tab.page.keyboard.press("Escape")
    box.fill("")


def engine(tab: Tab) -> None:
    tab.go("engine")
    tab.pause(10, 20)


def facts(tab: Tab) -> None:
    for name in ("usage", "runs", "deployments", "keys", "settings"):
        tab.go(name)
        tab.pause()


def idle(tab: Tab) -> None:
    """The tab stays where it is."""
    tab.page.wait_for_timeout(1e3 * tab.rate * IDLE_S)


SCENES: tuple[Callable[[Tab], None], ...] = (
    conversation,
    engine,
    wandering,
    models,
    stopped,
    idle,
    facts,
    second_tab,
    compare,
    search,
)


class Hour:
    """The tabs of one server, and what was measured at the ends of passes."""

    def __init__(self, server: Served, tabs: list[Tab]) -> None:
        assert server.process is not None
        self.tabs, self.began = tabs, time.monotonic()
        self.process = psutil.Process(server.process.pid)
        self.unfinished: list[str] = []
        self.measured: list[dict[str, Any]] = []
        self.scenes = 0

    def use(self, until: float) -> None:
        """Pass through all scenes, and again until the time is over; each tab begins with another scene."""
        while time.monotonic() < until or len(self.measured) < 2:
            for step in range(len(SCENES)):
                for place, tab in enumerate(self.tabs):
                    self.act(tab, SCENES[(step + place * 3) % len(SCENES)])
                if self.measured and time.monotonic() > until:
                    break
            self.measure()

    def act(self, tab: Tab, scene: Callable[[Tab], None]) -> None:
        """Have one tab in front do a scene."""
        tab.page.bring_to_front()
        self.scenes += 1
        try:
            scene(tab)
        except Exception as e:  # what a selector or a claim says of it
            self.unfinished.append(f"{scene.__name__} in {tab.name}: {str(e)[:400]}")
            say(self.unfinished[-1])
        tab.pause()

    def measure(self) -> None:
        """Note what is in use now, with every tab on an empty chat."""
        for tab in self.tabs:
            tab.page.bring_to_front()
            self.act(tab, Tab.fresh)
        every = [self.process, *self.process.children(recursive=True)]
        self.measured.append(
            {
                "minutes": round((time.monotonic() - self.began) / 60, 1),
                "heap_mb": [round(tab.heap() / 1e6, 2) for tab in self.tabs],
                "nodes": [tab.page.evaluate("document.querySelectorAll('*').length") for tab in self.tabs],
                "server_mb": round(self.process.memory_info().rss / 1e6, 1),
                "all_processes_mb": round(sum(each.memory_info().rss for each in every) / 1e6, 1),
                "connections": sum(c.status == "ESTABLISHED" for c in self.process.net_connections("tcp")),
                "descriptors": self.process.num_fds(),
                "threads": self.process.num_threads(),
                "processes": len(every),
            }
        )
        say(json.dumps(self.measured[-1]))

    def result(self) -> dict[str, Any]:
        """Return what came of it."""
        first, last = self.measured[0], self.measured[-1]
        grown = {
            name: round(last[name] - first[name], 2)
            for name in first
            if name != "minutes" and not isinstance(first[name], list)
        }
        pairs = zip(self.tabs, first["heap_mb"], last["heap_mb"], strict=True)
        return {
            "bench": "console/hour",
            "minutes": last["minutes"],
            "load": round(os.getloadavg()[0], 2),
            "scenes": self.scenes,
            "requests": sum(tab.requests for tab in self.tabs),
            "errors": [error for tab in self.tabs for error in tab.errors],
            "foreign": [url for tab in self.tabs for url in tab.foreign],
            "unfinished": self.unfinished,
            "between_minutes": [first["minutes"], last["minutes"]],
            "heap_grown_mb": {tab.name: round(b - a, 2) for tab, a, b in pairs},
            "grown": grown,
            "measured": self.measured,
        }


def opened(browser: Any, server: Served, rate: float) -> list[Tab]:
    """Open a tab for each theme and width, the light ones as the owner."""
    tabs = []
    for scheme in ("light", "dark"):
        for width, size in SIZES.items():
            context = browser.new_context(viewport=size, color_scheme=scheme)
            page = context.new_page()
            tab = Tab(f"{scheme} {width}", page, server.url, rate, random.Random(len(tabs)))
            tab.watch(page)
            page.goto(server.url) if scheme == "dark" else as_owner(server, page)
            page.locator("nav.pages").wait_for()
            tabs.append(tab)
    return tabs


def main() -> int:
    """Use the page, and print what was counted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies every pause")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="freehold-hour-") as folder, sync_playwright() as started:
        model = write_scripted(Path(folder) / "scripted.gguf", SCRIPTS)
        home = Path(folder) / "home"
        home.mkdir()
        (home / "config.toml").write_text('adopt = false\n[company]\npurpose = "commercial"\n')
        server = Served(home, (str(model),))
        server.start()
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            hour = Hour(server, opened(browser, server, args.rate))
            hour.use(time.monotonic() + 60 * args.minutes)
        finally:
            browser.close()
            server.stop()
    found = hour.result()
    print(json.dumps(found))
    return int(bool(found["errors"] or found["foreign"] or found["unfinished"]))


if __name__ == "__main__":
    sys.exit(main())
