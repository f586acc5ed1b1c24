"""Every page by axe, the keyboard alone, zoom, forced colours and less motion, in both schemes and both widths.

axe-core comes with the page's sources (`npm ci` in console/) and is left out where they are not installed. It is run
by the browser's own debugger, as the page's policy lets no other script in.
Path: PAGES -> browser -> axe.run
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import Served
from tests.console.owner import as_owner

AXE = Path(__file__).parents[2] / "console/node_modules/axe-core/axe.min.js"
PAGES = (
    "chat",
    "compare",
    "models",
    "models?tab=catalogue",
    "engine",
    "usage",
    "runs",
    "deployments",
    "keys",
    "settings",
)
_FOUND = """async () => {
    const found = await axe.run(document, {resultTypes: ["violations"]});
    return found.violations.filter(v => v.impact === "serious" || v.impact === "critical")
        .flatMap(v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 200)}`));
}"""
_WIDER = """() => ["documentElement", "main"].map(name => {
    const box = name === "main" ? document.querySelector("main") : document.documentElement;
    return box.scrollWidth - box.clientWidth;
})"""


@contextmanager
def window(browser: Any, server: Served, **options: Any) -> Iterator[Any]:
    """Open the page as the owner in a window of its own."""
    context = browser.new_context(**options)
    page = context.new_page()
    as_owner(server, page)
    page.locator("nav.pages").wait_for()
    yield page
    context.close()


def settle(page: Any, name: str) -> None:
    """Go to a page and wait until it shows something."""
    page.evaluate("name => { location.hash = '#/' + name }", name)
    page.locator("main h1, main h2, main [role=log]").first.wait_for()
    page.locator(".waiting").wait_for(state="detached")


def inject(page: Any) -> None:
    """Define axe in the page: an expression of the debugger is outside the page's policy."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm ci in console/")
    said = page.context.new_cdp_session(page).send(
        "Runtime.evaluate", {"expression": AXE.read_text(), "allowUnsafeEvalBlockedByCSP": True}
    )
    assert "exceptionDetails" not in said, said


def troubles(page: Any, names: tuple[str, ...]) -> list[str]:
    found = []
    for name in names:
        settle(page, name)
        found += [f"{name}: {trouble}" for trouble in page.evaluate(_FOUND)]
    return found


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_first_pages(standing, chromium, scheme):
    with window(chromium, standing, color_scheme=scheme, viewport={"width": 1200, "height": 800}) as page:
        inject(page)
        assert not troubles(page, ("models", "engine"))


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_page(standing, chromium, scheme, width):
    with window(chromium, standing, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        inject(page)
        assert not troubles(page, PAGES)


@pytest.mark.heavy
@pytest.mark.long
def test_nothing_is_wider_than_a_narrow_window(standing, chromium):
    """At 200 % a window of 1,200 pixels has 600; 320 is what WCAG asks for."""
    for width, height in ((600, 400), (390, 800), (320, 640)):
        with window(chromium, standing, viewport={"width": width, "height": height}) as page:
            for name in PAGES:
                settle(page, name)
                assert page.evaluate(_WIDER) == [0, 0], (name, width)


def test_a_page_is_reached_by_keyboard_and_its_heading_has_the_focus(standing, page):
    page.goto(standing.url)
    page.locator("nav.pages").wait_for()
    page.get_by_role("link", name="Models").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Models", level=1).wait_for()
    page.locator("h1:focus").wait_for()
    assert page.title() == "Models · Freehold"


def test_skip_link_leads_past_the_navigation(standing, page):
    page.goto(standing.url + "/#/settings")
    page.get_by_role("heading", name="Settings", level=1).wait_for()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.evaluate("location.hash") == "#/settings"


def test_forced_colours_still_show_which_page_is_open(standing, chromium):
    with window(chromium, standing, forced_colors="active") as page:
        settle(page, "models")
        line = page.locator("nav.pages a[aria-current]").evaluate(
            "a => getComputedStyle(a).textDecorationLine"
        )
        assert line == "underline"


def test_less_motion_means_no_animation(standing, chromium):
    moving = "() => document.getAnimations().filter(a => a.effect.getTiming().duration > 50).length"
    with window(chromium, standing, reduced_motion="reduce") as page:
        for name in ("chat", "models", "engine"):
            page.evaluate("name => { location.hash = '#/' + name }", name)
            assert page.evaluate(moving) == 0


def test_menu_dialog_and_tabs_work_by_keyboard(standing, chromium):
    with window(chromium, standing, viewport={"width": 390, "height": 800}) as page:
        settle(page, "models")
        more = page.get_by_role("button", name="More", exact=True)
        more.focus()
        page.keyboard.press("ArrowDown")
        page.locator("[role=menuitem]:focus", has_text="Settings").wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Escape")
        page.get_by_role("menu", name="More pages").wait_for(state="hidden")
        assert more.evaluate("e => e === document.activeElement")
