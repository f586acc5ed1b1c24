"""gateway.toml is read again while it is served: a bad one changes nothing, and no key is left in the environment."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.route.router.gateway import Gateway
from freehold.route.router.opening import LiveGateway
from freehold.route.router.toml.table import BadGateway, KeptEnvironment, Outside
from tests.router.mistaken import KEY, SOUND

OUTSIDE = Outside(environment={"OPENAI_API_KEY": KEY}, keyring=lambda name: KEY)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "gateway.toml"
    found.write_text(SOUND)
    return found


def looked(live: LiveGateway, times: int = 2) -> bool:
    """Look at the file as `watch` does: a change is read once it stands still."""
    return [asyncio.run(live.look()) for _ in range(times)][-1]


def test_a_change_is_in_force_once_the_file_stands_still(file: Path):
    live = LiveGateway(file, OUTSIDE)
    before, told = live.current, list[Gateway]()
    live.on_change(told.append)
    file.write_text(SOUND.replace("retries = 1", "retries = 2"))
    assert not looked(live, 1) and live.current is before, "it may be half written"
    assert looked(live, 1) and told == [live.current]
    assert (before.routes["chat"].retries, live.current.routes["chat"].retries) == (1, 2)


def test_a_bad_reload_changes_nothing_and_is_said_once(file: Path, caplog: pytest.LogCaptureFixture):
    live = LiveGateway(file, OUTSIDE)
    before = live.current
    file.write_text(SOUND.replace("retries = 1", "retries = 99").replace("env:OPENAI_API_KEY", KEY))
    with caplog.at_level(logging.INFO, logger="freehold.route.router"):
        assert not looked(live, 6)
    assert live.current is before
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and "stays as it was" in said[0]
    assert "routes.chat.retries: 99 is not within 0..10" in said[0] and KEY not in said[0]
    assert "2 mistakes" in live.trouble and KEY not in live.trouble and str(file.parent) not in live.trouble


def test_a_good_reload_ends_the_trouble(file: Path):
    live = LiveGateway(file, OUTSIDE)
    file.write_text("nonsense")
    looked(live)
    assert live.trouble
    file.write_text(SOUND)
    assert not looked(live) and not live.trouble, "the file is as it was"


def test_a_keyring_that_fails_leaves_the_gateway_in_force_and_the_watch_alive(file: Path):
    def broken(name: str) -> str:
        if failing:
            raise RuntimeError(KEY)
        return KEY

    failing = False
    live = LiveGateway(file, replace(OUTSIDE, keyring=broken))
    failing = True
    file.write_text(SOUND.replace("retries = 1", "retries = 2"))
    assert not looked(live) and "could not be read" in live.trouble and KEY not in live.trouble
    failing = False
    file.write_text(SOUND.replace("retries = 1", "retries = 3"))
    assert looked(live) and not live.trouble and live.current.routes["chat"].retries == 3


def test_a_file_that_is_gone_leaves_the_gateway_in_force(file: Path):
    live = LiveGateway(file, OUTSIDE)
    file.unlink()
    assert not looked(live) and live.current.routes and live.trouble


@pytest.mark.parametrize("become", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_the_files_place_changes_nothing_and_is_not_waited_for(file: Path, become):
    live = LiveGateway(file, OUTSIDE)
    before = live.current
    file.unlink()
    become(file)
    assert not looked(live) and live.current is before and live.trouble
    with pytest.raises(BadGateway, match="ordinary file"):
        LiveGateway(file, OUTSIDE)
    file.rmdir() if file.is_dir() else file.unlink()
    file.write_text(SOUND.replace("retries = 1", "retries = 2"))
    assert looked(live) and not live.trouble


def test_a_touched_file_changes_nothing(file: Path):
    live = LiveGateway(file, OUTSIDE)
    before = live.current
    os.utime(file, ns=(1, 1))
    assert not looked(live) and live.current is before and not live.trouble


def test_a_touched_file_takes_a_key_that_was_changed(file: Path):
    keys = {"OPENAI_API_KEY": KEY}
    live = LiveGateway(file, replace(OUTSIDE, environment=keys))
    keys["OPENAI_API_KEY"] = "sk-another-one-0123456789"
    os.utime(file, ns=(1, 1))
    assert looked(live)
    key = live.current.providers["openai"].key
    assert key is not None and key.value == "sk-another-one-0123456789"


def test_the_ledger_does_not_move_while_the_server_runs(file: Path):
    live = LiveGateway(file, OUTSIDE)
    file.write_text('ledger = "other.sqlite"\n' + SOUND)
    assert not looked(live) and live.current.ledger == "" and live.trouble


def test_a_bad_file_at_the_start_is_refused(file: Path):
    file.write_text("[routes.chat]\n")
    with pytest.raises(BadGateway):
        LiveGateway(file, OUTSIDE)


def test_a_hidden_variable_is_found_at_the_next_reading(file: Path):
    environ = {"OPENAI_API_KEY": KEY, "PATH": "/bin"}
    kept = KeptEnvironment(environ)
    live = LiveGateway(file, Outside(environment=kept, keyring=lambda name: KEY))
    kept.hide()
    assert environ == {"PATH": "/bin"} and KEY not in repr(kept)
    file.write_text(SOUND.replace("retries = 1", "retries = 2"))
    assert looked(live) and not live.trouble


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="shows a process's environment on Linux only"
)
def test_no_child_and_no_file_of_the_system_shows_a_hidden_variable():
    code = (
        "import os, subprocess, sys\n"
        "from freehold.route.router.toml.table import KeptEnvironment\n"
        "kept = KeptEnvironment()\n"
        "assert kept['A_KEY'] == 'sk-' + 'x1' * 8\n"
        "kept.hide()\n"
        "print(open('/proc/self/environ').read())\n"
        "print(subprocess.run(['env'], capture_output=True, text=True).stdout, os.environ)\n"
    )
    env = {**os.environ, "A_KEY": "sk-" + "x1" * 8}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "PATH=" in done.stdout and "sk-x1" not in done.stdout
