"""Compares a model with what its source has now, and replaces it once the new files were tried.

The new files are fetched into a home of their own below <home>/updates, where an interrupted fetch continues; files
that did not change are linked there. The old ones answer until `take` renames the folders. Knows the store and sources;
runs no model.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from freehold.base import private
from freehold.base.errors import Offline, UsageError
from freehold.run.store.contract import OnEvent, Plan
from freehold.run.store.home_files import HomeFiles, delete_folder, readable
from freehold.run.store.manifest import Manifest, write_manifest
from freehold.run.store.records import Listed, ModelRef, digest_of
from freehold.run.store.refs import parse_ref, slug
from freehold.run.store.sources import planned
from freehold.run.store.space import human
from freehold.run.store.store import Store

FOLDER = "updates"


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a model's source has now. `changes`: what differs, in words; empty: the model is current."""

    model: Listed
    plan: Plan
    changes: tuple[str, ...]


def renewable(model: Listed) -> bool:
    """Return whether a model came from a source that may have a newer one."""
    return model.owner == "freehold" and model.state == "ready" and not model.base and model.source != ""


def renewal(store: Store, name: str, on_event: OnEvent) -> Renewal:
    """Ask a model's source what it has now. Raises UsageError for files of others, Offline, and what sources raise."""
    model = store.show(name)
    if not renewable(model) or model.source.startswith("sent:"):
        whose = f"is made from {model.base}" if model.base else f"belongs to {model.owner}"
        hint = f"freehold update {model.base}" if model.base else "its owner updates it"
        raise UsageError(f"{model.name} {whose}: no source of it is known", hint)
    if store.settings.offline:
        raise Offline(
            f"{model.name}: offline mode forbids asking its source", f"online: freehold update {name}"
        )
    with ExitStack() as stack:
        _, plan = planned(parse_ref(model.name), store.settings, on_event, stack)
    if model.eyes_left_out:
        plan = plan.without_eyes()
    return Renewal(model, plan, _changes(_record(store, model), plan))


def _record(store: Store, model: Listed) -> Manifest:
    return next(m for m in HomeFiles(store.settings).recorded() if m.name == model.name)


def _changes(manifest: Manifest, plan: Plan) -> tuple[str, ...]:
    before = {f.path: f for f in manifest.all_files}
    found: list[str] = []
    for file in plan.files:
        old = before.pop(file.name, None)
        size = human(file.bytes) if file.bytes is not None else "size unknown"
        if old is None:
            found.append(f"new: {file.name} ({size})")
        elif file.sha256 and old.sha256:
            if file.sha256 != old.sha256:
                found.append(f"changed: {file.name} ({human(old.bytes)} -> {size})")
        elif file.bytes is not None and file.bytes != old.bytes:
            found.append(f"changed: {file.name} ({human(old.bytes)} -> {size})")
    found += [f"removed: {path}" for path in before]
    if found and plan.licence != manifest.licence:
        found.append(f"licence: {manifest.licence or 'not stated'} -> {plan.licence or 'not stated'}")
    return tuple(found)


def fetched(store: Store, new: Renewal, on_event: OnEvent) -> ModelRef:
    """Fetch the new files beside the old ones, which stay as they are; an interrupted fetch continues."""
    settings = replace(store.settings, home=store.settings.home / FOLDER, foreign_roots=())
    staged = Store(settings)
    _link_unchanged(store, new, staged.models / slug(new.model.name))
    eyes = False if new.model.eyes_left_out else None
    return staged.pull(new.model.name, on_event, new.model.rounding or None, eyes)


def _link_unchanged(store: Store, new: Renewal, folder: Path) -> None:
    """Link the files that stay as they are into `folder`, so that they are not fetched again.

    A fetch never writes into a file that is whole. Where the disk has no links, all files are fetched.
    """
    recorded = {f.path: f.sha256 for f in _record(store, new.model).all_files}
    for file in new.plan.files:
        old, target = store.models / slug(new.model.name) / file.name, folder / file.name
        with suppress(OSError):
            if target.samefile(old):  # an earlier update's, which a newer revision may have changed since
                target.unlink()
        # an address: the file comes from a hub, which fetches each on its own
        if file.url and file.sha256 and recorded.get(file.name) == file.sha256:
            private.folder(target.parent, store.settings.home)
            with suppress(OSError):
                os.link(old, target)


def take(store: Store, new: Renewal) -> int:
    """Put the fetched files in the place of the old ones; return the bytes that this freed."""
    home = HomeFiles(store.settings)
    folder, staged = home.models / slug(new.model.name), home.home / FOLDER / "models" / slug(new.model.name)
    with home.lock(new.model.name, None, wait=False):
        linked = sum(s.st_size for p in staged.rglob("*") if (s := p.stat()).st_nlink > 1 and p.is_file())
        delete_folder(folder)
        staged.rename(folder)
        freed = new.model.held - linked
        record = readable(folder)
        if record is not None:  # what it was asked for by still leads to it
            aliases = dict.fromkeys((*record.aliases, *new.model.aliases))
            write_manifest(folder, replace(record, aliases=tuple(aliases)))
        if record is None or digest_of(record.files) != new.model.digest:
            freed += home.drop_packs(new.model.digest)
    shutil.rmtree(home.home / FOLDER, ignore_errors=True)
    return freed
