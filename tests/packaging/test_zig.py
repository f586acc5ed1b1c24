"""The toolchain that CMake gets names one target, and stays the same file while nothing changes."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import zig

CPUINFO = Path("/proc/cpuinfo")
ASK = """#include <cstdio>
int main() {
  if (__builtin_cpu_supports("avx2")) puts("avx2");
  if (__builtin_cpu_supports("fma")) puts("fma");
  if (__builtin_cpu_supports("avx512f")) puts("avx512f");
  if (__builtin_cpu_supports("avx512vnni")) puts("avx512_vnni");
  if (__builtin_cpu_supports("avx512vbmi")) puts("avx512vbmi");
  if (__builtin_cpu_supports("avx512vbmi2")) puts("avx512_vbmi2");
}
"""


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


def test_only_x86_asks_the_processor_by_a_header_of_its_own(tmp_path: Path, named_compiler: None) -> None:
    for name, target in zig.TARGETS.items():
        zig.toolchain(target, tmp_path / name)
        script = (tmp_path / name / "cxx_compiler").read_text(encoding="utf-8")
        assert ("zig_x86.h" in script) == name.endswith("x86_64")


def test_that_header_knows_every_feature_that_tables_need() -> None:
    """A name it does not know ends a wheel's build, which takes minutes to get there."""
    root = Path(zig.__file__).parents[1]
    asked = set(
        re.findall(r'__builtin_cpu_supports\("(\w+)"\)', (root / "csrc/dispatch.cpp").read_text("utf-8"))
    )
    known = set(re.findall(r'same\(name, "(\w+)"\)', (root / "tools/zig_x86.h").read_text("utf-8")))
    assert asked and asked <= known


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="not x86-64 Linux")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_that_header_finds_what_the_kernel_lists(tmp_path: Path) -> None:
    """zig's runtime has a stub that answers no, with which a wheel would run plain loops everywhere."""
    (tmp_path / "ask.cpp").write_text(ASK, encoding="utf-8")
    header = Path(zig.__file__).parent / "zig_x86.h"
    command = ["c++", "-std=c++20", "-include", str(header), "ask.cpp", "-o", "ask"]
    subprocess.run(command, cwd=tmp_path, check=True)
    said = set(subprocess.run([tmp_path / "ask"], capture_output=True, text=True, check=True).stdout.split())
    flags = set(CPUINFO.read_text(encoding="utf-8").split())
    assert said == {"avx2", "fma", "avx512f", "avx512_vnni", "avx512vbmi", "avx512_vbmi2"} & flags
