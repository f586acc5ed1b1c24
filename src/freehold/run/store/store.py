"""The store: names in, paths out. Pulls missing models, lists those on this machine, removes them.

<home>/models/<slug>/manifest.json + files     one folder a model; without a manifest it is unfinished
<home>/packs/<sha256>-*                        packed weights, written by the engine's side
<home>/locks/<slug>.lock                       one pull of a model at a time
<home>/overlays/<slug>.json                    models made from others (overlays.py)
<home>/adapters/<digest>[.gguf]                and the adapters they answer with (overlays.py)
<home>/forgotten.json                          foreign models the user does not want to see
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from freehold.base import catalog, private
from freehold.base.config import Settings, nearest
from freehold.base.errors import BadModelFile, FileVanished, FreeholdError, ModelNotFound, Offline, UsageError
from freehold.run.store import space
from freehold.run.store.contract import (
    Finished,
    Note,
    OnEvent,
    Plan,
    Planned,
    WeightSource,
    held_bytes,
    ignore,
)
from freehold.run.store.eyes import beside, foreign_eyes, hears_only, misfit
from freehold.run.store.home_files import HomeFiles, dated, delete_folder, notes_of, readable, verified
from freehold.run.store.manifest import SPEECH_KINDS, HeldFile, Manifest, write_json, write_manifest
from freehold.run.store.overlays import Overlay, Overlays
from freehold.run.store.quants import is_mmproj
from freehold.run.store.records import (
    LOST,
    Listed,
    ModelRef,
    RecordedFile,
    Removed,
    digest_of,
    from_path,
    model_ref,
    restat,
    root_of,
)
from freehold.run.store.refs import LATEST, Ref, parse_ref, slug
from freehold.run.store.sources import planned

# Describes models for `list` and `show`: recorded, made from others, and unfinished.
PENDING = "pull.json"  # what an unfinished pull fetches, so that list and rm can name it


def listed(shelf: HomeFiles, manifest: Manifest) -> Listed:
    """Describe a recorded model with its state on the disk."""
    state = shelf.state(manifest)
    digest = digest_of(manifest.files)
    folder = shelf.folder(manifest)
    return Listed(
        name=manifest.name,
        state=state,
        owner=manifest.owner,
        kind=manifest.kind,
        bytes=manifest.bytes,
        held=manifest.bytes if state not in LOST else _tree_bytes(folder),
        pack_bytes=sum(p.stat().st_size for p in shelf.packs_of(digest)),
        digest=digest,
        path=root_of(manifest, folder),
        source=manifest.source,
        licence=manifest.licence,
        created=manifest.created,
        last_used=manifest.last_used,
        detail=", ".join(filter(None, (manifest.detail, _rounding(manifest)))),
        aliases=manifest.aliases,
        rounding=manifest.rounding,
        eyes=folder / manifest.eyes.path if manifest.eyes else None,
        eyes_bytes=manifest.eyes.bytes if manifest.eyes else 0,
        eyes_left_out=manifest.eyes_left_out,
    )


def _rounding(manifest: Manifest) -> str:
    return f"packed as {manifest.rounding}" if manifest.rounding else ""


def overlay_listed(path: Path, overlay: Overlay, base: Listed | None) -> Listed:
    """Describe a model made from `base`, its overlay at `path`: the same file under another name."""
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


def unfinished(folder: Path) -> Listed:
    """Describe what an interrupted pull left."""
    try:
        pending = json.loads((folder / PENDING).read_bytes())
        name, kind, total = str(pending["name"]), str(pending["kind"]), int(pending["bytes"])
        source, held = str(pending["source"]), _recorded_in(folder)
    except (OSError, ValueError, KeyError, TypeError):
        name, kind, total, source, held = folder.name, "", 0, "", _tree_bytes(folder)
    return Listed(name, "incomplete", "freehold", kind, total, held, 0, "", folder, source, "", "", "")


def _recorded_in(folder: Path) -> int:
    """Count the bytes an unfinished pull keeps: finished files, and the bytes that the parts' records count."""
    from freehold.run.store.contract import recorded_bytes

    total = 0
    for path in folder.rglob("*"):
        if path.suffix == ".part":
            total += recorded_bytes(path.with_suffix(""))
        elif path.is_file() and path.suffix != ".json" and "wheels" not in path.parts:
            total += path.stat().st_size
    return total


def _tree_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


UPLOADED = "blob-"  # begins the name of a file that was sent to a server; its digest follows


