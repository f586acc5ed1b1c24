"""The events of a pull: its callback receives these, in order.

Knows no terminal: the CLI turns events into a bar, into lines, or into JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
