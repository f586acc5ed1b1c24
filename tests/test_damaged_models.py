"""A damaged model file gives one clear error or a clean load: never a crash, a hang, or another exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("kind, count", [("truncated", 80), ("header", 160), ("data", 60)])
def test_damaged_files_end_in_a_named_error_or_a_clean_load(kind: str, count: int, tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.damage", str(tmp_path), kind, "0", str(count)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = child.stdout.splitlines()
    assert child.returncode == 0, f"seed {lines[-1] if lines else '?'}:\n{child.stderr[-2000:]}"
    outcomes = [line.split()[2] for line in lines]
    assert len(outcomes) == count
    if kind == "truncated":
        assert "clean" not in outcomes
    else:
        assert len(set(outcomes)) > 1, "some damage shows, some is harmless"
