"""Adapters of models made by a Modelfile: copies below the home, each named by its digest.

    <home>/adapters/<digest>[.gguf]     a GGUF adapter, or a folder of PEFT's two files

Knows files; which record names which is overlays.py's. A copy is written beside, read through once, and renamed.
Path: create.make -> keep; Store.remove -> drop
"""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

from freehold import private
from freehold.store import space

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
    """Copy an adapter there, once; return its path. Raises what open_lora does, and StoreError for a full disk."""
    # here, as NumPy would be half of every verb's start
    from freehold.formats.lora import CONFIG, WEIGHTS, open_lora

    source = open_lora(source).path
    files = [source / CONFIG, source / WEIGHTS] if source.is_dir() else [source]
    with space.full_disk(home, "nothing of it is kept"):
        private.folder(folder(home), home)
        beside = folder(home) / f".{secrets.token_hex(8)}.new"
        try:
            if source.is_dir():
                private.folder(beside)
            for file in files:
                shutil.copyfile(file, private.file(beside / file.name if source.is_dir() else beside))
            kept = folder(home) / (open_lora(beside).digest[:DIGITS] + ("" if source.is_dir() else ".gguf"))
            if not kept.exists():
                beside.rename(kept)
        finally:
            drop(beside)
    return kept


def drop(path: Path) -> int:
    """Delete an adapter; return its bytes."""
    files = [*path.iterdir()] if path.is_dir() else [path] if path.exists() else []
    freed = sum(file.stat().st_size for file in files)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return freed
