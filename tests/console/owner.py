"""The owner's session in a browser, by the one-time code that `freehold open` asks for.

Path: as_owner -> /console/owner
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from tests.console.conftest import Served

_LOG_IN = """async code => {
    const headers = {"content-type": "application/json"};
    const answer = await fetch("/console/owner", {method: "POST", headers, body: JSON.stringify({code})});
    return answer.status;
}"""


def one_time_code(server: Served) -> str:
    """Return what `freehold open` would put into its address."""
    token = (server.home / "owner.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(f"{server.url}/console/api/code", b"{}", headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["code"]


def as_owner(server: Served, page: Any) -> None:
    """Open the page with a session of the owner."""
    page.goto(server.url)
    assert page.evaluate(_LOG_IN, one_time_code(server)) == 200
    page.reload()
