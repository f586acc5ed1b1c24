"""`freehold mcp`: the one way by which a server of tools is configured and tried, and permissions are taken back."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.serve.tools.mcp.configured import tool_server
from freehold.serve.tools.mcp.permissions import Permissions, pinned
from tests.tools.world import HOSTILE, below

Mcp = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mcp(run: Mcp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mcp:
    """`freehold mcp` in a home of its own."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    return lambda *words: run("mcp", *words)


def kept(home: Path) -> dict[str, object]:
    return tomllib.loads((home / "config.toml").read_text()).get("mcp", {})


def test_a_program_is_added_word_by_word_and_listed_without_its_secrets(mcp: Mcp, tmp_path: Path):
    status, out, err = mcp(
        "add", "h", "--env", "TOKEN=s3cret=x", "--key", "ann", "--", "npx", "-y", "a b; rm -rf ~"
    )
    assert (status, out) == (0, "") and "freehold mcp test h" in err and "s3cret" not in err
    words = ["npx", "-y", "a b; rm -rf ~"]
    assert kept(tmp_path) == {"h": {"command": words, "env": {"TOKEN": "s3cret=x"}, "keys": ["ann"]}}
    status, out, _ = mcp("list")
    assert status == 0 and "'a b; rm -rf ~'" in out and "s3cret" not in out
    row = json.loads(mcp("list", "--json")[1])["servers"][0]
    assert (row["command"], row["env"], row["keys"], row["allowed"]) == (words, ["TOKEN"], ["ann"], [])


def test_an_address_is_added_with_its_headers(mcp: Mcp, tmp_path: Path):
    url, header = "https://wiki.example.com/mcp", "Authorization=Bearer s3cret"
    said = json.loads(mcp("add", "wiki", url, "--header", header, "--json")[1])
    assert (said["name"], said["where"]) == ("wiki", url)
    assert kept(tmp_path) == {"wiki": {"url": url, "headers": {"Authorization": "Bearer s3cret"}}}
    assert "s3cret" not in mcp("list", "--json")[1]


@pytest.mark.parametrize(
    "words, said",
    [
        (("Files!", "--", "x"), "not a valid name"),
        (("h", "--env", "TOKEN", "--", "x"), "has no ="),
        (("h", "http://example.com/mcp"), "without encryption"),
        (("h", "https://169.254.169.254/"), "clouds"),
        (("h", "https://example.com", "--env", "A=1"), "no meaning beside url"),
    ],
)
def test_what_would_be_refused_later_is_not_written(
    mcp: Mcp, tmp_path: Path, words: tuple[str, ...], said: str
):
    status, out, err = mcp("add", *words)
    assert status == 2 and out == "" and said in err
    assert not (tmp_path / "config.toml").exists()


def test_a_name_is_given_once_and_free_after_rm(mcp: Mcp, tmp_path: Path):
    (tmp_path / "config.toml").write_text("# mine\nadopt = false\n")
    mcp("add", "h", "--", "one")
    status, _, err = mcp("add", "h", "--", "two")
    assert status == 2 and "freehold mcp rm h" in err and kept(tmp_path) == {"h": {"command": ["one"]}}
    assert mcp("rm", "h")[0] == 0
    assert (tmp_path / "config.toml").read_text().rstrip() == "# mine\nadopt = false"
    assert mcp("rm", "h")[0] == 2 and "no servers" in mcp("list")[2]


def test_what_was_allowed_is_counted_revoked_and_gone_with_its_server(mcp: Mcp, tmp_path: Path):
    mcp("add", "h", "--", "one")
    raw = [{"name": name, "inputSchema": {}} for name in ("read", "write")]
    tools, _ = pinned(tool_server("h", {"command": ["one"]}, ""), raw)
    permissions = Permissions.of(tmp_path)
    for tool in tools:
        permissions.grant(tool, "always")
    assert mcp("list")[1].splitlines()[-1].split()[:4] == ["h", "program", "-", "2"]
    assert json.loads(mcp("revoke", "h", "write", "--json")[1])["revoked"] == ["write"]
    assert [e.tool for e in permissions.entries()] == ["read"]
    assert mcp("revoke", "h", "write")[0] == 2
    assert json.loads(mcp("rm", "h", "--json")[1])["revoked"] == ["read"]
    assert permissions.entries() == []


@pytest.mark.heavy
def test_a_server_is_tried_its_tools_are_shown_and_it_is_ended(mcp: Mcp, tmp_path: Path):
    pytest.importorskip("mcp")
    mcp("add", "h", "--", sys.executable, str(HOSTILE), "names")
    with below() as left:
        status, out, err = mcp("test", "h")
    assert status == 0 and left == []
    assert out.splitlines() == ["echo  Echoes.", "a.b\\u{202e}c  Echoes.", "a_b_c  Echoes."]
    assert err.count("left out") == 4 and "3 tools, started and listed" in err
    found = json.loads(mcp("test", "h", "--json")[1])
    assert [len(tool["digest"]) for tool in found["tools"]] == [64] * 3 and len(found["left_out"]) == 4


def test_a_program_that_does_not_start_is_named(mcp: Mcp):
    pytest.importorskip("mcp")
    mcp("add", "h", "--", "/no/such/program")
    status, out, err = mcp("test", "h")
    assert status != 0 and out == "" and "No such file" in err
    assert mcp("test", "other")[0] == 2
