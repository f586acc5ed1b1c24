"""Each page shows the data of a real server: models, their actions, the engine, comparisons. No answer is made up.

Path: `freehold serve` with a scripted model -> page -> what a person reads
"""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from typing import Any

import pytest

from tests.console.conftest import Served
from tests.console.owner import as_owner
from tests.console.talking import Talker

_MAKE_KEY = """async () => {
    const headers = {"content-type": "application/json"};
    const body = JSON.stringify({name: "ann"});
    return (await fetch("/console/api/keys", {method: "POST", headers, body})).status;
}"""


def asked(server: Served, path: str) -> Any:
    """Return what the server answers to a program."""
    with urllib.request.urlopen(server.url + path) as answer:
        return json.load(answer)


def row(page: Any, name: str) -> Any:
    """Return the table's row of a model."""
    return page.locator("table.table tbody tr").filter(has=page.get_by_role("link", name=name, exact=True))


def test_models_that_are_here_are_listed_with_what_the_server_says_of_them(standing, page):
    page.goto(standing.url + "/#/models?tab=here")
    held = [each for each in asked(standing, "/console/api/models?held=1")["models"] if each["held"]]
    for each in held:
        shown = row(page, each["name"])
        shown.wait_for()
        assert ("loaded" in shown.inner_text()) == each["loaded"]


def test_a_model_served_by_its_path_is_chatted_with_from_models(standing, page):
    page.goto(standing.url + "/#/models?tab=here")
    shown = row(page, "scripted")
    shown.get_by_role("button", name="Chat with scripted").click()
    page.get_by_role("button", name="Model: scripted").wait_for()


def test_models_and_engine_say_the_same_of_a_model_s_memory(standing, page):
    (needs,) = [
        e["needs"] for e in asked(standing, "/console/api/models?held=1")["models"] if e["name"] == "scripted"
    ]
    page.goto(standing.url + "/#/models?tab=here")
    row(page, "scripted").get_by_title(needs, exact=True).wait_for()
    page.goto(standing.url + "/#/engine")
    page.get_by_text("Details", exact=True).first.click()
    page.get_by_text(needs, exact=True).wait_for()
    page.get_by_text("reserved for weights and the caches of all streams").wait_for()


def test_a_visitor_is_offered_no_pull_and_is_told_how_to_become_the_owner(standing, page):
    page.goto(standing.url + "/#/models?tab=catalogue")
    page.get_by_text("freehold open").wait_for()
    page.locator("table.table tbody tr").first.wait_for()
    assert page.get_by_role("button", name="Download").count() == 0


def test_catalogue_begins_with_what_fits_and_sorts_all_of_it_not_only_what_is_drawn(standing, page):
    page.goto(standing.url + "/#/models?tab=catalogue")
    rows = page.locator("table.table tbody tr")
    rows.first.wait_for()
    everything = [each for each in asked(standing, "/console/api/models")["models"] if not each["held"]]
    assert not [each["name"] for each in everything if not each["bytes"]], "a size is always shown"
    assert "too large" not in rows.first.inner_text()
    first = page.locator(".model-name a").first
    chosen = next(e for e in everything if e["name"] == first.inner_text())
    assert chosen["fits"] and chosen["runs"] and chosen["role"] == "generator" and chosen["pull"]
    page.get_by_role("button", name="Model", exact=True).click()
    page.get_by_role("button", name="Model", exact=True).click()
    last = page.evaluate(
        "names => names.sort((a, b) => b.localeCompare(a))[0]", [e["name"] for e in everything]
    )
    page.locator(".model-name").first.get_by_role("link", name=last, exact=True).wait_for()


def test_models_page_opened_again_shows_what_it_showed_at_once(standing, page):
    page.goto(standing.url + "/#/models?tab=here")
    rows = page.locator("table.table tbody tr")
    rows.first.wait_for()
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("heading", name="Compare", level=1).wait_for()
    page.route("**/console/api/models*", lambda _: None)  # no answer comes
    page.get_by_role("link", name="Models").click()
    rows.first.wait_for()


def test_search_and_filters_leave_only_what_matches(standing, page):
    as_owner(standing, page)
    page.goto(standing.url + "/#/models?tab=catalogue")
    rows = page.locator("table.table tbody tr")
    rows.first.wait_for()
    page.get_by_role("searchbox", name="Search models").fill("smollm2 135m")
    everything = asked(standing, "/console/api/models")["models"]
    matching = [each for each in everything if not each["held"] and {"smollm2", "135m"} <= set(_words(each))]
    assert matching
    for each in matching:
        row(page, each["name"]).wait_for()
    page.get_by_label("Fits here").check()
    page.get_by_role("searchbox", name="Search models").fill("")
    page.get_by_role("combobox", name="Kind of model").select_option("embedder")
    names = page.locator(".model-name a")
    expected = [
        each["name"]
        for each in everything
        if each["role"] == "embedder" and each["fits"] and each["runs"] and not each["held"]
    ]
    assert sorted(names.all_inner_texts()) == sorted(expected)


