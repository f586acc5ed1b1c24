"""Models made from other models: a name, the base model, changed defaults, and copies of their adapters.

    <home>/overlays/<slug>.json     one record each; it names its base and holds no weights

An overlay without a template of its own shares its base's engine: its jobs are changed before they go in
(`overlaid`). One with a template is opened as a model of its own over the same file. Knows jobs and records; knows
no weights and no protocol.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from freehold.base import private
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.regular import open_regular
from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.run.store import parameters, space
from freehold.run.store.manifest import write_json
from freehold.run.store.parameters import Parameters
from freehold.run.store.refs import LATEST, LIBRARY, MODEL_SUFFIXES, slug

# Adapters of models made by a Modelfile: copies below the home, each named by its digest.
#     <home>/adapters/<digest>[.gguf]     a GGUF adapter, or a folder of PEFT's two files
# A copy is written beside, read through once, and renamed.
_PIECE = 1 << 20
DIGITS = 24  # of the digest: it is the adapter's name in an engine, and in its folder
_ADAPTER = re.compile(rf"[0-9a-f]{{{DIGITS}}}(\.gguf)?")


def adapters_folder(home: Path) -> Path:
    """Return where they lie."""
    return home / "adapters"


def adapter_path(home: Path, name: str) -> Path:
    """Return where the adapter of this name lies, there or not. Raises ValueError for a name that `keep` gives none."""
    if not _ADAPTER.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is not an adapter's name")
    return adapters_folder(home) / name


def keep_adapter(home: Path, source: Path) -> Path:
    """Copy an adapter there, once; return its path. Raises what open_lora does, and CapacityExceeded for a full disk.

    What is copied is opened as a plain file: since it was checked, a link may have been turned to a device or a pipe.
    """
    # here, as NumPy would be half of every verb's start
    from freehold.run.formats.filemap import cannot_read
    from freehold.run.formats.lora import CONFIG, WEIGHTS, open_lora

    def opened(file: Path) -> BufferedReader:
        try:
            return open_regular(file)
        except OSError as e:
            raise cannot_read(file, e) from e

    source = open_lora(source).path
    peft = source.is_dir()
    files = [source / CONFIG, source / WEIGHTS] if peft else [source]
    with space.full_disk(home, "nothing was stored"):
        private.folder(adapters_folder(home), home)
        beside = adapters_folder(home) / f".{secrets.token_hex(8)}.new"
        try:
            if peft:
                private.folder(beside)
            for file in files:
                copy = private.file(beside / file.name if peft else beside)
                with opened(file) as original, copy.open("wb") as sink:
                    size = os.fstat(original.fileno()).st_size
                    space.require(beside.parent, size, f"the copy of {file.name}")
                    _copy(original, sink, size)
            kept = adapters_folder(home) / (open_lora(beside).digest[:DIGITS] + ("" if peft else ".gguf"))
            if not kept.exists():
                beside.rename(kept)
        finally:
            drop_adapter(beside)
    return kept


def _copy(original: BinaryIO, sink: BinaryIO, size: int) -> None:
    """Copy what the file had when it was opened: another program may write to it for ever."""
    while size > 0 and (data := original.read(min(size, _PIECE))):
        sink.write(data)
        size -= len(data)


def drop_adapter(path: Path) -> int:
    """Delete an adapter; return its bytes."""
    files = [*path.iterdir()] if path.is_dir() else [path] if path.exists() else []
    freed = sum(file.stat().st_size for file in files)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return freed


SCHEMA = 1
MAX_BYTES = 4 << 20  # of a record
MAX_TEXT = 1 << 18  # characters of a system text, a template or a licence
MAX_MESSAGES = 1000
MAX_OVERLAYS = 10_000
_File = tuple[tuple[int, int, int], "Overlay | None"]  # inode, time and size; the record, if it is one
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}(/[a-z0-9][a-z0-9._-]{0,95})?(:[a-z0-9._-]{1,95})?")


@dataclass(frozen=True, slots=True)
class Overlay:
    """One record. `parameters` are under Ollama's names, as given; `messages` are (role, text) pairs."""

    name: str
    base: str  # a model of the store, never an overlay
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    template: str = ""  # Jinja; empty: the model's own
    messages: tuple[tuple[str, str], ...] = ()
    adapter: str = ""  # where it lies (adapters.py); the record holds the last part of it
    licence: tuple[str, ...] = ()
    created: str = ""
    notes: tuple[str, ...] = ()  # what was given and does nothing here, and why
    schema: int = SCHEMA

    @property
    def digest(self) -> str:
        """Name what the record says: clients that cache by digest see a change."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def adapter_name(self) -> str:
        """What the adapter is called in an engine; "" for none."""
        return Path(self.adapter).stem

    @property
    def changes_answers(self) -> bool:
        """Whether it changes what its base is asked or how its tokens are drawn, besides by an adapter."""
        return bool(self.system or self.template or self.messages or self.parameters)

    @property
    def read(self) -> Parameters:
        """The parameters in a Job's terms."""
        return parameters.read(self.parameters)


def checked(overlay: Overlay) -> Overlay:
    """Return it under the name it is found by; raise UsageError for what no record may hold."""
    name = canonical(overlay.name)
    if not _NAME.fullmatch(name) or name.endswith(MODEL_SUFFIXES):
        raise UsageError(
            f"{overlay.name[:100]!r} is not a model's name",
            "letters, digits, '.', '_' and '-', with an owner before a slash and a tag after a colon if you like",
        )
    longest = max(map(len, (overlay.system, overlay.template, *overlay.licence)))
    characters = sum(len(text) for _, text in overlay.messages)
    if longest > MAX_TEXT or characters > MAX_TEXT:
        raise UsageError(f"a text has {max(longest, characters):,} characters; expected at most {MAX_TEXT:,}")
    if len(overlay.messages) > MAX_MESSAGES:
        raise UsageError(f"there are {len(overlay.messages):,} messages; expected at most {MAX_MESSAGES:,}")
    for role, _ in overlay.messages:
        if role not in ("system", "user", "assistant"):
            raise UsageError(f"a message is of {role[:40]!r}; expected system, user or assistant")
    parameters.read(overlay.parameters, strict=True)
    return replace(overlay, name=name)


