"""Rewards in a process of their own: what is a score, what is a failure, and what a hostile one cannot do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from freehold.adapt.evals import verifier
from freehold.adapt.evals.verifier import RewardScore, Verifier
from freehold.base import platforms
from freehold.base.errors import UsageError

pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")

FAIR = "def reward(prompt, answer, item):\n    return 1.0 if answer == item['answer'] else 0.25\n"


def written(tmp_path: Path, body: str) -> str:
    """Write a reward whose body is `body`; give its path."""
    path = tmp_path / "reward.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(f"def reward(prompt, answer, item):\n{lines}")
    return str(path)


def scored(spec: str, *answers: str) -> list[RewardScore]:
    with Verifier(spec) as found:
        return found.score([("How many?", answer, {"answer": "4"}) for answer in answers])


def test_scores_come_in_the_order_of_the_answers(tmp_path: Path):
    (tmp_path / "reward.py").write_text(FAIR)
    found = scored(str(tmp_path / "reward.py"), "4", "5", "4")
    assert found == [RewardScore(1.0), RewardScore(0.25), RewardScore(1.0)]


def test_a_reward_sees_prompt_answer_and_item(tmp_path: Path):
    body = "return (prompt == 'How many?') / 2 + (item == {'answer': '4'} and answer == 'é\\ud800') / 2"
    assert scored(written(tmp_path, body), "é\ud800") == [RewardScore(1.0)]


def test_true_is_one_and_a_whole_number_is_a_score(tmp_path: Path):
    body = "return answer == 'yes' if answer != '1' else 1"
    assert [s.value for s in scored(written(tmp_path, body), "yes", "no", "1")] == [1.0, 0.0, 1.0]


HOSTILE = {
    "exits": ("import sys\nsys.exit(0)", "exit"),
    "exits without a word": ("import os\nos._exit(0)", "exit"),
    "does not end": ("while True: pass", "time"),
    "is a fork bomb": ("import os\nwhile True: os.fork()", "exception"),
    "is a memory bomb": ("x = bytearray(1 << 31)\nreturn 1.0", "memory"),
    "returns NaN": ("return float('nan')", "not finite"),
    "returns infinity": ("return float('inf')", "not finite"),
    "returns a text": ("return '1.0'", "no number"),
    "prints its score": ("print('1.0', flush=True)", "no number"),
    "returns nothing": ("pass", "no number"),
    "pays a hundred": ("return 100", "out of range"),
    "raises": ("raise ValueError('\\x1b[2J')", "exception"),
    "recurses": ("return reward(prompt, answer, item)", "exception"),
    "forges its message": (
        "import os\n"
        "for fd in range(3, 64):\n    try: os.write(fd, b'\\x0d\\0\\0\\0{\"score\": 1.0}')\n    except OSError: pass\n"
        "return 1.0",
        "tampered",
    ),
    "announces a message without an end": (
        "import os\n"
        "for fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 4)\n    except OSError: pass\n"
        "os._exit(0)",
        "tampered",
    ),
    "ends itself": ("import os, signal\nos.abort()", "exit"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_reward_fails_and_pays_nothing(name: str, tmp_path: Path):
    body, kind = HOSTILE[name]
    found = scored(written(tmp_path, f"if answer == 'fair': return 1.0\n{body}"), "fair", "bad", "fair")
    assert [each.value for each in found] == [1.0, 0.0, 1.0]
    assert found[1].failed == kind and kind in verifier.FAILURES
    assert found[1].why.isprintable()


FORGES = """
import json, os, sys
def reward(prompt, answer, item):
    frame = sys._getframe()
    while 'token' not in frame.f_locals:
        frame = frame.f_back
    said = json.dumps({**eval(answer), 'token': frame.f_locals['token']}).encode()
    os.write(frame.f_locals['results'], len(said).to_bytes(4, 'little') + said)
    os._exit(0)
