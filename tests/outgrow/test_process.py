"""An engine's process: its whole tree ends with us, its log is bounded and has no key, its progress is seen outside."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from freehold.base.errors import UsageError
from freehold.outgrow.process import process
from freehold.outgrow.process.process import LogRing, OwnProcess, engine_environment, launch
from tests.outgrow.plans import plan_of

# Starts a child that starts a grandchild in a session of its own, as an engine's workers and trackers are; the middle
# one ends, so that the grandchild loses its parent. All of them ignore SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
def run(program, start=subprocess.Popen):
    return start([sys.executable, '-I', '-S', '-c', program])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
leaf = "import os, time; print('leaf', os.getpid(), flush=True); time.sleep(600)"
orphan = f"subprocess.Popen([sys.executable, '-I', '-S', '-c', {leaf!r}], start_new_session=True)"
run("import subprocess, sys; " + orphan, subprocess.run)
run(leaf)
print('engine', os.getpid(), flush=True)
time.sleep(600)
"""
LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="orphans are adopted, and shared memory seen, on Linux"
)


def phase(line: str) -> str:
    return line.removeprefix("phase: ") if line.startswith("phase: ") else ""


async def started(program: str, folder: Path, **options) -> OwnProcess:
    return await launch(plan_of(program, **options), folder, phase=phase, title="Engine")


async def until(done: Callable[[], bool]) -> None:
    for _ in range(1500):
        if done():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come about in 30 s")


def lines_with(engine: OwnProcess, word: str) -> list[str]:
    return [line for line in engine.log if line.startswith(word)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@LINUX
def test_stop_ends_also_what_lost_its_parent_and_ignores_signals(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "END_S", 0.3)

    async def run() -> list[int]:
        engine = await started(FAMILY, tmp_path)
        await until(lambda: len(lines_with(engine, "leaf")) == 2 and bool(lines_with(engine, "engine")))
        pids = [int(line.split()[1]) for line in engine.log]
        await engine.stop(0.0)
        assert await engine.ended is None
        return pids

    pids = asyncio.run(run())
    assert len(pids) == 3 and not [pid for pid in pids if alive(pid)]


HOST = """
import asyncio, sys, time
from pathlib import Path
from freehold.outgrow.process.process import launch
from tests.outgrow.plans import plan_of
async def main():
    engine = await launch(plan_of(sys.argv[1]), Path(sys.argv[2]), phase=lambda line: "", title="Engine")
    seen = 0
    while True:
        for line in list(engine.log)[seen:]:
            print(line, flush=True)
        seen = len(engine.log)
        await asyncio.sleep(0.02)
asyncio.run(main())
"""


@LINUX
def test_kill_9_of_us_leaves_no_process(tmp_path):
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, FAMILY, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert host.stdout is not None
        pids = [int(host.stdout.readline().split()[1]) for _ in range(3)]
        pids += [child.pid for child in psutil.Process(host.pid).children()]
        assert len(pids) == 4 and all(alive(pid) for pid in pids)
    finally:
        host.kill()
        host.communicate()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not [pid for pid in pids if alive(pid)]


@LINUX
def test_a_killed_supervisor_is_a_death_and_leaves_nothing(tmp_path):
    async def run() -> None:
        engine = await started(FAMILY, tmp_path)
        await until(lambda: len(engine.log) == 3)
        engine.progress()
        pids = [int(line.split()[1]) for line in engine.log]
        os.kill(psutil.Process(engine.pid).ppid(), signal.SIGKILL)
        died = await engine.ended
        assert died is not None and died.sentence == "Engine was ended: its supervisor was killed"
        await until(lambda: not any(alive(pid) for pid in pids))

    asyncio.run(run())


@pytest.mark.parametrize(("status", "said"), [(0, "status 0"), (3, "status 3")])
def test_an_end_that_was_not_asked_for_is_a_death_whatever_its_status(tmp_path, status, said):
    async def run() -> None:
        engine = await started(f"raise SystemExit({status})", tmp_path)
        died = await engine.ended
        assert died is not None and died.status == status
        assert died.sentence == f"Engine ended with {said}"

    asyncio.run(run())


def test_a_death_has_the_last_error_of_the_log(tmp_path):
    async def run() -> None:
        engine = await started("print('hello', flush=True); raise ValueError('seven is no size')", tmp_path)
        died = await engine.ended
        assert died is not None
        assert died.sentence == "Engine ended with status 1: ValueError: seven is no size"

    asyncio.run(run())


def test_a_signal_from_outside_is_named(tmp_path):
    async def run() -> None:
        engine = await started("import time; time.sleep(600)", tmp_path)
        os.kill(engine.pid, signal.SIGKILL)
        died = await engine.ended
        assert died is not None and died.status == -9 and "SIGKILL" in died.sentence

    asyncio.run(run())


def test_kill_says_why(tmp_path):
    async def run() -> None:
        engine = await started("import time; time.sleep(600)", tmp_path)
        engine.kill("no counter moved for 30 s")
        died = await engine.ended
        assert died is not None and died.sentence == "Engine was ended: no counter moved for 30 s"

    asyncio.run(run())


DRAINS = """
import signal, sys, time
def end(*_):
    print('draining', flush=True); time.sleep(0.3); print('drained', flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, end)
print('up', flush=True)
while True: time.sleep(0.05)
"""


def test_stop_lets_answers_end(tmp_path):
    async def run() -> None:
        engine = await started(DRAINS, tmp_path)
        await until(lambda: "up" in engine.log)
        await engine.stop(20.0)
        assert list(engine.log) == ["up", "draining", "drained"]

    asyncio.run(run())


TELLS = """
import os, sys
print(*os.environ, flush=True)
print('key=' + os.environ['ENGINE_KEY'], 'x' * 200_000, flush=True)
sys.stdout.write('y' * 200_000 + os.environ['ENGINE_KEY'] + '\\n')
print(open('/proc/self/cmdline').read() if os.path.exists('/proc/self/cmdline') else '', flush=True)
"""


def test_the_key_is_in_the_environment_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-ours")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    async def run() -> None:
        engine = await started(TELLS, tmp_path, environment={"DO_NOT_TRACK": "1"})
        await engine.ended
        assert len(engine.key) == 64
        text = "\n".join(engine.log)
        assert engine.key not in text and "[secret]" in text
        assert engine.key[:20] not in text
        seen = engine.log[0].split()
        assert "CUDA_VISIBLE_DEVICES" in seen and "DO_NOT_TRACK" in seen
        assert "OPENAI_API_KEY" not in seen and "VLLM_SERVER_DEV_MODE" not in seen
        assert max(map(len, engine.log)) <= 500

    asyncio.run(run())


def test_the_environment_is_a_list_of_what_engines_need():
    ours = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_TOKEN": "t",
        "VLLM_API_KEY": "k",
        "FREEHOLD_API_KEY": "f",
    }
    made = engine_environment(plan_of("", environment={"DO_NOT_TRACK": "1"}), {"ENGINE_KEY": "s"}, ours)
    assert made == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "DO_NOT_TRACK": "1",
        "ENGINE_KEY": "s",
        "PYTHONNOUSERSITE": "1",
        "TORCHINDUCTOR_CACHE_DIR": made["TORCHINDUCTOR_CACHE_DIR"],
    }


