"""kill -9 at random bytes: the next run goes on, and no kill costs more than what was in flight."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freehold.base.config import MAX_IN_FLIGHT
from freehold.run.store.contract import recorded_bytes
from tests.store.conftest import UNIT, noise
from tests.store.standin import Standin

CONNECTIONS = 4
SOURCES = Path(__file__).parents[2] / "src"


def start_pull(home: Path, endpoint: str) -> subprocess.Popen[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "FREEHOLD_"))}
    env |= {
        "FREEHOLD_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "PYTHONPATH": str(SOURCES),
        "HOME": str(home),
    }
    command = [sys.executable, "-m", "freehold.cli.main", "pull", "org/big-GGUF"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def held(home: Path) -> int:
    return sum(recorded_bytes(p.with_suffix("")) for p in home.rglob("*.part"))


def settle(standin: Standin) -> None:
    """Wait until the server has noticed that its client is gone, also for a request that it had not begun to answer."""
    last = -1
    while standin.sending or standin.sent != last:
        last = standin.sent
        time.sleep(0.05)


def kill_and_count(home: Path, standin: Standin, kills: int, step: int) -> list[int]:
    """Kill `kills` pulls, each after a random number of bytes up to `step`; return what each one wasted."""
    rng = random.Random(5)
    wasted: list[int] = []
    for _ in range(kills):
        before, sent = held(home), standin.sent
        limit = rng.randrange(1, step)
        child = start_pull(home, standin.url)
        while standin.sent - sent < limit:
            assert child.poll() is None, "it finished before it could be killed"
            time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        settle(standin)
        wasted.append(standin.sent - sent - (held(home) - before))
    return wasted


def survive(home: Path, standin: Standin, size: int, kills: int, bound: int, step: int) -> None:
    body = noise(size, 3)
    standin.files = {"big-Q4_K_M.gguf": body}
    wasted = kill_and_count(home, standin, kills, step)
    assert max(wasted) <= bound, f"one kill cost {max(wasted):,} bytes, more than {bound:,}"
    before, sent = held(home), standin.sent
    last = start_pull(home, standin.url)
    path = Path(last.communicate()[0].decode().strip())
    assert last.returncode == 0
    assert standin.sent - sent == size - before, "the last run fetches what is missing, and nothing twice"
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(body).digest()
    assert not list(home.rglob("*.part*"))


@pytest.mark.heavy
def test_five_kills_cost_no_more_than_the_ranges_in_flight(tmp_path: Path, standin: Standin):
    (tmp_path / "config.toml").write_text(f"range_bytes = {UNIT}\nconnections = {CONNECTIONS}\n")
    standin.throttle_s = 0.002
    survive(tmp_path, standin, 80 * UNIT + 77, 5, CONNECTIONS * UNIT, step=15 * UNIT)


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.big)])
def test_kills_of_a_large_pull_cost_sixteen_megabytes_each_at_most(
    tmp_path: Path, standin: Standin, kills: int
):
    standin.throttle_s = 0.001
    survive(tmp_path, standin, 300_000_001, kills, MAX_IN_FLIGHT, step=24 << 20)
