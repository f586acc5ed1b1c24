"""Reads the shipped facts on models and the user's own; looks up by id, short name or file name, filters and sorts.

`data/models/*.toml` is one file a publisher, `data/sources.toml` spells the sources out, benchmarks.py adds
results. One model costs the reading of one file; all of them are read once. Knows no network; `freehold models
refresh` adds to the user's file and never to ours.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from freehold.base.catalog import benchmarks, quants, schema
from freehold.base.catalog.entries import (
    Entry,
    entries,
    find,
    plain,
    reordered,
    repacked,
    repacks,
    spelled,
    tagged,
)
from freehold.base.catalog.licence import licences
from freehold.base.catalog.model import ROLES, THINKING, TIERS, Model, Repo, data_table, texts
from freehold.base.catalog.schema import spelled as languages_spelled
from freehold.base.config import data_home
from freehold.base.errors import ModelNotFound, StoreError, UsageError
from freehold.base.options import option

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
    near = nearest_names(wanted, everything)
    hint = f"freehold models lists them; add your own to {user_file()}"
    raise ModelNotFound(
        f"the catalogue has no model {text!r}", f"did you mean {' or '.join(near)}?" if near else hint
    )


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
    return texts("models")


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


def sources() -> dict[str, str]:
    """Return the sources that the shipped facts name by a short key."""
    return data_table("sources.toml")


@cache
def _recipes() -> dict[str, tuple[Entry, ...]]:
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
    files = tuple(
        Repo(e.hub_repo, e.kind, (e.hub_quant,) if e.hub_quant else ()) for e in recipes if e.hub_repo
    )
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


# --- filter and sort models by their facts; an unknown fact passes no filter that asks for it -------

# how each key sorts by itself: names and sizes upwards, dates, contexts and scores from the best
_UPWARDS = ("name", "lab", "params", "active", "cache")
_DOWNWARDS = ("released", "context")


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a model; an empty field asks nothing. Texts compare without case."""

    words: tuple[str, ...] = ()  # each occurs in the id, short name, family, lab or architecture
    licence: str = ""  # a part of the licence's id; "unknown" asks for those without one
    country: str = option("", "Country of the lab.", metavar="US")  # one of its seats
    country_not: str = option("", "Exclude labs of this country.", metavar="CN")
    lab: str = option("", "Lab.", metavar="TEXT")
    family: str = option("", "Family, such as Qwen3.5.", metavar="TEXT")
    architecture: str = option("", "Architecture as GGUF names it, such as qwen3moe.", metavar="NAME")
    tier: str = option("", "Size class.", choices=tuple(TIERS))
    kind: str = option("", "Kind of feed-forward layers.", choices=("dense", "moe"))
    thinking: str = option("", "Reasoning output.", choices=tuple(THINKING[1:]))
    modality: str = option("", "Input besides text.", choices=schema.MODALITIES)
    min_params: float = option(
        0.0, "Minimum parameters: 8b, 270m.", name="min-size", form="billions", shown=False
    )
    max_params: float = option(
        0.0, "Maximum parameters: 8b, 270m.", name="max-size", form="billions", shown=False
    )
    min_context: int = option(0, "Minimum context in tokens: 32k, 1m.", form="amount", shown=False)
    tools: bool = option(False, "Trained to call tools.")
    role: str = option("", "Output: text, vectors, scores of pairs, or transcripts.", choices=tuple(ROLES))
    language: str = option("", "Language named in its card; mul: ten or more.", metavar="de")  # ISO 639

    def given(self) -> list[str]:
        """Return the names of the fields that ask something."""
        return [f.name for f in fields(self) if getattr(self, f.name)]

    def without(self, field: str) -> Query:
        """Return the same question with one field less."""
        empty = next(f.default for f in fields(self) if f.name == field)
        return replace(self, **{field: empty})


def select(models: Iterable[Model], query: Query) -> list[Model]:
    """Return the models that fit every part of the query, in their order."""
    tests = [_TESTS[name](query) for name in query.given()]
    return [m for m in models if all(test(m) for test in tests)]


