"""A run's folder: work that a crash does not lose, and a result that is there whole or not at all.

The work is in `.NAME.part` beside the result NAME: `run.json` (what is being done, to what), `checkpoint.npz` (the
newest state), `steps.jsonl` (a line a step) and the result's files. Each is written aside and renamed. A run with the
same inputs resumes at the checkpoint; its bits are those of an undisturbed run if all that is random follows from the
seed and the step. A run that ends before it made anything leaves nothing. Knows no model and no verb.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import resource
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from freehold.base import platforms
from freehold.base.errors import StoreError, UsageError
from freehold.base.version import __version__
from freehold.run.store.records import ModelRef
from freehold.run.tokenizer import ChatTemplate

_WHAT, _CHECKPOINT, _STEPS, _LOCK = "run.json", "checkpoint.npz", "steps.jsonl", "lock"
_STATE = "/state"  # the member of a checkpoint that holds the state, as JSON; no array has a slash in front
_ASIDE = ".new"  # the end of a file's name until it is whole
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHOWN = 80  # characters of a value in an error
_DAMAGED = (
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError),
    *(BadZipFile, EOFError, RuntimeError, zlib.error),
)  # what reading of damaged JSON and npz files raises


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was kept after `step` steps: arrays by name, and a state of plain JSON."""

    step: int
    arrays: Mapping[str, NDArray[Any]]
    state: Mapping[str, Any]


