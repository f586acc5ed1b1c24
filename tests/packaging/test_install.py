"""`make run` installs a wheel where one fits this Python, and builds where none does."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tools import install

PLATFORM = "manylinux_2_28_x86_64" if sys.platform == "linux" else "macosx_11_0_arm64"
pip = pytest.importorskip("pip", reason="an environment without pip installs nothing")


@pytest.fixture
def ours() -> str:
    from pip._vendor.packaging.tags import sys_tags

    return next(str(tag) for tag in sys_tags() if "linux" in tag.platform or "macosx" in tag.platform)


def put(folder: Path, tag: str, version: str = "0.1.0") -> Path:
    wheel = folder / f"freehold-{version}-{tag}.whl"
    wheel.touch()
    return wheel


def test_a_wheel_of_another_python_or_system_does_not_fit(tmp_path: Path, ours: str) -> None:
    for tag in ("cp39-cp39-" + PLATFORM, "cp311-cp311-win_amd64", "cp311-cp311-manylinux_2_99_x86_64"):
        put(tmp_path, tag)
    (tmp_path / "freehold-0.1.0-broken.whl").touch()
    assert install.fitting(tmp_path) is None
    fits = put(tmp_path, ours)
    assert install.fitting(tmp_path) == fits


def test_the_highest_version_is_taken_not_the_longest_name(tmp_path: Path, ours: str) -> None:
    put(tmp_path, ours, "0.9.0")
    higher = put(tmp_path, ours, "0.10.0")
    assert install.fitting(tmp_path) == higher


def test_a_wheel_older_than_the_sources_is_used_only_where_it_is_named(
    tmp_path: Path, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    for name in ("pyproject.toml", "CMakeLists.txt"):
        (tmp_path / name).touch()
    (tmp_path / "dist").mkdir()
    wheel = put(tmp_path / "dist", ours)
    assert install.chosen(None) == [str(wheel)]
    os.utime(wheel, (0, 0))
    assert install.chosen(None) == ["--editable", str(tmp_path)]
    assert install.chosen(str(tmp_path / "dist")) == [str(wheel)]


def test_a_named_folder_where_no_wheel_fits_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "cp39-cp39-" + PLATFORM)
    assert install.chosen(str(tmp_path))[0] == "--editable"
    assert f"no wheel in {tmp_path} fits" in capsys.readouterr().err


def test_without_a_compiler_a_build_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert install.main(["--editable", "."]) == 1
    assert "make run WHEELS=FOLDER" in capsys.readouterr().err
