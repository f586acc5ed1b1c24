"""Walks over the page: other pages in some order, then Chat, whose look is compared with that of the first visit.

A page's style sheet stays in the document after the page is left, so that a class that two pages use would change the
other one. Path: test_styles.py, benches/console/walks.py -> Walker.walk -> Walker.look
"""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
from PIL import Image

PAGES = ("compare", "models", "engine", "usage", "runs", "deployments", "keys", "settings")
STEPS = 5  # pages of a walk

# Each element of the page but what changes by itself, with all of its computed style.
_LOOK = """() => {
    const all = [...document.querySelectorAll("#app *:not(svg *)")].filter(e => !e.closest(".notices"));
    return all.map(e => {
        const style = getComputedStyle(e);
        const name = e.tagName.toLowerCase() + [...e.classList].map(c => "." + c).join("");
        return name + " " + [...style].sort().map(p => `${p}:${style.getPropertyValue(p)}`).join(";");
    });
}"""
_STILL = """async () => {
    const still = () => document.getAnimations().every(a => a.playState !== "running" || a.effect.getTiming().iterations
        === Infinity);
    while (!still()) await new Promise(requestAnimationFrame);
    await document.fonts.ready;
}"""


class Walker:
    """One browser page in front of a server that has the chat `chat`; `first` is Chat's look before any walk."""

    def __init__(self, page: Any, url: str, chat: str, dice: random.Random) -> None:
        self.page, self.url, self.chat, self.dice = page, url, chat, dice
        page.goto(f"{url}/#/chat/{chat}")
        self.first = self.look()
        self.picture = self._drawn()

    def walk(self) -> tuple[list[str], list[str]]:
        """Load the page anew, visit STEPS random pages and Chat; return the pages, and what differs in Chat."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/#/{self.dice.choice(PAGES)}")
        names = [self.dice.choice((*PAGES, "chat")) for _ in range(STEPS)]
        for name in names:
            self.visit(name)
        self.visit("chat")
        return names, self.changes()

    def visit(self, name: str) -> None:
        """Go to a page by its address, as its link does, and wait for its head."""
        self.page.evaluate(
            "to => { location.hash = to }", f"#/{name}/{self.chat}" if name == "chat" else f"#/{name}"
        )
        self.page.locator(f"main.page-{name} h1").first.wait_for()

    def look(self) -> list[str]:
        """Return Chat's elements with their computed styles, its settings open."""
        page = self.page
        page.locator("article.message .said").last.wait_for()
        settings = page.get_by_role("button", name="Chat settings")
        if settings.get_attribute("aria-expanded") != "true":
            settings.click()
        page.get_by_role("complementary", name="Chat settings").get_by_text("Sampling").wait_for()
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.evaluate(_STILL)
        return page.evaluate(_LOOK)

    def changes(self) -> list[str]:
        """Return what of Chat's look differs from the first: an element and its properties."""
        before, after = self.first, self.look()
        if len(before) != len(after):
            return [f"{len(before)} elements became {len(after)}"]
        found = []
        for was, now in zip(before, after, strict=True):
            if was != now:
                name, _, style = was.partition(" ")
                differ = set(style.split(";")) ^ set(now.partition(" ")[2].split(";"))
                found.append(f"{name}: {sorted(differ)[:6]}")
        return found

    def moved(self) -> int:
        """Return how many pixels of the page differ from the first picture."""
        return int((self._drawn() != self.picture).any(axis=2).sum())

    def _drawn(self) -> np.ndarray:
        shot = self.page.screenshot(animations="disabled", caret="hide")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
