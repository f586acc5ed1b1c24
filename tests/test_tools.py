"""The tools name tests that exist: a file that moved would end the sanitizers' run before its first test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import sanitize

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("listed", [sanitize.FULL, sanitize.SHORT], ids=["full", "short"])
def test_the_sanitizers_run_tests_that_exist(listed: list[str]):
    assert not [name for name in listed if not (ROOT / name).exists()]
