"""Keys of clients and the owner's token are shown nowhere, at debug level too, by sound requests and by broken ones."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx2
import pytest

from freehold.base.errors import EngineLost
from freehold.route.providers.contract import Provider, Secret
from freehold.serve.http.core.keys import Ring, key_of
from tests.http.conftest import TOKEN
from tests.http.fakes import Script
from tests.http.test_errors import ROUTES

CLIENT = "fh-client-0123456789abcdef0123456789"
WRONG = "fh-wrong-0123456789abcdef0123456789"
CHAT = {"model": "fake:1b", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "script", [Script(), Script(fail=RuntimeError("no"), fail_at=0), Script(fail=EngineLost("died"))]
)
def test_no_answer_no_log_line_and_no_file_shows_a_key(serving, caplog, tmp_path: Path, script: Script):
    caplog.set_level(logging.DEBUG)
    server = serving(
        script, keys=Ring([key_of("ann", CLIENT)]), home=tmp_path / "home", accounts=tmp_path / "accounts"
    )
    said: list[str] = []
    for secret in (CLIENT, TOKEN, WRONG):
        for header in ({"Authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
            with httpx2.Client(base_url=server.url, headers=header, timeout=20) as client:
                for route, more in ROUTES.values():
                    for stream in (False, True):
                        answer = client.post(route, json={**CHAT, **more, "stream": stream})
                        said += [answer.text, str(answer.headers)]
                    said.append(client.post(route, json={"x": secret[:3]}).text)
                for path in (
                    "/metrics",
                    "/openapi.json",
                    "/health",
                    "/version",
                    "/v1/models",
                    "/admin/usage",
                    "/nope",
                ):
                    said.append(client.get(path).text)
    server.end()
    said += [record.getMessage() for record in caplog.records]
    said += [str(record.__dict__) for record in caplog.records]
    said += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(said) > 60
    for secret in (CLIENT, TOKEN, WRONG):
        assert not [text for text in said if secret in text]


def test_a_server_shows_no_key_of_its_own_objects(serving):
    server = serving(keys=Ring([key_of("ann", CLIENT)]))
    shown = f"{server.doors.settings!r} {server.doors.server.guard!r} {server.doors.server!r}"
    assert CLIENT not in shown and TOKEN not in shown


def test_a_providers_key_has_no_text():
    provider = Provider("far", "openai", "https://far.example/v1", Secret(CLIENT))
    assert CLIENT not in f"{provider!r} {provider.key} {provider.key!r} {[provider.key]} {vars}"
