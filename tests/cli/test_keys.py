"""`freehold keys`: a key is printed once and kept as a hash; the server's door reads the file."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.cli.serving.attach import lock_of, pid_file
from freehold.cli.serving.options import ring
from freehold.serve.http.core.accounts import Accounts
from freehold.serve.http.core.auth import Guard
from freehold.serve.http.core.problems import Refused
from tests.cli.test_serve import KEY, freehold


def settings(home: Path, **more: object) -> Settings:
    return Settings(home=home, **more)  # type: ignore[arg-type]


def test_a_key_is_printed_once_and_opens_the_door(tmp_path: Path):
    done = freehold(
        tmp_path, "keys", "add", "ann", "--models", "qwen*, tiny", "--rate", "60/min", "--tokens", "1M/day"
    )
    secret = done.out.strip()
    assert done.status == 0 and secret.startswith("fh-") and len(secret) > 30 and secret not in done.err
    kept = (tmp_path / "keys.json").read_text()
    assert secret not in kept and secret[3:] not in kept
    found = ring(settings(tmp_path), None, insecure=False)
    key = found.find(secret.encode())
    assert found.needed and key is not None and (key.models, key.rate) == (("qwen*", "tiny"), "60/min")


def test_keys_are_listed_with_what_they_may_and_spent_and_never_themselves(tmp_path: Path):
    assert "freehold keys add NAME" in freehold(tmp_path, "keys", "list").err
    secret = freehold(tmp_path, "keys", "add", "ann", "--tokens", "5k/day").out.strip()
    freehold(tmp_path, "keys", "add", "root", "--admin")
    accounts = Accounts(settings(tmp_path).accounts)
    accounts.spend("ann", 1234)
    accounts.close()
    out = freehold(tmp_path, "keys", "list").out
    assert secret not in out and "1,234" in out and "admin" in out and "5k/day" in out
    rows = json.loads(freehold(tmp_path, "keys", "list", "--json").out)["keys"]
    assert [(r["name"], r["kind"], r["spent_today"]) for r in rows] == [
        ("ann", "client", 1234),
        ("root", "admin", 0),
    ]


def test_a_key_is_revoked_by_name(tmp_path: Path):
    said = json.loads(freehold(tmp_path, "keys", "add", "ann", "--json").out)
    assert said["name"] == "ann" and said["key"].startswith("fh-")
    freehold(tmp_path, "keys", "add", "bob")
    assert freehold(tmp_path, "keys", "rm", "ann").err == "ann: revoked\n"
    assert [r["name"] for r in json.loads(freehold(tmp_path, "keys", "list", "--json").out)["keys"]] == [
        "bob"
    ]


def test_a_home_whose_last_key_was_revoked_starts_no_open_server(tmp_path: Path):
    freehold(tmp_path, "keys", "add", "ann")
    said = freehold(tmp_path, "keys", "rm", "ann").err
    assert "no key is left" in said and "running" not in said
    done = freehold(tmp_path, "serve", "--port", "0")
    assert (
        done.status == 2 and "had keys and has none now" in done.err and "freehold keys add NAME" in done.err
    )
    (tmp_path / "keys.json").unlink()
    assert not ring(settings(tmp_path), None, insecure=False)


def test_the_owner_s_token_is_printed_and_stays(tmp_path: Path):
    token = freehold(tmp_path / "new", "keys", "owner").out.strip()
    said = json.loads(freehold(tmp_path / "new", "keys", "owner", "--json").out)
    assert said["token"] == token and Path(said["file"]).read_text().strip() == token


def test_keys_say_what_they_do_to_a_server_that_runs(tmp_path: Path):
    with lock_of(settings(tmp_path)):
        pid_file(settings(tmp_path)).write_text("4711")
        assert "4711" in (added := freehold(tmp_path, "keys", "add", "ann").err) and "requires a key" in added
        assert "4711" in (gone := freehold(tmp_path, "keys", "rm", "ann").err) and "owner's socket" in gone


def test_a_variable_that_is_no_key_of_ours_does_not_stop_the_server(tmp_path: Path, monkeypatch, capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        more = {"FREEHOLD_API_KEY": "ollama", "FREEHOLD_API_KY": "x", "FREEHOLD_ZZZ": "1"}
        err = freehold(tmp_path, "serve", "--port", port, **more).err
    assert f"port {port} is in use" in err  # it went on to bind
    assert "warning: FREEHOLD_API_KEY is not a key of this server" in err and "ollama" not in err
    assert (
        "FREEHOLD_API_KY is not read; did you mean FREEHOLD_API_KEY?" in err and "FREEHOLD_ZZZ is not" in err
    )
    refused = freehold(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", FREEHOLD_API_KEY="ollama")
    assert refused.status == 2 and "no key is set" in refused.err


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["add", "a b"], "not a valid name for a key"),
        (["add", "x", "--rate", "60"], "not a valid quota"),
        (["add", "x", "--tokens", "60/min"], "by the day"),
        (["add", "x", "--admin", "--rate", "1/s"], "cannot use models"),
        (["rm", "x"], "no key 'x'"),
    ],
)
def test_wrong_usage_of_keys_is_said_and_writes_nothing(tmp_path: Path, args: list[str], part: str):
    done = freehold(tmp_path, "keys", *args)
    assert (done.status, done.out) == (2, "") and part in done.err
    assert not (tmp_path / "keys.json").exists()


def test_keys_may_lie_elsewhere_and_one_may_come_from_the_environment(tmp_path: Path):
    file = tmp_path / "other.json"
    with pytest.raises(UsageError, match="holds no key"):
        ring(settings(tmp_path), file, insecure=False)
    secret = freehold(tmp_path, "keys", "add", "ann", "--file", str(file)).out.strip()
    found = ring(settings(tmp_path, api_key=KEY), file, insecure=False)
    ann, environment = found.find(secret.encode()), found.find(KEY.encode())
    assert ann is not None and environment is not None
    assert (ann.name, environment.name, found.needed) == ("ann", "environment", True)


@pytest.mark.parametrize("from_environment", [False, True])
def test_the_keys_of_a_home_and_of_the_environment_are_needed_on_loopback_too(
    tmp_path: Path, from_environment: bool
):
    if from_environment:
        found = ring(settings(tmp_path, api_key=KEY), None, insecure=False)
    else:
        freehold(tmp_path, "keys", "add", "ann")
        found = ring(settings(tmp_path), None, insecure=False)
    assert found and found.needed
    with pytest.raises(Refused, match="needs a key"):
        Guard(found).check("/v1/models", {b"host": b"localhost"})


def test_a_loopback_server_without_keys_asks_for_none_until_there_is_one(tmp_path: Path):
    found = ring(settings(tmp_path), None, insecure=False)
    assert not found and not found.needed
