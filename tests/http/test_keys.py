"""The keys file: what it holds, who may write it, and a ring that sees it change."""

from __future__ import annotations

import json
import os
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.serve.http.core.keys import LOOK_S, KeyFile, Quota, Ring, key_of, made, new_secret, quota


def add(file: KeyFile, name: str, **more: object) -> str:
    secret = new_secret()
    given = {"admin": False, "models": (), "rate": "", "tokens": "", **more}
    file.add(made(name, secret, **given))  # type: ignore[arg-type]
    return secret


@pytest.fixture
def file(tmp_path):
    return KeyFile(tmp_path / "home" / "keys.json")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_kept_as_its_hash_in_a_file_of_the_owner_s_alone(file):
    secret = add(file, "ann", models=("qwen*",), rate="60/min", tokens="1M/day")
    assert secret not in file.path.read_text() and stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [p.name for p in file.path.parent.iterdir() if "new" in p.name] == []
    (key,) = file.read()
    assert (key.name, key.kind, key.models, key.rate, key.tokens) == (
        "ann",
        "client",
        ("qwen*",),
        "60/min",
        "1M/day",
    )


def test_a_name_is_taken_once_and_only_known_ones_are_removed(file):
    add(file, "ann")
    with pytest.raises(UsageError, match="there is a key 'ann'"):
        add(file, "ann")
    with pytest.raises(UsageError, match="no key 'bob'"):
        file.remove("bob")
    file.remove("ann")
    assert file.read() == ()


def test_a_file_that_others_may_write_is_refused_and_one_they_may_read_is_not(file):
    add(file, "ann")
    file.path.chmod(0o444)
    assert file.read()
    file.path.chmod(0o620)
    with pytest.raises(UsageError, match="writable by others"):
        file.read()


@pytest.mark.parametrize(
    "change",
    [
        {"models": "x"},
        {"sha256": "00"},
        {"name": "../x"},
        {"name": ""},
        {"kind": "root"},
        {"rate": "60"},
        {"rate": "0/s"},
        {"tokens": "5/min"},
        {"colour": "red"},
    ],
)
def test_a_file_that_says_something_else_is_refused(file, change):
    add(file, "ann")
    kept = json.loads(file.path.read_text())
    kept["keys"][0] |= change
    file.path.write_text(json.dumps(kept))
    with pytest.raises(UsageError):
        file.read()


@pytest.mark.parametrize("text", ["", "alice 0123456789abcdef", "[]", '{"keys": 1}', "\x00"])
def test_what_is_no_file_of_keys_says_what_writes_one(file, text):
    add(file, "ann")
    file.path.write_text(text)
    with pytest.raises(UsageError) as e:
        file.read()
    assert "freehold keys add" in e.value.hint


def test_a_ring_sees_a_key_come_and_go(file):
    clock = Clock()
    ring = Ring(file=file, clock=clock)
    assert not ring
    secret = add(file, "ann").encode()
    assert ring.find(secret) is None  # it looked a moment ago
    clock.now += LOOK_S
    found = ring.find(secret)
    assert ring and found is not None and found.name == "ann"
    file.remove("ann")
    clock.now += LOOK_S
    assert ring.find(secret) is None


def test_a_ring_whose_last_key_was_revoked_stays_shut(file):
    clock = Clock()
    secret = add(file, "ann").encode()
    for begun_with_keys in (True, False):
        ring = Ring(file=file, clock=clock) if begun_with_keys else Ring(clock=clock)
        if not begun_with_keys:
            file.path.unlink()
            ring = Ring(file=file, clock=clock)
            assert not ring
            secret = add(file, "ann").encode()
            clock.now += LOOK_S
        assert ring.find(secret)
        file.remove("ann")
        clock.now += LOOK_S
        assert ring and len(ring) == 0 and ring.find(secret) is None


def test_revoking_the_last_key_leaves_nothing_open(serving, file):
    clock = Clock()
    secret = add(file, "ann")
    server = serving(keys=Ring(file=file, clock=clock))
    bearer = {"Authorization": f"Bearer {secret}"}
    assert server.client.get("/v1/models", headers=bearer).status_code == 200
    file.remove("ann")
    clock.now += LOOK_S
    for path in ("/v1/models", "/api/tags", "/admin/ps"):
        assert server.client.get(path, headers=bearer).status_code == 401
        assert server.client.get(path).status_code == 401
    delete = {"model": "tiny"}
    assert server.client.request("DELETE", "/api/delete", json=delete).status_code == 401
    assert server.admin.get("/v1/models").status_code == 200


def test_a_ring_that_is_needed_stays_shut_when_its_file_is_gone(file):
    clock = Clock()
    secret = add(file, "ann").encode()
    ring = Ring(file=file, needed=True, clock=clock)
    os.unlink(file.path)
    clock.now += LOOK_S
    assert ring and ring.find(secret) is None


def test_a_file_that_breaks_leaves_the_last_keys_in_force_and_says_so_once(file, caplog):
    clock = Clock()
    secret = add(file, "ann").encode()
    ring = Ring(file=file, clock=clock)
    file.path.write_text("{")
    for _ in range(3):
        clock.now += LOOK_S
        assert ring.find(secret) is not None
    assert [r.message for r in caplog.records if "stay as they were" in r.message] == [
        caplog.records[0].message
    ]


def test_keys_that_stay_are_found_beside_those_of_the_file(file):
    secret = add(file, "ann")
    ring = Ring([key_of("environment", "0123456789abcdef")], file)
    assert len(ring) == 2 and ring.find(b"0123456789abcdef") and ring.find(secret.encode())


@pytest.mark.parametrize(
    "models, name, may",
    [
        ((), "anything", True),
        (("a:1b",), "a:1b", True),
        (("a:1b",), "a:1bc", False),
        (("a:*",), "a:7b", True),
        (("a:*", "b"), "b", True),
        (("a",), "A", False),
    ],
)
def test_a_scope_is_names_and_patterns(models, name, may):
    key = made("k", "s", admin=False, models=models, rate="", tokens="")
    assert key.may_use(name) is may


@pytest.mark.parametrize(
    "text, amount, seconds",
    [("60/min", 60, 60), ("2.5/s", 2.5, 1), ("1M/day", 1e6, 86400), ("5k/h", 5e3, 3600)],
)
def test_quotas_are_read(text, amount, seconds):
    assert quota(text) == Quota(amount, seconds)


leaves = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("a" * 64) | st.just("5/min")
)
fields = st.sampled_from(["name", "sha256", "kind", "models", "rate", "tokens", "created", "x"])
rows = st.dictionaries(fields, leaves | st.lists(st.text(max_size=4), max_size=3), max_size=8)
held = st.fixed_dictionaries({"keys": st.lists(rows, max_size=3)}, optional={"version": leaves})


@pytest.mark.heavy
@given(st.binary(max_size=60) | held.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_holds_keys_or_is_a_named_error(file, data):
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(data)
    file.path.chmod(0o600)
    try:
        assert all(key.sha256 for key in file.read())
    except UsageError as e:
        assert len(e.message) < 1000
