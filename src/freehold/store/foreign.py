"""Finds models in the folders of Ollama, LM Studio and the hub's cache: referenced, never copied or written.

Each becomes a manifest with absolute paths, sizes, times and the digests those stores give.
Unreadable folders and half-downloaded models are passed over. Path: HomeFiles.foreign -> scan.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from freehold.regular import read_regular
from freehold.store.manifest import HeldFile, Manifest
from freehold.store.quants import Variant, gguf_variants, preferred, safetensors_files

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
        name = _ollama_name(parts)
        yield _manifest(name, "gguf", "ollama", f"Ollama: {'/'.join(parts)}", (held,), extras=extras)


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
        yield _manifest(name, "gguf", owner, source, files, aliases=tuple(sorted(aliases)))


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
