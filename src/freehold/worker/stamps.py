"""What tells whether the files that make a model are the same as they were.

The store's own files were compared with their digests when they were found, so the digest is enough. Others may change
where they lie: their sizes and times count too, and a file that was only touched counts as changed.
Knows files; knows no engine. Path: EngineModels.stamp_of -> stamp
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from freehold.store import ModelRef
from freehold.store.overlays import Overlay


def stamp(ref: ModelRef, adapter: Path | None, overlay: Overlay | None) -> str:
    """Return the digest of a model's files, of its adapter's and of its record."""
    parts = [ref.digest, ref.rounding]
    if ref.owner != "freehold" or not ref.digest:
        parts += _files(ref.files or (ref.path,))
    parts += [f"{name} {_one(path)}" for name, path in sorted(ref.extras.items())]
    if adapter is not None:
        parts += _files([adapter])
    overlay = overlay or ref.overlay
    if overlay is not None:
        parts.append(repr(overlay))
        parts += _files([Path(overlay.adapter)] if overlay.adapter else [])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files(paths: Iterable[Path]) -> list[str]:
    files = [each for path in paths for each in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [f"{path.name} {_one(path)}" for path in files]


def _one(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
