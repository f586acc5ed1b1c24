"""Records that the store returns: a model that can be loaded, a line of the list, the result of a removal.

Built from manifests (manifest.py) and the files they name; knows no network and no catalogue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from freehold.base.errors import ModelNotFound
from freehold.base.regular import open_regular
from freehold.run.store.manifest import FILE_KINDS, HeldFile, Manifest
from freehold.run.store.overlays import Overlay
from freehold.run.store.quants import is_mmproj

# changed: another program's file is not the one that was recorded, and is used as it is. resized: one of ours is cut
# off or replaced, and is not used.
State = Literal["ready", "incomplete", "vanished", "resized", "changed"]
LOST: frozenset[State] = frozenset(("vanished", "resized"))  # cannot be used
HEAD_BYTES = 64  # of a file, that tell a Whisper of whisper.cpp
STATE_WORDS: Mapping[State, str] = {"vanished": "file vanished", "resized": "file has another size"}


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that can be loaded. `path`: a GGUF file (the first shard), a ggml file, or a folder.

    `digest`: the SHA-256 of the file (of the list of digests if there are several files), or empty if the file was
    never hashed. `owner`: freehold, ollama, lm-studio, hub-cache or user. `extras`: Ollama's template, params and
    system files, if any. `overlay`: the changed defaults if this is a created model; `name` is then its own. `eyes`:
    the encoder's file (mmproj) of a GGUF, not included in `bytes`; None if there is none, and for safetensors, which
    contain the encoder.
    """

    name: str
    path: Path
    kind: str  # gguf | safetensors | ctranslate2 | ggml
    digest: str
    bytes: int
    owner: str
    source: str
    licence: str
    files: tuple[Path, ...]
    extras: Mapping[str, Path] = field(default_factory=dict)
    overlay: Overlay | None = None
    notes: tuple[str, ...] = ()  # what the user should know before it is loaded
    rounding: str = ""  # what its float weights are rounded to when they are packed: q8, q6, q4
    eyes: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values under stable names."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class Listed:
    """One model of `list`. `held`: its bytes on disk; `pack_bytes`: those of its packed files.

    `path`: what `load` opens; for an unfinished pull, the folder with its parts. `base`: the model that this one was
    created from, whose file it shares. `eyes`: the encoder's file (mmproj) of a GGUF, which `bytes` includes and
    `eyes_bytes` counts; safetensors files contain the encoder.
    """

    name: str
    state: State
    owner: str
    kind: str
    bytes: int
    held: int
    pack_bytes: int
    digest: str
    path: Path
    source: str
    licence: str
    created: str
    last_used: str
    detail: str = ""
    aliases: tuple[str, ...] = ()
    base: str = ""
    rounding: str = ""  # what float weights are rounded to when they are packed
    eyes: Path | None = None
    eyes_bytes: int = 0
    eyes_left_out: bool = False  # by the user, or because the file is a tower for sound

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values under stable names."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """One file of a model as it was recorded. `sha256` may be empty for a file that another program holds."""

    model: str
    owner: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Removed:
    """What `remove` did. `forgotten`: the files belong to another program and were left in place."""

    name: str
    owner: str
    path: Path
    freed: int
    forgotten: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values under stable names."""
        return _plain(self)


