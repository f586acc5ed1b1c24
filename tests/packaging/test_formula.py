"""The Homebrew formula names one wheel for each platform, by the digest that it has."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.formula import PLATFORMS, formula


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    for platform in PLATFORMS.values():
        (tmp_path / f"freehold-0.1.0-cp312-abi3-{platform}.whl").write_bytes(platform.encode())
    return tmp_path


def test_each_platform_gets_its_wheel_and_digest(wheels: Path) -> None:
    text = formula("https://example.com", "https://example.com/v0.1.0/", wheels)
    found = dict(re.findall(r'url "https://example.com/v0.1.0/(\S+)".*\n +sha256 "(\w+)"', text))
    assert found == {w.name: hashlib.sha256(w.read_bytes()).hexdigest() for w in wheels.iterdir()}


def test_a_platform_without_a_wheel_is_refused_by_name(wheels: Path) -> None:
    next(wheels.glob("*macosx_11_0_arm64*")).unlink()
    with pytest.raises(SystemExit, match="macosx_11_0_arm64"):
        formula("https://example.com", "https://example.com", wheels)


@pytest.mark.skipif(shutil.which("ruby") is None, reason="no ruby on the PATH")
def test_ruby_reads_it(wheels: Path) -> None:
    text = formula("https://example.com", "https://example.com", wheels)
    done = subprocess.run(["ruby", "-wc"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