TEMPORARY = """
import os, socket, tempfile
found = tempfile.mkdtemp(); path = os.path.join(tempfile.gettempdir(), 'x' * 36)
socket.socket(socket.AF_UNIX).bind(path)
print(found, oct(os.stat(path).st_mode & 0o777), oct(os.stat(tempfile.gettempdir()).st_mode & 0o777), flush=True)
os.kill(os.getpid(), 9)
"""


def test_an_engine_has_temporary_files_of_its_own_that_go_with_it(tmp_path):
    async def run() -> None:
        engine = await started(TEMPORARY, tmp_path)
        await engine.ended
        folder, socket, above = engine.log[0].split()
        assert (socket, above) == ("0o700", "0o700") and not Path(folder).parent.exists()

    asyncio.run(run())


DUMPS = """
print("(EngineCore pid=7) ERROR [dump_input.py:79] Dumping scheduler output for model execution: "
      "SchedulerOutput(scheduled_new_reqs=[NewRequestData(sampling_params=SamplingParams(stop=['my own words'])])")
"""


def test_an_engine_s_dump_of_the_requests_it_computed_is_left_out(tmp_path):
    async def run() -> None:
        engine = await started(DUMPS, tmp_path)
        await engine.ended
        assert list(engine.log) == [
            "(EngineCore pid=7) ERROR [dump_input.py:79] [text of requests is left out]"
        ]

    asyncio.run(run())


def test_a_flood_of_output_is_kept_to_the_newest_lines(tmp_path):
    async def run() -> None:
        engine = await started("for i in range(20_000): print('line', i)", tmp_path)
        await engine.ended
        assert len(engine.log) == 2000 and engine.log[-1] == "line 19999"
        assert engine.progress().lines == 20_000

    asyncio.run(run())


WORKS = """
import time
print('phase: loading weights', flush=True)
end = time.process_time() + 1.3
while time.process_time() < end: pass
held = bytearray(80 << 20)
print('worked', flush=True)
time.sleep(600)
"""


def test_progress_comes_from_the_process(tmp_path):
    async def run() -> None:
        engine = await started(WORKS, tmp_path)
        await until(lambda: "worked" in engine.log)
        await asyncio.sleep(1.1)  # until the tree is looked at again
        seen = engine.progress()
        assert seen.phase == "loading weights" and seen.cpu_s >= 1.3 and seen.memory_bytes > 80 << 20
        assert seen.lines == 2
        later = engine.progress()
        assert later.since_s > seen.since_s
        await engine.stop(0.0)

    asyncio.run(run())


