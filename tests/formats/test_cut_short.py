"""A model file that is cut short while it is mapped is a named error, not a signal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile
from freehold.run.formats import open_lora, open_model_file
from freehold.run.models.load import load_model
from freehold.run.models.lora import pack_adapter
from tests.vectors.adapters import CASES, write_peft
from tests.vectors.files import write_gguf, write_safetensors


@pytest.mark.parametrize("form", ["gguf", "safetensors"])
def test_model_cut_short_while_it_is_read_is_refused_by_its_name(form: str, tmp_path: Path) -> None:
    if form == "gguf":
        path = weights = write_gguf("llama", tmp_path / "m.gguf", dtype="Q8_0")
    else:
        path = write_safetensors("llama", tmp_path / "m")
        weights = path / "model.safetensors"
    with open_model_file(path) as opened:
        opened.check_whole()
        os.truncate(weights, 8192)
        with pytest.raises(BadModelFile, match="was cut short") as error:
            load_model(opened, threads=1)
    assert str(path) in error.value.message and error.value.hint


def test_adapter_cut_short_while_it_is_read_is_refused_by_its_name(tmp_path: Path) -> None:
    model = load_model(write_gguf("llama", tmp_path / "m.gguf"), threads=1)
    file = open_lora(write_peft(CASES["llama"], tmp_path / "a"))
    os.truncate(tmp_path / "a" / "adapter_model.safetensors", 4096)
    with pytest.raises(BadModelFile, match="was cut short"):
        pack_adapter(file, model, "x")


def test_what_is_lost_of_one_mapping_is_lost_of_no_other(tmp_path: Path) -> None:
    arrays = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"\1" * (1 << 20))
        with (tmp_path / name).open("rb") as file:
            arrays.append(native.map_file(file.fileno()))
    os.truncate(tmp_path / "a", 1 << 19)
    assert [int(a.sum()) for a in arrays] == [1 << 19, 1 << 20]
    assert [native.is_lost(a[-9:]) for a in arrays] == [True, False]
    assert not native.is_lost(np.zeros(9, np.uint8))


_FOREIGN = """
import faulthandler, mmap, os, sys
from freehold import _native as native
if sys.argv[2] == "before":
    faulthandler.enable()
with open(sys.argv[1], "rb") as file:
    ours, theirs = native.map_file(file.fileno()), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
if sys.argv[2] == "after":
    faulthandler.enable()
os.truncate(sys.argv[1], 0)
theirs[50000]
"""


@pytest.mark.parametrize("when", ["never", "before", "after"])
def test_fault_of_another_mapping_ends_the_process_as_without_us(when: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\1" * 100_000)
    child = subprocess.run(
        [sys.executable, "-c", _FOREIGN, str(tmp_path / "a"), when],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if (
        "AddressSanitizer: BUS" in child.stderr
    ):  # tools/sanitize.py: it had the signal before us, and has it back
        return
    assert child.returncode < 0
    assert child.stderr.count("Fatal Python error: Bus error") == (when != "never")


def test_checksum_is_xxh64() -> None:
    known = {b"": 0xEF46DB3751D8E999, b"a": 0xD24EC4F1A98C6E5B, b"abc": 0x44BC2CF5AD770999}
    for text, sum in known.items():
        assert native.checksum(np.frombuffer(text, np.uint8)) == sum
    # Of 101 bytes: every branch of the specification.
    data = np.arange(101, dtype=np.uint8)
    assert native.checksum(data) == 0xE99038495F85381E
