"""A model that reads digits, through the page: pictures that no matrix was fitted to are dropped, sent and answered.

What it proves is the way of a picture, not how well published models see (tests/eyes/digits.py makes the tower).
Path: drop -> picture.ts -> POST .../pictures -> POST .../runs -> engine process -> the answer's text in the page
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

from tests.console.conftest import Served
from tests.console.test_pictures import _DROPPED, facts, send, shown
from tests.eyes import digits

pytestmark = pytest.mark.model
RIGHT = 0.95
GREEDY = "PARAMETER temperature 0\nPARAMETER num_predict 8\n"


@pytest.fixture(scope="module")
def server(model_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the model that reads digits, whose answers are short and always the same."""
    folder = tmp_path_factory.mktemp("digits")
    home = folder / "home"
    home.mkdir()
    model = digits.make_seeing(model_path("smollm2-135m"), folder)
    (folder / "Modelfile").write_text(f"FROM {model}\n{GREEDY}")
    served = Served(home, ("reader", "--context", "1024"))
    command = [sys.executable, "-m", "freehold.cli.main", "create", "reader", "-f", str(folder / "Modelfile")]
    subprocess.run(command, env={**os.environ, "FREEHOLD_HOME": str(home)}, check=True, capture_output=True)
    (home / "config.toml").write_text('adopt = false\nconsole.titles = false\nkeep_alive = "24h"\n')
    served.start()
    yield served
    served.stop(signal.SIGKILL)


def put_in(page: Any, file: bytes, how: str = "drop") -> None:
    page.evaluate(_DROPPED, [b64encode(file).decode(), ".conversation" if how == "drop" else "textarea", how])
    expect(facts(page)).to_have_count(1)


def numbers(page: Any) -> list[list[int]]:
    """Return the digits of every answer."""
    answers = page.locator("article:not(.user)").all()
    texts = [" ".join(answer.locator("p").all_inner_texts()) for answer in answers]
    return [[int(c) for c in text if c.isdigit()] for text in texts]


@pytest.mark.parametrize(
    "unseen", [pytest.param(20, marks=pytest.mark.heavy), pytest.param(200, marks=pytest.mark.big)]
)
def test_the_page_reads_digits(server: Served, page: Any, unseen: int):
    images, drawn = digits.pictures(3, unseen)
    right = 0
    for image, digit in zip(images, drawn.tolist(), strict=True):
        page.goto(f"{server.url}/#/chat?model=reader")
        page.reload()
        page.get_by_role("button", name="Model: reader").wait_for()
        put_in(page, digits.png(image))
        send(page, digits.QUESTION)
        assert shown(page) == [[digits.SIDE, digits.SIDE]]
        right += numbers(page) == [[digit]]
    assert right >= RIGHT * unseen


@pytest.mark.heavy
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1280, 800), (390, 780)])
def test_two_turns_with_pictures_fit_wide_and_narrow_and_are_there_after_a_reload(
    server: Served, page: Any, width: int, height: int, theme: str
):
    images, drawn = digits.pictures(4, 12)
    first, second = (
        digits.png(images[0]),
        digits.png(images[next(i for i in range(12) if drawn[i] != drawn[0])]),
    )
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=theme)
    page.goto(f"{server.url}/#/chat?model=reader")
    page.reload()
    page.get_by_role("button", name="Model: reader").wait_for()
    for how, file in (("drop", first), ("paste", second)):
        put_in(page, file, how)
        expect(facts(page).first).to_contain_text("2 tokens")  # its row, and the end of its line
        shot(page, f"{width}-{theme}-{how}")
        assert fits(page)
        send(page, digits.QUESTION)
    shot(page, f"{width}-{theme}-answered")
    answers = numbers(page)
    assert answers[0] == [drawn[0]] and fits(page)
    page.reload()
    expect(page.locator("article:not(.user):not([aria-busy])")).to_have_count(2)
    assert shown(page) == [[digits.SIDE, digits.SIDE]] * 2 and numbers(page) == answers and fits(page)
    page.get_by_role("button", name="Show the picture").first.click()
    expect(page.get_by_role("dialog", name="Picture 1").get_by_role("img")).to_be_visible()
    shot(page, f"{width}-{theme}-dialog")
    assert fits(page)


def fits(page: Any) -> bool:
    """Return whether nothing is wider than the window."""
    return page.evaluate("() => document.scrollingElement.scrollWidth <= innerWidth")


def shot(page: Any, name: str) -> None:
    """Keep a picture of the page where FREEHOLD_SHOTS names a folder, for eyes that are no test's."""
    if folder := os.environ.get("FREEHOLD_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