def test_a_line_said_again_with_other_figures_is_no_progress(tmp_path):
    waits = "import time\nfor i in range(3): print(f'waiting for 1 core, {i * 60} s', flush=True)\ntime.sleep(600)"

    async def run() -> None:
        engine = await started(waits, tmp_path)
        await until(lambda: engine.log.lines == 3)
        assert engine.log.news == 1
        await engine.stop(0.0)

    asyncio.run(run())


def test_a_program_that_is_not_there_is_named(tmp_path):
    async def run() -> None:
        with pytest.raises(UsageError, match="No such file or directory: /nowhere/python"):
            await launch(plan_of("", command=("/nowhere/python", "-c")), tmp_path, phase=phase, title="vLLM")

    asyncio.run(run())


SHARES = """
import mmap, os, sys, time
def share(name):
    fd = os.open('/dev/shm/' + name, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 4096)
    return mmap.mmap(fd, 4096)
kept = share('psm_freehold_test_' + str(os.getpid()))
# As the C library makes a semaphore: mapped under a name that is not its last one.
made = share('sem.made' + str(os.getpid()))
os.link('/dev/shm/sem.made' + str(os.getpid()), '/dev/shm/sem.freehold_test_' + str(os.getpid()))
os.unlink('/dev/shm/sem.made' + str(os.getpid()))
print('up', flush=True)
time.sleep(600)
"""


@LINUX
@pytest.mark.parametrize("how", ["stop", "kill", "kill of the engine"])
def test_shared_memory_of_a_dead_tree_is_removed_and_that_of_others_stays(tmp_path, how):
    other = Path(f"/dev/shm/psm_freehold_other_{os.getpid()}_{how.replace(' ', '')}")

    async def run() -> None:
        engine = await started(SHARES, tmp_path)
        other.write_bytes(b"x")  # made meanwhile, named alike, mapped by no process of the tree
        await until(lambda: "up" in engine.log)
        ours = Path(f"/dev/shm/psm_freehold_test_{engine.pid}")
        semaphore = Path(f"/dev/shm/sem.freehold_test_{engine.pid}")
        assert ours.exists() and semaphore.exists()
        if how == "stop":
            await engine.stop(0.0)
        elif how == "kill":
            engine.kill("it was enough")
        else:
            await asyncio.sleep(1.2)  # one look at the maps
            os.kill(engine.pid, signal.SIGKILL)
        await engine.ended
        assert not ours.exists() and not semaphore.exists() and other.exists()

    try:
        asyncio.run(run())
    finally:
        other.unlink(missing_ok=True)


def test_what_a_terminal_would_obey_is_no_part_of_a_line():
    async def run() -> None:
        ring = LogRing()
        ring.data_received(b"\x1b]52;c;ZXZpbA==\x07\x1b[31mred\x1b[0m \xc2\x9b2J\xe2\x80\xaex\ty\n")
        assert list(ring) == ["]52;c;ZXZpbA==red 2Jx\ty"]

    asyncio.run(run())


def test_a_flood_in_one_read_costs_no_more_than_what_is_kept_of_it():
    told: list[str] = []

    async def run() -> None:
        ring = LogRing(told=told.append)
        ring.data_received(b"".join(b"line %d\n" % i for i in range(20_000)))
        assert len(told) == len(ring) == 2000 and ring.lines == 20_000 and ring[-1] == "line 19999"

    asyncio.run(run())


@LINUX
def test_stop_ends_an_engine_whose_supervisor_takes_no_orders(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "END_S", 0.2)
    monkeypatch.setattr(process, "KILL_S", 0.2)

    async def run() -> None:
        engine = await started(FAMILY, tmp_path)
        await until(lambda: len(lines_with(engine, "leaf")) == 2)
        pids = [int(line.split()[1]) for line in engine.log]
        assert engine._supervisor is not None
        os.kill(engine._supervisor.pid, signal.SIGSTOP)
        await engine.stop(0.0)
        await until(lambda: not any(map(alive, pids)))

    asyncio.run(run())


@pytest.mark.parametrize("planted", ["link", "open", "file"])
def test_what_torch_compiled_is_read_from_a_folder_of_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
):
    """Torch runs what it finds there, and any account may make that folder in /tmp first."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    first = process.engine_environment(plan_of(""), {}, {})["TORCHINDUCTOR_CACHE_DIR"]
    assert os.stat(first).st_mode & 0o077 == 0
    assert process.engine_environment(plan_of(""), {}, {})["TORCHINDUCTOR_CACHE_DIR"] == first
    os.rmdir(first)
    if planted == "link":
        os.symlink(tmp_path, first)
    elif planted == "open":
        os.mkdir(first)
        os.chmod(first, 0o777)
    else:
        Path(first).write_text("")
    assert "TORCHINDUCTOR_CACHE_DIR" not in process.engine_environment(plan_of(""), {}, {})
