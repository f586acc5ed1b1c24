"""Judged code tries to start, read, take and forge what it may not: none of it works."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from freehold.base import platforms
from freehold.base.sandbox import code
from freehold.base.sandbox.code import failure

pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp and Landlock are Linux's")
_FOLDER = Path("/tmp/freehold-attempt")
FAIR = "assert add(2, 2) == 4"
# A reason that would be the attempt's own mistake: it was not tried then.
_MISTAKES = ("SyntaxError", "NameError", "AttributeError", "TypeError", "FileNotFoundError")


def _attempts() -> dict[str, dict[str, tuple[str, str]]]:
    """Return code and test of each attempt, by group and name."""
    text = Path(__file__).with_name("attempts.txt").read_text()
    text = text.replace("PARENT", str(os.getpid())).replace("HOME", os.path.expanduser("~"))
    made: dict[str, dict[str, tuple[str, str]]] = {}
    for part in text.split("\n== ")[1:]:
        head, _, body = part.partition("\n")
        group, _, name = head.partition(": ")
        source, _, test = body.partition("\n--\n")
        if group != "forges":
            lines = "".join(f"    {line}\n" for line in body.splitlines())
            source = f"import os, sys, ctypes\ndef attempt():\n{lines}    return True"
            test = "assert attempt() is True"
        made.setdefault(group, {})[name] = source, test or FAIR
    return made


ATTEMPTS = _attempts()
_X86_ONLY = pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls by their numbers on x86-64")


def test_there_are_120_attempts():
    assert sum(map(len, ATTEMPTS.values())) >= 120


@_X86_ONLY
@pytest.mark.parametrize("group", ATTEMPTS)
def test_no_attempt_passes_its_test(group: str, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as shorter:
        shorter.setattr(code, "SECONDS", 2)
        shorter.setattr(code, "WALL_S", 4)
        why = {name: failure(*attempt) for name, attempt in ATTEMPTS[group].items()}
    assert not [name for name, each in why.items() if not each]
    assert group == "forges" or not [each for each in why.items() if each[1].startswith(_MISTAKES)]
    assert not _FOLDER.exists()
    assert failure("def add(a, b): return a + b", FAIR) == ""


def test_nothing_of_judged_code_is_left_after_the_verdict(monkeypatch: pytest.MonkeyPatch):
    """Code that hides from signals, from the end of its pipes and from its session is killed all the same."""
    monkeypatch.setattr(code, "WALL_S", 1)
    hides = (
        "import os, signal, time\n"
        "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n"
        "try: os.setsid()\nexcept OSError: pass\n"
        "def add(a, b):\n    os.closerange(0, 64)\n    while True: time.sleep(1)\n"
    )
    assert failure(hides, FAIR) and failure(hides + "add(1, 1)", FAIR)
    assert failure("", "import time\ntime.sleep(9)")
    assert code._idle and not [
        child for each in code._idle for child in psutil.Process(each._process.pid).children()
    ]


def test_a_flood_to_every_descriptor_costs_its_reader_no_memory(monkeypatch: pytest.MonkeyPatch):
    """It was 4 GB in 6.5 s in the process that evaluates."""
    monkeypatch.setattr(code, "SECONDS", 1)
    before = psutil.Process().memory_info().rss
    flood = "import os\nwhile True:\n    for fd in range(3, 9):\n        try: os.write(fd, b'x' * 65536)\n"
    assert failure(f"{flood}        except OSError: pass", "pass")
    assert failure("", f"{flood}        except OSError: pass")
    assert psutil.Process().memory_info().rss - before < 16 << 20


def test_a_kernel_that_confines_nothing_runs_no_code(monkeypatch: pytest.MonkeyPatch):
    """As macOS, and Linux without Landlock: nothing weaker is tried."""
    ran: list[str] = []
    monkeypatch.setattr(code, "can_confine", lambda: False)
    monkeypatch.setattr(code, "spawn_on_socket", lambda *a, **k: ran.append("spawned"))
    with pytest.raises(code.UsageError, match="Linux only"):
        failure("", "pass")
    assert not ran
