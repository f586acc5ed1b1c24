"""What lies below a home: records, folders, packs, locks, and other programs' models beside them.

Knows files and their state; knows no source and no reference.
Path: Store -> HomeFiles -> manifest.py, foreign.scan
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from freehold import private
from freehold.config import Settings
from freehold.errors import StoreError
from freehold.store import foreign
from freehold.store.changed_files import is_touched
from freehold.store.manifest import Manifest, read_manifest, write_json
from freehold.store.records import State
from freehold.store.refs import slug


class HomeFiles:
    """The models of one home, as records and files."""

    def __init__(self, settings: Settings) -> None:
        self.home = settings.home
        self.models = settings.home / "models"
        self.packs = settings.home / "packs"
        self._foreign_roots = settings.foreign_roots

    def recorded(self) -> Iterator[Manifest]:
        """Yield the records of models that are whole."""
        for folder in self.folders():
            if manifest := readable(folder):
                yield manifest

    def folders(self) -> list[Path]:
        """Return the folders of models, unfinished ones included."""
        if not self.models.is_dir():
            return []
        return sorted(p for p in self.models.iterdir() if p.is_dir() and not p.name.startswith("."))

    def foreign(self, forgotten_too: bool = False) -> Iterator[Manifest]:
        """Yield the models in other programs' stores, which are read when the first is needed."""
        forgotten = set() if forgotten_too else self.forgotten()
        yield from (m for m in foreign.scan(self._foreign_roots) if _key(m) not in forgotten)

    def folder(self, manifest: Manifest) -> Path:
        """Return where a model's record lies, and its files unless they are another program's."""
        return self.models / slug(manifest.name)

    def state(self, manifest: Manifest) -> State:
        """Compare the record with the disk: sizes and times."""
        state: State = "ready"
        for file in manifest.files:
            try:
                stat = (self.folder(manifest) / file.path).stat()
            except OSError:
                return "vanished"
            if stat.st_size != file.bytes:
                state = "resized" if manifest.owner == "freehold" else "changed"
            elif state == "ready" and is_touched(file, stat.st_mtime_ns, manifest.created):
                state = "changed"
        return state

    def packs_of(self, digest: str) -> list[Path]:
        """Return the packed weights of a file."""
        return sorted(self.packs.glob(f"{digest}-*")) if digest and self.packs.is_dir() else []

    def drop_packs(self, digest: str) -> int:
        """Delete the packed weights of a file; return the bytes freed."""
        freed = 0
        for pack in self.packs_of(digest):
            freed += pack.stat().st_size
            pack.unlink()
        return freed

    def forgotten(self) -> set[str]:
        """Return the keys of other programs' models that are not to be shown."""
        try:
            return set(json.loads((self.home / "forgotten.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return set()

    def forget(self, manifest: Manifest, *, forgotten: bool) -> None:
        """Hide another program's model, or show it again."""
        names = self.forgotten()
        wanted = names | {_key(manifest)} if forgotten else names - {_key(manifest)}
        if wanted != names:
            private.folder(self.home)
            write_json(self.home / "forgotten.json", sorted(wanted))

    @contextmanager
    def lock(self, name: str, say: Callable[[str], None] | None, *, wait: bool = True) -> Iterator[None]:
        """Hold the model's lock; tell `say` when another process has it, or refuse if `wait` is False."""
        from filelock import FileLock, Timeout

        locks = self.home / "locks"
        private.folder(locks, self.home)
        lock = FileLock(private.file(locks / f"{slug(name)}.lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise StoreError(
                    f"{name} is being pulled by another process", "wait for it, or stop it"
                ) from None
            if say:
                say("another process is pulling this model: waiting for it")
            lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()


def readable(folder: Path) -> Manifest | None:
    """Return the folder's record; a damaged one counts as absent, so the model shows as unfinished."""
    try:
        return read_manifest(folder)
    except StoreError:
        return None


def delete_folder(folder: Path) -> None:
    """Move the folder out of sight first, so that a crash leaves no half of a model under its name."""
    if folder.exists():
        trash = folder.with_name(f".{folder.name}.trash")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)


def _key(manifest: Manifest) -> str:
    return f"{manifest.owner}:{manifest.name}"
