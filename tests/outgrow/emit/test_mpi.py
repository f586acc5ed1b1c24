"""The scripts that make one MPI world of a group's pods, run with stand-ins for ssh, sshd and mpirun."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from freehold.outgrow.emit import kubernetes

ADDRESS = "llama-engine-0.llama-engine.serving"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs that print their words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ssh", "mpirun", "sshd"):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        path.chmod(0o755)
    (folder / "ssh-keygen").write_text("#!/bin/sh\necho ssh-ed25519 AAAAC3 me@here\n")
    (folder / "hostname").write_text("#!/bin/sh\necho llama-engine-0\n")
    for name in ("ssh-keygen", "hostname"):
        (folder / name).chmod(0o755)
    (tmp_path / "ssh-privatekey").write_text("PRIVATE\n")
    return folder


def run(name: str, programs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    text = kubernetes.mpi_files()[name].replace(kubernetes.KEYS, str(programs.parent))
    text = text.replace("/usr/sbin/sshd", str(programs / "sshd"))
    script = programs.parent / name
    script.write_text(text)
    env = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(programs.parent),
        "LWS_GROUP_SIZE": "2",
        "LWS_LEADER_ADDRESS": ADDRESS,
    }
    return subprocess.run(["bash", script, *words], env=env, capture_output=True, text=True, timeout=30)


def test_leader_starts_a_rank_for_each_device_of_all_pods(programs):
    words = kubernetes.mpi_words(
        ("trtllm-serve", "/model", "--tp_size", "8"), 8, ["HOME", "HF_HUB_OFFLINE"], leads=True
    )
    ran = run("mpi-leader.sh", programs, *words[2:])
    assert ran.returncode == 0, ran.stderr
    waited, started = ran.stdout.splitlines()
    assert waited.endswith("llama-engine-0-1.llama-engine.serving true")
    assert "-n 16 -H llama-engine-0:8,llama-engine-0-1.llama-engine.serving:8 " in started
    assert "-x PATH -x LD_LIBRARY_PATH -x HOME -x HF_HUB_OFFLINE" in started
    assert started.endswith("trtllm-llmapi-launch trtllm-serve /model --tp_size 8")


def test_hosts_are_known_by_the_pair_s_own_key(programs):
    run("mpi-leader.sh", programs, "8", "HOME", "trtllm-serve")
    held = programs.parent / "ssh"
    assert (held / "known").read_text() == "* ssh-ed25519 AAAAC3\n"
    assert "StrictHostKeyChecking yes" in (held / "config").read_text()
    assert (held / "key").stat().st_mode & 0o777 == 0o600


def test_worker_takes_that_key_alone(programs):
    ran = run("mpi-worker.sh", programs)
    assert ran.stdout.startswith("sshd -D -e -f ")
    config = (programs.parent / "ssh" / "sshd_config").read_text()
    assert "PasswordAuthentication no" in config and "AuthorizedKeysFile" in config and "Port 2222" in config
