"""Engines that outlive the kill of server and supervisor are found and ended by a later server of their data folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from freehold.outgrow.process import supervisor
from freehold.outgrow.process.supervisor import SharedMemoryWatch, end_left
from tests.outgrow.test_process import FAMILY, HOST, LINUX, SHARES, alive, started, until


def family_of_a_killed_server(folder: Path, program: str, lines: int) -> list[int]:
    """Start a program as an engine's, kill its server and its supervisor at once, and return the lines' numbers."""
    folder.mkdir(parents=True)
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, program, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert host.stdout is not None
    pids = [int(host.stdout.readline().split()[1]) for _ in range(lines)]
    supervisor = psutil.Process(host.pid).children()[0]
    supervisor.send_signal(signal.SIGSTOP)  # it cannot end the tree before it is killed itself
    host.kill()
    host.communicate()
    supervisor.kill()
    return pids


@pytest.mark.heavy
@LINUX
def test_a_later_server_ends_what_a_killed_one_and_its_supervisor_left(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    left = family_of_a_killed_server(home / "engines" / "m" / "0", FAMILY, 3)
    elsewhere = family_of_a_killed_server(other / "engines" / "m" / "0", FAMILY, 3)
    assert any(alive(pid) for pid in left) and any(alive(pid) for pid in elsewhere)
    try:
        assert end_left(home) >= 1
        assert not [pid for pid in left if alive(pid)]
        assert any(alive(pid) for pid in elsewhere)  # of another data folder
        assert end_left(home) == 0
    finally:
        end_left(other)
    assert not [pid for pid in elsewhere if alive(pid)]


@LINUX
def test_engines_of_a_server_that_runs_are_left_alone(tmp_path):
    folder = tmp_path / "engines" / "m" / "0"
    folder.mkdir(parents=True)

    async def run() -> None:
        engine = await started(FAMILY, folder)
        await until(lambda: len(engine.log) == 3)
        assert await asyncio.to_thread(end_left, tmp_path) == 0
        assert all(alive(int(line.split()[1])) for line in engine.log)
        engine.kill("enough")
        await engine.ended

    asyncio.run(run())


@LINUX
@pytest.mark.parametrize("runs", [True, False])
def test_shared_memory_goes_with_it_also_where_its_processes_have_ended(tmp_path, runs):
    program = SHARES.replace("print('up', flush=True)", "print('engine', os.getpid(), flush=True)")
    program = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{program}"
    folder = tmp_path / "engines" / "m" / "0"
    folder.mkdir(parents=True)
    own = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        watch = SharedMemoryWatch(folder / supervisor.NOTED)
        watch._before = frozenset()  # it looked before the start
        assert own.stdout is not None and own.stdout.readline()
        watch.look(lambda: [own.pid], again=True)
        names = [Path(f"/dev/shm/psm_freehold_test_{own.pid}"), Path(f"/dev/shm/sem.freehold_test_{own.pid}")]
        assert all(name.exists() for name in names)
        if not runs:
            own.kill()
            own.wait()
        assert end_left(tmp_path) == 0  # no process of an engine was left
        # what any process maps is in use
        assert [name.exists() for name in names] == [runs, runs]
    finally:
        own.kill()
        own.communicate()
        for name in names:
            name.unlink(missing_ok=True)


def test_a_folder_that_is_too_long_for_a_socket_is_found_by_the_data_folder_it_is_of(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert supervisor.temporary_prefix(one) == supervisor.temporary_prefix(one)
    assert supervisor.temporary_prefix(one) != supervisor.temporary_prefix(other)
    assert str(os.getpid()) in supervisor.owner(one)