def from_path(path: Path) -> Manifest:
    """Describe a user's own file or folder; raise ModelNotFound if nothing is there."""
    try:
        stat = path.stat()
    except OSError as e:
        raise ModelNotFound(f"{path} cannot be opened: {e.strerror}", "check the path") from e
    created = datetime.fromtimestamp(stat.st_mtime, UTC).isoformat(timespec="seconds")
    name = path.name.removesuffix(".gguf").lower()
    if not path.is_dir():
        held = HeldFile(str(path), stat.st_size, "", stat.st_mtime_ns)
        kind = "ggml" if _is_ggml(path) else "gguf"
        return Manifest(name.removesuffix(".bin"), kind, "user", f"file: {path}", (held,), created)
    weights, kind = sorted(path.glob("*.safetensors")), "safetensors"
    if not weights:
        weights, kind = of_ctranslate2(path), "ctranslate2"
    single = [] if weights else [p for p in path.glob("*.gguf") if not is_mmproj(p.name)]
    if len(single) == 1:  # as `freehold quantize` makes them
        return replace(from_path(single[0]), name=name)
    if not weights:
        raise ModelNotFound(
            f"{path} is a folder without *.safetensors", "give a GGUF file or a folder of safetensors"
        )
    files = tuple(HeldFile(str(p), p.stat().st_size, "", p.stat().st_mtime_ns) for p in weights)
    return Manifest(path.name.lower(), kind, "user", f"file: {path}", files, created, root=str(path))


def _is_ggml(path: Path) -> bool:
    """Return whether a file of the user's own is a Whisper of whisper.cpp; what cannot be read is not."""
    if path.suffix.lower() == ".gguf":
        return False
    from freehold.run.formats.ggml import is_ggml_whisper

    try:
        with open_regular(path) as file:
            return is_ggml_whisper(file.read(HEAD_BYTES))
    except OSError:
        return False


def of_ctranslate2(folder: Path) -> list[Path]:
    """Return the file of weights of a folder that holds a Whisper of CTranslate2; none of another folder."""
    if not (folder / "model.bin").is_file():
        return []
    from freehold.run.formats.ctranslate2 import ctranslate2_weights

    return ctranslate2_weights(folder)


def model_ref(manifest: Manifest, folder: Path) -> ModelRef:
    """Turn the record in `folder` into what a loader takes."""
    return ModelRef(
        name=manifest.name,
        path=root_of(manifest, folder),
        kind=manifest.kind,
        digest=digest_of(manifest.files),
        bytes=sum(f.bytes for f in manifest.files),
        owner=manifest.owner,
        source=manifest.source,
        licence=manifest.licence,
        files=tuple(folder / f.path for f in manifest.files),
        extras={k: Path(v) for k, v in manifest.extras.items()},
        rounding=manifest.rounding,
        eyes=folder / manifest.eyes.path if manifest.eyes else None,
    )


def root_of(manifest: Manifest, folder: Path) -> Path:
    """Return what a loader opens: the first file, or the folder of a set of files."""
    if manifest.kind in FILE_KINDS:
        return folder / manifest.files[0].path
    return Path(manifest.root) if manifest.root else folder


def digest_of(files: tuple[HeldFile, ...]) -> str:
    """Return the digest that names a model: the file's own, or one over the list of several files'."""
    if len(files) == 1:
        return files[0].sha256
    if not all(f.sha256 for f in files):
        return ""
    lines = "".join(f"{f.sha256}  {Path(f.path).name}\n" for f in sorted(files, key=lambda f: f.path))
    return hashlib.sha256(lines.encode()).hexdigest()


def restat(file: HeldFile) -> HeldFile:
    """Describe a foreign file as it is now; the digest of what it was no longer holds."""
    stat = Path(file.path).stat()
    return HeldFile(file.path, stat.st_size, "", stat.st_mtime_ns)


def _plain(value: ModelRef | Listed | Removed) -> dict[str, Any]:
    plain: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(value).items()}
    if isinstance(value, ModelRef):
        plain["files"], plain["notes"] = [str(p) for p in value.files], list(value.notes)
        plain["extras"] = {k: str(p) for k, p in value.extras.items()}
    return plain


def digest(ref: ModelRef) -> str:
    """Return a file's digest; for an unhashed file, a digest of its path, size and time."""
    if ref.digest:
        return ref.digest.removeprefix("sha256:")
    stat_result = ref.path.stat()
    return hashlib.sha256(f"{ref.path}|{stat_result.st_size}|{stat_result.st_mtime_ns}".encode()).hexdigest()
