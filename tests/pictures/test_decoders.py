"""Decoding processes: killed on excess, closed in, shared by threads, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from freehold.base import platforms
from freehold.base.errors import CapacityExceeded, UsageError
from freehold.run.pictures import decoders, limits, opening
from freehold.run.pictures.decoders import Decoders
from freehold.run.pictures.opening import Resize, header, open_picture
from tests.pictures import makers as m
from tests.sandbox.conftest import all_end

PICTURE = m.saved(m.pattern(), "PNG")
confined = pytest.mark.skipif(not platforms.can_confine(), reason="forks are confined on Linux")


@pytest.fixture(params=["forked", "started"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    """Decoders of this test's own, both ways."""
    if request.param == "started":
        monkeypatch.setattr(decoders, "can_confine", lambda: False)
    elif not platforms.can_confine():
        pytest.skip("forks are confined on Linux")
    mine = Decoders()
    monkeypatch.setattr(opening, "shared", mine)
    yield mine
    mine.close()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoders]:
    """Decoders of this test's own, with a process that stays."""
    mine = Decoders()
    monkeypatch.setattr(opening, "shared", mine)
    yield mine
    mine.close()


def seen(data: bytes = PICTURE) -> m.U8:
    return open_picture(data, lambda width, height: [[]])[1][0]


def works() -> bool:
    return bool((seen() == m.pattern()).all())


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_too_much_processor_ends_a_picture_and_not_the_next(
    shared: Decoders, monkeypatch: pytest.MonkeyPatch
):
    large = m.png_of_zeros(6000, 6000)
    assert works()
    with monkeypatch.context() as patch:
        patch.setattr(limits, "SECONDS", 0.02)
        with pytest.raises(UsageError, match=r"more than 0\.02 s of processor"):
            seen(large)
    assert works() and seen(large).shape == (6000, 6000, 3)


@pytest.mark.heavy
def test_a_jpeg_of_many_scans_is_ended(forked: Decoders, monkeypatch: pytest.MonkeyPatch):
    """Each of its scans is some bytes, and takes a pass over all of its blocks."""
    monkeypatch.setattr(limits, "SECONDS", 1.0)
    data = m.many_scans(8000, 4000)
    assert len(data) < limits.MAX_BYTES and header(data).width == 8000
    with pytest.raises(UsageError, match="more than 1 s of processor"):
        seen(data)
    assert works()


@pytest.mark.heavy
def test_exif_of_many_entries_is_one_note(forked: Decoders):
    """Each of 60,000 entries names the same 600 kB, which would be 36 GB."""
    (note,) = header(m.many_exif_entries(60_000, 600_000)).notes
    assert note.startswith("the file is irregular: ") and note.endswith(" more")
    assert works()


def test_too_much_memory_ends_a_picture_and_not_the_next(shared: Decoders, monkeypatch: pytest.MonkeyPatch):
    large = m.png_of_zeros(6000, 6000)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MEMORY", 150 << 20)
        with pytest.raises(UsageError, match="more than 150 MiB of memory"):
            seen(large)
    assert works()


def test_a_picture_that_takes_too_long_is_ended(shared: Decoders, monkeypatch: pytest.MonkeyPatch):
    assert works()
    monkeypatch.setattr(decoders, "WALL_S", 0.1)
    with pytest.raises(UsageError, match=r"longer than 0\.1 s"):
        open_picture(PICTURE, lambda width, height: time.sleep(0.2) or [[]])
    monkeypatch.setattr(decoders, "WALL_S", 60.0)
    assert works()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(lambda: m.png_of_zeros(8192, 8192), id="png"),
        pytest.param(
            lambda: m.saved(np.zeros((8192, 8192, 4), np.uint8), "PNG", compress_level=1), id="png with alpha"
        ),
        pytest.param(lambda: m.saved(np.zeros((8192, 8192, 3), np.uint8), "JPEG"), id="jpeg"),
        pytest.param(
            lambda: m.saved(np.zeros((8192, 8192, 3), np.uint8), "JPEG", progressive=True), id="progressive"
        ),
        pytest.param(lambda: m.with_exif(np.zeros((8192, 8192, 3), np.uint8), "JPEG", 6), id="turned"),
        pytest.param(
            lambda: m.saved(np.zeros((4096, 16_383, 4), np.uint8), "WEBP", method=0), id="webp with alpha"
        ),
        pytest.param(
            lambda: m.saved(np.zeros((4096, 16_383, 4), np.uint8), "WEBP", lossless=True, quality=0),
            id="lossless webp",
        ),
        pytest.param(lambda: m.saved(np.zeros((8192, 8192, 3), np.uint8), "GIF"), id="gif"),
        pytest.param(
            lambda: m.png(8192, 8192, 16, m.GREY, bytes((2 * 8192 + 1) * 8192)), id="png of 16 bits"
        ),
    ],
)
def test_the_largest_pictures_fit(pixels: Callable[[], bytes]):
    _, (small,) = open_picture(pixels(), lambda width, height: [[Resize(64, 32, "bicubic")]])
    assert small.shape == (32, 64, 3)


