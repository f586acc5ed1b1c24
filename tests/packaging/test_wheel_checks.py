"""A wheel that lacks what it should carry, or carries what it must not, is named; sound ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import wheel_checks, wheels

NAMES = ["freehold/__init__.py", "freehold/_native.abi3.so"]
NAMES += [f"freehold-0.1.0{end}" for end in wheel_checks.CARRIED]


def test_a_whole_wheel_lacks_nothing() -> None:
    assert not list(wheel_checks.members(NAMES))


@pytest.mark.parametrize("end", wheel_checks.CARRIED)
def test_what_is_missing_is_named(end: str) -> None:
    assert list(wheel_checks.members([n for n in NAMES if not n.endswith(end)])) == [f"no {end}"]


@pytest.mark.parametrize(
    "stray", ["freehold/__pycache__/a.pyc", "freehold.libs/libgomp.so.1", "freehold/tests/a.py"]
)
def test_stray_files_are_named(stray: str) -> None:
    assert any(stray in wrong for wrong in wheel_checks.members([*NAMES, stray]))


def test_a_wheel_above_four_megabytes_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(bytes(wheel_checks.LARGEST + 1))
    assert wheel_checks.size(wheel) == ["4,000,001 bytes; at most 4,000,000"]


@pytest.mark.parametrize(
    "tag, end",
    [
        ("cp311-cp311-manylinux_2_28_aarch64", ".cpython-311-aarch64-linux-gnu.so"),
        ("cp311-cp311-macosx_11_0_arm64", ".cpython-311-darwin.so"),
        ("cp312-abi3-macosx_11_0_x86_64", ".abi3.so"),
    ],
)
def test_a_module_is_named_as_its_python_looks_for_it(tag: str, end: str) -> None:
    assert wheels.suffix(tag) == end
