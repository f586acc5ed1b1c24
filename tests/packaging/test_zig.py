"""The toolchain that CMake gets names one target, and stays the same file while nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import zig


@pytest.fixture
def named_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zig, "compiler", lambda: ["/opt/my zig/zig"])


@pytest.mark.parametrize("target", zig.TARGETS.values(), ids=zig.TARGETS)
def test_each_target_names_the_oldest_release_that_it_runs_on(target: zig.Target) -> None:
    oldest = "macos.11.0" if target.macos else "linux-gnu.2.28"
    assert target.triple.partition("-")[2] == oldest


def test_tools_share_a_cache_and_quote_the_compilers_path(
    tmp_path: Path, named_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "cache"))
    zig.toolchain(zig.TARGETS["linux-aarch64"], tmp_path / "tools")
    script = (tmp_path / "tools" / "cxx_compiler").read_text(encoding="utf-8")
    assert "'/opt/my zig/zig' c++ -target aarch64-linux-gnu.2.28" in script
    assert script.count(str(tmp_path / "cache")) == 2


def test_a_toolchain_is_written_anew_only_for_another_target(tmp_path: Path, named_compiler: None) -> None:
    """CMake configures everything again when the file is newer than its cache."""
    made = zig.toolchain(zig.TARGETS["linux-x86_64"], tmp_path)
    before = made.stat().st_mtime_ns
    assert zig.toolchain(zig.TARGETS["linux-x86_64"], tmp_path).stat().st_mtime_ns == before
    zig.toolchain(zig.TARGETS["macos-arm64"], tmp_path)
    assert "CMAKE_SYSTEM_NAME Darwin" in made.read_text(encoding="utf-8")
