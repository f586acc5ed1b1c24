"""Adapters of models made by a Modelfile: copies below the home, each named by its digest.

    <home>/adapters/<digest>[.gguf]     a GGUF adapter, or a folder of PEFT's two files

Knows files; which record names which is overlays.py's. A copy is written beside, read through once, and renamed.
Path: create.make -> keep; Store.remove -> drop
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from freehold import private
from freehold.regular import open_regular
from freehold.store import space

_PIECE = 1 << 20
DIGITS = 24  # of the digest: it is the adapter's name in an engine, and in its folder
_NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}(\.gguf)?")


def folder(home: Path) -> Path:
    """Return where they lie."""
    return home / "adapters"


def located(home: Path, name: str) -> Path:
    """Return where the adapter of this name lies, there or not. Raises ValueError for a name that `keep` gives none."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is not an adapter's name")
    return folder(home) / name


def keep(home: Path, source: Path) -> Path:
    """Copy an adapter there, once; return its path. Raises what open_lora does, and CapacityExceeded for a full disk.

    What is copied is opened as a plain file: since it was checked, a link may have been turned to a device or a pipe.
    """
    # here, as NumPy would be half of every verb's start
    from freehold.formats.filemap import cannot_read
    from freehold.formats.lora import CONFIG, WEIGHTS, open_lora

    def opened(file: Path) -> BufferedReader:
        try:
            return open_regular(file)
        except OSError as e:
            raise cannot_read(file, e) from e

    source = open_lora(source).path
    peft = source.is_dir()
    files = [source / CONFIG, source / WEIGHTS] if peft else [source]
    with space.full_disk(home, "nothing of it is kept"):
        private.folder(folder(home), home)
        beside = folder(home) / f".{secrets.token_hex(8)}.new"
        try:
            if peft:
                private.folder(beside)
            for file in files:
                copy = private.file(beside / file.name if peft else beside)
                with opened(file) as original, copy.open("wb") as sink:
                    size = os.fstat(original.fileno()).st_size
                    space.require(beside.parent, size, f"the copy of {file.name}")
                    _copy(original, sink, size)
            kept = folder(home) / (open_lora(beside).digest[:DIGITS] + ("" if peft else ".gguf"))
            if not kept.exists():
                beside.rename(kept)
        finally:
            drop(beside)
    return kept


def _copy(original: BinaryIO, sink: BinaryIO, size: int) -> None:
    """Copy what the file had when it was opened: another program may write to it for ever."""
    while size > 0 and (data := original.read(min(size, _PIECE))):
        sink.write(data)
        size -= len(data)


def drop(path: Path) -> int:
    """Delete an adapter; return its bytes."""
    files = [*path.iterdir()] if path.is_dir() else [path] if path.exists() else []
    freed = sum(file.stat().st_size for file in files)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return freed