def ordered(models: Iterable[Model], key: str, *, reverse: bool = False) -> list[Model]:
    """Sort by name, lab, params, active, cache, released, context or a benchmark; unknown values come last.

    Raises UsageError for a key that is neither, naming the ones there are.
    """
    listed = list(models)
    benchmarks = {s.benchmark for m in listed for s in m.scores}
    if key not in (*_UPWARDS, *_DOWNWARDS, *benchmarks):
        known = ", ".join([*_UPWARDS, *_DOWNWARDS, *sorted(benchmarks)])
        raise UsageError(f"models cannot be sorted by {key!r}", f"keys: {known}")
    known = [m for m in listed if _value(m, key)]
    known.sort(key=lambda m: _value(m, key), reverse=reverse is (key in _UPWARDS))
    return known + [m for m in listed if not _value(m, key)]


def score(model: Model, benchmark: str) -> float | None:
    """Return the best published result in `benchmark`, whatever its setting; None if there is none."""
    return max((s.value for s in model.scores if s.benchmark == benchmark), default=None)


def _value(model: Model, key: str) -> float | str:
    values: dict[str, Callable[[], float | str]] = {
        "name": lambda: model.id.rpartition("/")[2].lower(),
        "lab": lambda: model.lab.lower(),
        "params": lambda: model.params_b,
        "active": lambda: model.active_b,
        "cache": lambda: model.bytes_per_token(0),
        "released": lambda: model.released,
        "context": lambda: model.context,
    }
    return values[key]() if key in values else score(model, key) or 0.0


def _text(model: Model) -> str:
    parts = (model.id, model.name, model.family, model.lab, model.architecture)
    return " ".join(parts).lower()


def _licensed(model: Model, wanted: str) -> bool:
    return not model.licence if wanted == "unknown" else wanted in model.licence.lower()


# field of Query -> the test it makes
_TESTS: dict[str, Callable[[Query], Callable[[Model], bool]]] = {
    "words": lambda q: lambda m: all(w.lower() in _text(m) for w in q.words),
    "licence": lambda q: lambda m: _licensed(m, q.licence.lower()),
    "country": lambda q: lambda m: q.country.upper() in m.countries,
    "country_not": lambda q: lambda m: bool(m.countries) and q.country_not.upper() not in m.countries,
    "lab": lambda q: lambda m: q.lab.lower() in m.lab.lower(),
    "family": lambda q: lambda m: q.family.lower() in m.family.lower(),
    "architecture": lambda q: lambda m: q.architecture.lower() == m.architecture,
    "tier": lambda q: lambda m: q.tier == m.tier,
    "kind": lambda q: lambda m: q.kind == m.kind,
    "thinking": lambda q: lambda m: q.thinking == m.thinking,
    "modality": lambda q: lambda m: q.modality in m.modalities,
    "min_params": lambda q: lambda m: max(m.params_b, m.called_b) >= q.min_params,
    "max_params": lambda q: lambda m: 0 < min(m.params_b, m.called_b) <= q.max_params,
    "min_context": lambda q: lambda m: m.context >= q.min_context,
    "tools": lambda q: lambda m: m.tools is True,
    "role": lambda q: lambda m: q.role == m.role,
    "language": lambda q: lambda m: m.speaks(q.language.lower()) is True,
}


# --- sampling parameters that a family's authors recommend, by the name that a file states ----------

FIELDS = ("temperature", "top_k", "top_p", "min_p")


def recommended(*names: str) -> tuple[dict[str, Any], str]:
    """Return the sampling that the family of these names recommends, and who says so; nothing for an unknown one."""
    stated = ["-".join(name.lower().split()) for name in names if name]
    begins = [(begin, row) for row in data_table("sampling.toml")["family"] for begin in row["names"]]
    fitting = [(len(begin), row) for begin, row in begins if any(s.startswith(begin) for s in stated)]
    if not fitting:
        return {}, ""
    row = max(fitting, key=lambda pair: pair[0])[1]
    return {name: row[name] for name in FIELDS if name in row}, str(row["source"])


# --- how much the catalogue holds -------------------------------------------------------------------
# The one place of the numbers that `advise`, the README and the guides give.


@dataclass(frozen=True, slots=True)
class CatalogueCounts:
    """`rated`: models with a published result; `licences`: texts and the terms of services."""

    models: int
    rated: int
    licences: int


def counts() -> CatalogueCounts:
    """Count the shipped facts, and the user's own models."""
    known = models()
    return CatalogueCounts(len(known), sum(bool(m.scores) for m in known), len(licences()))
