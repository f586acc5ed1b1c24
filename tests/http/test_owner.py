"""What is the owner's on a server of loopback without keys, and what a page in a browser can reach there."""

from __future__ import annotations

import os

import pytest

from freehold.base.errors import UsageError
from freehold.serve.http.app import routes
from freehold.serve.http.core.auth import PREFIX, owner_token
from freehold.serve.http.core.call import endpoint_of
from tests.http.conftest import JSON, TOKEN
from tests.http.ollama_rig import error_of, with_tiny
from tests.http.test_auth import KEYS
from tests.http.test_chat import CHAT

OWNERS = {
    *(("GET", path) for path in ("/admin/hello", "/admin/ps", "/admin/deployments")),
    ("POST", "/admin/deployments"),
    *(("POST", f"/admin/deployments/{verb}") for verb in ("restart", "upgrade", "stop", "log")),
    *(("POST", f"/admin/{verb}") for verb in ("load", "unload", "stop", "adapters/add", "adapters/remove")),
    *(("POST", f"/api/{verb}") for verb in ("pull", "push", "create", "copy", "blobs/{digest}")),
    ("DELETE", "/api/delete"),
    ("HEAD", "/api/blobs/{digest}"),
    ("POST", "/console/api/code"),
    *((verb, "/console/api/keys") for verb in ("GET", "POST")),
    ("DELETE", "/console/api/keys/{name}"),
}
NO_JSON = b"["  # what is let in is refused for this
PAGE = {"Origin": "http://localhost:3000"}
COPY = {"source": "tiny", "destination": "stolen"}


def test_the_owner_s_routes_are_these():
    found = {
        (method, route.path)
        for route in routes()
        for method in (route.methods or set()) - ({"HEAD"} if "GET" in (route.methods or set()) else set())
        if endpoint_of(route).audience == "admin"
    }
    assert found == OWNERS


@pytest.mark.parametrize("method, path", sorted(OWNERS))
def test_the_owner_s_routes_want_the_token_or_the_socket(serving, method, path):
    server, content = serving(), NO_JSON if method in ("POST", "DELETE") else None
    for given in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer"}, PAGE):
        refused = server.client.request(method, path, content=content, headers={**JSON, **given})
        assert refused.status_code == 403, given
        # The console's routes refuse other pages before they ask for a key.
        ours = "foreign_origin" if given == PAGE and path.startswith("/console/") else "freehold keys owner"
        assert method == "HEAD" or ours in refused.text
    for client in (server.owner, server.admin):
        let_in = client.request(method, path, content=content, headers=JSON)
        assert let_in.status_code != 403 or "push" in path
        assert let_in.status_code < 500


def test_a_page_of_another_port_copies_no_model(serving, tmp_path):
    server = serving()
    with_tiny(server.store, tmp_path / "files")
    for kind in ("text/plain", "application/json"):
        answer = server.client.post("/api/copy", json=COPY, headers={**PAGE, "Content-Type": kind})
        assert "owner" in error_of(answer, 403)
    assert server.store.overlays.find("stolen") is None
    refused = server.owner.post("/api/copy", json=COPY, headers={"Content-Type": "text/plain"})
    assert "Content-Type: application/json" in error_of(refused, 415)
    assert server.owner.post("/api/copy", json=COPY).status_code == 200
    server.store.remove("stolen")


def test_a_page_of_another_port_makes_no_model_work(serving):
    server = serving()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        asked = server.client.post("/v1/chat/completions", json=CHAT, headers={**PAGE, "Content-Type": kind})
        assert asked.status_code == 415
    assert not server.models.served["fake:1b"].jobs


def test_a_page_of_another_port_uploads_no_file(serving):
    server = serving()
    form = {"files": {"file": ("x.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}
    assert server.client.post("/v1/files", headers=PAGE, **form).status_code == 403
    own = {"Origin": server.url}
    assert server.client.post("/v1/files", headers=own, **form).status_code == 200
    assert server.client.post("/v1/files", **form).status_code == 200
    named = serving(origins=("http://localhost:3000",))
    assert named.client.post("/v1/files", headers=PAGE, **form).status_code == 200


def test_the_token_opens_a_server_with_keys_as_the_socket_does(serving):
    server = serving(keys=KEYS)
    assert server.client.get("/v1/models").status_code == 401
    assert server.owner.get("/admin/ps").status_code == 200
    assert server.owner.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert server.models.served["fake:1b"].jobs[-1].tenant == ""
    other = {"Authorization": f"Bearer {PREFIX}{'x' * 32}"}
    assert server.client.get("/admin/ps", headers=other).status_code == 401


def test_a_server_without_a_token_lets_no_empty_one_in(serving):
    server = serving(owner="")
    for given in ({}, {"Authorization": "Bearer"}, {"X-Api-Key": ""}):
        assert server.client.get("/admin/ps", headers=given).status_code == 403


def test_a_model_may_be_unloaded_by_who_may_ask_without_a_key(serving):
    server = serving()
    server.client.post("/api/generate", json={"model": "fake:1b"})
    unload = {"model": "fake:1b", "keep_alive": 0}
    assert server.client.post("/api/generate", json=unload).status_code == 200
    assert not server.models.in_memory


def test_the_token_is_made_once_and_for_its_user_alone(tmp_path):
    before = os.umask(0)
    try:
        token = owner_token(tmp_path / "owner.token")
    finally:
        os.umask(before)
    assert token == owner_token(tmp_path / "owner.token") and token.startswith(PREFIX) and len(token) > 40
    assert (tmp_path / "owner.token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content, mode, part",
    [
        (f"{PREFIX}{'x' * 32}", 0o644, "others can read"),
        (f"{PREFIX}{'x' * 32}", 0o620, "others can read"),
        (f"{PREFIX}short", 0o600, "does not hold an owner's token"),
        ("", 0o600, "does not hold an owner's token"),
        (f"{PREFIX}{'x' * 999}", 0o600, "does not hold an owner's token"),
    ],
)
def test_a_token_that_others_may_know_is_refused(tmp_path, content, mode, part):
    path = tmp_path / "owner.token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UsageError, match=part) as told:
        owner_token(path)
    assert "makes another one" in told.value.hint
