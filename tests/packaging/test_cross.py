"""csrc is compiled for macOS: here the files that call the system, where zig is installed; all by `make cross`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tools import cross, zig

# What asks the system for anything: threads, memory, files, the processor.
SYSTEMS = ("csrc/threads.cpp", "csrc/memory.cpp", "csrc/dispatch.cpp")


def test_every_file_of_the_engine_is_compiled():
    found = {str(path) for path in cross.sources()}
    assert {*SYSTEMS, "csrc/bind/module.cpp", "csrc/kernels/isa/scalar.cpp"} <= found


@pytest.mark.skipif(find_spec("ziglang") is None, reason="the package ziglang is not installed")
@pytest.mark.parametrize("target", [name for name, target in zig.TARGETS.items() if target.macos])
def test_what_calls_the_system_compiles_for_macos(target: str):
    assert cross.compiled(zig.TARGETS[target].triple, [Path(path) for path in SYSTEMS]) == []


@pytest.mark.skipif(find_spec("ziglang") is None, reason="the package ziglang is not installed")
def test_a_frame_that_a_threads_stack_does_not_hold_is_refused(tmp_path: Path):
    large = tmp_path / "large.cpp"
    large.write_text("void use(char*);\nvoid f() { char x[1 << 19]; use(x); }\n", encoding="utf-8")
    ((source, said),) = cross.compiled(zig.TARGETS["macos-arm64"].triple, [large])
    assert source == large and "stack frame size" in said


def test_an_unknown_target_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cross.main(["windows"])
    assert "macos-arm64" in capsys.readouterr().err