def canonical(name: str) -> str:
    """Return the spelling that records go by: small letters, no `:latest`, no registry's name before it."""
    return name.strip().lower().removeprefix(LIBRARY).removesuffix(LATEST)


def overlaid(job: Job, overlay: Overlay) -> Job:
    """Return the job as the overlay has it: what the job says itself wins."""
    parameters = overlay.read
    return replace(
        job,
        messages=None if job.messages is None else with_messages(job.messages, overlay),
        sampling={**parameters.sampling, **job.sampling},
        stop=job.stop or parameters.stop,
        max_tokens=parameters.max_tokens if job.max_tokens is None else job.max_tokens,
        adapter=job.adapter or overlay.adapter_name,
    )


def with_messages(messages: tuple[Message, ...], overlay: Overlay) -> tuple[Message, ...]:
    """Put the overlay's messages before a chat, and its system text where the chat has none."""
    own = tuple(Message(role, text) for role, text in overlay.messages)  # type: ignore[arg-type]
    if messages and messages[0].role == "system":
        return (messages[0], *own, *messages[1:])
    if overlay.system and not (own and own[0].role == "system"):
        own = (Message("system", overlay.system), *own)
    return (*own, *messages)


class Overlays:
    """The records below one home. Reading again costs one look at the folder while nothing changed.

    Where something did, each file is looked at, and read if it is another than it was.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._folder = home, home / "overlays"
        self._seen = -1  # the folder's time when its records were read
        self._files: dict[str, _File] = {}  # by the file's name
        self._known: dict[str, Overlay] = {}

    def find(self, name: str) -> Overlay | None:
        """Return the record of that name, however it is spelled."""
        return self._all().get(canonical(name))

    def list(self) -> list[Overlay]:
        """Return all records by name."""
        return [overlay for _, overlay in sorted(self._all().items())]

    def on(self, base: str) -> list[str]:
        """Return the names of those that are based on a model."""
        return [o.name for o in self.list() if o.base == base]

    def write(self, overlay: Overlay) -> Overlay:
        """Keep a record, in place of the one of that name."""
        overlay = checked(overlay)
        if len(self._all()) >= MAX_OVERLAYS and self.find(overlay.name) is None:
            raise UsageError(
                f"there are {MAX_OVERLAYS:,} models made from others", "freehold rm some of them"
            )
        kept = asdict(replace(overlay, adapter=Path(overlay.adapter).name))
        if (
            size := len(json.dumps(kept, indent=1))
        ) > MAX_BYTES:  # as write_json writes it, and _read takes it
            raise UsageError(
                f"the model's record has {size:,} bytes; expected at most {MAX_BYTES:,}",
                "shorten its system text, template, messages or licences",
            )
        with space.full_disk(self._home, "nothing was written"):
            private.folder(self._folder, self._home)
            write_json(self._path(overlay.name), kept)
        self._seen = -1
        return overlay

    def remove(self, name: str) -> int:
        """Delete a record, and its adapter if no other one names it; return the bytes of both."""
        path, overlay = self._path(canonical(name)), self.find(name)
        with space.full_disk(self._home, "nothing was lost"):
            freed = path.stat().st_size if path.exists() else 0
            path.unlink(missing_ok=True)
            self._seen = -1
            if overlay is not None:
                freed += self.release(overlay.adapter)
        return freed

    def release(self, adapter: str) -> int:
        """Delete an adapter that no record names any more; return its bytes."""
        if not adapter or any(overlay.adapter == adapter for overlay in self.list()):
            return 0
        return drop_adapter(Path(adapter))

    def path(self, overlay: Overlay) -> Path:
        """Return where its record lies."""
        return self._path(overlay.name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{slug(name)}.json"

    def _all(self) -> dict[str, Overlay]:
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return {}
        if changed != self._seen:
            files: dict[str, _File] = {}  # of this call: threads may be here at once
            with os.scandir(self._folder) as entries:
                for entry in sorted(entries, key=lambda each: each.name):
                    if entry.name.endswith(".json"):
                        files[entry.name] = self._file(entry, self._files.get(entry.name))
            self._files, self._known = files, {o.name: o for _, o in files.values() if o is not None}
            self._seen = changed
        return self._known

    def _file(self, entry: os.DirEntry[str], before: _File | None) -> _File:
        """Return a file's record, anew where it is another file than before: each is renamed into its place."""
        with suppress(OSError):
            status = entry.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if before is not None and before[0] == stamp:
                return before
            return stamp, _read(Path(entry.path), self._home)
        return (0, 0, 0), None


def _read(path: Path, home: Path) -> Overlay | None:
    """Return a record; a damaged one counts as absent."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        data = json.loads(path.read_bytes())
        if data["schema"] != SCHEMA:
            return None
        data["messages"] = tuple((str(role), str(text)) for role, text in data["messages"])
        data["licence"], data["notes"] = tuple(data["licence"]), tuple(data["notes"])
        if data["adapter"]:
            data["adapter"] = str(adapter_path(home, data["adapter"]))
        return checked(Overlay(**data))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FreeholdError):
        return None
