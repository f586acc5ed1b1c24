"""What tools/arm64.py asks for is there to be asked for, and what a machine lacks is named, not passed over."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import arm64

ROOT = Path(arm64.__file__).parent.parent


def test_every_package_that_the_tests_need_has_a_pin() -> None:
    assert len(arm64.pins(arm64.TESTED)) == len(arm64.TESTED)


def test_tests_named_for_each_processor_exist() -> None:
    chosen = [word for _, *words in arm64.RUNS for word in words if word.startswith("tests/")]
    assert chosen and all((ROOT / name.partition("::")[0]).is_file() for name in chosen)
    assert arm64.TABLES.keys() == {processor for processor, *_ in arm64.RUNS}


def test_reason_of_a_skip_is_what_apt_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "W: old\nE: Unable to locate package libc6")

    monkeypatch.setenv("FREEHOLD_ARM64", str(tmp_path))
    monkeypatch.setattr(arm64.subprocess, "run", refuse)
    with pytest.raises(arm64.Skipped, match="no libc6 for arm64: E: Unable to locate"):
        arm64.fetch("arm64", ["libc6"], tmp_path / "root")


def test_a_root_that_was_not_finished_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one, left by an interrupted run, has no Python or no library."""
    monkeypatch.setenv("FREEHOLD_ARM64", str(tmp_path))
    monkeypatch.setattr(arm64.shutil, "which", lambda _: "/usr/bin/there")
    fetched: list[str] = []

    def fetch(_: str, packages: list[str], root: Path, *, alone: bool = False) -> None:
        fetched.extend(packages)
        headers = root / "usr" / "include"
        for folder in (headers / "aarch64-linux-gnu" / arm64.PYTHON, headers / arm64.PYTHON):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "pyconfig.h").touch()

    monkeypatch.setattr(arm64, "fetch", fetch)
    (tmp_path / "root" / "usr").mkdir(parents=True)
    assert arm64.make_root() == arm64.make_root()
    assert fetched.count(arm64.PYTHON) == 1


def test_answers_may_part_only_where_no_token_leads(capsys: pytest.CaptureFixture[str]) -> None:
    here = {"isa": "avx2", "text": "ab", "tokens": [1, 2], "leads": [3.0, 0.1]}
    assert arm64.parted(here, here | {"isa": "neon"}) == 0
    assert arm64.parted(here, here | {"tokens": [1, 3]}) == 0
    assert "part at token 1, where avx2's leads by 0.1" in capsys.readouterr().out
    assert arm64.parted(here, here | {"tokens": [2, 2]}) == 1


def test_what_runs_at_a_time_shares_one_staged_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that laid the links anew would pull them from under the one beside it."""

    def refuse() -> Path:
        raise AssertionError("staged again")

    ended = subprocess.CompletedProcess[str]([], 0, "", "")
    monkeypatch.setattr(arm64, "stage", refuse)
    monkeypatch.setattr(arm64, "make_root", lambda: tmp_path)
    monkeypatch.setattr(arm64, "make_site", lambda: tmp_path)
    monkeypatch.setattr(arm64, "emulator", lambda: "qemu-aarch64")
    monkeypatch.setattr(arm64, "register", lambda _: None)
    monkeypatch.setattr(arm64.subprocess, "run", lambda *_, **__: ended)
    assert arm64.tested("max", ["tests/csrc"]) is ended
