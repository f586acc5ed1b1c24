"""Asks a process that has the engine whether it runs a model, for the HTTP process, which has none.

Knows the request and the answer, a line of JSON each; the judgement is local/runnable.py's. The process ends after its
answer, so the server keeps none of the engine's memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from freehold.base.errors import ModelNotFound, StoreError, UnsupportedModel
from freehold.base.sandbox.children import spawn
from freehold.run.store.records import Listed
from freehold.run.store.store import Store

COMMAND = (sys.executable, "-P", "-m", "freehold.serve.worker.process.judge")
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """A model to judge: by the name that would be fetched, or by its file and what its weights are rounded to."""

    name: str = ""
    path: str = ""
    rounding: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Why the engine refuses a model, empty where it does not, and the bytes of its rounded weights."""

    refused: str = ""
    hint: str = ""
    bytes: int = 0  # 0: as the file has them


def judge(files: Sequence[JudgedFile]) -> list[Judgement]:
    """Return a judgement of each. A process that fails is followed by one for each model, so that a file that ends its
    process leaves the others judged; that file is not refused, as loading judges again."""
    if not files:
        return []
    if (judgements := _judged(files)) is not None:
        return judgements
    return [Judgement()] if len(files) == 1 else [judge([each])[0] for each in files]


def _judged(files: Sequence[JudgedFile]) -> list[Judgement] | None:
    """Return the judgements of one process, or None where it fails."""
    rows = [[each.name, each.path, each.rounding] for each in files]
    try:
        child = spawn(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    with child:
        try:
            answer, _ = child.communicate(json.dumps(rows).encode(), LIMIT_S)
            judgements = [Judgement(*row) for row in json.loads(answer)]
        except (subprocess.TimeoutExpired, ValueError, TypeError, OSError):
            child.kill()
            return None
    return judgements if len(judgements) == len(files) else None


def check_fetch(store: Store, name: str) -> None:
    """Raise UnsupportedModel for a model that is not here and that the engine would refuse."""
    with suppress(StoreError):  # its file vanished: fetching brings it back
        try:
            store.resolve(name)
        except ModelNotFound:
            (judgement,) = judge([JudgedFile(name=name)])
            if judgement.refused:
                raise UnsupportedModel(judgement.refused, judgement.hint) from None


class Judgements:
    """Judgements of files, each asked for once for as long as the file stays as it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str, int], Judgement] = {}
        self._asking = threading.Lock()  # a second caller waits for the first one's answers

    def listed(self, models: Sequence[Listed]) -> list[tuple[Listed, str]]:
        """Return the models whose files are whole, each with why the engine refuses it; empty: it does not."""
        usable = [m for m in models if m.state in ("ready", "changed")]
        judged = self.of([(m.path, "") for m in usable])
        return [(m, each.refused) for m, each in zip(usable, judged, strict=True)]

    def of(self, files: Sequence[tuple[Path, str]]) -> list[Judgement]:
        """Return a judgement of each file with its rounding."""
        keys = [(path, rounding, _changed(path)) for path, rounding in files]
        with self._asking:
            new = [key for key in dict.fromkeys(keys) if key not in self._known]
            judgements = judge([JudgedFile(path=str(path), rounding=rounding) for path, rounding, _ in new])
            self._known |= dict(zip(new, judgements, strict=True))
        return [self._known[key] for key in keys]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
