"""A deployment seen from outside, by the program that examines real engines, with a stand-in in the engine's place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.outgrow.test_facts import write_model

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).parent / "standin"


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_deployment_shows_nothing_and_leaves_nothing_after_kill_9(tmp_path):
    engine = f"{sys.executable} {STANDIN} --dialect vllm --standin-children 2 --standin-shm 2"
    command = [sys.executable, "-m", "benches.outgrow.guard", "--part", "kill", "--command", engine]
    done = subprocess.run(
        [*command, "--model", str(write_model(tmp_path / "tiny"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    empty = (
        "beyond_loopback",
        "remote",
        "keys_in_command_lines",
        "keys_in_texts",
        "prompt_in_texts",
        "not_off",
    )
    assert {name: seen[name] for name in empty} == {name: [] for name in empty}
    assert seen["engine_keys_in_other_environments"] == seen["development_mode"] == []
    assert seen["routes"]["reached"] == [] and seen["routes"]["closed"] >= 18
    assert seen["keys"] == 2 and seen["engine_processes"] >= 3
    assert seen["after_kill_9"]["alive"] == seen["after_kill_9"]["lying"] == []
