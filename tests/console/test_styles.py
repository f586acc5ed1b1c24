"""A page's styles hold on that page alone: by the sheets, and by what Chat looks like after every other page."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.console.talking import Talker
from tests.console.test_build import STATIC
from tests.console.walking import PAGES, Walker

PAGES_SOURCE = Path(__file__).parents[2] / "console" / "src" / "pages"
SHEETS = sorted(PAGES_SOURCE.glob("*/*.css"))
EDGE = 40  # pixels of 960,000: a rounded corner is not drawn with the same bits each time
WALKS = 3  # benches/console/walks.py takes 400


def outside(sheet: str, page: str) -> str:
    """Return what of a style sheet stands outside the one rule that holds on its page alone."""
    rest = re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL)
    scope = f":where(.page-{page}) {{"
    before, found, inside = rest.partition(scope)
    depth, at = 1, 0
    while found and depth and at < len(inside):
        depth += {"{": 1, "}": -1}.get(inside[at], 0)
        at += 1
    return (before + inside[at:]).strip()


@pytest.mark.parametrize("path", SHEETS, ids=lambda p: p.name)
def test_every_rule_of_a_page_is_scoped_to_that_page(path: Path):
    assert outside(path.read_text(), path.parent.name) == ""


def test_the_check_sees_a_rule_outside_the_scope():
    scoped = "/* x */ :where(.page-runs) { .log { color: red } @media print { .log { margin: 0 } } }"
    assert outside(scoped, "runs") == ""
    assert outside(scoped + " .log { color: red }", "runs") == ".log { color: red }"
    assert outside(".log { color: red }", "runs") and outside(scoped, "chat")


def test_built_sheets_of_pages_begin_every_selector_with_their_scope():
    for page in PAGES:
        (built,) = [p for p in STATIC.glob(f"assets/{page}-*.css")]
        rules = re.sub(r"@media[^{]*\{|@keyframes[^{]*\{(?:[^{}]*\{[^}]*\})*\s*\}", "", built.read_text())
        selectors = [each for rule in re.findall(r"([^{}]+)\{", rules) for each in _alternatives(rule)]
        assert selectors and all(each.startswith(f":where(.page-{page})") for each in selectors), (
            page,
            selectors,
        )


def _alternatives(selector: str) -> list[str]:
    """Split a selector at the commas that stand in no brackets."""
    return [each.strip() for each in re.split(r",(?![^([]*[)\]])", selector)]


def a_chat(url: str) -> str:
    """Make a chat with a question and its answer."""
    talker = Talker(url)
    chat = talker.chat("scripted")
    talker.follow(talker.run(chat, "a table")["run"])
    talker.http.close()
    return chat


@pytest.mark.heavy
def test_chat_looks_the_same_after_every_other_page(standing, page):
    walker = Walker(page, standing.url, a_chat(standing.url), random.Random(1))
    for name in PAGES:
        walker.visit(name)
        walker.visit("chat")
        assert not walker.changes(), name
        assert walker.moved() <= EDGE, name


_GROUNDS = """() => [document.querySelector(".bubble"), document.body].map(
    each => getComputedStyle(each).backgroundColor)"""


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme, least", [("light", 1.2), ("dark", 1.5)])
def test_the_user_s_messages_stand_out_from_the_ground(standing, page, scheme, least):
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{standing.url}/#/chat/{a_chat(standing.url)}")
    page.locator(".bubble").wait_for()
    low, high = sorted(luminance(each) for each in page.evaluate(_GROUNDS))
    assert (high + 0.05) / (low + 0.05) >= least


@pytest.mark.heavy
def test_chat_looks_the_same_after_random_walks(standing, page):
    walker = Walker(page, standing.url, a_chat(standing.url), random.Random(2))
    for _ in range(WALKS):
        names, changes = walker.walk()
        assert not changes, (names, changes)
