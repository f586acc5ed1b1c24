"""The store: names in, paths out. Pulls what is missing, lists what is held, forgets what is not wanted.

    <home>/models/<slug>/manifest.json + files     one folder a model; without a manifest it is unfinished
    <home>/packs/<sha256>-*                        packed weights, written by the engine's side
    <home>/locks/<slug>.lock                       one pull of a model at a time
    <home>/overlays/<slug>.json                    models made from others (overlays.py)
    <home>/adapters/<digest>[.gguf]                and the adapters they answer with (adapters.py)
    <home>/forgotten.json                          foreign models the user does not want to see

Path: cli or freehold.load -> Store.resolve(MODEL) -> ModelRef; cli/pull -> Store.pull -> a source.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from freehold import catalog, private
from freehold.config import Settings, nearest
from freehold.errors import DownloadFailed, FreeholdError, ModelNotFound, Offline, StoreError, UsageError
from freehold.store import foreign, space
from freehold.store.contract import Plan, Source, held_bytes
from freehold.store.events import Finished, Note, OnEvent, Planned, ignore
from freehold.store.manifest import HeldFile, Manifest, read_manifest, write_json, write_manifest
from freehold.store.overlays import Overlay, Overlays
from freehold.store.records import (
    Listed,
    ModelRef,
    RecordedFile,
    Removed,
    State,
    digest_of,
    from_path,
    model_ref,
    restat,
    root_of,
)
from freehold.store.refs import LATEST, Ref, parse_ref, slug
from freehold.store.replaced import dated, is_touched, notes_of, verified

UPLOADED = "blob-"  # begins the name of a file that was sent to a server; its digest follows
_PENDING = "pull.json"  # what an unfinished pull is after, so that list and rm can name it


class Store:
    """Everything below one home. Cheap to make; the network is touched in `pull` only."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models = settings.home / "models"
        self.packs = settings.home / "packs"
        self.overlays = Overlays(settings.home)

    def resolve(self, ref: str) -> ModelRef:
        """Find a model on this machine by name, path or hub reference, without any network.

        Raises ModelNotFound with the command that would fetch it, StoreError if its file vanished.
        """
        parsed = parse_ref(ref)
        if parsed.kind == "path":
            return model_ref(from_path(Path(parsed.text)), Path())
        if overlay := self.overlays.find(parsed.text):
            return replace(self.resolve(overlay.base), name=overlay.name, overlay=overlay)
        manifest = self._find(parsed)
        if manifest is None:
            raise self._not_held(ref, parsed)
        if self._state(manifest) == "vanished":
            raise _vanished(manifest, self._folder(manifest))
        return self._used(manifest)

    def pull(self, ref: str, on_event: OnEvent = ignore) -> ModelRef:
        """Make `ref` held: at once if it is, by reference if another program holds it, else by download.

        Raises ModelNotFound, AccessDenied, DownloadFailed, CapacityExceeded or Offline. What an
        interrupted or failed pull fetched is kept; the same call goes on from there.
        """
        started = time.monotonic()
        parsed = parse_ref(ref)
        if parsed.kind != "path" and self.overlays.find(parsed.text):
            return self.resolve(ref)
        if parsed.kind == "path":
            manifest = self._register(Path(parsed.text))
        else:
            manifest = self._find(parsed, forgotten_too=True)
        if manifest is None or self._state(manifest) == "vanished":
            manifest = self._fetch(parsed, on_event, started)
        else:
            if manifest.owner == "freehold":
                manifest = verified(manifest, self._folder(manifest))
            else:
                where = f"{manifest.owner} at {root_of(manifest, self._folder(manifest))}"
                on_event(Note(manifest.name, f"held by {where}: referenced in place, not copied"))
                if self._state(manifest) == "changed":
                    manifest = replace(manifest, files=tuple(restat(f) for f in manifest.files))
            self._forget(manifest, forgotten=False)
            on_event(self._finished(manifest, 0, started))
        return self._used(manifest)

    def take_in(self, file: Path, sha256: str) -> ModelRef:
        """Make a GGUF file whose digest is known a model, named after it; the file moves into the store."""
        name = f"{UPLOADED}{sha256[:12]}"
        folder = self.models / slug(name)
        with space.full_disk(self.settings.home, "the file stays where it is"), self._lock(name, None):
            held = HeldFile("model.gguf", file.stat().st_size, sha256)
            private.folder(folder, self.settings.home)
            file.replace(folder / held.path)
            files = dated((held,), folder)
            manifest = Manifest(name, "gguf", "freehold", f"sent: sha256:{sha256}", files, _now())
            write_manifest(folder, manifest)
        return model_ref(manifest, folder)

    def list(self) -> list[Listed]:
        """Return every model: held, unfinished, and held by other programs, sorted by name."""
        found = [self._listed(m) for m in self._recorded()]
        known = {(m.owner, m.name) for m in found}
        found += [self._listed(m) for m in self._foreign() if (m.owner, m.name) not in known]
        found += [self._unfinished(folder) for folder in self._folders() if not _readable(folder)]
        bases = {m.name: m for m in found}
        found += [self._made(o, bases.get(o.base)) for o in self.overlays.list()]
        return sorted(found, key=lambda m: (m.name, m.owner))

    def files(self) -> list[RecordedFile]:
        """Return each file of every model once, ours first, as it was recorded."""
        found: dict[Path, RecordedFile] = {}
        for manifest in chain(self._recorded(), self._foreign()):
            for file in manifest.files:
                path = self._folder(manifest) / file.path
                known = RecordedFile(manifest.name, manifest.owner, path, file.bytes, file.sha256)
                found.setdefault(path, known)
        return [*found.values()]

    def show(self, ref: str) -> Listed:
        """Return one model's record, vanished and unfinished ones included; raise ModelNotFound."""
        parsed = parse_ref(ref)
        if parsed.kind == "path":
            return self._listed(from_path(Path(parsed.text)))
        if overlay := self.overlays.find(parsed.text):
            base = self._find(parse_ref(overlay.base))
            return self._made(overlay, self._listed(base) if base else None)
        if manifest := self._find(parsed):
            return self._listed(manifest)
        for listed in self.list():
            if listed.name in _spellings(parsed):
                return listed
        raise self._not_held(ref, parsed)

    def remove(self, ref: str) -> Removed:
        """Delete a model and its packs, or forget one that another program holds.

        Raises ModelNotFound, StoreError while a pull of it runs, UsageError while others are made from it.
        """
        listed = self.show(ref)
        if listed.base:
            freed = self.overlays.remove(listed.name)
            if listed.base.startswith(UPLOADED) and not self.overlays.on(listed.base):
                freed += self.remove(listed.base).freed  # it came for this one, and has no name of its own
            return Removed(listed.name, listed.owner, listed.path, freed, False)
        if names := self.overlays.on(listed.name):
            raise UsageError(
                f"{listed.name} is what {', '.join(names[:5])} stand{'s' if len(names) == 1 else ''} on",
                f"freehold rm {' '.join(names[:5])} first",
            )
        folder = listed.path if listed.state == "incomplete" else self.models / slug(listed.name)
        if listed.owner == "user" and not folder.exists():
            raise ModelNotFound(f"{ref} is a file of your own that the store keeps no record of")
        with (
            space.full_disk(self.settings.home, "nothing is lost"),
            self._lock(listed.name, None, wait=False),
        ):
            freed = self._drop_packs(listed.digest)
            if listed.owner == "freehold":
                freed += listed.held
            elif manifest := next((m for m in self._foreign() if m.name == listed.name), None):
                self._forget(manifest, forgotten=True)
            _delete_folder(folder)
        return Removed(listed.name, listed.owner, listed.path, freed, listed.owner != "freehold")

    # Finding

    def _find(self, parsed: Ref, *, forgotten_too: bool = False) -> Manifest | None:
        """Return the record that answers to `parsed`: our own first, then other programs'."""
        spellings = _spellings(parsed)
        digests = _known_digests(parsed)
        for manifest in chain(self._recorded(), self._foreign(forgotten_too)):
            if spellings & {manifest.name, *manifest.aliases}:
                return manifest
            if len(manifest.files) == 1 and manifest.files[0].sha256 in digests:
                return manifest.with_alias(parsed.text)
        return None

    def _recorded(self) -> Iterator[Manifest]:
        for folder in self._folders():
            if manifest := _readable(folder):
                yield manifest

    def _folders(self) -> list[Path]:
        if not self.models.is_dir():
            return []
        return sorted(p for p in self.models.iterdir() if p.is_dir() and not p.name.startswith("."))

    def _foreign(self, forgotten_too: bool = False) -> Iterator[Manifest]:
        """Look into other programs' stores, once the first is asked for."""
        forgotten = set() if forgotten_too else self._forgotten()
        yield from (m for m in foreign.scan(self.settings.foreign_roots) if _key(m) not in forgotten)

    def _not_held(self, ref: str, parsed: Ref) -> FreeholdError:
        if parsed.kind != "name":
            return ModelNotFound(f"{ref} is not held", f"freehold pull {ref}")
        try:
            entry = catalog.find(parsed.text)
        except ModelNotFound as missing:
            near = nearest(parsed.text, [m.name for m in self._recorded()])
            return ModelNotFound(missing.message, f"did you mean {near}?") if near else missing
        return ModelNotFound(f"{entry.name} is not held", f"freehold pull {entry.name}")

    # Records

    def _folder(self, manifest: Manifest) -> Path:
        return self.models / slug(manifest.name)

    def _state(self, manifest: Manifest) -> State:
        """Compare the record with the disk: sizes and times."""
        state: State = "ready"
        for file in manifest.files:
            try:
                stat = (self._folder(manifest) / file.path).stat()
            except OSError:
                return "vanished"
            if stat.st_size != file.bytes:
                state = "vanished" if manifest.owner == "freehold" else "changed"
            elif is_touched(file, stat.st_mtime_ns, manifest.created):
                state = "changed"
        return state

    def _used(self, manifest: Manifest) -> ModelRef:
        """Note the use and hand the model out. A file that changed loses its stale digest, and a note says so.

        Raises StoreError for a file of ours that was replaced.
        """
        folder, notes = self._folder(manifest), ()
        found = manifest
        if manifest.owner == "freehold":
            found = manifest = verified(manifest, folder)
        elif self._state(manifest) == "changed":  # the record stays, and so does the note, until it is pulled
            notes = notes_of(manifest)
            found = replace(manifest, files=tuple(restat(f) for f in manifest.files))
        with suppress(OSError):  # a read-only home still serves its models; only `last_used` is lost
            private.folder(folder, self.settings.home)
            write_manifest(folder, replace(manifest, last_used=_now()), durable=False)
        return replace(model_ref(found, folder), notes=notes)

    def _register(self, path: Path) -> Manifest:
        """Record a file of the user's own under its stem, so that `list` shows it; it stays where it is."""
        manifest = from_path(path)
        taken = self._find(Ref("name", manifest.name))
        if taken and taken.files[0].path != manifest.files[0].path:
            raise UsageError(
                f"{manifest.name!r} already names {root_of(taken, self._folder(taken))}", "rename the file"
            )
        return manifest

    def _listed(self, manifest: Manifest) -> Listed:
        state = self._state(manifest)
        digest = digest_of(manifest.files)
        folder = self._folder(manifest)
        return Listed(
            name=manifest.name,
            state=state,
            owner=manifest.owner,
            kind=manifest.kind,
            bytes=manifest.bytes,
            held=manifest.bytes if state != "vanished" else _tree_bytes(folder),
            pack_bytes=sum(p.stat().st_size for p in self._packs_of(digest)),
            digest=digest,
            path=root_of(manifest, folder),
            source=manifest.source,
            licence=manifest.licence,
            created=manifest.created,
            last_used=manifest.last_used,
            detail=manifest.detail,
            aliases=manifest.aliases,
        )

    def _made(self, overlay: Overlay, base: Listed | None) -> Listed:
        """Describe a model made from `base`: the same file under another name."""
        path = self.overlays.path(overlay)
        mine = {
            "name": overlay.name,
            "held": path.stat().st_size if path.exists() else 0,
            "digest": overlay.digest,
            "created": overlay.created,
            "detail": f"made from {overlay.base}",
            "aliases": (),
            "base": overlay.base,
        }
        if base is None:
            return Listed(
                state="vanished", owner="freehold", kind="", bytes=0, pack_bytes=0, path=path,
                source="", licence="", last_used="", **mine,
            )  # fmt: skip
        return replace(base, pack_bytes=0, owner="freehold", **mine)

    def _unfinished(self, folder: Path) -> Listed:
        try:
            pending = json.loads((folder / _PENDING).read_bytes())
            name, kind, total = str(pending["name"]), str(pending["kind"]), int(pending["bytes"])
            source, held = str(pending["source"]), _recorded_in(folder)
        except (OSError, ValueError, KeyError, TypeError):
            name, kind, total, source, held = folder.name, "", 0, "", _tree_bytes(folder)
        return Listed(name, "incomplete", "freehold", kind, total, held, 0, "", folder, source, "", "", "")

    # Packs and forgetting

    def _packs_of(self, digest: str) -> list[Path]:
        return sorted(self.packs.glob(f"{digest}-*")) if digest and self.packs.is_dir() else []

    def _drop_packs(self, digest: str) -> int:
        freed = 0
        for pack in self._packs_of(digest):
            freed += pack.stat().st_size
            pack.unlink()
        return freed

    def _forgotten(self) -> set[str]:
        try:
            return set(json.loads((self.settings.home / "forgotten.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return set()

    def _forget(self, manifest: Manifest, *, forgotten: bool) -> None:
        names = self._forgotten()
        wanted = names | {_key(manifest)} if forgotten else names - {_key(manifest)}
        if wanted != names:
            private.folder(self.settings.home)
            write_json(self.settings.home / "forgotten.json", sorted(wanted))

    # Fetching

    def _fetch(self, parsed: Ref, on_event: OnEvent, started: float) -> Manifest:
        if self.settings.offline:
            what = f"freehold pull {parsed.text}"
            raise Offline(
                f"{parsed.text} is not held, and offline mode forbids fetching it", f"online: {what}"
            )
        with ExitStack() as stack:
            source, plan = self._plan(parsed, on_event, stack)
            folder = self.models / slug(plan.name)
            stack.enter_context(space.full_disk(self.settings.home, "what was fetched is kept"))
            private.folder(folder, self.settings.home)
            stack.enter_context(self._lock(plan.name, lambda text: on_event(Note(plan.name, text))))
            return self._fetch_locked(source, plan, folder, parsed, on_event, started)

    def _fetch_locked(
        self, source: Source, plan: Plan, folder: Path, parsed: Ref, on_event: OnEvent, started: float
    ) -> Manifest:
        held = _readable(folder)
        if held and self._state(held) == "ready":
            on_event(self._finished(held, 0, started))  # another process brought it while we waited
            return held.with_alias(parsed.text)
        private.folder(folder, self.settings.home)
        for stale in folder.glob(".*.new"):  # what a kill left of a half-written record
            stale.unlink(missing_ok=True)
        before = held_bytes(plan, folder)
        write_json(
            folder / _PENDING,
            {"name": plan.name, "kind": plan.kind, "bytes": plan.bytes, "source": plan.source},
        )
        if note := _misleading(parsed):
            on_event(Note(plan.name, note))
        on_event(Planned(plan.name, plan.source, plan.detail, len(plan.files), plan.bytes, before))
        files = source.fetch(plan, folder, on_event)
        manifest = Manifest(
            name=plan.name,
            kind=plan.kind,
            owner="freehold",
            source=plan.source,
            files=dated(files, folder),
            created=_now(),
            licence=plan.licence,
            detail=plan.detail,
        ).with_alias(parsed.text)
        write_manifest(folder, manifest)
        (folder / _PENDING).unlink(missing_ok=True)
        on_event(self._finished(manifest, max(manifest.bytes - before, 0), started))
        return manifest

    def _plan(self, parsed: Ref, on_event: OnEvent, stack: ExitStack) -> tuple[Source, Plan]:
        """Ask the sources in turn; a later one is tried when an earlier one cannot be reached."""
        sources = self._sources(parsed)
        for source in sources:
            stack.callback(source.close)
        for source in sources[:-1]:
            try:
                return source, source.plan()
            except (DownloadFailed, ModelNotFound) as e:
                on_event(Note(parsed.text, f"{e.message}; trying the next source"))
        return sources[-1], sources[-1].plan()

    def _sources(self, parsed: Ref) -> list[Source]:
        """Return the sources of a reference, first choice first. Their HTTP client is imported here only."""
        if parsed.kind == "url":
            from freehold.store.url import UrlSource

            return [UrlSource(parsed.text, self.settings)]
        if parsed.kind == "hub":
            from freehold.store.hub import HubSource

            return [HubSource(parsed, self.settings)]
        entry = catalog.find(parsed.text)
        sources: list[Source] = []
        if entry.hub_repo:
            from freehold.store.hub import HubSource

            hub = Ref("hub", entry.name, entry.hub_repo, entry.hub_quant)
            sources.append(HubSource(hub, self.settings, entry=entry))
        if entry.packages:
            from freehold.store.index import IndexSource

            sources.append(IndexSource(entry))
        return sources

    def _finished(self, manifest: Manifest, fetched: int, started: float) -> Finished:
        path = str(root_of(manifest, self._folder(manifest)))
        return Finished(manifest.name, path, manifest.bytes, fetched, time.monotonic() - started)

    @contextmanager
    def _lock(self, name: str, say: Callable[[str], None] | None, *, wait: bool = True) -> Iterator[None]:
        """Hold the model's lock; tell `say` when another process has it, or refuse if `wait` is False."""
        from filelock import FileLock, Timeout

        locks = self.settings.home / "locks"
        private.folder(locks, self.settings.home)
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


def _spellings(parsed: Ref) -> set[str]:
    """Return every name a reference may be recorded under: its own, the entry's, the entry's repository."""
    names = {parsed.text}
    if parsed.kind == "name":
        names.add(parsed.text + LATEST)  # Ollama's own models have it in their names
        with suppress(ModelNotFound):
            entry = catalog.find(parsed.text)
            names |= {entry.name, f"{entry.hub_repo}:{entry.hub_quant}" if entry.hub_repo else entry.name}
    return names


def _misleading(parsed: Ref) -> str:
    """Return the catalogue's word on a name that promises something else, or an empty string."""
    try:
        return catalog.find(parsed.text).note if parsed.kind == "name" else ""
    except ModelNotFound:
        return ""


def _known_digests(parsed: Ref) -> set[str]:
    if parsed.kind != "name":
        return set()
    try:
        files = catalog.find(parsed.text).files
    except ModelNotFound:
        return set()
    return {files[0].sha256} if len(files) == 1 else set()


def _vanished(manifest: Manifest, folder: Path) -> StoreError:
    """Name the first file that is missing, or has another size than the record says."""
    hint = f"freehold pull {manifest.name} fetches it again, freehold rm {manifest.name} forgets it"
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file():
            return StoreError(f"{manifest.name}: file vanished: {path} (owner: {manifest.owner})", hint)
        if (size := path.stat().st_size) != file.bytes:
            return StoreError(
                f"{manifest.name}: {path} has {size:,} bytes and not the {file.bytes:,} that came: it was cut off "
                "or replaced",
                hint,
            )
    return StoreError(f"{manifest.name}: its files cannot be read", hint)


def _readable(folder: Path) -> Manifest | None:
    """Return the folder's record; a damaged one counts as absent, so the model shows as unfinished."""
    try:
        return read_manifest(folder)
    except StoreError:
        return None


def _recorded_in(folder: Path) -> int:
    """Count the bytes an unfinished pull keeps: finished files, and the bytes that the parts' records count."""
    from freehold.store.part import recorded_bytes

    total = 0
    for path in folder.rglob("*"):
        if path.suffix == ".part":
            total += recorded_bytes(path.with_suffix(""))
        elif path.is_file() and path.suffix != ".json" and "wheels" not in path.parts:
            total += path.stat().st_size
    return total


def _tree_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _delete_folder(folder: Path) -> None:
    """Move the folder out of sight first, so that a crash leaves no half of a model under its name."""
    if folder.exists():
        trash = folder.with_name(f".{folder.name}.trash")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)


def _key(manifest: Manifest) -> str:
    return f"{manifest.owner}:{manifest.name}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
