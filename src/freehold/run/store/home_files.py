"""What lies below a home: records, folders, packs, locks, and other programs' models beside them.

Knows files and their state; knows no source and no reference.

Files that no longer match a model's record were replaced under their name, or only touched. A size or a time that
differs is seen at every use. For the store's own files, whose digest was checked when they came, the digest then
decides: a file that was copied or restored is the same one. What another program holds may change there, so it is
loaded with a note.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from freehold.base import private
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, StoreError
from freehold.base.regular import open_regular, read_regular
from freehold.base.terminal import Ticking
from freehold.run.store.manifest import HeldFile, Manifest, read_manifest, write_json
from freehold.run.store.quants import (
    Variant,
    ctranslate2_files,
    gguf_variants,
    mmproj_of,
    preferred,
    safetensors_files,
)
from freehold.run.store.records import State, of_ctranslate2
from freehold.run.store.refs import slug

# --- changed files ---------------------------------------------------------------------------------

GRAIN_S = 2.0  # a record's time has whole seconds, and is of the moment after its files were written

log = logging.getLogger("freehold.run.store")


def is_touched(file: HeldFile, mtime_ns: int, created: str) -> bool:
    """Tell whether a file of the recorded size was written since; records of old hold no file's time but their own."""
    if file.mtime_ns:
        return mtime_ns != file.mtime_ns
    return mtime_ns / 1e9 > _seconds(created) + GRAIN_S


def dated(files: tuple[HeldFile, ...], folder: Path) -> tuple[HeldFile, ...]:
    """Return files with the times they have now."""
    return tuple(replace(f, mtime_ns=(folder / f.path).stat().st_mtime_ns) for f in files)


def verified(manifest: Manifest, folder: Path) -> Manifest:
    """Return the record of a model of ours with its files' times as they are now.

    Raises StoreError for a file that was written since and has another digest.
    """
    for file in manifest.all_files:
        path = folder / file.path
        if file.sha256 and is_touched(file, path.stat().st_mtime_ns, manifest.created):
            log.warning("%s was written since %s came; comparing its digest", path, manifest.name)
            with Ticking(f"comparing the digest of {path.name}"):
                digest = _sha256(path)
            if digest != file.sha256:
                raise StoreError(
                    f"{manifest.name}: {path} was replaced: its digest is {digest[:12]}..., "
                    f"{file.sha256[:12]}... came",
                    f"to use that file, name its path; freehold rm {manifest.name} and freehold pull "
                    f"{manifest.name} fetch the model again",
                )
    eyes = dated((manifest.eyes,), folder)[0] if manifest.eyes else None
    return replace(manifest, files=dated(manifest.files, folder), eyes=eyes)


def notes_of(manifest: Manifest) -> tuple[str, ...]:
    """Say of a model that another program or the user holds which of its files are not those that were recorded."""
    return tuple(
        f"{manifest.name}: {path} was replaced since it was recorded ({what}), and is loaded as it is now; "
        f"freehold pull {manifest.name} records it again"
        for path, what in _differences(manifest)
    )


