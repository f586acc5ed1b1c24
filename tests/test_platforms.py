"""One module asks which system this is; each has its way, and Windows is refused by name."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.base import platforms
from freehold.base.sandbox.children import spawn, watched

PACKAGE = Path(__file__).parent.parent / "src" / "freehold"
# Half of a program that runs where this package is not: it can import no platforms.py, and asks for a call, not a name.
ELSEWHERE = PACKAGE / "outgrow" / "ray" / "app.py"
# What is written there is for containers, which are Linux wherever it is written.
EMIT = PACKAGE / "outgrow" / "emit"
FILES = [
    p
    for p in sorted(PACKAGE.rglob("*.py"))
    if p.name != "platforms.py" and p != ELSEWHERE and EMIT not in p.parents
]
# Of the standard library, what one of the two systems lacks or does otherwise.
ONE_SYSTEMS = (
    r"sys\.platform|platform\.system\(|os\.name\b|sched_[gs]etaffinity|posix_fadvise|posix_fallocate|memfd_create"
    r"|pidfd_open|eventfd|select\.(?:epoll|kqueue)|O_TMPFILE|renameat2|\bprctl\b|os\.fork\("
    r"|SO_PEERCRED|sigtimedwait|copy_file_range|os\.sendfile|/dev/shm"
)


def test_only_one_module_asks_which_system_this_is():
    found = [
        f"{p.relative_to(PACKAGE)}: {m[0]}" for p in FILES for m in re.finditer(ONE_SYSTEMS, p.read_text())
    ]
    assert not found


def test_the_search_sees_what_only_one_system_has():
    assert re.search(ONE_SYSTEMS, 'if sys.platform == "linux":')
    assert re.search(ONE_SYSTEMS, "os.memfd_create('x')")


@pytest.mark.parametrize("system", ["linux", "darwin", "freebsd14"])
def test_other_systems_are_not_refused(system: str):
    platforms.check_system(system)


WINDOWS = (
    "import sys\nsys.platform = 'win32'\ntry:\n    import {name}\nexcept ImportError as e:\n    print(e)\n"
)


@pytest.mark.parametrize("name", ["freehold", "freehold.cli.main", "freehold._native"])
def test_windows_is_refused_at_import_with_the_way_out(name: str):
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS.format(name=name)], capture_output=True, text=True, check=True
    )
    assert "does not run on Windows itself" in done.stdout
    assert "wsl --install" in done.stdout


def test_the_refusal_names_neither_a_compiled_module_nor_a_cause():
    script = "import sys\nsys.platform = 'win32'\nimport freehold"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "_native" not in done.stderr and "During handling" not in done.stderr
    assert len(done.stderr.splitlines()) < 12


def test_a_socket_path_within_the_limit_can_be_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("s" * platforms.SOCKET_PATH_BYTES)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError):
        sock.bind("s" * (platforms.SOCKET_PATH_BYTES + 1))


def test_a_limit_is_set_within_the_hard_one_and_lifted():
    script = (
        "import resource; from freehold.base.platforms import limit\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (50, 50))\n"
        "limit('RLIMIT_CPU', 60); print(resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
        "limit('RLIMIT_CPU', 40); print(resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
        "limit('RLIMIT_CPU', None); print(resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
        "limit('RLIMIT_OF_NO_SYSTEM', 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["50", "40", "50"]


def test_open_files_are_raised_as_far_as_a_mac_allows(monkeypatch: pytest.MonkeyPatch):
    limits = [(256, resource.RLIM_INFINITY)]

    def refuse_many(kind: int, asked: tuple[int, int]) -> None:
        if asked[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(asked)

    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", refuse_many)
    assert platforms.open_files(4000) == 4000
    assert platforms.open_files(1000) == 4000
    assert platforms.open_files(20_000) == 10_240
    assert platforms.open_files(20_000) == 10_240
    assert limits[-1] == (10_240, resource.RLIM_INFINITY)


def test_open_files_stay_within_a_hard_limit(monkeypatch: pytest.MonkeyPatch):
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, asked: limits.append(asked))
    assert platforms.open_files(100_000) == 4096 and limits[-1] == (4096, 4096)


def test_the_most_memory_is_counted_in_bytes():
    assert 1 << 22 < platforms.peak_bytes() < 1 << 40
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_forgotten_pages_can_be_read_again(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 8192)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        platforms.forget_cached(fd, 0, 8192)
        assert os.pread(fd, 2, 4096) == b"xx"
    finally:
        os.close(fd)


# --- the parent watches memory where the kernel does not ----------------------------------------------

HOLDS = """import sys, time
held = bytearray(b'x') * (int(sys.argv[1]) << 20)
print('held', flush=True)
time.sleep(60)
"""


def test_a_child_that_takes_too_much_memory_is_killed_by_its_parent():
    with spawn([sys.executable, "-c", HOLDS, "200"], stdout=subprocess.PIPE) as child:
        with watched(child, 100 << 20, by_kernel=False) as watch:
            child.wait(60)
        assert watch.exceeded and child.returncode == -9


def test_a_child_within_its_memory_lives():
    with spawn([sys.executable, "-c", HOLDS, "1"], stdout=subprocess.PIPE) as child:
        with watched(child, 300 << 20, by_kernel=False) as watch:
            assert child.stdout and child.stdout.readline() == b"held\n"
        assert not watch.exceeded and child.poll() is None
        child.kill()


def test_a_watched_child_may_end():
    with spawn([sys.executable, "-c", "pass"]) as child, watched(child, 300 << 20, by_kernel=False) as watch:
        child.wait(60)
    assert not watch.exceeded


def test_a_template_that_takes_too_much_memory_is_refused_where_the_parent_watches(
    monkeypatch: pytest.MonkeyPatch,
):
    from datetime import datetime

    from freehold.base.errors import BadTemplate
    from freehold.base.sandbox import children, rendering

    monkeypatch.setattr(
        rendering, "watched", lambda child, most: children.watched(child, 1 << 20, by_kernel=False)
    )
    renderers = rendering.Renderers()
    try:
        loop = "{% for i in range(900000) %}{{ i }}{% endfor %}"
        with pytest.raises(BadTemplate, match="more memory than it may have"):
            renderers.run(rendering.RenderJob(loop, [{}], datetime.now(), seconds=30.0))
    finally:
        renderers.close()
