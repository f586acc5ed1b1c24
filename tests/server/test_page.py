"""The page at `/`: for browsers, whole in itself, escaped, and silent about models outside the caller's scope."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

import freehold
from freehold.server.core.keys import Ring
from tests.server.test_door import bearer, key

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Page(HTMLParser):
    """Tags and attributes of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def get(server, **headers: str):
    answer = server.client.get("/", headers={**BROWSER, **headers})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    return answer


def test_browser_finds_what_this_is_and_how_to_use_it(serving):
    server = serving()
    server.client.post(
        "/v1/chat/completions", json={"model": "fake:1b", "messages": [{"role": "user", "content": "a"}]}
    )
    text = get(server).text
    for part in (freehold.__version__, "fake:1b", "in memory, 4,096 tokens", "org/fake:2b", "on disk"):
        assert part in text
    for url in (f"{server.url}/v1", "/openapi.json", "/metrics", "/health", "OLLAMA_HOST", "Anthropic"):
        assert url in text
    links = [attrs["href"] for tag, attrs in Page(text).tags if tag == "a"]
    assert links and all(server.client.get(link).status_code == 200 for link in links if link)


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/plain"])
def test_others_find_what_ollamas_clients_look_for(serving, accept):
    headers = {"Accept": accept} if accept else {}
    answer = serving().client.get("/", headers=headers)
    assert answer.text == "Ollama is running" and answer.headers["content-type"].startswith("text/plain")


def test_page_is_whole_in_itself_and_its_policy_lets_in_nothing_else(serving):
    answer = get(serving())
    tags = Page(answer.text).tags
    assert not {"script", "link", "img", "iframe", "form"} & {tag for tag, _ in tags}
    assert not [a for _, attrs in tags for a in attrs if a.startswith("on") or a in ("src", "style")]
    assert all(str(a["href"]).startswith("/") for tag, a in tags if tag == "a")
    policy = answer.headers["content-security-policy"]
    style = re.search("<style>(.*?)</style>", answer.text, re.S)
    assert style is not None and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_strangers_are_shown_no_models(serving):
    server = serving(keys=Ring([key("ann", models=("fake:*",))]))
    stranger = get(server).text
    assert "fake" not in stranger and "Each request needs a key" in stranger and "Bearer KEY" in stranger
    ann = get(server, **bearer("ann")).text
    assert "fake:1b" in ann and "org/fake" not in ann
    assert "fake" not in get(server, Authorization="Bearer wrong-0123456789").text


def test_rebound_name_is_shown_no_models_and_breaks_nothing(serving):
    server = serving()
    rebound = get(server, Host='evil.example"><script>alert(1)</script>').text
    assert "fake" not in rebound and "<script>" not in rebound