# --- whatever ends, nothing stays -------------------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else psutil.Process().num_fds()


def test_nothing_is_left_behind(shared: Decoders, monkeypatch: pytest.MonkeyPatch):
    assert works()
    me = psutil.Process()
    before, kept = open_descriptors(), me.children()  # the process that stays; what it forked is below it
    broken = [PICTURE[:60], b"\xff\xd8\xff", b"", m.png_bomb(30_000, 30_000), m.saved(m.pattern(), "TIFF")]
    for data in broken:
        with pytest.raises(UsageError):
            seen(data)
    with pytest.raises(ZeroDivisionError):
        open_picture(PICTURE, lambda width, height: 1 // 0)  # type: ignore[arg-type,return-value]
    header(PICTURE)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "SECONDS", 0.001)
        with pytest.raises(UsageError, match="processor"):
            seen(m.png_of_zeros(6000, 6000))
    assert works()
    assert until(lambda: children(me.pid) == me.children() == kept)
    assert open_descriptors() == before


@confined
def test_a_fork_that_ended_is_waited_for(forked: Decoders):
    for _ in range(5):
        assert works()
    staying = forked._staying
    assert staying is not None and until(lambda: not children(staying._process.pid))


@confined
def test_the_process_that_stays_is_replaced_when_it_ends(forked: Decoders):
    assert works() and forked._staying is not None
    forked._staying._process.kill()
    assert works()
    forked._staying._process.kill()
    forked._staying._process.wait()
    assert works()


def kill_staying(mine: Decoders) -> None:
    """Kill the process that stays, and wait until what it forked has ended with it."""
    assert mine._staying is not None
    below = children(mine._staying._process.pid)
    mine._staying._process.kill()
    assert below and all_end(below)


@confined
def test_a_process_that_is_killed_amidst_a_picture_is_replaced(forked: Decoders):
    tries: list[int] = []

    def plan(width: int, height: int) -> list[list[Resize]]:
        tries.append(width)
        if len(tries) == 1:
            kill_staying(forked)
        return [[]]

    np.testing.assert_array_equal(open_picture(PICTURE, plan)[1][0], m.pattern())
    assert tries == [12, 12]


@confined
def test_a_fork_that_the_kernel_kills_is_no_fault_of_the_picture(forked: Decoders):
    def plan(width: int, height: int) -> list[list[Resize]]:
        assert forked._staying is not None
        for child in children(forked._staying._process.pid):
            child.kill()
        return [[]]

    with pytest.raises(CapacityExceeded, match="was killed"):
        open_picture(PICTURE, plan)
    assert works()


@confined
def test_a_process_that_dies_again_and_again_is_an_error_of_the_machine(forked: Decoders):
    def plan(width: int, height: int) -> list[list[Resize]]:
        kill_staying(forked)
        return [[]]

    with pytest.raises(CapacityExceeded, match="ended twice"):
        open_picture(PICTURE, plan)
    assert works()


@confined
def test_a_fork_is_closed_in_before_it_reads(forked: Decoders):
    states: list[str] = []
    opened: list[list[str]] = []

    def plan(width: int, height: int) -> list[list[Resize]]:
        assert forked._staying is not None
        (fork,) = children(forked._staying._process.pid)
        states.append(Path(f"/proc/{fork.pid}/status").read_text())
        opened.append([os.readlink(fd) for fd in Path(f"/proc/{fork.pid}/fd").iterdir()])
        return [[]]

    open_picture(PICTURE, plan)
    assert "Seccomp:\t2" in states[0] and "NoNewPrivs:\t1" in states[0]
    others = [name for name in opened[0] if name != "/dev/null"]
    assert len(others) == 2 and {name.partition(":")[0] for name in others} == {"socket", "pipe"}


@confined
def test_each_picture_has_a_process_of_its_own(forked: Decoders):
    pids: list[int] = []

    def plan(width: int, height: int) -> list[list[Resize]]:
        assert forked._staying is not None
        pids.extend(child.pid for child in children(forked._staying._process.pid) if child.pid not in pids)
        return [[]]

    for _ in range(3):
        open_picture(PICTURE, plan)
    assert len(pids) == 3


