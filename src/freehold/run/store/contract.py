"""The contract of a source: answer a reference with a plan, then fetch the plan into a folder.

Sources: hub.py (Hugging Face hub), index.py (package index), url.py. Only `Store` calls them.
A fetch may die at any byte; the next one with the same plan and folder continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from freehold.run.store.manifest import HeldFile


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
    eyes: str = ""  # which of the files is the tower beside a GGUF; empty: none
    eyes_left_out: bool = False

    @property
    def bytes(self) -> int:
        """Sum of the known sizes."""
        return sum(f.bytes or 0 for f in self.files)

    def without_eyes(self) -> Plan:
        """Return the plan of the model alone."""
        files = tuple(f for f in self.files if f.name != self.eyes)
        return replace(self, files=files, eyes="", eyes_left_out=self.kind == "gguf")

    def eyes_alone(self) -> Plan:
        """Return the plan of the tower's file alone."""
        return replace(self, files=tuple(f for f in self.files if f.name == self.eyes))


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
    from freehold.run.store.part import recorded_bytes

    total = 0
    for file in plan.files:
        whole = folder / file.name
        total += whole.stat().st_size if whole.is_file() else recorded_bytes(whole)
    return total


# --- the events of a pull: its callback receives these, in order ------------------------------------


@dataclass(frozen=True, slots=True)
class Planned:
    """The source answered: what will be fetched. `detail` says what was chosen, and why."""

    name: str
    source: str
    detail: str
    files: int
    total: int  # bytes; 0 when the source does not tell
    held: int  # bytes an earlier run already fetched


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes on disk so far, over all files of the model; `total` 0 when unknown, `sha256` of the file "" then."""

    name: str
    file: str
    done: int
    total: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a user should know: a retry, a restart, a wait for another process."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The model is ready. `fetched` counts the bytes this run brought in; 0 when the model was there already."""

    name: str
    path: str
    bytes: int
    fetched: int
    seconds: float


Event = Planned | Progress | Note | Finished
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Drop every event."""
