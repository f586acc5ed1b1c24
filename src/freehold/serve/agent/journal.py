"""The journal of a run of the agent, and the folder as it was at each line: to resume, to replay, to undo.

A run has a folder of its own in the home: `journal.jsonl`, to which one JSON object a line is appended and synced
before what it announces happens or after what it reports did; and `blobs/`, the contents of files by digest. A line
with a result says how the folder's tree changed, so that the tree at any line is known, whatever a command did. A line
that a killed process left torn is cut off. Knows files and lines; knows no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from freehold.base import private
from freehold.base.errors import StoreError, UsageError

SCHEMA = 1
MAX_FILES = 50_000  # of a folder, folders and links among them
MAX_BYTES = 1 << 30  # of its files, all together: they are copied before the first step
RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
LineKind = Literal["begin", "answer", "question", "result", "summary", "resume", "end"]
EndReason = Literal["done", "budget", "stuck", "stopped", "failed"]


# --- the tree of a folder ---------------------------------------------------------------------------


class TreeEntry(Struct, frozen=True, omit_defaults=True):
    """One name of a folder. `kind`: d, f, l (a link), o (another: neither kept nor made again)."""

    kind: Literal["d", "f", "l", "o"]
    mode: int = 0
    blob: str = ""  # of a file: the digest of its bytes; of a link: where it leads
    mtime_ns: int = 0  # of a file


Tree = dict[str, TreeEntry]  # by path, with / and without the folder's own name


class TreeStore:
    """The contents of a folder's files, kept by digest. `root`: the folder; `blobs`: where they are kept."""

    def __init__(self, root: Path, blobs: Path) -> None:
        self.root, self._blobs = root, blobs
        self._seen: dict[
            str, tuple[tuple[int, ...], TreeEntry]
        ] = {}  # by path: how its file looked, and what it was

    def scan(self) -> Tree:
        """Return the tree as it is now, and keep what is new in it. Raises UsageError for too large a folder."""
        tree: Tree = {}
        total = 0
        seen: dict[str, tuple[tuple[int, ...], TreeEntry]] = {}
        for path, name in _walk(str(self.root), ""):
            status = os.lstat(path)
            if len(tree) >= MAX_FILES:
                raise UsageError(f"{self.root} has more than {MAX_FILES:,} files", "name a smaller folder")
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
            if total > MAX_BYTES:
                raise UsageError(
                    f"the files of {self.root} have more than {MAX_BYTES:,} bytes", "name a smaller folder"
                )
            look = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            before = self._seen.get(name)
            entry = before[1] if before and before[0] == look else self._entry(path, status)
            tree[_written(name)], seen[name] = entry, (look, entry)
        self._seen = seen
        return tree

    def _entry(self, path: str, status: os.stat_result) -> TreeEntry:
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            return TreeEntry("d", mode)
        if stat.S_ISLNK(status.st_mode):
            return TreeEntry("l", blob=_written(os.readlink(path)))
        if not stat.S_ISREG(status.st_mode):
            return TreeEntry("o", mode)
        return TreeEntry("f", mode, self._kept(path), status.st_mtime_ns)

    def _kept(self, path: str) -> str:
        """Copy a file's bytes into the store, whole or not at all; return their digest."""
        new = self._blobs / f".{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(source, "rb") as file, open(new, "wb", opener=private.opener) as copy:
                while piece := file.read(1 << 20):
                    digest.update(piece)
                    copy.write(piece)
                copy.flush()
                os.fsync(copy.fileno())
            name = digest.hexdigest()
            new.replace(self._blobs / name)
            return name
        except OSError as e:
            with suppress(OSError):
                new.unlink()
            raise StoreError(
                f"{path} cannot be kept for undo: {e.strerror}", "the folder's files must be readable"
            ) from e

    def restore(self, wanted: Tree) -> list[str]:
        """Make the folder's tree `wanted` again; return the paths that were changed. Raises StoreError."""
        now = self.scan()
        changed = [path for path in {**now, **wanted} if now.get(path) != wanted.get(path)]
        try:
            self._remove(now, wanted)
            for path in sorted(wanted):
                if now.get(path) != wanted[path]:
                    self._put(path, wanted[path], now.get(path))
            for path in sorted((p for p, e in wanted.items() if e.kind == "d"), reverse=True):
                if stat.S_IMODE(os.lstat(self._at(path)).st_mode) != wanted[path].mode:
                    os.chmod(self._at(path), wanted[path].mode)
        except OSError as e:
            raise StoreError(f"{e.filename or self.root} cannot be restored: {e.strerror}") from e
        return sorted(changed)

    def _remove(self, now: Tree, wanted: Tree) -> None:
        """Remove what is not wanted, or is of another kind, what lies deepest first."""
        for path in sorted(now, key=lambda each: each.count("/"), reverse=True):
            same = path in wanted and wanted[path].kind == now[path].kind
            if same:
                continue
            self._open_up(path)
            (os.rmdir if now[path].kind == "d" else os.unlink)(self._at(path))

    def _open_up(self, path: str) -> None:
        """Let this process change what is in the folder of a path; its mode is set at the end."""
        above = self._at(os.path.dirname(path))
        mode = stat.S_IMODE(os.lstat(above).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(above, mode | stat.S_IRWXU)

    def _at(self, path: str) -> Path:
        return self.root / _real(path)

    def _put(self, path: str, entry: TreeEntry, now: TreeEntry | None) -> None:
        target = self._at(path)
        self._open_up(path)
        if now is not None and now.kind != entry.kind:
            now = None  # it was removed
        if entry.kind == "d":
            target.mkdir(exist_ok=True)
            os.chmod(target, entry.mode | stat.S_IRWXU)  # until all in it is there
        elif entry.kind == "l":
            if now is not None:
                os.unlink(target)
            os.symlink(_real(entry.blob), target)
        elif entry.kind == "f":
            new = target.with_name(f".{secrets.token_hex(8)}.undo")
            shutil.copyfile(self._blobs / entry.blob, new, follow_symlinks=False)
            os.chmod(new, entry.mode)
            os.utime(new, ns=(entry.mtime_ns, entry.mtime_ns))
            new.replace(target)


def _walk(folder: str, above: str) -> Iterator[tuple[str, str]]:
    """Yield (path, name from the root on) of all below a folder, which no link leads out of."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in names:
        path = f"{folder}/{name}"
        yield path, above + name
        if is_folder:
            yield from _walk(path, f"{above}{name}/")


def _written(name: str) -> str:
    """Return a name as JSON can hold it: bytes that are not UTF-8 become NUL and two digits."""
    return re.sub("[\udc80-\udcff]", lambda match: f"\0{ord(match[0]) - 0xDC00:02x}", name)


def _real(written: str) -> str:
    return re.sub("\0(..)", lambda match: chr(0xDC00 + int(match[1], 16)), written)


def tree_digest(tree: Tree, *, times: bool = False) -> str:
    """Return a digest of paths, kinds, modes and bytes; `times`: of the times of files too."""
    rows = [
        [path, e.kind, e.mode, e.blob, e.mtime_ns if times else 0]
        for path, e in sorted(tree.items())
        if e.kind != "o"
    ]
    return hashlib.sha256(json.dumps(rows).encode("utf-8", "surrogatepass")).hexdigest()


def differing(a: Tree, b: Tree) -> list[str]:
    """Return the paths whose kind, mode or bytes differ."""
    bare_a, bare_b = ({p: (e.kind, e.mode, e.blob) for p, e in tree.items()} for tree in (a, b))
    return sorted(path for path in {**bare_a, **bare_b} if bare_a.get(path) != bare_b.get(path))


# --- its lines --------------------------------------------------------------------------------------


class JournalCall(Struct, frozen=True):
    """A call of an answer, as the model wrote it."""

    id: str
    name: str
    arguments: str


class JournalLine(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Any line; `kind` says which fields it has."""

    kind: LineKind
    at: float = 0.0  # seconds since 1970

    # begin: what was asked, where, by which model, within what
    schema: int = 0
    task: str = ""
    folder: str = ""
    model: str = ""
    tools: tuple[str, ...] = ()
    budget: str = ""
    allow: tuple[str, ...] = ()
    mark: str = ""  # around texts that are data
    tree: Tree | UnsetType = UNSET  # before the first step

    # answer: what the model wrote
    text: str = ""
    thinking: str = ""
    calls: tuple[JournalCall, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cut: bool = False  # it ended at a limit
    dollars: float = 0.0
    seconds: float = 0.0  # of work, since the run began or was resumed

    # question and result: of which call
    call: str = ""
    verdict: str = ""  # of a question: deny, once, run, pattern
    pattern: str = ""  # that an answer allowed
    why: str = ""  # of a question: the sentence that the call repeats
    state: str = ""  # of a result: done, failed, denied
    content: str = ""
    changed: dict[str, TreeEntry | None] = field(default_factory=dict)  # of the tree, by this call

    # summary: of all answers before this many
    upto: int = 0

    # end
    reason: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(JournalLine)


class AgentJournal:
    """One run's journal, open for its one writer."""

    def __init__(self, path: Path, lines: list[JournalLine], lock: Any) -> None:
        self.path, self.lines, self._lock = path, lines, lock
        self._file = open(path / "journal.jsonl", "ab", opener=private.opener)  # noqa: SIM115 - closed by close()

    @classmethod
    def create(cls, home: Path) -> AgentJournal:
        """Begin a run under a new name: the time, and a number where another began in that second."""
        above = private.folder(home / "agent", home)
        stamp, number = time.strftime("%y%m%d-%H%M%S", time.gmtime()), 1
        while True:
            path = above / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                path.mkdir(private.FOLDER)
            except FileExistsError:
                number += 1
                continue
            private.folder(path / "blobs", home)
            return cls(path, [], _locked(path))

    def discard(self) -> None:
        """Remove a run that did not begin."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    @classmethod
    def open(cls, home: Path, run: str) -> AgentJournal:
        """Open a run to continue it. Raises UsageError for an unknown one, or one that another process writes."""
        path = run_folder(home, run)
        lock = _locked(path)
        lines, whole = read_lines(path / "journal.jsonl")
        with open(path / "journal.jsonl", "r+b") as file:
            file.truncate(whole)  # a line that is torn would spoil the next one
        return cls(path, lines, lock)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def blobs(self) -> Path:
        """Where the contents of files are kept."""
        return self.path / "blobs"

    def add(self, line: JournalLine) -> JournalLine:
        """Append a line; when this returns, it is on the disk. Raises StoreError."""
        line = msgspec.structs.replace(line, at=round(time.time(), 3))
        try:
            self._file.write(_encoder.encode(line) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except (OSError, UnicodeEncodeError) as e:
            raise StoreError(f"the journal of {self.name} cannot be written: {e}") from e
        self.lines.append(line)
        return line

    def close(self) -> None:
        """Close the file and let others write it."""
        self._file.close()
        self._lock.release()


def _locked(path: Path) -> Any:
    from filelock import FileLock, Timeout

    lock = FileLock(private.file(path / "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"the run {path.name} is running", "wait for its end, or stop it") from None
    return lock


def run_folder(home: Path, run: str) -> Path:
    """Return the folder of a run; "last": of the newest one. Raises UsageError for an unknown one."""
    if run == "last":
        names = runs(home)
        if not names:
            raise UsageError("there is no run yet", 'freehold agent "TASK" --folder DIR starts one')
        run = names[-1]
    path = home / "agent" / run
    if RUN_ID.fullmatch(run) is None or not (path / "journal.jsonl").is_file():
        raise UsageError(f"there is no run {run[:60]!r}", "freehold agent list shows them")
    return path


def runs(home: Path) -> list[str]:
    """Return the names of all runs, oldest first."""
    with suppress(OSError), os.scandir(home / "agent") as entries:
        return sorted(each.name for each in entries if os.path.exists(f"{each.path}/journal.jsonl"))
    return []


def read_lines(path: Path) -> tuple[list[JournalLine], int]:
    """Return the whole lines of a journal, and how many bytes they have. Raises StoreError for a damaged one."""
    lines, whole = [], 0
    with open(path, "rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break  # torn by a kill
            try:
                lines.append(_decoder.decode(raw))
            except msgspec.DecodeError as e:
                raise StoreError(f"line {len(lines) + 1} of {path} is damaged: {e}") from e
            whole += len(raw)
    if not lines or lines[0].kind != "begin" or lines[0].tree is UNSET:
        raise StoreError(
            f"{path} does not begin as a journal", "the run ended before it began; start it again"
        )
    if lines[0].schema != SCHEMA:
        raise StoreError(f"{path} has schema {lines[0].schema}; this version reads {SCHEMA}")
    return lines, whole


def tree_at(lines: list[JournalLine]) -> Tree:
    """Return the tree after the last of some lines."""
    assert lines[0].tree is not UNSET
    tree: Tree = dict(lines[0].tree)
    for line in lines:
        apply_changes(tree, line.changed)
    return tree


def apply_changes(tree: Tree, changed: Mapping[str, TreeEntry | None]) -> None:
    """Change a tree in place; None: the path is gone."""
    for path, entry in changed.items():
        if entry is None:
            tree.pop(path, None)
        else:
            tree[path] = entry


def changes_between(before: Tree, after: Tree) -> dict[str, TreeEntry | None]:
    """Return what `apply_changes` makes `after` of `before` with."""
    return {path: after.get(path) for path in {**before, **after} if before.get(path) != after.get(path)}


@contextmanager
def reading(home: Path, run: str) -> Iterator[tuple[Path, list[JournalLine]]]:
    """Give a run's folder and its lines, while no process writes it. Raises UsageError, StoreError."""
    path = run_folder(home, run)
    lock = _locked(path)
    try:
        yield path, read_lines(path / "journal.jsonl")[0]
    finally:
        lock.release()
