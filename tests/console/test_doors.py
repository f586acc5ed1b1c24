"""Logging in and out in a browser: what is read out, what is kept, and that no script ever sees a key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KEPT = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href, history.length])"


def freehold(home: Path, *args: str) -> str:
    command = [sys.executable, "-c", "from freehold.cli.main import main; main()", *args]
    env = {**os.environ, "FREEHOLD_HOME": str(home)}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


@pytest.fixture
def keyed(serving, scripted, tmp_path, page):
    """A server with the keys of ann and of an admin: (server, ann's key, the admin's)."""
    home = tmp_path / "home"
    home.mkdir()
    keys = [freehold(home, "keys", "add", "ann"), freehold(home, "keys", "add", "root", "--admin")]
    yield serving(str(scripted), home=home), *keys
    # A browser reports each refusal by itself, whenever it comes to it.
    page.errors[:] = [said for said in page.errors if "401" not in said]


def log_in(page: Any, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Log in").click()


def ended(page: Any, url: str) -> None:
    """End the session behind the page's back, as a revoked key or twelve hours would."""
    answer = page.context.request.post(f"{url}/console/logout", data={}, headers={"Origin": url})
    assert answer.ok
    page.errors.clear()


@pytest.mark.heavy
def test_key_opens_the_page_and_no_script_sees_it(keyed, page):
    server, ann, _ = keyed
    page.goto(server.url)
    form = page.locator("form")
    form.locator("input[autocomplete=current-password]").wait_for()
    log_in(page, "fh-wrong-0123456789")
    page.get_by_role("alert").filter(has_text="not a key of this server").wait_for()
    assert page.get_by_label("Key", exact=True).evaluate("node => node === document.activeElement")
    page.errors.clear()  # the browser reports a 401 by itself
    log_in(page, ann)
    page.get_by_label("Message", exact=True).wait_for()
    page.get_by_role("link", name="Settings").click()
    page.get_by_text("Logged in with the key ann").wait_for()
    assert ann not in page.evaluate(KEPT) and "freehold-" not in page.evaluate("document.cookie")
    assert ann not in page.content()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Key", exact=True).wait_for()
    page.reload()
    page.get_by_label("Key", exact=True).wait_for()


@pytest.mark.heavy
def test_no_key_is_sent_from_an_address_without_encryption(keyed, page):
    """No session would count there: a browser says which page asks to encrypted addresses and to this machine alone."""
    server, ann, _ = keyed
    page.add_init_script("Object.defineProperty(window, 'isSecureContext', { get: () => false })")
    page.goto(server.url)
    page.get_by_text("no key is sent from here").wait_for()
    page.get_by_label("Key", exact=True).fill(ann)
    page.get_by_label("Key", exact=True).press("Enter")
    assert page.get_by_role("button", name="Log in").is_disabled()
    page.wait_for_timeout(200)
    assert not [url for url in page.asked if url.endswith("/console/login")]


@pytest.mark.parametrize("id", ["..%2F..%2F..%2Fv1%2Fmodels%3F", "..", "%2E%2E%2Fkeys%3F", "a%2Fb"])
@pytest.mark.parametrize("where", ["chat", "compare"])
def test_an_address_that_names_no_chat_leads_to_no_other_route(standing, page, where, id):
    page.goto(f"{standing.url}/#/{where}/{id}")
    page.locator("main h1").wait_for()
    page.wait_for_timeout(100)
    assert not [url for url in page.asked if "last=" in url]