class Store:
    """Everything below one home. Cheap to make; the network is touched in `pull` only."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._shelf = HomeFiles(settings)
        self.models, self.packs = self._shelf.models, self._shelf.packs
        self.overlays = Overlays(settings.home)

    def resolve(self, ref: str, *, disk: bool = True) -> ModelRef:
        """Find a model on this machine by name, path or hub reference, without any network.

        `disk`: whether a name may turn out to be a path, as parse_ref has it.
        Raises ModelNotFound with the command that would fetch it, FileVanished if its file is gone or cut off.
        """
        parsed = parse_ref(ref, disk=disk)
        if parsed.kind == "path":
            own = self._own(Path(parsed.text))
            return replace(model_ref(own.manifest, Path()), notes=own.notes)
        if overlay := self.overlays.find(parsed.text):
            return replace(self.resolve(overlay.base, disk=disk), name=overlay.name, overlay=overlay)
        manifest = self._find(parsed)
        if manifest is None:
            raise self._not_held(ref, parsed)
        if self._shelf.state(manifest) in LOST:
            raise _vanished(manifest, self._shelf.folder(manifest))
        return self._used(manifest)

    def pull(
        self,
        ref: str,
        on_event: OnEvent = ignore,
        rounding: str | None = None,
        eyes: bool | None = None,
    ) -> ModelRef:
        """Bring `ref` into the store: by reference if another program has it, else by download.

        `rounding`: what the float weights of safetensors are rounded to whenever they are packed (q8, q6, q4; "" for
        nothing); None leaves it as it was. `eyes`: whether a GGUF comes with its tower (mmproj), now and later; None
        takes one that a fetched repository has, and leaves a model that is here as it is. Raises UsageError for a
        rounding of a GGUF file and for `eyes` where the source has none, BadModelFile for an mmproj that is another
        model's, ModelNotFound, AccessDenied, DownloadFailed, CapacityExceeded or Offline. What an interrupted or
        failed pull fetched is kept; the same call continues from there.
        """
        started = time.monotonic()
        parsed = parse_ref(ref)
        if parsed.kind != "path" and self.overlays.find(parsed.text):
            return self.resolve(ref)
        if parsed.kind == "path":
            manifest = self._register(Path(parsed.text))
        else:
            manifest = self._find(parsed, forgotten_too=True)
        if manifest is not None:
            eyes = False if eyes is None and manifest.eyes_left_out else eyes
            if eyes is False and manifest.kind == "gguf":
                manifest = replace(manifest, eyes=None, eyes_left_out=True)
        if manifest is None or self._shelf.state(manifest) in LOST:
            manifest = self._fetch(parsed, on_event, started, eyes)
        elif manifest.owner == "freehold":
            before, manifest = manifest.bytes, verified(manifest, self._shelf.folder(manifest))
            if eyes and manifest.eyes is None and manifest.kind == "gguf":
                manifest = self._with_eyes(manifest, on_event)
            on_event(self._finished(manifest, manifest.bytes - before, started))
        else:
            manifest = self._recorded_anew(manifest, eyes)
            where = f"{manifest.owner} at {root_of(manifest, self._shelf.folder(manifest))}"
            on_event(Note(manifest.name, f"already in {where}: referenced in place, not copied"))
            self._shelf.forget(manifest, forgotten=False)
            on_event(self._finished(manifest, 0, started))
        if eyes is False and manifest.kind == "safetensors":
            on_event(
                Note(
                    manifest.name, "safetensors files contain the vision encoder, so --no-eyes has no effect"
                )
            )
        used = self._used(manifest if rounding is None else _rounded(manifest, rounding))
        if manifest.owner == "freehold" and manifest.eyes_left_out:  # now that the record does not name it
            _delete_towers(self._shelf.folder(manifest), manifest)
        return used

    def take_in(
        self, file: Path, sha256: str, tower: tuple[Path, str] | None = None, *, keep: bool = False
    ) -> ModelRef:
        """Make a GGUF file whose digest is known a model, named after it; the file moves into the store.

        `tower`: the mmproj that sees for it, and its digest; a model with one has a name of both digests. `keep`: the
        model's file belongs to another model of the store, and is linked or copied.
        """
        name = uploaded_name(sha256, tower[1] if tower else "")
        folder = self.models / slug(name)
        with space.full_disk(self.settings.home, "the file stays where it is"), self._shelf.lock(name, None):
            held = HeldFile("model.gguf", file.stat().st_size, sha256)
            private.folder(folder, self.settings.home)
            if keep:
                _shared(file, folder / held.path)
            else:
                file.replace(folder / held.path)
            files = dated((held,), folder)
            manifest = Manifest(name, "gguf", "freehold", f"sent: sha256:{sha256}", files, _now())
            if tower is not None:
                eyes = HeldFile("mmproj.gguf", tower[0].stat().st_size, tower[1])
                tower[0].replace(folder / eyes.path)
                manifest = replace(manifest, eyes=dated((eyes,), folder)[0])
            write_manifest(folder, manifest)
        return model_ref(manifest, folder)

    def join(self, name: str, tower: Path) -> ModelRef:
        """Record a user's own GGUF with this tower, wherever it is; both stay in place. Raises ModelNotFound."""
        manifest = self._find(Ref("name", name))
        if manifest is None:
            raise ModelNotFound(f"{name} is not in the store")
        stat = tower.stat()
        eyes = HeldFile(str(tower), stat.st_size, "", stat.st_mtime_ns)
        return self._used(replace(manifest, eyes=eyes, eyes_left_out=False))

    def list(self) -> list[Listed]:
        """Return every model, sorted by name: downloaded, unfinished, and those of other programs."""
        models = [listed(self._shelf, m) for m in self._shelf.recorded()]
        known = {(m.owner, m.name) for m in models}
        models += [listed(self._shelf, m) for m in self._shelf.foreign() if (m.owner, m.name) not in known]
        models += [unfinished(folder) for folder in self._shelf.folders() if not readable(folder)]
        bases = {m.name: m for m in models}
        models += [overlay_listed(self.overlays.path(o), o, bases.get(o.base)) for o in self.overlays.list()]
        return sorted(models, key=lambda m: (m.name, m.owner))

    def files(self) -> list[RecordedFile]:
        """Return each file of every model once, ours first, as it was recorded."""
        files: dict[Path, RecordedFile] = {}
        for manifest in chain(self._shelf.recorded(), self._shelf.foreign()):
            for file in manifest.all_files:
                path = self._shelf.folder(manifest) / file.path
                known = RecordedFile(manifest.name, manifest.owner, path, file.bytes, file.sha256)
                files.setdefault(path, known)
        return [*files.values()]

    def show(self, ref: str, *, disk: bool = True) -> Listed:
        """Return one model's record, vanished and unfinished ones included; raise ModelNotFound.

        `disk`: as `resolve` has it.
        """
        parsed = parse_ref(ref, disk=disk)
        if parsed.kind == "path":
            return listed(self._shelf, self._own(Path(parsed.text)).manifest)
        if overlay := self.overlays.find(parsed.text):
            base = self._find(parse_ref(overlay.base, disk=disk))
            return overlay_listed(
                self.overlays.path(overlay), overlay, listed(self._shelf, base) if base else None
            )
        if manifest := self._find(parsed):
            return listed(self._shelf, manifest)
        for model in self.list():
            if model.name in _spellings(parsed):
                return model
        raise self._not_held(ref, parsed)

    def remove(self, ref: str) -> Removed:
        """Delete a model and its packs, or forget one that another program holds.

        Raises ModelNotFound, StoreError while a pull of it runs, UsageError while others are made from it.
        """
        model = self.show(ref)
        if model.base:
            freed = self.overlays.remove(model.name)
            if model.base.startswith(UPLOADED) and not self.overlays.on(model.base):
                freed += self.remove(model.base).freed  # it came for this one, and has no name of its own
            return Removed(model.name, model.owner, model.path, freed, False)
        if names := self.overlays.on(model.name):
            raise UsageError(
                f"{', '.join(names[:5])} {'is' if len(names) == 1 else 'are'} based on {model.name}",
                f"freehold rm {' '.join(names[:5])} first",
            )
        folder = model.path if model.state == "incomplete" else self.models / slug(model.name)
        if model.owner == "user" and not folder.exists():
            raise ModelNotFound(f"{ref} is a file of your own that the store keeps no record of")
        with (
            space.full_disk(self.settings.home, "nothing is lost"),
            self._shelf.lock(model.name, None, wait=False),
        ):
            freed = sum(map(self._shelf.drop_packs, self._packed_as(model)))
            if model.owner == "freehold":
                freed += model.held
            elif manifest := next((m for m in self._shelf.foreign() if m.name == model.name), None):
                self._shelf.forget(manifest, forgotten=True)
            delete_folder(folder)
        return Removed(model.name, model.owner, model.path, freed, model.owner != "freehold")

    def _packed_as(self, model: Listed) -> Iterator[str]:
        """Yield what names the packs of a model's weights; nothing where another name has the same weights."""
        others = [m for m in self.list() if m.name != model.name and not m.base]
        if model.digest and all(m.digest != model.digest for m in others):
            yield model.digest
        if model.owner == "freehold":
            return
        from freehold.run.formats import open_model_file
        from freehold.run.formats.filemap import file_facts

        with suppress(FreeholdError, OSError), closing(open_model_file(model.path)) as opened:
            identity = file_facts(opened.paths)
            if all(m.owner == "freehold" or not _is_same(m.path, model.path) for m in others):
                yield identity

    def _find(self, parsed: Ref, *, forgotten_too: bool = False) -> Manifest | None:
        """Return the record that answers to `parsed`: our own first, then other programs'."""
        spellings = _spellings(parsed)
        digests = _known_digests(parsed)
        for manifest in chain(self._shelf.recorded(), self._shelf.foreign(forgotten_too)):
            if spellings & {manifest.name, *manifest.aliases}:
                return manifest
            if len(manifest.files) == 1 and manifest.files[0].sha256 in digests:
                return manifest.with_alias(parsed.text)
        return None

    def _not_held(self, ref: str, parsed: Ref) -> FreeholdError:
        if parsed.kind != "name":
            return ModelNotFound(f"{ref} is not downloaded", f"freehold pull {ref}")
        try:
            entry = catalog.find(parsed.text)
        except ModelNotFound as missing:
            near = nearest(parsed.text, [m.name for m in self._shelf.recorded()])
            return ModelNotFound(missing.message, f"did you mean {near}?") if near else missing
        return ModelNotFound(f"{entry.name} is not downloaded", f"freehold pull {entry.name}")

    def _used(self, manifest: Manifest) -> ModelRef:
        """Note the use and hand the model out. A file that changed loses its stale digest, and a note says so.

        Raises StoreError for a file of ours that was replaced.
        """
        folder, notes = self._shelf.folder(manifest), ()
        current = manifest
        if manifest.owner == "freehold":
            current = manifest = verified(manifest, folder)
        else:
            if self._shelf.state(manifest) == "changed":  # the record stays, and the note, until it is pulled
                notes = notes_of(manifest)
                current = replace(manifest, files=tuple(restat(f) for f in manifest.files))
            near = foreign_eyes(manifest)
            current = replace(current, eyes=near.eyes)
            if near.why:
                notes = (*notes, f"{manifest.name} is loaded without eyes: {near.why}")
        with suppress(OSError):  # a read-only home still serves its models; only `last_used` is lost
            private.folder(folder, self.settings.home)
            write_manifest(folder, replace(manifest, last_used=_now()), durable=False)
        return replace(model_ref(current, folder), notes=notes)

    def _register(self, path: Path) -> Manifest:
        """Record a file of the user's own under its stem, so that `list` shows it; it stays where it is.

        Raises BadModelFile for what does not start as a model does.
        """
        from freehold.run.formats import check_model_file  # NumPy comes with it

        own = self._own(path)
        manifest, taken = own.manifest, own.namesake
        for held in manifest.files:
            check_model_file(held.path)
        if taken and taken.files[0].path != manifest.files[0].path:
            free = f", or free the name: freehold rm {taken.name}" if taken.owner == "user" else ""
            where = root_of(taken, self._shelf.folder(taken))
            raise UsageError(f"{manifest.name!r} already names {where}", f"rename this one{free}")
        return manifest

    def _own(self, path: Path) -> _OwnFile:
        """Describe a user's own file with the tower beside it, and as its record has it pulled."""
        manifest = from_path(path)
        taken = self._find(Ref("name", manifest.name))
        if taken is not None and taken.files[0].path == manifest.files[0].path:
            manifest = replace(manifest, rounding=taken.rounding, eyes_left_out=taken.eyes_left_out)
        if manifest.kind != "gguf" or manifest.eyes_left_out:
            return _OwnFile(manifest, taken)
        near = beside(Path(manifest.files[0].path))
        notes = (f"{manifest.name} is loaded without eyes: {near.why}",) if near.undecided else ()
        return _OwnFile(replace(manifest, eyes=near.eyes), taken, notes)

    def _recorded_anew(self, manifest: Manifest, eyes: bool | None) -> Manifest:
        """Describe the files of another program or the user as they are now; `eyes` as for `pull`."""
        if self._shelf.state(manifest) == "changed":
            manifest = replace(manifest, files=tuple(restat(f) for f in manifest.files))
        if eyes is False or manifest.kind != "gguf":
            return manifest
        if manifest.owner == "user":
            tower = beside(Path(manifest.files[0].path)).eyes
        else:
            named = {(m.owner, m.name): m.eyes for m in self._shelf.foreign(True)}
            tower = named.get((manifest.owner, manifest.name))
        if eyes and tower is None:
            raise UsageError(
                f"there is no mmproj file for {manifest.name} beside {manifest.files[0].path}",
                "put the one of its repository there, or leave --eyes out",
            )
        return replace(manifest, eyes=tower, eyes_left_out=False)

    def _with_eyes(self, manifest: Manifest, on_event: OnEvent) -> Manifest:
        """Fetch the tower of a model that came without it. Raises as `pull`."""
        if self.settings.offline:
            raise Offline(
                f"{manifest.name} is installed without its vision encoder, and offline mode forbids the download",
                f"online: freehold pull {manifest.name} --eyes",
            )
        with ExitStack() as stack:
            source, plan = planned(parse_ref(manifest.name), self.settings, on_event, stack)
            if not plan.eyes:
                raise UsageError(
                    f"{plan.source} has no mmproj file for {manifest.name}", f"it has {plan.detail}"
                )
            stack.enter_context(space.full_disk(self.settings.home, "what was fetched is kept"))
            stack.enter_context(self._shelf.lock(plan.name, lambda text: on_event(Note(plan.name, text))))
            folder, alone = self._shelf.folder(manifest), plan.eyes_alone()
            before = held_bytes(alone, folder)
            on_event(
                Planned(plan.name, plan.source, f"its vision encoder: {plan.eyes}", 1, alone.bytes, before)
            )
            tower = dated(source.fetch(alone, folder, on_event), folder)[0]
            manifest = _with_tower(manifest, tower, folder, on_event)
            write_manifest(folder, manifest)
            return manifest

    def _fetch(self, parsed: Ref, on_event: OnEvent, started: float, eyes: bool | None) -> Manifest:
        if self.settings.offline:
            what = f"freehold pull {parsed.text}"
            raise Offline(
                f"{parsed.text} is not downloaded, and offline mode forbids fetching it", f"online: {what}"
            )
        with ExitStack() as stack:
            source, plan = planned(parsed, self.settings, on_event, stack)
            if eyes and not plan.eyes and plan.kind == "gguf":
                raise UsageError(
                    f"{plan.source} has no mmproj file for {plan.name}", "pull it without --eyes"
                )
            plan = plan.without_eyes() if eyes is False else plan
            folder = self.models / slug(plan.name)
            stack.enter_context(space.full_disk(self.settings.home, "what was fetched is kept"))
            private.folder(folder, self.settings.home)
            stack.enter_context(self._shelf.lock(plan.name, lambda text: on_event(Note(plan.name, text))))
            return self._fetch_locked(source, plan, folder, parsed, on_event, started)

    def _fetch_locked(
        self, source: WeightSource, plan: Plan, folder: Path, parsed: Ref, on_event: OnEvent, started: float
    ) -> Manifest:
        held = readable(folder)
        if held and self._shelf.state(held) == "ready":
            on_event(self._finished(held, 0, started))  # another process brought it while we waited
            return held.with_alias(parsed.text)
        private.folder(folder, self.settings.home)
        for stale in folder.glob(".*.new"):  # what a kill left of a half-written record
            stale.unlink(missing_ok=True)
        before = held_bytes(plan, folder)
        write_json(
            folder / PENDING,
            {"name": plan.name, "kind": plan.kind, "bytes": plan.bytes, "source": plan.source},
        )
        if note := _misleading(parsed):
            on_event(Note(plan.name, note))
        if plan.eyes:
            size = plan.eyes_alone().bytes
            on_event(
                Note(
                    plan.name,
                    f"with its vision encoder {plan.eyes} ({space.human(size)}); --no-eyes leaves it out",
                )
            )
        on_event(Planned(plan.name, plan.source, plan.detail, len(plan.files), plan.bytes, before))
        files = dated(source.fetch(plan, folder, on_event), folder)
        manifest = Manifest(
            name=plan.name,
            kind=plan.kind,
            owner="freehold",
            source=plan.source,
            files=tuple(f for f in files if f.path != plan.eyes),
            created=_now(),
            licence=plan.licence,
            detail=plan.detail,
            eyes_left_out=plan.eyes_left_out,
        ).with_alias(parsed.text)
        if tower := next((f for f in files if f.path == plan.eyes), None):
            manifest = _with_tower(manifest, tower, folder, on_event)
        write_manifest(folder, manifest)
        (folder / PENDING).unlink(missing_ok=True)
        on_event(self._finished(manifest, max(manifest.bytes - before, 0), started))
        return manifest

    def _finished(self, manifest: Manifest, fetched: int, started: float) -> Finished:
        path = str(root_of(manifest, self._shelf.folder(manifest)))
        return Finished(manifest.name, path, manifest.bytes, fetched, time.monotonic() - started)


