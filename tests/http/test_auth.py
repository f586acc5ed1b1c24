"""Keys, the rule for binding, and pages in a browser."""

from __future__ import annotations

import pytest

from freehold.base.errors import UsageError
from freehold.serve.http.app import routes
from freehold.serve.http.core.auth import ASSETS, OPEN, check_bind, host_name, is_loopback
from freehold.serve.http.core.call import endpoint_of
from freehold.serve.http.core.keys import Ring, key_of
from tests.http.test_chat import CHAT

ANN, BOB = "ann-0123456789abcdef", "bob-0123456789abcdef"
KEYS = Ring([key_of("ann", ANN), key_of("bob", BOB)])


@pytest.fixture
def keyed(serving):
    return serving(keys=KEYS)


def test_every_route_but_health_needs_a_key(keyed):
    asked = [(method, route.path) for route in routes() for method in route.methods or ()]
    for method, path in [*asked, ("GET", "/nope")]:
        if path in OPEN or path.startswith(ASSETS) or method == "HEAD":
            continue
        answer = keyed.client.request(method, path.replace("{id:path}", "x"), json={})
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "needs a key" in answer.text
    assert keyed.client.get("/health").status_code == 200


def test_what_needs_no_key_is_liveness_the_page_and_its_login():
    free = {r.path for r in routes() if endpoint_of(r).audience in ("page", "all")}
    login = {"/console/api/me", "/console/login", "/console/owner", "/console/logout"}
    assert set(OPEN) == {"/health", "/", *login} and free == {*OPEN, f"{ASSETS}{{name}}"}


@pytest.mark.parametrize("header", ["", "Bearer", f"Bearer {ANN}x", f"Basic {ANN}", "Bearer \xe9"])
def test_a_wrong_key_is_refused(keyed, header):
    answer = keyed.client.get("/version", headers={"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401


def test_a_keys_name_is_the_tenant(keyed):
    for name, headers in (("ann", {"Authorization": f"Bearer {ANN}"}), ("bob", {"X-Api-Key": BOB})):
        assert keyed.client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
        assert keyed.models.served["fake:1b"].jobs[-1].tenant == name


def test_without_keys_there_is_one_tenant(serving):
    server = serving()
    server.client.post("/v1/chat/completions", json=CHAT)
    assert server.models.served["fake:1b"].jobs[-1].tenant == ""


@pytest.mark.parametrize("key", ["short", "x" * 15, "with a space in it", "kéy-0123456789abcdef"])
def test_weak_keys_are_refused(key):
    with pytest.raises(UsageError, match="16"):
        key_of("a", key)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "10.0.0.1", ""])
def test_an_address_others_reach_needs_a_key(host):
    with pytest.raises(UsageError, match="no key"):
        check_bind(host, Ring())
    check_bind(host, KEYS)
    check_bind(host, Ring(), insecure=True)


def test_insecure_beside_keys_is_refused():
    with pytest.raises(UsageError, match="keys are set"):
        check_bind("0.0.0.0", KEYS, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost", "LOCALHOST."])
def test_loopback_needs_no_key(host):
    check_bind(host, Ring())


@pytest.mark.parametrize(
    "header, name, local",
    [
        ("127.0.0.1:8080", "127.0.0.1", True),
        ("[::1]:8080", "::1", True),
        ("::1", "::1", True),
        ("localhost:1", "localhost", True),
        ("a.localhost", "a.localhost", True),
        ("evil.com:80", "evil.com", False),
        ("127.0.0.1.evil.com", "127.0.0.1.evil.com", False),
        ("localhost.evil.com", "localhost.evil.com", False),
        ("0x7f000001", "0x7f000001", False),
    ],
)
def test_host_headers_are_read(header, name, local):
    assert host_name(header) == name and is_loopback(header) is local


def test_a_name_rebound_to_loopback_is_refused(serving):
    client = serving().client
    answer = client.get("/v1/models", headers={"Host": "evil.com"})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "foreign_host"
    assert client.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_a_name_the_operator_gave_is_not_foreign(serving):
    server = serving(hosts=("box.lan",))
    assert server.client.get("/v1/models", headers={"Host": "box.lan:80"}).status_code == 200


def test_an_insecure_server_is_called_by_its_addresses_and_by_no_foreign_name(serving):
    client = serving(insecure=True).client
    for host, status in (
        ("192.168.1.4:1", 200),
        ("[fe80::1]:1", 200),
        ("evil.com", 403),
        ("1.2.3.4.evil.com", 403),
    ):
        assert client.get("/v1/models", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "http://localhost.evil.com"])
def test_a_foreign_page_is_refused_and_gets_no_cors(serving, origin):
    answer = serving().client.post("/v1/chat/completions", json=CHAT, headers={"Origin": origin})
    assert answer.status_code == 403
    assert not [h for h in answer.headers if h.startswith("access-control")]


def test_a_page_of_this_machine_may_ask(serving):
    answer = serving().client.get("/v1/models", headers={"Origin": "http://localhost:3000"})
    assert answer.status_code == 200


def test_an_origin_the_operator_named_gets_cors(serving):
    server = serving(origins=("https://chat.example",))
    origin = {"Origin": "https://chat.example"}
    answer = server.client.post("/v1/chat/completions", json=CHAT, headers=origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    assert server.client.options("/v1/chat/completions", headers=preflight).status_code == 200


def test_a_keyed_server_may_have_any_name(keyed):
    headers = {"Host": "models.example", "Authorization": f"Bearer {ANN}"}
    assert keyed.client.get("/version", headers=headers).status_code == 200


def test_the_unix_socket_asks_for_no_key(keyed):
    assert keyed.admin.get("/v1/models").status_code == 200
    assert keyed.admin.get("/admin/hello").status_code == 200