def test_threads_share_the_processes(shared: Decoders):
    sizes = [(5 + n, 3 + n) for n in range(12)]
    right: list[bool] = []

    def open_one(width: int, height: int) -> None:
        pixels = m.pattern(width, height)
        right.append(bool((seen(m.saved(pixels, "PNG")) == pixels).all()))

    threads = [threading.Thread(target=open_one, args=size) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 12


def test_a_client_with_all_slots_gives_one_up_for_another_s_picture(shared: Decoders):
    """Its later picture is begun again once there is room, and none of its own is lost."""
    gate, began = threading.Event(), threading.Semaphore(0)
    calls, seen_by = [0, 0], list[bool]()

    def hostile(number: int) -> None:
        def plan(width: int, height: int) -> list[list[Resize]]:
            calls[number] += 1
            began.release()
            assert gate.wait(60)
            return [[]]

        with decoders.in_turn_of("hostile"):
            (pixels,) = open_picture(PICTURE, plan)[1]
        seen_by.append(bool((pixels == m.pattern()).all()))

    threads = [threading.Thread(target=hostile, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
        assert began.acquire(timeout=60)
    waiting = threading.Thread(target=lambda: gate.wait(60))
    waiting.start()
    with decoders.in_turn_of("other"):
        done = threading.Thread(target=lambda: seen_by.append(works()))
    done.start()
    assert until(lambda: any(each.given_up for each in shared._turns._running))
    gate.set()
    for thread in (*threads, waiting, done):
        thread.join(60)
    assert seen_by == [True] * 3 and sorted(calls)[0] == 1


def test_turns_go_to_the_client_with_the_fewest_then_to_who_waited_longest():
    turns, order = decoders.DecoderTurns(2), list[str]()
    gates = {name: threading.Event() for name in ("a1", "b1", "a2", "a3", "c1", "b2")}

    def decode(name: str) -> None:
        with turns.of(name[0]) as turn:
            order.append(name)
            gates[name].wait(60)
            assert not turn.given_up

    threads = list[threading.Thread]()
    for count, name in enumerate(gates, 1):
        threads.append(threading.Thread(target=decode, args=(name,)))
        threads[-1].start()
        assert until(
            lambda count=count: len(turns._running) + sum(map(len, turns._waiting.values())) == count
        )
    assert order == ["a1", "b1"]
    for ended, follows in (("a1", "c1"), ("b1", "a2"), ("c1", "b2"), ("b2", "a3")):
        gates[ended].set()
        assert until(lambda follows=follows: order[-1] == follows), order
    for gate in gates.values():
        gate.set()
    for thread in threads:
        thread.join(60)


def test_one_picture_that_takes_long_does_not_hold_up_another(forked: Decoders):
    began, done = threading.Event(), threading.Event()

    def plan(width: int, height: int) -> list[list[Resize]]:
        began.set()
        assert done.wait(60)
        return [[]]

    thread = threading.Thread(target=open_picture, args=(PICTURE, plan))
    thread.start()
    assert began.wait(60) and works()
    done.set()
    thread.join()


PARENT = """
import os, sys, time
from freehold.run.pictures import decoders
if sys.argv[1] == "started":
    decoders.can_confine = lambda: False
from freehold.run.pictures.opening import open_picture
from tests.pictures import makers as m
def plan(width, height):
    print("ready", flush=True)
    time.sleep(600)
open_picture(m.saved(m.pattern(), "PNG"), plan)
"""


@pytest.mark.parametrize("way", ["forked", "started"])
def test_no_process_outlives_a_parent_that_is_killed(way: str):
    if way == "forked" and not platforms.can_confine():
        pytest.skip("forks are confined on Linux")
    command = [sys.executable, "-c", PARENT, way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        below = children(process.pid)
        assert len(below) == (2 if way == "forked" else 1)
        process.kill()
    assert all_end(below)


@confined
def test_an_idle_process_ends_by_itself(tmp_path: Path):
    """With its own clock turned to nothing, as a parent cannot."""
    code = (
        "import sys; from freehold.run.pictures import child; child.IDLE_S = 0.05\n"
        "sys.argv = ['child', 'stays', *sys.argv[1:]]; child.main()"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", code, str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        assert process.wait(60) == 0 and ours.recv(1) == limits.READY


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_fork_starts_its_own(forked: Decoders):
    assert works()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if works() else 2
            forked.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert works()


def test_no_pillow_is_an_error_with_a_way_out(
    shared: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(UsageError, match="Pillow") as error:
        seen()
    assert error.value.hint == 'pip install "freehold[eyes]"'


def test_a_process_that_cannot_be_started_is_an_error_of_the_machine(
    shared: Decoders, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoders, "COMMAND", ("/nowhere/python",))
    monkeypatch.setattr(decoders, "COMMAND_ONCE", ("/nowhere/python",))
    before = open_descriptors()
    with pytest.raises(CapacityExceeded, match="no process could be started"):
        seen()
    assert open_descriptors() == before


def test_a_process_that_ends_as_it_starts_is_an_error_of_the_machine(
    shared: Decoders, monkeypatch: pytest.MonkeyPatch
):
    ends = (sys.executable, "-c", "pass")
    monkeypatch.setattr(decoders, "COMMAND", ends)
    monkeypatch.setattr(decoders, "COMMAND_ONCE", ends)
    with pytest.raises(CapacityExceeded, match="did not start"):
        seen()


def test_how_a_process_ended_is_named():
    for code, words in (
        (-signal.SIGSEGV, "SIGSEGV"), (1, "status 1"), (-signal.SIGPROF, "of processor"), (3, "of memory"),
    ):  # fmt: skip
        error = decoders._reason(code, late=False)
        assert isinstance(error, UsageError) and words in error.message and error.hint
    assert isinstance(decoders._reason(-signal.SIGKILL, late=False), CapacityExceeded)
    assert "longer than 60 s" in decoders._reason(-signal.SIGKILL, late=True).message