def uploaded_name(sha256: str, tower: str = "") -> str:
    """Return what the model of a file that was sent is called, by its digest and its tower's."""
    return f"{UPLOADED}{sha256[:12]}" + (f"-{tower[:12]}" if tower else "")


def _shared(file: Path, target: Path) -> None:
    """Give a file a second place: by a link, or on another disk as a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


@dataclass(frozen=True, slots=True)
class _OwnFile:
    """A user's own file, the record of the model that has its name, and what to know before it is loaded."""

    manifest: Manifest
    namesake: Manifest | None
    notes: tuple[str, ...] = ()


def _with_tower(manifest: Manifest, tower: HeldFile, folder: Path, on_event: OnEvent) -> Manifest:
    """Return the record of a model of ours with the tower that was fetched for it.

    A tower for sound is deleted with a note, one of another model with BadModelFile; the model's own files stay.
    """
    path = folder / tower.path
    try:
        if hears_only(path):
            path.unlink()
            on_event(
                Note(manifest.name, f"{tower.path} is an audio encoder, not a vision encoder: it was deleted")
            )
            detail = f"{manifest.detail}; {tower.path} is an audio encoder, and was left out"
            return replace(manifest, eyes=None, eyes_left_out=True, detail=detail)
        why = misfit(folder / manifest.files[0].path, path)
    except FreeholdError as e:
        why = e.message
    if why:
        path.unlink()
        raise BadModelFile(
            f"{manifest.name}: {why}",
            f"freehold pull {manifest.name} --no-eyes downloads the model without it",
        )
    return replace(manifest, eyes=tower, eyes_left_out=False)