@dataclass(slots=True)
class RunFolder:
    """The work of one run. `kept`: where an earlier run with the same inputs stopped, None for a new one."""

    out: Path
    kept: Checkpoint | None = None
    _steps: BinaryIO | None = field(default=None, repr=False)

    @classmethod
    @contextmanager
    def open(
        cls, out: Path, verb: str, inputs: Mapping[str, Any], *, fresh: bool = False
    ) -> Iterator[RunFolder]:
        """Start a run that makes `out`, or resume it; `fresh` discards what an interrupted one left.

        Raises UsageError where `out` exists, where the folder holds a run with other inputs, or one that still
        runs; StoreError where it cannot be read or written.
        """
        run = cls(Path(out))
        if os.path.lexists(run.out):  # a link to nothing too: no folder could take its name
            raise UsageError(f"{run.out} exists already", "name another folder with -o, or remove it first")
        if run.out.name in ("", ".."):
            raise UsageError(f"{run.out} names no new folder", "name one with -o")
        with on_disk(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
            _check_ours(run.folder)
        with locked(run.folder / _LOCK, run.out):
            try:
                with on_disk(run.folder):
                    run._begin({"verb": verb, "inputs": json.loads(json.dumps(inputs))}, fresh)
                yield run
            finally:
                run._leave()

    @property
    def folder(self) -> Path:
        """Where the work lies until it is finished."""
        return part_of(self.out)

    def path(self, name: str) -> Path:
        """Return the path of a file of the result; what is written there is part of `out` once that is finished."""
        return self.folder / name

    def keep(self, step: int, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Make this the state to resume from, with the lines logged so far; it is on disk when the call returns.

        Raises StoreError on a full disk, and leaves the checkpoint before in place.
        """
        with on_disk(self.folder):
            at = self._flushed()
            text = json.dumps({"step": step, "lines": at, "state": dict(state)}, allow_nan=False)
            members = cast("dict[str, Any]", {_STATE: np.frombuffer(text.encode(), np.uint8), **arrays})
            write_whole(self.folder / _CHECKPOINT, lambda file: np.savez(file, **members))
        self.kept = Checkpoint(step, arrays, state)

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a line to steps.jsonl. Lines after the newest checkpoint are dropped when the run is resumed."""
        with on_disk(self.folder):
            if self._steps is None:
                self._steps = (self.folder / _STEPS).open("ab")
            self._steps.write((json.dumps(row, allow_nan=False) + "\n").encode())
            self._steps.flush()

    def finish(self, receipt: Mapping[str, Any]) -> None:
        """Write the receipt and give the folder its name: the result is there from now on."""
        with on_disk(self.folder):
            self._flushed()
            write_whole(self.folder / NAME, lambda file: file.write(as_json(receipt).encode()))
            # Renamed first: an interrupt between two of these calls leaves a run to resume or a whole result.
            os.rename(self.folder, self.out)
            self._tidy()
            _sync(self.out.parent)

    def discard(self) -> None:
        """Remove what was made up to now: the run then leaves nothing."""
        self._steps, steps = None, self._steps
        if steps is not None:
            steps.close()
        for each in self.folder.iterdir():
            if each.name != _LOCK:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        self.kept = None

    def _leave(self) -> None:
        """Close what is open, and remove a folder that holds no work; under the lock, so no other run begins in it."""
        if self._steps is not None:
            # Of a full disk, again: lines after the newest checkpoint are computed again.
            with suppress(OSError):
                self._steps.close()
        if (
            not self.folder.exists() and self.out.is_dir()
        ):  # renamed, and an interrupt came before it was tidied
            self._tidy()
        if not self._holds_work():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _tidy(self) -> None:
        for name in (_CHECKPOINT, _WHAT, _LOCK):
            (self.out / name).unlink(missing_ok=True)

    def _begin(self, what: Mapping[str, Any], fresh: bool) -> None:
        if fresh or not self._holds_work():
            for each in self.folder.iterdir():
                if each.name != _LOCK:
                    shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        for root, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                if os.path.islink(link := os.path.join(root, name)):  # nothing is written or cut through one
                    raise UsageError(
                        f"{link} is a link; a run makes none", "remove it, or start again with --fresh"
                    )
        path = self.folder / _WHAT
        if not path.exists():
            write_whole(path, lambda file: file.write(json.dumps(what, indent=1).encode()))
            return
        try:
            old = json.loads(path.read_bytes())
            self._compare(old, what)
            self.kept, lines = _read(self.folder / _CHECKPOINT)
        except _DAMAGED as e:
            why = str(e)[:_SHOWN] or type(e).__name__
            raise StoreError(f"{self.folder} holds a damaged run: {why}", "start again with --fresh") from e
        if (self.folder / _STEPS).exists():
            os.truncate(self.folder / _STEPS, lines)

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        way_out = "use the same, name another folder with -o, or start again with --fresh"
        if old["verb"] != new["verb"]:
            raise UsageError(f"{self.folder} holds an unfinished {str(old['verb'])[:_SHOWN]}", way_out)
        if not isinstance(old["inputs"], dict):
            raise TypeError("its inputs are no object")
        different = _difference(old["inputs"], new["inputs"])
        if different:
            key, was, is_now = different
            raise UsageError(
                f"{self.folder} holds an unfinished run with {key[:_SHOWN]} {was}; now it is {is_now}",
                way_out,
            )

    def _holds_work(self) -> bool:
        """Say whether the folder has a checkpoint or a file of the result; lines of steps alone resume nothing."""
        empty = {_WHAT, _STEPS, _LOCK}
        return self.folder.exists() and any(
            each.name not in empty and each.suffix != _ASIDE for each in self.folder.iterdir()
        )

    def _flushed(self) -> int:
        """Bring the lines to disk; return how many bytes they are."""
        if self._steps is None:
            path = self.folder / _STEPS
            return path.stat().st_size if path.exists() else 0
        os.fsync(self._steps.fileno())
        return self._steps.tell()


def part_of(out: Path) -> Path:
    """Return where the work for a result lies until it is finished."""
    return out.with_name(f".{out.name}.part")


def _difference(before: Any, now: Any, at: str = "") -> tuple[str, str, str] | None:
    """Return the first value that differs: its name, and what it was and is; None where all are equal."""
    if before == now:
        return None
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return at, json.dumps(before)[:_SHOWN], json.dumps(now)[:_SHOWN]
    differences = (
        _difference(before.get(key), now.get(key), f"{at}.{key}".lstrip("."))
        for key in (*now, *sorted(before.keys() - now.keys()))
    )
    return next((each for each in differences if each), None)


def _read(path: Path) -> tuple[Checkpoint | None, int]:
    """Return a checkpoint and the bytes of steps.jsonl that belong to it; None and 0 where none was kept."""
    if not path.exists():
        return None, 0
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    saved = json.loads(arrays.pop(_STATE).tobytes())
    step, lines, state = saved["step"], saved["lines"], saved["state"]
    if not (isinstance(step, int) and isinstance(lines, int) and lines >= 0 and isinstance(state, dict)):
        raise ValueError("its checkpoint has no step, lines and state")
    return Checkpoint(step, arrays, state), lines


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file beside `path`, and give it its name once it is on disk. Raises OSError.

    A file that was not filled is removed: half of it would take room of a disk that may be full.
    """
    aside = path.with_name(path.name + _ASIDE)
    aside.unlink(missing_ok=True)
    try:
        with aside.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_ours(folder: Path) -> None:
    """Raise UsageError unless this user owns the folder: another user could have planted its files."""
    status = folder.lstat()
    with TemporaryFile(dir=folder) as own:  # some file systems give every file one owner
        ours = os.fstat(own.fileno()).st_uid
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != ours:
        why = "a link" if stat.S_ISLNK(status.st_mode) else "another user's"
        raise UsageError(
            f"{folder} is {why}; work is kept there", "remove it, or name another folder with -o"
        )


@contextmanager
def locked(lock_file: Path, out: Path, hint: str = "wait for it, or name another folder") -> Iterator[None]:
    """Hold the lock of the work on `out`. Raises UsageError where another process does, StoreError where none can."""
    from filelock import FileLock, Timeout

    with on_disk(lock_file.parent):
        if lock_file.is_symlink():
            lock_file.unlink()
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process works on {out}", hint) from None
    except OSError as e:
        raise StoreError(f"{lock_file.parent} cannot be locked: {e.strerror}", "check its permissions") from e
    try:
        yield
    finally:
        lock.release()


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Raise StoreError for an OSError inside: `path` cannot be written, and what to do."""
    try:
        yield
    except OSError as e:
        why = e.strerror or str(e)
        hint = (
            "free some space; the same command then continues"
            if e.errno in _FULL
            else "check its permissions"
        )
        raise StoreError(f"{path} cannot be written: {why}", hint) from e


# --- receipt.json -----------------------------------------------------------------------------------
# What a run did, to what, from what, and what came of it; a result without one is not ours.
# Numbers are plain JSON: NaN and infinity are mistakes of the verb, and refused.

SCHEMA = 1
NAME = "receipt.json"
_CHUNK = 1 << 20


def receipt(verb: str, inputs: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """Return a receipt: who made it, `inputs` (hashes, settings, seeds), and a verb's own parts.

    Parts that several verbs have keep one name: `licence`, `before_after`, `control`, `text_loss`, `mismatch`,
    `divergence`, `speed`. `cpu_seconds` are this process's, unless a part says those of interrupted ones too.
    """
    return {
        "schema": SCHEMA,
        "verb": verb,
        "freehold": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": {
            "system": platforms.SYSTEM,
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "inputs": dict(inputs),
        "cpu_seconds": cpu_seconds(),
        **parts,
    }


def as_json(record: Mapping[str, Any]) -> str:
    """Return a receipt's text. Raises ValueError for NaN and infinity, TypeError for what JSON does not hold."""
    return json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


# Processor seconds of this process before the stage that it works on.
_BEFORE: ContextVar[float] = ContextVar("cpu_seconds_before", default=0.0)


def cpu_seconds() -> float:
    """Return the processor seconds of this process and of those it waited for; of a stage, since it began."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(u.ru_utime + u.ru_stime for u in used) - _BEFORE.get(), 2)


@contextmanager
def counted_apart() -> Iterator[None]:
    """Count processor seconds from zero: inside is one of several works of this process, each with its receipt."""
    token = _BEFORE.set(_BEFORE.get() + cpu_seconds())
    try:
        yield
    finally:
        _BEFORE.reset(token)


def spent_seconds(record: Mapping[str, Any]) -> float:
    """Return the processor seconds of all processes that made a result, from its receipt."""
    parts = record.get("cpu_seconds_by_part")
    return round(sum(parts.values()), 2) if parts else float(record.get("cpu_seconds", 0.0))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def model_digest(model: ModelRef) -> str:
    """Return the digest of a model's file, or of the list of its files' digests; of a user's file it is made now."""
    if model.digest:
        return model.digest
    files = model.files or (model.path,)
    digests = [file_digest(path) for path in files if path.is_file()]
    return digests[0] if len(digests) == 1 else text_digest("\n".join(digests))


def template_digest(template: ChatTemplate | None) -> str:
    """Return the SHA-256 of a chat template, of an empty text where a model has none."""
    return text_digest(template.source if template else "")


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