@pytest.mark.heavy
def test_session_that_ends_keeps_the_draft_and_what_was_under_way(keyed, page):
    server, ann, _ = keyed
    page.goto(server.url)
    log_in(page, ann)
    message = page.get_by_label("Message", exact=True)
    page.get_by_role("button", name="scripted").first.wait_for()  # the model was chosen
    message.fill("hello from before")
    ended(page, server.url)
    page.get_by_role("button", name="Send").click()
    dialog = page.get_by_role("dialog", name="Your session has ended")
    dialog.wait_for()
    page.errors.clear()
    dialog.get_by_label("Key", exact=True).fill(ann)
    dialog.get_by_role("button", name="Log in").click()
    dialog.wait_for(state="detached")
    page.wait_for_url("**/#/chat/*")  # the chat that was asked for before is begun, once
    page.get_by_text("What shall I say?").first.wait_for()
    assert page.get_by_role("log").get_by_text("hello from before").count() == 1
    found = page.context.request.get(
        f"{server.url}/console/api/chats", headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert len(found.json()["chats"]) == 1


@pytest.mark.heavy
def test_draft_outlives_a_session_and_a_reload(keyed, page):
    server, ann, _ = keyed
    page.goto(server.url)
    log_in(page, ann)
    page.get_by_label("Message", exact=True).fill("half a thought")
    ended(page, server.url)
    page.reload()
    log_in(page, ann)
    page.get_by_label("Message", exact=True).wait_for()
    assert page.get_by_label("Message", exact=True).input_value() == "half a thought"


@pytest.mark.heavy
def test_code_in_the_address_makes_the_owner_and_is_forgotten(serving, scripted, page, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    server = serving(str(scripted), home=home)
    page.goto(server.url)
    page.get_by_label("Message", exact=True).wait_for()
    assert page.get_by_role("link", name="Keys", exact=True).count() == 0
    address = freehold(home, "open", "--print")
    page.goto("about:blank")
    page.goto(address)
    page.get_by_role("link", name="Settings", exact=True).click()
    page.get_by_role("link", name="Keys", exact=True).click()
    assert address.rpartition("/")[2] not in page.evaluate(KEPT)
    page.go_back()
    assert address.rpartition("/")[2] not in page.url
    page.goto("about:blank")
    page.goto(address)  # used, by this browser, which is the owner's: it says nothing
    page.get_by_role("link", name="Settings", exact=True).click()
    page.get_by_text("Logged in as the owner.").wait_for()
    page.errors.clear()
    page.context.clear_cookies()
    page.goto("about:blank")
    page.goto(address)  # used, by another one
    page.get_by_text("freehold open makes another").wait_for()
    page.errors.clear()


@pytest.mark.heavy
def test_owner_makes_and_revokes_keys(serving, scripted, page, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    server = serving(str(scripted), home=home)
    page.goto(freehold(home, "open", "--print"))
    page.get_by_role("link", name="Settings", exact=True).click()
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_text("No key yet").wait_for()
    page.get_by_role("button", name="Make a key").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("every program and browser has to bring one").wait_for()
    dialog.get_by_label("Name").fill("ann")
    dialog.get_by_label("Tokens a day").fill("lots")
    dialog.get_by_role("button", name="Make a key").click()
    dialog.get_by_role("alert").filter(has_text="not a valid quota").wait_for()
    page.errors.clear()
    dialog.get_by_label("Tokens a day").fill("1M/day")
    dialog.get_by_role("button", name="Make a key").click()
    dialog = page.get_by_role("dialog", name="The key of ann")
    secret = dialog.locator("code").inner_text()
    assert secret.startswith("fh-")
    dialog.get_by_role("button", name="Done").click()
    page.get_by_role("cell", name="1M/day").wait_for()
    assert secret not in page.content() + page.evaluate(KEPT)
    asked = page.context.request.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert asked.ok
    page.get_by_role("button", name="Revoke ann").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke", exact=True).click()
    page.get_by_text("ann was revoked").wait_for()
    asked = page.context.request.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert asked.status == 401


@pytest.mark.heavy
def test_settings_are_kept_in_this_browser_until_it_forgets_them(serving, scripted, page):
    page.goto(f"{serving(str(scripted)).url}/#/settings")
    page.get_by_label("Dark").check()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.get_by_label("Ctrl Enter").check()
    page.get_by_label("System prompt").fill("Be brief.")
    page.reload()
    assert page.get_by_label("Ctrl Enter").is_checked() and page.get_by_label("Dark").is_checked()
    assert page.get_by_label("System prompt").input_value() == "Be brief."
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Licences").click()
    assert "preact 1" in opened.value.locator("body").inner_text()
    opened.value.close()
    page.get_by_role("button", name="Forget them").click()
    page.get_by_role("dialog").get_by_role("button", name="Forget them").click()
    page.get_by_text("This browser keeps nothing more").wait_for()
    assert page.evaluate("Object.keys(localStorage).filter(name => name !== 'freehold.theme').length") == 0


@pytest.mark.heavy
def test_an_admin_key_which_cannot_chat_is_shown_no_chat(keyed, page):
    server, _, admin = keyed
    page.goto(server.url)
    log_in(page, admin)
    page.get_by_role("heading", name="Models", level=1).wait_for()
    pages = page.get_by_role("navigation", name="Freehold")
    pages.get_by_role("link", name="Keys").wait_for()
    assert (
        not pages.get_by_role("link", name="Chat").count()
        and not pages.get_by_role("link", name="Compare").count()
    )
