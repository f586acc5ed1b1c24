"""Files without a known digest are named by what the file system says of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from freehold.run.formats.filemap import file_identity


def test_a_file_keeps_its_identity_until_it_changes_or_is_replaced(tmp_path: Path) -> None:
    file, later = tmp_path / "m.gguf", time.time() + 60
    file.write_bytes(b"one")
    first = file_identity([file], later)
    assert first and first == file_identity([file], later)
    time.sleep(0.02)
    file.write_bytes(b"two")
    os.utime(file, (0, 0))  # a program may set mtime as it likes
    second = file_identity([file], later)
    (tmp_path / "n.gguf").write_bytes(b"two")
    (tmp_path / "n.gguf").replace(file)
    assert len({first, second, file_identity([file], later)}) == 3


def test_a_file_that_changed_a_moment_ago_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"one")
    assert file_identity([tmp_path / "m.gguf"], time.time()) == ""
