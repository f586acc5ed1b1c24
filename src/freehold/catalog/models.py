"""Reads the shipped facts on models and the user's own; looks up by id, short name or file name.

`data/models/*.toml` is one file a publisher, `data/sources.toml` spells the sources out, benchmarks.py adds
results. One model costs the reading of one file; all of them are read once. Knows no network; `freehold models
refresh` adds to the user's file and never to ours.
Path: catalog.models / catalog.model -> schema.parse -> schema.build -> Model.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

from freehold.catalog import benchmarks, quants, schema
from freehold.catalog.entries import Entry, entries, find
from freehold.catalog.model import Model, Repo
from freehold.catalog.schema import spelled as languages_spelled
from freehold.catalog.spelling import plain, reordered, repacked, repacks, spelled, tagged
from freehold.config import data_home
from freehold.errors import ModelNotFound, StoreError

USER_FILE = "catalogue.toml"


def user_file() -> Path:
    """Return where the user's own facts lie: catalogue.toml in the data home."""
    return data_home(os.environ) / USER_FILE


def models(user: Path | None = None) -> tuple[Model, ...]:
    """Return every model, sorted by lab and then as its file lists them; `user` replaces the user's own file.

    Raises StoreError naming file and line if the user's file is damaged.
    """
    path = user or user_file()
    return _all(path, _stamp(path))


def stamp() -> object:
    """Return what is equal for as long as `models()` is the same."""
    return user_file(), _stamp(user_file())


def model(text: str, user: Path | None = None) -> Model:
    """Return the model called `text`: an id, a short name, a repository of its files, an id's last part, or the
    same as people spell it (`Mistral Small 4`).

    Raises ModelNotFound with the nearest names, or with the sizes that the name leaves open.
    """
    wanted = text.strip()
    path = user or user_file()
    if not wanted:
        raise ModelNotFound("an empty name names no model", "freehold models lists them")
    name = plain(wanted)
    for spelling in (_named(wanted), wanted, tagged(wanted), _named(name), name):
        if spelling and (match := _quick(spelling, path)) is not None:
            return match
    everything = models(path)
    lower, lowers = name.lower(), {name.lower(), wanted.lower()}
    for m in everything:
        if lowers & {m.id.lower(), m.name} or lower.partition(":")[0] in (r.repo.lower() for r in m.repos):
            return m
    tails = [m for m in everything if m.id.rpartition("/")[2].lower() in lowers]
    if len(tails) == 1:
        return tails[0]
    if (copied := _copied(name, everything)) is not None:
        return copied
    meant = spelled(name, everything) or reordered(name, everything)
    if len(meant) == 1:
        return meant[0]
    if meant:
        sizes = ", ".join(m.id for m in meant[:8])
        raise ModelNotFound(f"{text!r} may be {len(meant)} models of the catalogue", f"say which: {sizes}")
    raise ModelNotFound(f"the catalogue has no model {text!r}", _hint(wanted, everything))


def of_repository(repo: str, user: Path | None = None) -> Model | None:
    """Return the model whose weights a hub repository holds: its own, or a copy by one that only packs otherwise.

    None for any other repository, whatever its name is like: it may hold another model.
    """
    path = user or user_file()
    if (match := _quick(repo, path)) is not None:
        return match
    everything = models(path)
    for m in everything:
        if repo.lower() in (m.id.lower(), *(r.repo.lower() for r in m.repos)):
            return m
    return _copied(plain(repo), everything)


def _copied(name: str, everything: tuple[Model, ...]) -> Model | None:
    """Return the model that a repository only packs otherwise; None where its owner may have changed it."""
    if base := quants.base_of(name):
        return next((m for m in everything if m.id == base), None)
    owner, tail = name.partition("/")[0], _bare(repacked(name))
    same_name = [m for m in everything if tail and _bare(m.id.rpartition("/")[2]) == tail]
    return next((m for m in same_name if repacks(owner, m.id.partition("/")[0])), None)


def _bare(tail: str) -> str:
    """Return the last part of an id without the `Meta-` and `-hf` that are left out of Llamas' names."""
    return tail.lower().removeprefix("meta-").removesuffix("-hf")


def facts(entry: Entry) -> Model | None:
    """Return what is known of the model that a short name leads to."""
    return _quick(entry.model, user_file()) if entry.model else None


