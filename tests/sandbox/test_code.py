"""Code that a model wrote computes and reads, and does nothing else."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from freehold.base import platforms
from freehold.base.errors import UsageError
from freehold.base.sandbox import code
from freehold.base.sandbox.code import failure

pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")


def test_code_passes_by_its_test_alone():
    add = "def add(a, b):\n    return a + b"
    assert failure(add, "assert add(2, 2) == 4") == ""
    assert "AssertionError" in failure(add, "assert add(2, 2) == 5")
    assert "SyntaxError" in failure("def add(", "pass")
    assert "NameError" in failure("", "add(1, 2)")


def test_code_may_import_and_print():
    text = "import json, decimal\nprint('hi')"
    assert failure(text, "assert json.loads('[1]') == [1]") == ""


@pytest.mark.parametrize("exit_", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_code_that_exits_early_has_not_passed(exit_: str):
    assert failure(exit_, "assert False")


def test_code_writes_and_deletes_nothing(tmp_path: Path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for act in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'r+')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, {str(tmp_path / 'b')!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.mkdir({str(tmp_path / 'd')!r})",
        f"import os; os.chmod({str(kept)!r}, 0)",
        f"import os; os.symlink('/etc/passwd', {str(tmp_path / 'l')!r})",
    ):
        assert "PermissionError" in failure(act, "pass"), act
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and kept.read_text() == "as it was"


def test_code_connects_nowhere_and_starts_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for act in (
            f"import socket; socket.create_connection(('127.0.0.1', {port}))",
            "import socket; socket.socket(socket.AF_UNIX)",
            "import socket; socket.socketpair()",
            "import subprocess; subprocess.run(['true'])",
            "import os; os.fork()",
            "import os; os.execv('/bin/true', ['true'])",
            "import os; os.kill(os.getppid(), 9)",
        ):
            assert failure(act, "pass"), act
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_code_sees_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert failure("import os", "assert 'OPENAI_API_KEY' not in os.environ") == ""


@pytest.mark.heavy
def test_code_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(code, "SECONDS", 1)
    assert "ended before the test" in failure("while True: pass", "pass")
    assert "ended early" in failure("", "while True: pass")
    monkeypatch.setattr(code, "WALL_S", 1)
    assert "longer" in failure("import time; time.sleep(60)", "pass")


def test_code_that_fills_memory_fails():
    assert "MemoryError" in failure("x = bytearray(1 << 31)", "pass")


def test_other_systems_run_no_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(code, "can_confine", lambda: False)
    with pytest.raises(UsageError, match="Linux only"):
        failure("", "pass")
