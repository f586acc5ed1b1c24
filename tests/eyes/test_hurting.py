"""Sixty pictures that hurt are right or refused by name, beside a server that stays well, and leave nothing behind."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benches.server.servers import KINDS, Server, free_port
from freehold.base.platforms import can_confine
from freehold.run.models.tiny import make
from tests.eyes import hurting

SHARED = Path("/dev/shm")
DECODER = "freehold.run.pictures.child"  # stays, and forks for each picture
SOON_S = 20.0  # for what was killed to be gone


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + SOON_S
    while not (reached := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return reached


@pytest.mark.heavy
@pytest.mark.skipif(
    not can_confine(), reason="each picture has a process of its own here, which takes minutes"
)
def test_sixty_pictures_that_hurt_are_right_or_refused_and_leave_nothing(tmp_path: Path):
    model = make.write_safetensors(make.config("qwen3_vl"), tmp_path / hurting.MODEL)
    temporary, port = tmp_path / "temporary", free_port()
    temporary.mkdir()
    command = [sys.executable, "-m", "freehold.cli.main", "serve", str(model), "--port", str(port)]
    files = hurting.sixty()
    assert len(files) == 60 and len({file.name for file in files}) == 60
    with Server(command, port, {"TMPDIR": str(temporary)}, KINDS["freehold"].health) as server:
        client, pid = hurting.Hurting(port), server.process.pid
        client.send_all(files[:1])  # which starts the process that forks for pictures
        assert client.wrong == []
        processes, left = hurting.processes_of(pid), hurting.files_below(temporary)
        shared = hurting.files_below(SHARED) if SHARED.is_dir() else []
        with hurting.health(port) as seconds:
            client.send_all(files)
        assert client.wrong == []
        assert seconds and all(math.isfinite(each) for each in seconds)
        assert until(lambda: hurting.processes_of(pid)[DECODER] == 1), hurting.processes_of(pid)
        assert hurting.processes_of(pid).keys() <= processes.keys()
        assert hurting.files_below(temporary) == left
        if SHARED.is_dir():
            own = [name for name in hurting.files_below(SHARED) if name not in shared]
            assert not [name for name in own if "freehold" in name]