def _named(text: str) -> str:
    """Return the id that a short name leads to, or an empty string."""
    if "/" in text:
        return ""
    try:
        return find(text).model
    except ModelNotFound:
        return ""


def _quick(wanted: str, path: Path) -> Model | None:
    """Read the one shipped file that lists `wanted`, and what the user's file says of it."""
    line = f'id = "{wanted}"\n'
    own = [f for f in _user_tables(path, _stamp(path)) if f.id == wanted]
    for name, text in _texts().items():
        if line in text:
            tables = [f for f in _tables(name) if f.id == wanted]
            return _finish(schema.build([*tables, *own]))
    return _finish(schema.build(own)) if own else None


@cache
def _all(path: Path, stamp: tuple[int, int]) -> tuple[Model, ...]:
    grouped: dict[str, list[schema.StatedFacts]] = {}
    shipped = [facts for name in _texts() for facts in _tables(name)]
    for facts in (*shipped, *_user_tables(path, stamp)):
        grouped.setdefault(facts.id, []).append(facts)
    return tuple(sorted((_finish(schema.build(g)) for g in grouped.values()), key=lambda m: m.lab.lower()))


@cache
def _texts() -> dict[str, str]:
    folder = resources.files("freehold.catalog").joinpath("data", "models")
    files = sorted(folder.iterdir(), key=lambda p: p.name)
    return {p.name: p.read_text(encoding="utf-8") for p in files if p.name.endswith(".toml")}


@cache
def _tables(name: str) -> list[schema.StatedFacts]:
    return schema.parse(f"models/{name}", _texts()[name])


@cache
def _user_tables(path: Path, stamp: tuple[int, int]) -> list[schema.StatedFacts]:
    if stamp == (0, 0):
        return []
    if stamp[1] > schema.MAX_BYTES:
        raise StoreError(
            f"{path}: {stamp[1]:,} bytes are more than a catalogue may have ({schema.MAX_BYTES:,})",
            "move the file away",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        line = path.read_bytes()[: e.start].count(b"\n") + 1
        raise StoreError(f"{path}:{line}: is not UTF-8 text", "move the file away, or mend it") from None
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e.strerror}", "check the file's permissions") from None
    return schema.parse(str(path), text)


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when the file does: its time and size; zeros when it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


@cache
def sources() -> dict[str, str]:
    """Return the sources that the shipped facts name by a short key."""
    text = resources.files("freehold.catalog").joinpath("data", "sources.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _recipes() -> dict[str, tuple[Entry, ...]]:
    """Return the short names that lead to each id."""
    recipes: dict[str, tuple[Entry, ...]] = {}
    for entry in entries():
        recipes[entry.model] = (*recipes.get(entry.model, ()), entry)
    return recipes


def _finish(stated_model: Model) -> Model:
    """Spell sources and languages out; add the boards' results, and what the short names know: name and files."""
    spelled = sources()
    stated = languages_spelled(stated_model.languages)
    recipes = _recipes().get(stated_model.id, ())
    own = (Repo(stated_model.id, "safetensors"),) if stated_model.hub else ()
    files = tuple(Repo(e.hub_repo, e.kind, (e.hub_quant,)) for e in recipes if e.hub_repo)
    return replace(
        stated_model,
        name=next((e.name for e in recipes), ""),
        sources=tuple(dict.fromkeys(spelled.get(s, s) for s in (*stated_model.sources, *stated.sources))),
        languages=stated.codes,
        languages_stated=max(stated_model.languages_stated, stated.stated),
        scores=tuple(replace(s, source=spelled.get(s.source, s.source)) for s in stated_model.scores)
        + benchmarks.of(stated_model.id),
        repos=own + files,
    )


def nearest_names(wanted: str, everything: tuple[Model, ...]) -> list[str]:
    """Return the names and ids most like `wanted`, three at most."""
    names = {m.id.rpartition("/")[2].lower(): m.id for m in everything} | {
        m.id.lower(): m.id for m in everything
    }
    names |= {m.name: m.name for m in everything if m.name}
    near = difflib.get_close_matches(wanted.lower(), names, n=6, cutoff=0.5)
    return list(dict.fromkeys(names[n] for n in near))[:3]


def _hint(wanted: str, everything: tuple[Model, ...]) -> str:
    if near := nearest_names(wanted, everything):
        return f"did you mean {' or '.join(near)}?"
    return f"freehold models lists them; add your own to {user_file()}"
