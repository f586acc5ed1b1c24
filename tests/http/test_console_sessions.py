"""Sessions of the page: a cookie in place of a key, from our own page alone, and ended as the rules say."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from freehold.serve.http.console import login
from freehold.serve.http.console.login import PageSessions
from freehold.serve.http.core.auth import Guard
from freehold.serve.http.core.keys import KeyFile, Ring, hashed, key_of, made
from tests.http.fakes import Script
from tests.http.test_chat import CHAT

ANN, BOB, ROOT = "ann-0123456789abcdef", "bob-0123456789abcdef", "root-0123456789abcdef"
OWN = {"Sec-Fetch-Site": "same-origin"}
ADMIN = made("root", ROOT, admin=True, models=(), rate="", tokens="")
KEYS = Ring([key_of("ann", ANN), key_of("bob", BOB), ADMIN])


class Clock:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def keyed(serving):
    return serving(keys=KEYS)


_open: list[httpx2.Client] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def browser(server, **headers: str) -> httpx2.Client:
    """Return a client with a jar of cookies of its own; it closes with the test."""
    _open.append(httpx2.Client(base_url=server.url, headers={**OWN, **headers}, timeout=60))
    return _open[-1]


def logged_in(server, key: str = ANN) -> httpx2.Client:
    client = browser(server)
    assert client.post("/console/login", json={"key": key}).status_code == 200
    return client


def owner_of(server) -> httpx2.Client:
    client = browser(server)
    code = server.admin.post("/console/api/code", json={}).json()["code"]
    assert client.post("/console/owner", json={"code": code}).status_code == 200
    return client


def test_session_stands_for_its_key_on_every_route(keyed):
    client = logged_in(keyed, BOB)
    assert client.get("/console/api/me").json()["key"] == "bob"
    assert client.get("/v1/models").status_code == client.get("/api/tags").status_code == 200
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert keyed.models.served["fake:1b"].jobs[-1].tenant == "bob"
    assert client.get("/admin/ps").status_code == 403


def test_cookie_is_for_the_browser_alone(keyed):
    answer = browser(keyed).post("/console/login", json={"key": ANN})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly; SameSite=Strict" in cookie and "Path=/;" in cookie and "Domain" not in cookie
    assert ANN not in cookie + answer.text and answer.headers["cache-control"] == "no-store"
    secret = cookie.partition("=")[2].partition(";")[0]
    path = keyed.socket.parent / "logins.json"
    kept = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600 and secret not in kept and ANN not in kept
    assert hashed(secret.encode()) in kept


def test_cookie_under_tls_is_bound_to_this_host():
    cookie = PageSessions(None, KEYS, tls=True).begin(key_of("ann", ANN)).decode()
    assert cookie.startswith("__Host-freehold-") and cookie.endswith("; Secure")


def test_cookie_behind_a_proxy_with_tls_is_sent_to_no_plain_address(keyed):
    """The proxy hands on Host as it came; what it was asked by is in the Origin, which no page can change."""
    host = keyed.url.partition("://")[2]
    for scheme, secure in (("https", True), ("http", False)):
        client = browser(keyed, Origin=f"{scheme}://{host}")
        answer = client.post("/console/login", json={"key": ANN})
        assert answer.status_code == 200
        assert answer.headers["set-cookie"].endswith("; Secure") == secure


def test_two_servers_of_a_host_do_not_log_each_other_out(serving, keyed):
    other = serving(keys=KEYS, drain_s=0.4)
    client = browser(keyed)
    for server, key in ((keyed, ANN), (other, BOB)):
        client.post(f"{server.url}/console/login", json={"key": key})
    for server, name in ((keyed, "ann"), (other, "bob")):
        assert client.get(f"{server.url}/console/api/me").json()["key"] == name


def test_restart_logs_nobody_out(tmp_path):
    first = PageSessions(tmp_path / "serve" / "logins.json", KEYS, "owner")
    cookies = [first.begin(key).partition(b";")[0] for key in (key_of("ann", ANN), None)]
    asyncio.run(first.save())
    second = PageSessions(tmp_path / "serve" / "logins.json", KEYS, "owner")
    ann, owner = map(second.find, cookies)
    assert ann is not None and ann.key is not None and ann.key.name == "ann"
    assert owner is not None and owner.key is None


@pytest.mark.parametrize("damage", ["", "{}", "\xff", '{"server": "x", "sessions": 3}', "[" * 10000])
def test_damaged_file_ends_sessions_and_no_server(tmp_path, damage):
    path = tmp_path / "logins.json"
    path.write_bytes(damage.encode("latin-1"))
    path.chmod(0o600)
    kept = PageSessions(path, KEYS)
    cookie = kept.begin(key_of("ann", ANN)).partition(b";")[0]
    assert kept.find(cookie) is not None


def test_file_that_others_can_write_opens_nothing(tmp_path):
    path = tmp_path / "logins.json"
    first = PageSessions(path, KEYS)
    cookie = first.begin(key_of("ann", ANN)).partition(b";")[0]
    asyncio.run(first.save())
    path.chmod(0o666)
    assert PageSessions(path, KEYS).find(cookie) is None


def test_session_ends_when_idle_and_when_old():
    clock = Clock()
    kept = PageSessions(None, KEYS, now=clock)
    idle, used = (kept.begin(key_of("ann", ANN)).partition(b";")[0] for _ in range(2))
    for _ in range(int(login.LIFE_S // 3600)):
        clock.at += 3600
        assert kept.find(used) is not None
    assert kept.find(idle) is None
    clock.at += 1
    assert kept.find(used) is None


def test_login_beyond_twenty_ends_the_one_unused_for_longest():
    clock = Clock()
    kept = PageSessions(None, KEYS, now=clock)
    bob = kept.begin(key_of("bob", BOB)).partition(b";")[0]
    cookies = []
    for _ in range(login.PER_KEY):
        clock.at += 61
        cookies.append(kept.begin(key_of("ann", ANN)).partition(b";")[0])
    clock.at += 61
    assert kept.find(cookies[0]) is not None  # used now
    cookies.append(kept.begin(key_of("ann", ANN)).partition(b";")[0])
    assert [kept.find(each) is None for each in cookies] == [False, True, *[False] * 19]
    assert kept.find(bob) is not None


def test_logout_ends_the_session_for_good(keyed):
    client = logged_in(keyed)
    cookies = dict(client.cookies)
    assert client.post("/console/logout", json={}).json()["key"] is None
    assert not dict(client.cookies)
    client.cookies.update(cookies)
    assert client.get("/v1/models").status_code == 401


def test_new_login_ends_the_session_that_the_browser_had(keyed):
    client = logged_in(keyed)
    before = dict(client.cookies)
    client.post("/console/login", json={"key": BOB})
    old = browser(keyed)
    old.cookies.update(before)
    assert old.get("/v1/models").status_code == 401 and client.get("/v1/models").status_code == 200


def test_revoked_key_ends_its_sessions_within_a_second(serving, tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    for name, secret in (("ann", ANN), ("bob", BOB)):
        file.add(made(name, secret, admin=False, models=(), rate="", tokens=""))
    clock = Clock()
    server = serving(keys=Ring((), file, clock=clock))
    ann, bob = logged_in(server), logged_in(server, BOB)
    file.remove("ann")
    clock.at += 0.9
    assert (ann.get("/v1/models").status_code, bob.get("/v1/models").status_code) == (401, 200)
    file.add(made("ann", "another-0123456789abcdef", admin=False, models=(), rate="", tokens=""))
    clock.at += 0.9
    assert ann.get("/v1/models").status_code == 401  # a new key of the old name


def test_ten_wrong_keys_close_the_login_for_a_minute(serving):
    server = serving(keys=KEYS)
    kept = server.doors.server.part(login.Login)
    kept._clock = clock = Clock()
    client = browser(server)
    tries = [client.post("/console/login", json={"key": f"wrong-{i}"}).status_code for i in range(10)]
    assert tries == [401] * 10
    answer = client.post("/console/login", json={"key": ANN})
    assert answer.status_code == 429 and 0 < int(answer.headers["retry-after"]) <= 61
    clock.at += login.WRONG_S
    assert client.post("/console/login", json={"key": ANN}).status_code == 200


def test_ten_wrong_codes_lock_codes_alone_and_no_owner_out(serving):
    server = serving(keys=KEYS)
    client = browser(server)
    tries = [client.post("/console/owner", json={"code": f"wrong-{i}"}).status_code for i in range(12)]
    assert tries == [401] * 10 + [429] * 2
    assert client.post("/console/login", json={"key": ANN}).status_code == 200
    code = server.doors.server.part(login.Login).new_code()
    assert client.post("/console/owner", json={"code": code}).status_code == 200


def test_tries_of_many_addresses_take_little_memory():
    kept = login.Login(PageSessions(None, KEYS), Clock())
    for i in range(login.MOST_ADDRESSES + 100):
        kept.wrong("key", str(i))
    assert len(kept._wrong) == login.MOST_ADDRESSES


def test_owners_code_is_good_once_and_for_a_minute(serving):
    server = serving()
    client = owner_of(server)
    said = client.get("/console/api/me").json()
    assert said["owner"] and said["can"] == ["chat", *("pull", "delete", "load", "tools", "keys")]
    assert client.get("/admin/ps").status_code == 200
    code = server.admin.post("/console/api/code", json={}).json()["code"]
    assert [browser(server).post("/console/owner", json={"code": code}).status_code for _ in range(2)] == [
        200,
        401,
    ]
    kept = login.Login(PageSessions(None, KEYS), clock := Clock())
    late, used = kept.new_code(), kept.new_code()
    clock.at += 59
    assert kept.redeem(used)
    clock.at += 1
    assert not kept.redeem(late)


def test_owners_session_ends_with_the_owners_token(tmp_path):
    path = tmp_path / "logins.json"
    first = PageSessions(path, KEYS, hashed(b"one"))
    cookie = first.begin(None).partition(b";")[0]
    asyncio.run(first.save())
    assert PageSessions(path, KEYS, hashed(b"two")).find(cookie) is None
    assert PageSessions(path, KEYS).find(cookie) is None


def test_only_the_owner_is_given_a_code(serving, keyed):
    assert logged_in(keyed, ROOT).post("/console/api/code", json={}).status_code == 403
    assert serving().client.post("/console/api/code", json={}).status_code == 403
    assert keyed.owner.post("/console/api/code", json={}).status_code == 200


def test_owners_session_counts_on_a_server_with_keys_too(keyed):
    client = owner_of(keyed)
    assert client.get("/admin/ps").status_code == client.get("/v1/models").status_code == 200
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_full_disk_logs_nobody_out(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    kept = PageSessions(blocked / "logins.json", KEYS)
    cookie = kept.begin(key_of("ann", ANN)).partition(b";")[0]
    asyncio.run(kept.save())
    assert kept.find(cookie) is not None and "kept in memory" in caplog.text
    kept.close()


def test_session_is_written_once_a_minute_at_most(tmp_path):
    clock = Clock()
    path: Path = tmp_path / "logins.json"
    kept = PageSessions(path, KEYS, now=clock)
    cookie = kept.begin(key_of("ann", ANN)).partition(b";")[0]
    asyncio.run(kept.save())
    before = path.stat().st_mtime_ns
    clock.at += 30
    kept.find(cookie)
    asyncio.run(kept.save())
    assert path.stat().st_mtime_ns == before
    clock.at += 31
    kept.find(cookie)
    asyncio.run(kept.save())
    assert json.loads(path.read_text())["sessions"][0]["seen"] == clock.at


def followed(client: httpx2.Client, path: str) -> Iterator[str]:
    """Yield the events of a stream, to its end."""
    with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("event: "):
                yield line[7:]


def run_of(client: httpx2.Client) -> str:
    """Begin an answer; return where its events are."""
    chat = client.post("/console/api/chats", json={"model": "fake:1b"}).json()["id"]
    started = client.post(f"/console/api/chats/{chat}/runs", json={"message": {"content": "x"}}).json()
    return f"/console/api/runs/{started['run']}/events"


@pytest.fixture
def waiting(serving, tmp_path):
    """A server with keys in a file, whose answers wait for a gate."""
    kept = KeyFile(tmp_path / "keys.json")
    for name, secret in (("ann", ANN), ("bob", BOB), ("root", ROOT)):
        kept.add(made(name, secret, admin=name == "root", models=(), rate="", tokens=""))
    gate = threading.Event()
    yield serving(Script(gate=gate), home=tmp_path, keys=Ring(file=kept))
    gate.set()


@pytest.mark.parametrize("by", ["logout", "login", "revoked"])
@pytest.mark.parametrize("what", ["run", "live"])
def test_streams_end_with_their_session_within_a_second(waiting, by, what):
    client, other = logged_in(waiting), logged_in(waiting)
    path = run_of(client) if what == "run" else "/console/api/live"
    mine, its = followed(client, path), followed(other, path)
    first = next(mine), next(its)
    cookies = dict(client.cookies)
    ender = browser(waiting)
    ender.cookies.update(cookies)
    began = time.monotonic()
    if by == "logout":
        ender.post("/console/logout", json={})
    elif by == "login":
        ender.post("/console/login", json={"key": BOB})
    else:
        waiting.doors.server.guard.keys.remove("ann")
    rest = list(mine)
    assert time.monotonic() - began < 1.5 and set(rest) <= {"state", "ready", "wait"}, first
    if by != "revoked":  # another session of the same key goes on
        assert what == "run" or next(its) == "state"
        assert other.get("/console/api/me").json()["key"] == "ann"


def test_an_owner_s_stream_ends_with_its_session_where_no_key_is_needed(serving):
    server = serving()
    client = owner_of(server)
    states = followed(client, "/console/api/live")
    assert next(states) == "state"
    began = time.monotonic()
    client.post("/console/logout", json={})
    assert set(states) <= {"state"} and time.monotonic() - began < 1.5
    assert next(followed(client, "/console/api/live")) == "state"  # as any local client


def test_a_stream_that_brings_nothing_does_not_keep_its_session_from_being_idle():
    clock = Clock()
    kept = PageSessions(None, KEYS, now=clock)
    cookie = kept.begin(key_of("ann", ANN)).partition(b";")[0]
    clock.at += login.IDLE_S - 1
    assert kept.find(cookie, used=False) is not None
    clock.at += 2
    assert kept.find(cookie, used=False) is None


def test_what_a_stream_brings_keeps_its_session_from_being_idle():
    clock, ann = Clock(), key_of("ann", ANN)
    kept = PageSessions(None, KEYS, now=clock)
    cookie = kept.begin(ann).partition(b";")[0]
    guard = Guard(KEYS, sessions=kept.find)
    headers = {b"cookie": cookie, b"sec-fetch-site": b"same-origin"}
    clock.at += login.IDLE_S - 1
    assert guard.admits(headers, ann, owner=False, used=True)
    clock.at += login.IDLE_S - 1
    assert guard.admits(headers, ann, owner=False)
    clock.at += 2
    assert not guard.admits(headers, ann, owner=False)


def test_a_session_of_a_time_that_is_not_yet_has_ended():
    clock = Clock()
    kept = PageSessions(None, KEYS, now=clock)
    clock.at += 10 * 365 * 86400  # the clock is wrong for a while
    cookie = kept.begin(key_of("ann", ANN)).partition(b";")[0]
    assert kept.find(cookie) is not None
    clock.at -= 10 * 365 * 86400
    assert kept.find(cookie) is None
