"""Finds files that no longer match a model's record: replaced under their name, or only touched.

A size or a time that differs is seen at every use. For the store's own files, whose digest was checked when they
came, the digest then decides: a file that was copied or restored is the same one. What another program holds may
change there, so it is loaded with a note. Knows records and files; knows no network.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from freehold.base.errors import StoreError
from freehold.base.regular import open_regular
from freehold.base.terminal import Ticking
from freehold.run.store.manifest import HeldFile, Manifest

GRAIN_S = 2.0  # a record's time has whole seconds, and is of the moment after its files were written

log = logging.getLogger("freehold.run.store")


def is_touched(file: HeldFile, mtime_ns: int, created: str) -> bool:
    """Tell whether a file of the recorded size was written since; records of old hold no file's time but their own."""
    if file.mtime_ns:
        return mtime_ns != file.mtime_ns
    return mtime_ns / 1e9 > _seconds(created) + GRAIN_S


def dated(files: tuple[HeldFile, ...], folder: Path) -> tuple[HeldFile, ...]:
    """Return files with the times they have now."""
    return tuple(replace(f, mtime_ns=(folder / f.path).stat().st_mtime_ns) for f in files)


def verified(manifest: Manifest, folder: Path) -> Manifest:
    """Return the record of a model of ours with its files' times as they are now.

    Raises StoreError for a file that was written since and has another digest.
    """
    for file in manifest.all_files:
        path = folder / file.path
        if file.sha256 and is_touched(file, path.stat().st_mtime_ns, manifest.created):
            log.warning("%s was written since %s came; comparing its digest", path, manifest.name)
            with Ticking(f"comparing the digest of {path.name}"):
                digest = _sha256(path)
            if digest != file.sha256:
                raise StoreError(
                    f"{manifest.name}: {path} was replaced: its digest is {digest[:12]}..., "
                    f"{file.sha256[:12]}... came",
                    f"to use that file, name its path; freehold rm {manifest.name} and freehold pull "
                    f"{manifest.name} fetch the model again",
                )
    eyes = dated((manifest.eyes,), folder)[0] if manifest.eyes else None
    return replace(manifest, files=dated(manifest.files, folder), eyes=eyes)


def notes_of(manifest: Manifest) -> tuple[str, ...]:
    """Say of a model that another program or the user holds which of its files are not those that were recorded."""
    return tuple(
        f"{manifest.name}: {path} was replaced since it was recorded ({what}), and is loaded as it is now; "
        f"freehold pull {manifest.name} records it anew"
        for path, what in _differences(manifest)
    )


def _differences(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for file in manifest.files:
        stat = Path(file.path).stat()
        if stat.st_size != file.bytes:
            yield file.path, f"{file.bytes:,} bytes then, {stat.st_size:,} now"
        elif file.mtime_ns and stat.st_mtime_ns != file.mtime_ns:
            yield file.path, f"written {_written(file.mtime_ns)} then, {_written(stat.st_mtime_ns)} now"


def _written(mtime_ns: int) -> str:
    return datetime.fromtimestamp(mtime_ns / 1e9).isoformat(" ", "seconds")


def _seconds(created: str) -> float:
    try:
        return datetime.fromisoformat(created).timestamp()
    except ValueError:
        return 0.0


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
