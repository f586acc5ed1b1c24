"""The first screen of a machine without a model: what runs well here, one button each, progress in place."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

from tests.console.owner import as_owner

SPEED = {"low": 10.0, "mid": 20.0, "high": 40.0, "level": 0.8}


def starter(name: str, pace: str) -> dict[str, Any]:
    about = f"The maker of {name}: chat, English, Apache-2.0"
    sizes = {"bytes": 1_100_000_000, "disk": 2_200_000_000, "memory": 1_300_000_000}
    return {
        "name": name,
        "source": "hub",
        "held": False,
        "speed": SPEED,
        "pace": pace,
        "about": about,
        **sizes,
    }


@pytest.fixture
def first(serving, page) -> Any:
    """The page of a server without models; what runs here is made up, so that the machine decides nothing."""
    server = serving()
    body = {"schema": 1, "models": [starter("one:1b", "fast"), starter("two:3b", "readable")]}
    page.route("**/console/api/starters", lambda route: route.fulfill(json=body))
    page.server = server
    return page


@pytest.mark.heavy
def test_the_owner_sees_models_with_size_and_speed_and_a_button_each(first):
    as_owner(first.server, first)
    first.get_by_role("heading", name="Choose your first model").wait_for()
    rows = first.get_by_role("listitem").filter(has=first.get_by_role("button", name=re.compile("^Download")))
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("one:1b")
    for words in ("1.1", "GB download", "fast", "about 20", "The maker of one:1b: chat, English"):
        expect(rows.first).to_contain_text(words)


def test_a_visitor_sees_them_without_buttons_and_how_to_become_the_owner(first):
    first.goto(first.server.url)
    first.get_by_text("one:1b").first.wait_for()
    first.get_by_text("freehold open").wait_for()
    assert first.get_by_role("button", name=re.compile("^Download")).count() == 0


def test_a_download_shows_its_progress_in_place_and_ends_in_a_chat(first):
    as_owner(first.server, first)
    held = [False]

    def listed(route: Any) -> None:
        model = {"id": "one:1b", "object": "model", "freehold": {"loaded": False}}
        route.fulfill(json={"object": "list", "data": [model] if held[0] else []})

    first.route("**/v1/models", listed)
    waiting: list[Any] = []
    first.route("**/api/pull", lambda route: waiting.append(route))
    first.get_by_role("button", name="Download one:1b").click()
    first.get_by_role("progressbar", name="Downloading one:1b").wait_for()
    expect(first.get_by_role("button", name=re.compile("^Download"))).to_have_count(1)
    held[0] = True
    done = {"status": "pulling 1", "total": 10, "completed": 10}
    waiting[0].fulfill(body="\n".join(map(json.dumps, (done, {"status": "success"}))) + "\n")
    first.get_by_role("heading", name="What is on your mind?").wait_for()
    first.get_by_role("button", name="Model: one:1b").wait_for()
    expect(first.get_by_role("textbox", name="Message", exact=True)).to_be_focused()


@pytest.mark.heavy
def test_starters_of_a_real_server_are_those_of_the_command_line(serving, page):
    server = serving()
    as_owner(server, page)
    found = page.evaluate("fetch('/console/api/starters').then(r => r.json())")
    assert set(found) == {"schema", "models"} and len(found["models"]) <= 5
    for each in found["models"]:
        assert each["name"] and each["bytes"] > 0 and each["speed"]["mid"] > 0 and each["pace"]