def _words(each: dict[str, Any]) -> list[str]:
    text = f"{each['name']} {each['id']} {each['family']}".lower()
    return [word for word in ("smollm2", "135m") if word in text]


@pytest.mark.heavy
def test_a_model_of_the_catalogue_opens_with_its_facts_and_their_sources(standing, page):
    name = "smollm2:135m"
    page.goto(standing.url + f"/#/models/{name.replace(':', '%3A')}?tab=catalogue")
    dialog = page.get_by_role("dialog", name=name)
    dialog.wait_for()
    dialog.get_by_text("Not known", exact=True).click()
    why = asked(standing, f"/console/api/choose?verb=why&model={name}")
    text = dialog.inner_text()
    assert why["model"]["catalogue"]["lab"] in text
    folded = ["int8 GOPS", why["quality"][0]["benchmark"], why["licence"]["reasons"][0]["says"]]
    assert not [each for each in folded if each in text]
    closed = dialog.locator("details:not([open]) > summary")
    while closed.count():
        closed.first.click()
    whole = " ".join(dialog.inner_text().split())
    assert not [each for each in folded if " ".join(each.split()) not in whole]
    assert all(each in text for each in why["unknown"])
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_a_pull_of_an_unknown_name_says_what_the_server_said(standing, page):
    as_owner(standing, page)
    page.goto(standing.url + "/#/models?tab=catalogue")
    page.get_by_role("searchbox", name="Search models").fill("Yi-6B")
    shown = row(page, "01-ai/Yi-6B-Chat")
    shown.wait_for()
    page.route(
        "**/api/pull",
        lambda route: route.fulfill(
            status=200, body='{"status":"pulling manifest"}\n{"error":"no source has it"}\n'
        ),
    )
    shown.get_by_role("button", name="Download").click()
    page.get_by_role("status").get_by_text("no source has it").wait_for()


def test_unknown_page_is_the_chat_and_an_unknown_model_opens_nothing(standing, page):
    page.goto(standing.url + "/#/models/none%20such?tab=here")
    page.get_by_role("heading", name="Models", level=1).wait_for()
    assert page.get_by_role("dialog").count() == 0


def test_deployments_are_the_owners(standing, page):
    page.goto(standing.url + "/#/deployments")
    page.get_by_text("freehold open").wait_for()
    as_owner(standing, page)
    page.goto(standing.url + "/#/deployments")
    page.reload()
    page.get_by_role("heading", name="Nothing is deployed").wait_for()


@pytest.mark.heavy
def test_engine_page_shows_the_model_in_memory_and_says_when_the_server_is_gone(serving, scripted, page):
    server = serving(str(scripted))
    page.goto(server.url + "/#/engine")
    card = page.get_by_role("region", name="scripted")
    card.get_by_text("To the first token").wait_for()
    card.get_by_text("threads").wait_for()
    page.get_by_text("Live", exact=True).wait_for()
    server.stop(signal.SIGKILL)
    page.get_by_text("No connection, trying again").wait_for()
    server.again()
    page.get_by_text("Live", exact=True).wait_for()
    page.errors.clear()  # the browser's own words about a server that is away


@pytest.mark.heavy
def test_usage_and_runs_of_a_new_server_say_what_would_fill_them(serving, page):
    server = serving()
    page.goto(server.url + "/#/usage")
    page.get_by_role("heading", name="Nothing was answered yet").wait_for()
    page.goto(server.url + "/#/runs")
    page.get_by_role("heading", name="No run is known here").wait_for()


@pytest.mark.heavy
def test_usage_shows_how_far_routes_are_from_rented_to_owned(serving, page):
    """The server's facts are tests/http/test_console_usage.py's."""
    server = serving()
    base = {
        "student": "house",
        "teacher": "big",
        "running": False,
        "texts": 120,
        "at": 300,
        "bar": 0.8,
        "low": None,
    }
    rows = [
        {**base, "route": "one", "stage": "rented", "message": "<b>no terms</b>"},
        {**base, "route": "two", "stage": "teaching", "running": True, "message": ""},
        {**base, "route": "three", "stage": "measured", "low": 0.9, "message": "house reaches 0.95; move?"},
    ]
    facts = {"days": 30, "savings": None, "savings_error": None, "own_models": rows}
    body = json.dumps({**facts, "ledger": None, "chats": None, "accounts": None})
    page.route(
        "**/console/api/usage*", lambda route: route.fulfill(content_type="application/json", body=body)
    )
    page.goto(server.url + "/#/usage")
    paths = page.locator(".own")
    paths.first.wait_for()
    assert [paths.nth(i).locator("[aria-current=step]").inner_text() for i in range(3)] == [
        *("Rented", "Teaching", "Measured"),
    ]
    texts = paths.all_inner_texts()
    assert "120 of 300 texts are kept. <b>no terms</b>" in texts[0] and "is being taught" in texts[1]
    assert "freehold graduate three --move" in texts[2]