def _delete_towers(folder: Path, manifest: Manifest) -> None:
    """Delete towers, and what unfinished fetches left of them, from a model's folder."""
    recorded = {file.path for file in manifest.all_files}
    for path in folder.iterdir():
        if is_mmproj(path.name) and path.name not in recorded:
            path.unlink(missing_ok=True)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _rounded(manifest: Manifest, rounding: str) -> Manifest:
    if rounding and manifest.kind == "gguf":
        raise UsageError(
            f"{manifest.name} is a GGUF file, whose weights are quantised as they are",
            "--quant is for repositories of safetensors; name another file of this one as org/repo:QUANT",
        )
    if rounding and manifest.kind in SPEECH_KINDS:
        raise UsageError(
            f"{manifest.name} is a speech model, whose weights are rounded to int8 whenever it is loaded",
            "leave --quant out",
        )
    return replace(manifest, rounding=rounding)


def _spellings(parsed: Ref) -> set[str]:
    """Return every name a reference may be recorded under: its own, the entry's, the entry's repository."""
    names = {parsed.text}
    if parsed.kind == "name":
        names.add(parsed.text + LATEST)  # Ollama's own models have it in their names
        with suppress(ModelNotFound):
            entry = catalog.find(parsed.text)
            hub = f"{entry.hub_repo}:{entry.hub_quant}".removesuffix(":") if entry.hub_repo else entry.name
            names |= {entry.name, hub}
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


def _vanished(manifest: Manifest, folder: Path) -> FileVanished:
    """Name the first file that is missing, or has another size than the record says."""
    hint = f"freehold pull {manifest.name} fetches it again, freehold rm {manifest.name} forgets it"
    for file in manifest.all_files:
        path = folder / file.path
        if not path.is_file():
            return FileVanished(f"{manifest.name}: file vanished: {path} (owner: {manifest.owner})", hint)
        if (size := path.stat().st_size) != file.bytes:
            return FileVanished(
                f"{manifest.name}: {path} has {size:,} bytes and not the {file.bytes:,} that came: it was cut off "
                "or replaced",
                hint,
            )
    return FileVanished(f"{manifest.name}: its files cannot be read", hint)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