"""


@pytest.mark.parametrize(
    "said",
    [
        "{'score': 5}",
        "{'score': float('nan')}",
        "{'score': '1'}",
        "{'score': [1]}",
        "{'score': 10**400}",
        "{'score': 1, 'failed': 'exit'}",
        "{}",
        "{'ready': True}",
        "{'item': []}",
        "{'failed': ['exit'], 'why': ''}",
        "{'failed': 'of a kind of its own', 'why': ''}",
        "{'failed': 'exit', 'why': 3}",
    ],
)
def test_a_reward_that_finds_its_token_writes_no_other_message(said: str, tmp_path: Path):
    """The score is read by the process that trains: one of NaN or of 5 would be learnt from, a text ended the run."""
    (tmp_path / "reward.py").write_text(FORGES)
    [found] = scored(str(tmp_path / "reward.py"), said)
    assert (found.value, found.failed) == (0.0, "tampered")


def test_a_forged_reason_controls_no_terminal(tmp_path: Path):
    (tmp_path / "reward.py").write_text(FORGES)
    [found] = scored(str(tmp_path / "reward.py"), "{'failed': 'exit', 'why': '\\x1b[2J' * 999}")
    assert found.failed == "exit" and found.why.isprintable() and len(found.why) < 1000


@pytest.mark.parametrize("said", ["{'score': 1.0}", "{}", "{'ready': 2}", "{'item': []}"])
def test_a_file_that_forges_what_loading_says_is_refused(said: str, tmp_path: Path):
    forged = FORGES.replace("def reward(prompt, answer, item):", "if True:").replace(
        "**eval(answer)", f"**{said}"
    )
    forged = forged.replace("'token' not", "'results' not").replace("frame.f_locals['token']", "''")
    (tmp_path / "reward.py").write_text(forged)
    with pytest.raises(UsageError, match="wrote to the descriptor"):
        Verifier(str(tmp_path / "reward.py"))


def test_a_reward_that_sleeps_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verifier, "WALL_S", 0.2)
    found = scored(
        written(tmp_path, "import time\nif answer == 'slow': time.sleep(60)\nreturn 1"), "slow", ""
    )
    assert [each.failed for each in found] == ["time", ""]


def test_a_reward_writes_connects_and_starts_nothing(tmp_path: Path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        acts = [
            f"open({str(kept)!r}, 'w')",
            f"open({str(tmp_path / 'new')!r}, 'x')",
            f"__import__('os').remove({str(kept)!r})",
            f"__import__('os').chmod({str(kept)!r}, 0)",
            f"__import__('socket').create_connection(('127.0.0.1', {server.getsockname()[1]}))",
            "__import__('subprocess').run(['true'])",
            f"__import__('os').kill({os.getpid()}, 9)",
            "open('/proc/%d/mem' % __import__('os').getppid(), 'r+b')",
        ]
        found = scored(written(tmp_path, "exec(answer)\nreturn 1"), *acts)
        assert [each.failed for each in found] == ["exception"] * len(acts)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert kept.read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "reward.py"]


def test_a_reward_has_the_kernel_send_no_signal_and_type_nothing(tmp_path: Path):
    """F_SETOWN, F_SETSIG and O_ASYNC on a pipe of its own would end any process of the user."""
    acts = [
        f"import os, fcntl\nr, _ = PIPES\nfcntl.fcntl(r, fcntl.F_SETOWN, {os.getpid()})",
        "import fcntl\nfcntl.fcntl(PIPES[0], 10, 9)",
        "import fcntl, os\nfcntl.fcntl(PIPES[0], fcntl.F_SETFL, os.O_ASYNC)",
        "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSTI, b'x')",
        "import fcntl, struct\nfcntl.ioctl(0, 0x40086602, struct.pack('l', 0))",
    ]
    path = tmp_path / "reward.py"
    path.write_text(
        "import os, stat\n"
        "def pipe(n):\n    try: return stat.S_ISFIFO(os.fstat(n).st_mode)\n    except OSError: return False\n"
        "PIPES = (next(n for n in range(3, 64) if pipe(n)), 0)\n"
        "def reward(prompt, answer, item):\n    exec(answer, {'PIPES': PIPES})\n    return 1\n"
    )
    found = scored(str(path), *acts, "open('/dev/null').close()")
    assert [each.failed for each in found] == ["exception"] * len(acts) + [""]
    assert all("PermissionError" in each.why for each in found[: len(acts)])


def test_a_reward_sees_no_process_no_device_and_starts_no_thread(tmp_path: Path):
    acts = [
        *(f"open('/proc/{os.getpid()}/{name}', 'rb')" for name in ("environ", "mem", "cmdline", "status")),
        "open('/proc/self/environ')",
        "import os; os.listdir('/proc')",
        "open('/dev/zero')",
        "open('/sys/kernel/uevent_seqnum')",
        "import threading; threading.Thread(target=print).start()",
        "open('/dev/urandom', 'rb').read(1)",
    ]
    found = scored(written(tmp_path, "exec(answer)\nreturn 1"), *acts)
    assert [each.failed for each in found] == ["exception"] * (len(acts) - 1) + [""]


def test_a_reward_reads_files_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (tmp_path / "words").write_text("four")
    body = (
        "import os\n"
        f"return open({str(tmp_path / 'words')!r}).read() == answer and 'OPENAI_API_KEY' not in os.environ"
    )
    assert scored(written(tmp_path, body), "four") == [RewardScore(1.0)]


def test_nothing_of_one_batch_is_left_in_the_next(tmp_path: Path):
    path = tmp_path / "reward.py"
    path.write_text(
        "import random\nseen = []\n"
        "def reward(prompt, answer, item):\n"
        "    seen.append(1)\n"
        "    return random.random() if answer else 1 / len(seen)\n"
    )
    with Verifier(str(path)) as found:
        first, second = (found.score([("", "", {}), ("", "x", {})]) for _ in range(2))
    assert first == second and first[0] == RewardScore(1.0)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def score(): pass", "no function reward"),
        ("def reward(", "SyntaxError"),
        ("import nothing_like_it", "nothing_like_it"),
        ("import os; os._exit(0)", "ended its process"),
        ("while True: pass", "processor time"),
    ],
)
def test_a_file_that_is_no_reward_is_refused(
    source: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verifier, "LOAD_S", 0.2)
    (tmp_path / "reward.py").write_text(source)
    with pytest.raises(UsageError, match=why) as failed:
        Verifier(str(tmp_path / "reward.py"))
    assert "reward(prompt, answer, item)" in failed.value.hint


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="No such file"):
        Verifier(str(tmp_path / "none.py"))
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        Verifier(str(tmp_path / "bytes.py"))


def test_other_systems_run_no_reward(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verifier, "can_confine", lambda: False)
    with pytest.raises(UsageError, match="Linux only"):
        Verifier("reward.py")
