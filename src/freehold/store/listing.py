"""Describes models for `list` and `show`: recorded, made from others, and unfinished.

Knows records and the files on disk; only reads.
Path: Store.list, Store.show -> listed, overlay_listed, unfinished -> Listed
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from freehold.store.home_files import HomeFiles
from freehold.store.manifest import Manifest
from freehold.store.overlays import Overlay
from freehold.store.records import LOST, Listed, digest_of, root_of

PENDING = "pull.json"  # what an unfinished pull fetches, so that list and rm can name it


def listed(shelf: HomeFiles, manifest: Manifest) -> Listed:
    """Describe a recorded model with its state on the disk."""
    state = shelf.state(manifest)
    digest = digest_of(manifest.files)
    folder = shelf.folder(manifest)
    return Listed(
        name=manifest.name,
        state=state,
        owner=manifest.owner,
        kind=manifest.kind,
        bytes=manifest.bytes,
        held=manifest.bytes if state not in LOST else _tree_bytes(folder),
        pack_bytes=sum(p.stat().st_size for p in shelf.packs_of(digest)),
        digest=digest,
        path=root_of(manifest, folder),
        source=manifest.source,
        licence=manifest.licence,
        created=manifest.created,
        last_used=manifest.last_used,
        detail=", ".join(filter(None, (manifest.detail, _rounding(manifest)))),
        aliases=manifest.aliases,
        rounding=manifest.rounding,
    )


def _rounding(manifest: Manifest) -> str:
    return f"packed as {manifest.rounding}" if manifest.rounding else ""


def overlay_listed(path: Path, overlay: Overlay, base: Listed | None) -> Listed:
    """Describe a model made from `base`, its overlay at `path`: the same file under another name."""
    mine = {
        "name": overlay.name,
        "held": path.stat().st_size if path.exists() else 0,
        "digest": overlay.digest,
        "created": overlay.created,
        "detail": f"made from {overlay.base}",
        "aliases": (),
        "base": overlay.base,
    }
    if base is None:
        return Listed(
            state="vanished", owner="freehold", kind="", bytes=0, pack_bytes=0, path=path,
            source="", licence="", last_used="", **mine,
        )  # fmt: skip
    return replace(base, pack_bytes=0, owner="freehold", **mine)


def unfinished(folder: Path) -> Listed:
    """Describe what an interrupted pull left."""
    try:
        pending = json.loads((folder / PENDING).read_bytes())
        name, kind, total = str(pending["name"]), str(pending["kind"]), int(pending["bytes"])
        source, held = str(pending["source"]), _recorded_in(folder)
    except (OSError, ValueError, KeyError, TypeError):
        name, kind, total, source, held = folder.name, "", 0, "", _tree_bytes(folder)
    return Listed(name, "incomplete", "freehold", kind, total, held, 0, "", folder, source, "", "", "")


def _recorded_in(folder: Path) -> int:
    """Count the bytes an unfinished pull keeps: finished files, and the bytes that the parts' records count."""
    from freehold.store.part import recorded_bytes

    total = 0
    for path in folder.rglob("*"):
        if path.suffix == ".part":
            total += recorded_bytes(path.with_suffix(""))
        elif path.is_file() and path.suffix != ".json" and "wheels" not in path.parts:
            total += path.stat().st_size
    return total


def _tree_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
