"""The module runs on the oldest x86-64: no instruction of a vector table leaks into code that all tables share.

A template that two files compile is linked once; were it compiled inside an ISA's region, every machine would get that
ISA's code. Only a processor without it shows that, here an emulated one.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vectors.files import write_gguf

EMULATOR = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="not x86-64 Linux"),
    pytest.mark.skipif(EMULATOR is None, reason="no qemu-x86_64 on the PATH"),
]


def answer(command: list[str], model: Path, home: Path, **env: str) -> bytes:
    """Run a model for a few tokens; OpenBLAS would take the name of a newer processor from its variable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    asked = [*command, "-m", "freehold.cli.main", "run", str(model), "anything"]
    run = [*asked, "--raw", "--temperature", "0", "--max-tokens", "8"]
    done = subprocess.run(run, capture_output=True, env=kept | env | {"FREEHOLD_HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_processor_without_avx_computes_what_the_scalar_table_does(tmp_path: Path) -> None:
    assert EMULATOR is not None
    model = write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0")
    scalar = answer([sys.executable], model, tmp_path, FREEHOLD_ISA="scalar")
    assert answer([EMULATOR, "-cpu", "Nehalem", sys.executable], model, tmp_path) == scalar
