"""The record kept for each model: where its files lie, their digests, where they came from.

One `manifest.json` in the model's folder, written beside and renamed, so that it is whole or absent.
Knows no network.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from freehold.base import private
from freehold.base.errors import StoreError

NAME = "manifest.json"
SCHEMA = 1
_MAX_BYTES = 16 << 20
FILE_KINDS = ("gguf", "ggml")  # a model is a file, and not a folder
SPEECH_KINDS = (
    "ctranslate2",
    "ggml",
)  # of which a Whisper alone is read: a folder of faster-whisper's, whisper.cpp's file


@dataclass(frozen=True, slots=True)
class HeldFile:
    """One file of a model. `path` is relative to the model's folder, or absolute for a foreign file.

    `sha256` may be empty when a foreign store gives none; `mtime_ns` shows a change, 0 where it was not recorded.
    """

    path: str
    bytes: int
    sha256: str = ""
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the store knows of a model it holds or references. Times are ISO 8601 in UTC."""

    name: str
    kind: str  # gguf | safetensors | ctranslate2 | ggml
    owner: str  # freehold | ollama | lm-studio | hub-cache | user
    source: str
    files: tuple[HeldFile, ...]
    created: str
    last_used: str = ""
    licence: str = ""
    detail: str = ""  # what was chosen at the source
    aliases: tuple[str, ...] = ()  # other spellings that were asked for and led here
    root: str = ""  # folder of a foreign directory of safetensors
    extras: Mapping[str, str] = field(
        default_factory=dict
    )  # Ollama's template, params, system: absolute paths
    rounding: str = ""  # what float weights are rounded to when they are packed; empty: nothing
    eyes: HeldFile | None = None  # the tower beside a GGUF; that of safetensors is in their own files
    eyes_left_out: bool = False  # its source has a tower file, and it is not to be fetched
    schema: int = SCHEMA

    @property
    def all_files(self) -> tuple[HeldFile, ...]:
        """The model's files, and the tower's."""
        return self.files if self.eyes is None else (*self.files, self.eyes)

    @property
    def bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(f.bytes for f in self.all_files)

    def with_alias(self, name: str) -> Manifest:
        """Return the same record, also found under `name`."""
        if name == self.name or name in self.aliases:
            return self
        return replace(self, aliases=(*self.aliases, name))


def read_manifest(folder: Path) -> Manifest | None:
    """Return the record in `folder`, None if it has none; raise StoreError if it is damaged."""
    path = folder / NAME
    try:
        with path.open("rb") as f:
            raw = f.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e.strerror}") from e
    try:
        data = json.loads(raw)
        if data["schema"] != SCHEMA:
            raise StoreError(f"{path} has schema {data['schema']}, this version reads {SCHEMA}")
        foreign = data["owner"] != "freehold"
        data["files"] = tuple(_held(f, foreign=foreign) for f in data["files"])
        data["eyes"] = _held(data["eyes"], foreign=foreign) if data.get("eyes") else None
        data["aliases"] = tuple(data.get("aliases", ()))
        return Manifest(**data)
    except (ValueError, KeyError, TypeError) as e:
        raise StoreError(f"{path} is damaged: {e}", "remove the folder and pull the model again") from e


def write_manifest(folder: Path, manifest: Manifest, *, durable: bool = True) -> None:
    """Write the record so that a crash leaves the old one or the new one, never half of one."""
    record = asdict(manifest)
    for key in ("eyes", "eyes_left_out"):  # a model without a tower has the record that older versions read
        if not record[key]:
            del record[key]
    write_json(folder / NAME, record, durable=durable)


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write JSON beside `path` and rename it into place; `durable`: flushed to disk first."""
    # Two threads that wrote to one file would rename it while half of it is there.
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        with open(beside, "w", encoding="utf-8", opener=private.opener) as f:
            json.dump(value, f, indent=1)
            f.flush()
            if durable:
                os.fsync(f.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def safe_relative(name: str) -> str:
    """Return `name` if it is a plain relative path; raise StoreError for one that leaves its folder."""
    parts = PurePosixPath(name).parts
    bad = name.startswith("/") or "\\" in name or any(ord(c) < 32 or c == ":" for c in name)
    if not parts or bad or ".." in parts or len(name) > 512:
        raise StoreError(f"the file name {name[:80]!r} leads out of the model's folder")
    return name


def _held(raw: dict, *, foreign: bool) -> HeldFile:
    held = HeldFile(**raw)
    if not foreign:
        safe_relative(held.path)
    return held
