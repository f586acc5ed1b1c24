"""Every route of the console is shut to those who may not enter, and what is another's looks as if it never was.

The routes are those of the application: one that is added is attacked without a line here, except that a route with the
id of a new kind of thing needs a line in MADE. Path: routes -> ROUTES -> each attack
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from freehold.serve.http.app import routes
from freehold.serve.http.console.login import IDLE_S
from freehold.serve.http.core.auth import CONSOLE, FORMS, OPEN
from freehold.serve.http.core.call import endpoint_of
from freehold.serve.http.core.keys import KeyFile, Ring, key_of, made
from tests.http.test_console_sessions import ADMIN, ANN, BOB, ROOT, Clock

_open: list[httpx2.Client] = []
OWN = {"Sec-Fetch-Site": "same-origin"}
NOWHERE = "0123456789abcdef01234567"
ROUTES = [
    (method, route.path)
    for route in routes()
    if route.path.startswith(CONSOLE)
    for method in sorted((route.methods or set()) - {"HEAD"})
]
SHUT = [(method, path) for method, path in ROUTES if path not in OPEN]  # to those without a key
LOGIN = ("/console/login", "/console/owner")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def client_of(server, cookies: dict[str, str] | None = None, **headers: str) -> httpx2.Client:
    """Return a client that says what a browser would; `headers` in the place of our own page's."""
    said = headers if headers else OWN
    _open.append(httpx2.Client(base_url=server.url, headers=said, cookies=cookies, timeout=60))
    return _open[-1]


def cookies_of(server, key: str) -> dict[str, str]:
    client = client_of(server)
    assert client.post("/console/login", json={"key": key}).status_code == 200
    return dict(client.cookies)


def body_of(path: str) -> dict[str, Any]:
    """Return a body of the right shape, for routes that would refuse another one before they look at anything else."""
    given = {
        "/console/login": {"key": ANN},
        "/console/owner": {"code": "x"},
        "/console/api/keys": {"name": "eve"},
    }
    return given.get(path, {})


def ask(client: httpx2.Client, method: str, path: str, **more: Any) -> httpx2.Response:
    """Ask a route as its page would: a JSON body where it takes one, an id that nothing has in its path."""
    path = re.sub(r"\{\w+(:\w+)?\}", NOWHERE, path)
    body = {} if method == "GET" else {"json": body_of(path)}
    with client.stream(method, path, **{**body, **more}) as answer:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            answer.read()  # a stream that lets in the one who asks has no end
        return answer


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory):
    from tests.http.conftest import start

    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    for key in (key_of("ann", ANN), key_of("bob", BOB), ADMIN):
        file.add(key)
    server = start(tmp_path_factory.mktemp("doors"), offline=True, keys=Ring((), file))
    server.cookies = {
        name: cookies_of(server, key) for name, key in (("ann", ANN), ("bob", BOB), ("root", ROOT))
    }
    yield server
    server.end()


def who_opens(path: str, method: str) -> str:
    """Return a key that the route accepts."""
    of = next(r for r in routes() if r.path == path and method in (r.methods or ()))
    return "root" if endpoint_of(of).audience == "admin" else "ann"


def test_the_console_has_routes():
    assert len(ROUTES) > 15 and len(SHUT) > 10


@pytest.mark.parametrize("method, path", SHUT)
def test_no_session_opens_nothing(keyed, method, path):
    assert ask(client_of(keyed), method, path).status_code == 401


@pytest.mark.parametrize("cookie", ["", "x", "0" * 43, "\u00e9".encode().decode("latin-1"), "a;b=c", '"'])
def test_cookies_that_were_never_given_open_nothing(keyed, cookie):
    name = next(iter(keyed.cookies["ann"]))
    for given in (f"{name}={cookie}", cookie, f"{name}", f"; ;{name}={cookie};", "=" * 5000):
        answer = client_of(keyed).get("/v1/models", headers={"Cookie": given.encode("latin-1")})
        assert answer.status_code == 401, given


