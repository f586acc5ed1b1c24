"""The contract of a source: answer a reference with a plan, then fetch the plan into a folder.

Sources: hub.py (Hugging Face hub), index.py (package index), url.py. Only `Store` calls them.
A fetch may die at any byte; the next one with the same plan and folder continues where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from freehold.store.events import OnEvent
from freehold.store.manifest import HeldFile


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to fetch. `name` is relative to the model's folder; None: the source does not tell."""

    name: str
    bytes: int | None
    sha256: str | None
    url: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a source would fetch for a reference. `name` is the model's canonical name."""

    name: str
    kind: str  # gguf | safetensors
    source: str  # for the manifest and for `show`
    files: tuple[PlannedFile, ...]
    licence: str = ""
    detail: str = ""

    @property
    def bytes(self) -> int:
        """Sum of the known sizes."""
        return sum(f.bytes or 0 for f in self.files)


class WeightSource(Protocol):
    """Somewhere weights can be had."""

    def plan(self) -> Plan:
        """Ask the source what the reference means. Raises ModelNotFound, AccessDenied, DownloadFailed."""
        ...

    def fetch(self, plan: Plan, folder: Path, on_event: OnEvent) -> tuple[HeldFile, ...]:
        """Bring the plan's files into `folder`, whole and checked.

        Raises DownloadFailed, CapacityExceeded, Offline.
        """
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


def held_bytes(plan: Plan, folder: Path) -> int:
    """Count what earlier runs left in `folder`: finished files and the parts' recorded bytes."""
    from freehold.store.part import recorded_bytes

    total = 0
    for file in plan.files:
        whole = folder / file.name
        total += whole.stat().st_size if whole.is_file() else recorded_bytes(whole)
    return total
