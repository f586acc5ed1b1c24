"""The page loads from the server itself, and every other client reads what it always did."""

from __future__ import annotations

import urllib.request


def test_page_opens_in_a_browser(serving, scripted, page):
    server = serving(str(scripted))
    page.goto(server.url)
    assert page.title().endswith("Freehold")
    page.get_by_role("link", name="Models").click()
    page.get_by_role("heading", name="Models").wait_for()


def test_programs_still_read_what_ollamas_clients_look_for(serving, scripted):
    with urllib.request.urlopen(serving(str(scripted)).url) as answer:
        assert answer.read() == b"Ollama is running"