@pytest.mark.heavy
@pytest.mark.parametrize("sound_ms", [0, 754_000])
def test_usage_has_the_length_of_recordings_where_there_were_any(serving, page, sound_ms):
    server = serving()
    numbers = (
        "nano",
        "estimated",
        "prompt",
        "cached",
        "written",
        "completion",
        "thought",
        "first_s",
        "whole_s",
    )
    row = {**dict.fromkeys(numbers, 0), "rows": 3, "whole": 3, "sound_ms": sound_ms}
    ledger = {
        "since": 0,
        "until": 1,
        "total": row,
        "by_model": [{**row, "model": "ears"}],
        "by_key": [],
        "by_day": [],
    }
    facts = {
        "days": 30,
        "savings": None,
        "savings_error": None,
        "own_models": [],
        "chats": None,
        "accounts": None,
    }
    body = json.dumps({**facts, "ledger": ledger})
    page.route(
        "**/console/api/usage*", lambda route: route.fulfill(content_type="application/json", body=body)
    )
    page.goto(server.url + "/#/usage")
    page.get_by_role("heading", name="By model").wait_for()
    shown = page.locator("main").inner_text()
    assert shown.count("Transcribed") == (2 if sound_ms else 0), "a tile and a column"
    assert shown.count("12\u202fmin 34\u202fs") == (2 if sound_ms else 0), shown


@pytest.mark.heavy
def test_a_page_is_in_the_navigation_once_there_is_something_in_it(serving, scripted, page):
    server = serving(str(scripted))
    page.goto(server.url)
    pages = page.get_by_role("navigation", name="Freehold")
    pages.get_by_role("link", name="Engine").wait_for()
    for name in ("Usage", "Runs", "Deployments", "Keys"):
        assert pages.get_by_role("link", name=name).count() == 0
    page.get_by_role("textbox", name="Message", exact=True).fill("hello")
    page.keyboard.press("Enter")
    pages.get_by_role("link", name="Usage").click()
    tiles = page.locator(".tiles")
    tiles.get_by_text("Answer tokens").wait_for()
    receipt = newest_receipt(server)
    assert f"{receipt['tokens']['answer']:,}" in tiles.inner_text()
    assert re.search(r"Time\s+[\d.]+\s(ms|s)\b", tiles.inner_text())
    page.get_by_role("table", name="By model").get_by_text("scripted").wait_for()


@pytest.mark.heavy
def test_runs_deployments_and_keys_are_in_the_navigation_once_there_are_some(serving, page):
    server = serving()
    as_owner(server, page)
    pages = page.get_by_role("navigation", name="Freehold")
    pages.get_by_role("link", name="Engine").wait_for()
    names = ("Runs", "Deployments", "Keys")
    assert not any(pages.get_by_role("link", name=name).count() for name in names)
    (server.home / "deployments").mkdir()
    (server.home / "deployments" / "one.toml").write_text("")
    (server.home / "trainings.jsonl").write_text("")
    assert page.evaluate(_MAKE_KEY) == 201
    page.reload()
    for name in names:
        pages.get_by_role("link", name=name).wait_for()


def newest_receipt(server: Any) -> dict[str, Any]:
    chats = asked(server, "/console/api/chats")["chats"]
    return asked(server, f"/console/api/chats/{chats[0]['id']}")["messages"][-1]["receipt"]


