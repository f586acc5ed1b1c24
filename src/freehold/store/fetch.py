"""Fetch the files of a plan over HTTP, one after the other, as one progress.

Path: hub.py, url.py -> fetch_files -> ranges.fetch_file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from freehold.config import Settings
from freehold.store import space
from freehold.store.contract import Plan, PlannedFile, held_bytes
from freehold.store.events import Note, OnEvent, Progress
from freehold.store.http import Http
from freehold.store.manifest import HeldFile
from freehold.store.ranges import fetch_file


def fetch_files(
    http: Http, plan: Plan, folder: Path, settings: Settings, on_event: OnEvent
) -> tuple[HeldFile, ...]:
    """Bring the plan's files into `folder`; refuse before the first byte if the disk has no room."""
    space.require(folder, max(plan.bytes - held_bytes(plan, folder), 0), plan.name)
    total = plan.bytes if all(f.bytes is not None for f in plan.files) else 0
    held: list[HeldFile] = []
    for file in plan.files:
        on_bytes = _counter(plan, file, sum(h.bytes for h in held), total, on_event)
        say = _speaker(plan.name, on_event)
        held.append(fetch_file(http, file, folder / file.name, settings, on_bytes, say))
        on_event(Progress(plan.name, file.name, sum(h.bytes for h in held), total, file.sha256 or ""))
    return tuple(held)


def _counter(
    plan: Plan, file: PlannedFile, base: int, total: int, on_event: OnEvent
) -> Callable[[int], None]:
    return lambda n: on_event(Progress(plan.name, file.name, base + n, total, file.sha256 or ""))


def _speaker(name: str, on_event: OnEvent) -> Callable[[str], None]:
    return lambda text: on_event(Note(name, text))