PAGES = {
    "foreign origin": {"Origin": "https://evil.example"},
    "foreign origin that says it is ours": {**OWN, "Origin": "https://evil.example"},
    "no origin": {"Origin": "null"},
    "other port": {"Origin": "http://127.0.0.1:1"},
    "other port of the same site": {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"},
    "other scheme": {"Origin": "https://127.0.0.1:{port}"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "cross-site of a typed word": {"Sec-Fetch-Site": "Same-Origin"},
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
@pytest.mark.parametrize("method, path", ROUTES)
def test_pages_of_others_are_refused_whatever_they_bring(keyed, method, path, page):
    headers = {name: value.format(port=keyed.port) for name, value in page.items()}
    given = keyed.cookies[who_opens(path, method)]
    answer = ask(client_of(keyed, given, **headers), method, path)
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "foreign_origin"
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "set-cookie"]


@pytest.mark.parametrize(
    "page", [{}, {"Sec-Fetch-Site": "none"}], ids=["a program", "an address that was typed"]
)
@pytest.mark.parametrize("method, path", SHUT)
def test_cookie_counts_from_our_own_page_alone(keyed, method, path, page):
    given = keyed.cookies[who_opens(path, method)]
    assert ask(client_of(keyed, given, **{"X-Nothing": "1", **page}), method, path).status_code == 401


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
@pytest.mark.parametrize("method, path", [(m, p) for m, p in ROUTES if m != "GET"])
def test_bodies_that_a_form_could_send_are_refused(keyed, method, path, kind):
    client = client_of(keyed, keyed.cookies[who_opens(path, method)])
    answer = ask(client, method, path, json=None, content=b'{"name": "eve"}', headers={"Content-Type": kind})
    assert answer.status_code == 415 and answer.json()["error"]["code"] == "not_json"


@pytest.mark.parametrize(
    "path", ["/v1/files", "/v1/chat/completions", "/api/blobs/sha256:" + "0" * 64, "/api/pull"]
)
def test_a_session_sends_json_alone_on_every_route(keyed, path):
    client = client_of(keyed, keyed.cookies["ann"])
    answer = client.post(path, content=b"x", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 415


@pytest.mark.parametrize("path", FORMS)
def test_a_session_of_our_own_page_sends_a_recording_as_a_form(keyed, path):
    files = {"file": ("talk.wav", b"RIFF")}
    mine = client_of(keyed, keyed.cookies["ann"], **OWN)
    assert mine.post(path, data={"model": "none"}, files=files).status_code == 404  # it was let in
    for other in ({}, {"Sec-Fetch-Site": "cross-site"}, {**OWN, "Origin": "https://evil.example"}):
        client = client_of(keyed, keyed.cookies["ann"], **{"X-Nothing": "1", **other})
        assert client.post(path, data={"model": "none"}, files=files).status_code == 401


@pytest.mark.parametrize("header", [{"Authorization": f"Bearer {ANN}x"}, {"X-Api-Key": "wrong-0123456789"}])
@pytest.mark.parametrize("method, path", SHUT)
def test_a_header_with_a_wrong_key_wins_over_the_cookie(keyed, method, path, header):
    client = client_of(keyed, keyed.cookies[who_opens(path, method)], **OWN, **header)
    assert ask(client, method, path).status_code == 401


def test_a_header_with_another_key_wins_over_the_cookie(keyed):
    client = client_of(keyed, keyed.cookies["ann"], **OWN, Authorization=f"Bearer {BOB}")
    assert client.get("/v1/models").status_code == 200
    assert client.get("/console/api/me").json()["key"] == "bob"


@pytest.mark.parametrize("method, path", SHUT)
def test_client_keys_open_nothing_of_the_owner_and_admins_no_chats(keyed, method, path):
    allowed = who_opens(path, method)
    of = endpoint_of(next(r for r in routes() if r.path == path and method in (r.methods or ())))
    if of.audience in ("admin", "client"):
        other = "ann" if allowed == "root" else "root"
        assert ask(client_of(keyed, keyed.cookies[other]), method, path).status_code == 403


@pytest.fixture
def ending(serving, tmp_path):
    """A server whose keys and sessions can end: (server, cookies, file of keys, the sessions' clock, the keys')."""
    file, clock, seen = KeyFile(tmp_path / "keys.json"), Clock(), Clock()
    for name, key in (("ann", ANN), ("spare", BOB)):
        file.add(made(name, key, admin=False, models=(), rate="", tokens=""))
    file.add(ADMIN)
    server = serving(keys=Ring((), file, clock=seen))
    server.doors._sessions._now = clock
    given = {name: cookies_of(server, key) for name, key in (("ann", ANN), ("root", ROOT))}
    return server, given, file, clock, seen


def test_revoked_keys_and_expired_sessions_are_no_sessions(ending):
    server, given, file, clock, seen = ending
    clients = {name: client_of(server, cookies) for name, cookies in given.items()}
    assert clients["ann"].get("/v1/models").status_code == clients["root"].get("/admin/ps").status_code == 200
    file.remove("ann")
    seen.at += 0.9
    for method, path in SHUT:
        if who_opens(path, method) == "ann":
            assert ask(clients["ann"], method, path).status_code == 401, (method, path)
    clock.at += IDLE_S + 1
    for method, path in SHUT:
        if who_opens(path, method) == "root":
            assert ask(clients["root"], method, path).status_code == 401, (method, path)


def chat(client: httpx2.Client) -> dict[str, str]:
    return {
        "chat": client.post("/console/api/chats", json={"title": "mine", "model": "fake:1b"}).json()["id"]
    }


def run(client: httpx2.Client) -> dict[str, str]:
    made = chat(client)
    asked = {"parent": None, "message": {"content": "hi"}, "model": "fake:1b"}
    started = client.post(f"/console/api/chats/{made['chat']}/runs", json=asked)
    assert started.status_code == 201, started.text
    return {**made, "run": started.json()["run"]}


# What makes the things that a path's parameters name, as their owner; a parameter that is not here fails below. Without
# a function: what belongs to the server, such as keys, tools, permissions and receipts of trainings.
MADE: dict[str, Callable[[httpx2.Client], dict[str, str]] | None] = {
    "chat": chat,
    "run": run,
    **dict.fromkeys(["name", "digest", "id"]),
}
OTHERS = [(m, p) for m, p in SHUT if any(MADE.get(name) for name in re.findall(r"\{(\w+)", p))]


def test_every_parameter_of_a_path_is_known_here():
    assert {name for _, path in ROUTES for name in re.findall(r"\{(\w+)", path)} <= MADE.keys()


@pytest.mark.parametrize("method, path", OTHERS)
def test_what_is_anothers_looks_as_if_it_never_was(keyed, method, path):
    ann, bob = (client_of(keyed, keyed.cookies[name]) for name in ("ann", "bob"))
    (name,) = (each for each in re.findall(r"\{(\w+)", path) if MADE.get(each))
    make = MADE[name]
    assert make is not None
    found = make(ann)
    theirs, none = (_asked(bob, method, path, each) for each in (found[name], NOWHERE))
    assert theirs.status_code == none.status_code == 404
    said = [re.sub(f"{found[name]}|{NOWHERE}", "ID", each.text) for each in (theirs, none)]
    assert said[0] == said[1]
    same = [
        {n for n in each.headers if n not in ("x-request-id", "request-id", "date")}
        for each in (theirs, none)
    ]
    assert same[0] == same[1]
    assert found["chat"] in ann.get("/console/api/chats").text
    assert found["chat"] not in bob.get("/console/api/chats").text
    if name == "run" and method == "GET":  # and its own key reads all of it
        assert "event: end" in ann.get(path.replace("{run}", found["run"])).text


def _asked(client: httpx2.Client, method: str, path: str, it: str) -> httpx2.Response:
    """Ask for a thing with a body that the route takes."""
    path = re.sub(r"\{\w+\}", it, path)
    bodies = {
        "runs": {"parent": None, "message": {"content": "x"}},
        **{name: {"message": "m"} for name in ("again", "take-out", "fork")},
        "put-back": {"messages": ["m"]},
        "answers": {"message": "m", "content": "x"},
        "verdict": {"message": "m", "verdict": "good"},
        "pictures": {"image": "data:image/png;base64,iVBORw0KGgo="},
        "approve": {"call": "c", "verdict": "deny"},
    }
    body = {} if method == "GET" else {"json": bodies.get(path.rpartition("/")[2], {})}
    return client.request(method, path, **body)


BAD = [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b'{"key": "\xff"}', b'{"a":' * 1000, b"\x00" * 1000]
BAD += [
    b'{"key": ["x"], "code": {}, "name": 3, "title": [], "chat": "x", "parent": {}, "message": [], "verdict": 7}'
]


@pytest.mark.parametrize("method, path", [(m, p) for m, p in ROUTES if m != "GET"])
def test_bad_bodies_are_refused_and_end_nothing(keyed, method, path):
    client = client_of(keyed, keyed.cookies[who_opens(path, method)])
    for body in BAD:
        answer = ask(
            client, method, path, json=None, content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code < 500, body[:40]
        reads = endpoint_of(
            next(r for r in routes() if r.path == path and method in (r.methods or ()))
        ).request
        assert reads is None or path == "/console/logout" or answer.status_code >= 400, body[:40]
    assert keyed.client.get("/health").status_code == 200


def test_owner_without_a_session_is_any_local_client(serving):
    server = serving()
    for method, path in SHUT:
        if who_opens(path, method) == "root":
            assert ask(client_of(server), method, path).status_code == 403, (method, path)