def test_a_model_that_is_too_slow_is_not_green_and_comes_after_those_that_can_be_read(standing, page):
    everything = asked(standing, "/console/api/models")
    one = next(e for e in everything["models"] if e["fits"] and not e["held"] and e["role"] == "generator")

    def model(name: str, speed: float, pace: str, quality: float) -> dict[str, Any]:
        arena = {"benchmark": "arena", "basis": "published", "evidence": "", "tasks": ["chat"]}
        scores = [{**arena, "low": quality, "mid": quality, "high": quality}]
        decode = {"low": speed / 2, "mid": speed, "high": speed * 2}
        about = {"name": name, "decode": decode, "pace": pace, "quality": scores, "bytes_known": False}
        return {**one, **about, "runs": True, "pull": name, "bytes": 2_500_000_000}

    rows = [
        model("giant:27b", 0.4, "unusable", 90),
        model("tiny:1b", 80, "fast", 20),
        model("middle:4b", 8, "readable", 50),
        model("large:9b", 3, "slow", 70),
    ]
    body = json.dumps({**everything, "models": rows})
    page.route(
        "**/console/api/models*", lambda route: route.fulfill(body=body, content_type="application/json")
    )
    page.goto(standing.url + "/#/models?tab=catalogue")
    page.locator("table.table tbody tr").nth(3).wait_for()
    names = page.locator(".model-name a").all_inner_texts()
    assert names == ["middle:4b", "tiny:1b", "large:9b", "giant:27b"]
    giant = row(page, "giant:27b")
    badge = giant.locator(".badge.bad")
    assert badge.inner_text() == "unusable" and giant.locator(".badge.good").count() == 0
    for name, pace, tone in (
        ("tiny:1b", "fast", "good"),
        ("middle:4b", "readable", "good"),
        ("large:9b", "slow", "warn"),
        ("giant:27b", "unusable", "bad"),
    ):
        assert row(page, name).get_by_text(pace, exact=True).get_attribute("class") == f"badge {tone}"
    text = giant.inner_text()
    assert "≈ 2.5" in text and "0.4" in text and "arena" not in text and "0.2" not in text


@pytest.mark.heavy
def test_no_program_s_word_stands_on_a_screen_of_a_person_at_home(serving, scripted, page):
    server = serving(str(scripted))
    as_owner(server, page)
    words = ("/metrics", "config.toml", "curl", "GOPS", "p99", "_verified", "the model's own", "API", "JSON")
    words = (
        *words,
        "top_p",
        "max_tokens",
        "_penalty",
        "prefill",
        "preempt",
        "ledger",
        "gateway",
        "endpoint",
        "SSE",
    )
    for name in ("chat", "compare", "models", "engine", "usage", "settings"):
        page.goto(f"{server.url}/#/{name}")
        page.locator(f"main.page-{name} h1, main.page-{name} h2").first.wait_for()
        if name == "chat":
            page.get_by_role("button", name="Chat settings").click()
            page.get_by_role("textbox", name="Message", exact=True).fill("hello")
            page.keyboard.press("Enter")
            page.locator(".pace").wait_for()
            page.get_by_role("button", name="Receipt", exact=True).click()
            page.get_by_role("button", name="Same bits again").wait_for()
        text = page.locator("main").inner_text()
        assert not [word for word in words if word in text], name


def test_one_model_with_itself_and_one_seed_is_equal(standing, page):
    page.goto(standing.url + "/#/compare")
    page.get_by_role("textbox", name="Message").fill("the table, please")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Equal: all").wait_for()
    assert page.get_by_role("article", name="scripted").count() == 2
    page.reload()
    page.get_by_text("Equal: all").wait_for()
    assert page.get_by_role("article", name="scripted").get_by_role("table").count() == 2


def test_a_model_that_is_refused_leaves_the_others_and_a_lost_server_is_said(standing, page):
    page.goto(standing.url + "/#/compare")
    page.get_by_role("textbox", name="Message").fill("something long")
    asked = []

    def refuse_the_second(route: Any) -> None:
        asked.append(route)
        if len(asked) == 2:
            return route.fulfill(status=429, json={"error": {"message": "too many answers are being made"}})
        return route.continue_()

    page.route("**/console/api/chats/*/runs", refuse_the_second)
    page.route("**/events?*", lambda route: route.abort())
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("too many answers are being made").wait_for()
    page.get_by_text("The server does not answer.").wait_for()
    page.unroute("**/events?*")
    page.get_by_text("Line 399 of").wait_for()
    page.get_by_text("The server does not answer.").wait_for(state="detached")
    assert page.get_by_role("article").count() == 1
    page.errors.clear()


def test_chat_that_is_deleted_elsewhere_leaves_the_list(standing, page):
    talker = Talker(standing.url)
    gone, stays = (talker.json("POST", "chats", {"title": title}, 201)["id"] for title in ("Gone", "Stays"))
    page.goto(standing.url)
    chats = page.get_by_role("navigation", name="Chats")
    chats.get_by_role("link", name="Gone").wait_for()
    talker.json("DELETE", f"chats/{gone}")
    chats.get_by_role("link", name="Gone").wait_for(state="detached")
    assert chats.get_by_role("link", name="Stays").count() == 1
    talker.json("DELETE", f"chats/{stays}")
    talker.http.close()