def _differences(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for file in manifest.files:
        stat = Path(file.path).stat()
        if stat.st_size != file.bytes:
            yield file.path, f"{file.bytes:,} bytes then, {stat.st_size:,} now"
        elif file.mtime_ns and stat.st_mtime_ns != file.mtime_ns:
            yield file.path, f"written {_written(file.mtime_ns)} then, {_written(stat.st_mtime_ns)} now"


def _written(mtime_ns: int) -> str:
    return datetime.fromtimestamp(mtime_ns / 1e9).isoformat(" ", "seconds")


def _seconds(created: str) -> float:
    try:
        return datetime.fromisoformat(created).timestamp()
    except ValueError:
        return 0.0


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- a home's files --------------------------------------------------------------------------------


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
        yield from (m for m in scan(self._foreign_roots) if _key(m) not in forgotten)

    def folder(self, manifest: Manifest) -> Path:
        """Return where a model's record lies, and its files unless they are another program's."""
        return self.models / slug(manifest.name)

    def state(self, manifest: Manifest) -> State:
        """Compare the record with the disk: sizes and times."""
        state: State = "ready"
        # without another program's tower its model still writes; one of ours is whole or fetched again
        for file in manifest.all_files if manifest.owner == "freehold" else manifest.files:
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


# --- finds models in the folders of Ollama ----------------------------------------------------------
# LM Studio and the hub's cache: referenced, never copied or written.
# Each becomes a manifest with absolute paths, sizes, times and the digests those stores give. Unreadable
# folders and half-downloaded models are passed over.

MAX_FILES = 20_000  # per store: beyond it a scan would be felt
_MAX_SIDE = 4 << 20  # bytes of a manifest, an index or a reference
_HEX = re.compile(r"[0-9a-f]{64}")
_LAYER = "application/vnd.ollama.image."
_EXTRAS = ("template", "params", "system")


def scan(roots: tuple[tuple[str, Path], ...]) -> list[Manifest]:
    """Return what the stores at `roots` ((owner, folder) pairs) hold, in their order."""
    finders = {"ollama": _ollama, "lm-studio": _lm_studio, "hub-cache": _hub_cache}
    manifests: dict[tuple[str, str], Manifest] = {}
    for owner, root in roots:
        if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
            for manifest in finders[owner](root):
                manifests.setdefault((owner, manifest.name), manifest)
    return list(manifests.values())


def _ollama(root: Path) -> Iterator[Manifest]:
    for path in _walk(root / "manifests"):
        layers = _layers(path)
        model = layers.get("model")
        if model is None or len(parts := path.relative_to(root / "manifests").parts) < 3:
            continue  # raw tensor blobs (MLX), or no manifest at all
        blob = _blob(root, model)
        held = _held(blob, _hex(model)) if blob else None
        if held is None:
            continue
        extras = {k: str(b) for k in _EXTRAS if k in layers and (b := _blob(root, layers[k]))}
        name, source = _ollama_name(parts), f"Ollama: {'/'.join(parts)}"
        tower = _blob(root, layers.get("projector", ""))
        eyes = _held(tower, _hex(layers["projector"])) if tower else None
        yield _manifest(name, "gguf", "ollama", source, (held,), extras=extras, eyes=eyes)


def _ollama_name(parts: tuple[str, ...]) -> str:
    host, *space, model, tag = parts
    if host == "registry.ollama.ai" and space == ["library"]:
        return f"{model}:{tag}".lower()
    return "/".join([*space, model]) + f":{tag}"


def _layers(path: Path) -> dict[str, str]:
    """Map a layer's short media type to its digest; empty for anything that is no such manifest."""
    data = _json(path)
    layers = data.get("layers") if isinstance(data, dict) else None
    digests: dict[str, str] = {}
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and str(layer.get("mediaType", "")).startswith(_LAYER):
            digests.setdefault(layer["mediaType"][len(_LAYER) :], str(layer.get("digest", "")))
    return digests


def _blob(root: Path, digest: str) -> Path | None:
    path = root / "blobs" / f"sha256-{_hex(digest)}"
    return path if _hex(digest) and path.is_file() else None


def _hex(digest: str) -> str:
    tail = digest.removeprefix("sha256:")
    return tail if _HEX.fullmatch(tail) else ""


def _lm_studio(root: Path) -> Iterator[Manifest]:
    for publisher in _folders(root):
        for folder in _folders(publisher):
            repo = f"{publisher.name}/{folder.name}"
            yield from _variants(folder, repo, "lm-studio", f"LM Studio: {repo}")


def _hub_cache(root: Path) -> Iterator[Manifest]:
    for folder in _folders(root):
        kind, _, rest = folder.name.partition("--")
        owner, _, model = rest.partition("--")
        snapshot = _snapshot(folder) if kind == "models" and model else None
        if snapshot is None:
            continue
        repo = f"{owner}/{model}"
        source = f"hub cache: {repo}@{snapshot.name[:12]}"
        yield from _variants(snapshot, repo, "hub-cache", source)
        yield from _safetensors(snapshot, repo, source)
        yield from _ctranslate2(snapshot, repo, source)


def _snapshot(folder: Path) -> Path | None:
    """Return the snapshot that `main` names, else the newest."""
    commit = _small(folder / "refs" / "main").decode("utf-8", "replace").strip()
    named = folder / "snapshots" / commit
    if re.fullmatch(r"[0-9a-f]{6,64}", commit) and named.is_dir():
        return named
    return max(_folders(folder / "snapshots"), key=lambda p: p.stat().st_mtime, default=None)


def _variants(folder: Path, repo: str, owner: str, source: str) -> Iterator[Manifest]:
    paths = {p.relative_to(folder).as_posix(): p for p in _walk(folder) if p.suffix.lower() == ".gguf"}
    variants = gguf_variants(paths)
    for variant in variants:
        held = [_held(paths[f], _cache_digest(paths[f])) for f in variant.files]
        if any(h is None for h in held):
            continue
        name = _variant_name(repo, variant, variants)
        aliases = {f"{repo}:{variant.files[0]}", *([repo] if variant == preferred(variants) else [])} - {name}
        files = tuple(h for h in held if h is not None)
        mmproj, _ = mmproj_of(variant.files, paths)
        eyes = _held(paths[mmproj], _cache_digest(paths[mmproj])) if mmproj else None
        yield _manifest(name, "gguf", owner, source, files, aliases=tuple(sorted(aliases)), eyes=eyes)


def _variant_name(repo: str, variant: Variant, variants: list[Variant]) -> str:
    alone = sum(v.quant == variant.quant for v in variants) == 1
    return f"{repo}:{variant.quant if variant.quant and alone else variant.files[0]}"


def _safetensors(folder: Path, repo: str, source: str) -> Iterator[Manifest]:
    paths = {p.relative_to(folder).as_posix(): p for p in _walk(folder)}
    if "config.json" not in paths or not any(p.endswith(".safetensors") for p in paths):
        return
    index = _json(paths["model.safetensors.index.json"]) if "model.safetensors.index.json" in paths else {}
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if isinstance(weights, dict) and not {str(v) for v in weights.values()} <= paths.keys():
        return  # not all shards are here yet
    held = [_held(paths[f], _cache_digest(paths[f])) for f in safetensors_files(paths, repo)]
    files = tuple(h for h in held if h is not None)
    if len(files) == len(held):
        yield _manifest(repo, "safetensors", "hub-cache", source, files, root=str(folder))


def _ctranslate2(folder: Path, repo: str, source: str) -> Iterator[Manifest]:
    """Yield a Whisper as faster-whisper keeps it; what else is called model.bin is passed over."""
    names = ctranslate2_files(p.name for p in _walk(folder) if p.parent == folder)
    if not names or not _is_whisper_bin(folder):
        return
    held = [_held(folder / name, _cache_digest(folder / name)) for name in names]
    files = tuple(h for h in held if h is not None)
    if len(files) == len(held):
        yield _manifest(repo, "ctranslate2", "hub-cache", source, files, root=str(folder))


def _is_whisper_bin(folder: Path) -> bool:
    try:
        return bool(of_ctranslate2(folder))
    except FreeholdError:
        return False


def _cache_digest(path: Path) -> str:
    """Return the sha256 a large file's blob is named by in the hub cache, or an empty string."""
    return _hex(os.path.basename(os.path.realpath(path)))


def _held(path: Path, digest: str) -> HeldFile | None:
    """Describe a file of weights; None for one that is gone, and for what is not a plain file."""
    try:
        stat_result = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(stat_result.st_mode):
        return None
    return HeldFile(str(path), stat_result.st_size, digest, stat_result.st_mtime_ns)


def _manifest(name: str, kind: str, owner: str, source: str, files: tuple[HeldFile, ...], **more) -> Manifest:
    newest = max(f.mtime_ns for f in files) / 1e9
    created = datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")
    return Manifest(name=name, kind=kind, owner=owner, source=source, files=files, created=created, **more)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`; unreadable folders are passed over, links to folders not followed."""
    files = (Path(root, name) for root, _, names in os.walk(folder) for name in sorted(names))
    return islice(files, MAX_FILES)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir())
    except OSError:
        return []


def _json(path: Path) -> object:
    try:
        return json.loads(_small(path))
    except (ValueError, RecursionError):
        return {}


def _small(path: Path) -> bytes:
    """Read a short file of another program's; b"" for a long one, and for what would never end: a pipe, a device."""
    try:
        return read_regular(path, _MAX_SIDE)
    except OSError:
        return b""
