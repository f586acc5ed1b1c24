"""Parses TOML of model facts into `Model`s, and lints it: a fault names file, line and key.

A file has `lab`, `country` and [[model]] tables. Tables of one id are dated facts about it: a later
`checked` wins key by key, so a fact that changes is appended and the older one stays to be read. Scores
add up: a newer one replaces that of its benchmark and setting alone.
The shipped files and the user's own go through the same checks. Knows no folder and no network.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from functools import cache
from typing import Any

from freehold.base.catalog.benchmarks import BENCHMARKS
from freehold.base.catalog.model import ROLES, THINKING, Model, Score, Stretch, data_table
from freehold.base.config import suggestion
from freehold.base.errors import StoreError
from freehold.base.layers import KINDS, LayerSpec

MAX_BYTES = 4 << 20  # of a catalogue file: tomllib reads about 1 MB/s
MODALITIES = ("text", "image", "audio", "video")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_RELEASED = re.compile(r"20\d\d-(0[1-9]|1[0-2])(-([0-2]\d|3[01]))?")
_LICENCE = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")
_LAYER = {f.name for f in fields(LayerSpec)}
_SCORE = {f.name for f in fields(Score)}
_STRETCH = {f.name for f in fields(Stretch)}
_NUMBER = (int, float)
_TOML_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": _NUMBER,
    "bool": bool,
    "bool | None": bool,
    "date": date,
    "Stretch | None": dict,
}
# Key of a [[model]] table -> the TOML type it has: the model's fields, but those that its short names fill.
KEYS = {
    f.name: _TOML_TYPES.get(str(f.type), list) for f in fields(Model) if f.name not in ("name", "repos")
} | {"not_published": dict}
_MOST = {
    "parameters": 1e14,
    "text_parameters": 1e14,
    "active_parameters": 1e14,
    "tensor_bytes": 1e15,
}  # of other numbers: 1e9
_NEEDED = ("id", "checked", "sources")


@dataclass(frozen=True, slots=True)
class StatedFacts:
    """One [[model]] table: what a source said of `id` on the day it was `checked`."""

    id: str
    checked: date
    values: Mapping[str, Any]


def parse(where: str, text: str) -> list[StatedFacts]:
    """Check a file's text and return its tables; raise StoreError "where:line: what is wrong"."""
    try:
        data = tomllib.loads(text)
    except ValueError as e:
        line = re.search(r"line (\d+)", str(e))
        at = line[1] if line else str(text.count("\n") + 1)
        raise _fault(where, at, f"is not valid TOML: {re.sub(r' [(]at .*[)]$', '', str(e))}") from None
    shared = {key: data.pop(key) for key in ("lab", "country", "family") if key in data}
    tables = data.pop("model", [])
    if data:
        key = next(iter(data))
        raise _fault(where, _line(text, 0, key), f"unknown key {key!r}", "the tables are called [[model]]")
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise _fault(where, _line(text, 0, "model"), "model is not a list of tables", "write [[model]]")
    facts = []
    for number, table in enumerate(tables, 1):
        if fault := lint(table):
            key, message, hint = fault
            raise _fault(
                where, _line(text, number, key), f"{table.get('id', 'a model without id')}: {message}", hint
            )
        facts.append(StatedFacts(table["id"], table["checked"], shared | table))
    return facts


def lint(table: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the key, what is wrong with it and the way out; None for a sound table."""
    for key, value in table.items():
        if key not in KEYS:
            return key, f"unknown key {key!r}", suggestion(key, list(KEYS), "")
        kind = KEYS[key]
        exact = kind if kind in (date, bool) else None  # a datetime is a date to Python, true is a number
        if type(value) is not exact if exact else not isinstance(value, kind) or isinstance(value, bool):
            return key, f"{key} = {value!r} must be {_type_name(kind)}", ""
    for key in _NEEDED:
        if key not in table:
            return key, f"{key} is missing", "every fact is dated and sourced"
    return _values(table) or _parts(table)


def build(tables: list[StatedFacts]) -> Model:
    """Make the model of an id out of its tables, the newest word on every key and score winning."""
    merged: dict[str, Any] = {}
    scores: dict[tuple[str, str], Score] = {}
    sources: dict[str, None] = {}
    for facts in sorted(tables, key=lambda f: f.checked):
        merged |= facts.values
        scores |= {(s["benchmark"], s["setting"]): Score(**s) for s in facts.values.get("scores", ())}
        sources |= dict.fromkeys(facts.values["sources"])
    plain = {"family": "", "lab": "", "country": "", **merged, "sources": tuple(sources)}
    for key in ("modalities", "base", "languages"):
        if key in plain:
            plain[key] = tuple(plain[key])
    missing = {k: v for f in tables for k, v in f.values.get("not_published", {}).items() if k not in merged}
    plain["not_published"] = tuple(missing.items())
    if "stretch" in plain:
        plain["stretch"] = Stretch(**plain["stretch"])
    plain["layers"] = tuple(LayerSpec(**g) for g in plain.get("layers", ()))
    plain["scores"] = tuple(scores.values())
    if plain.get("kind", "dense") == "dense":
        plain.setdefault("active_b", plain.get("params_b", 0.0))
    return Model(**plain)


def _values(table: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Check what a table says in single values."""
    for key, value in table.items():
        most = _MOST.get(key, 1e9)
        if isinstance(value, _NUMBER) and not isinstance(value, bool) and not 0 <= value < most:
            return (
                key,
                f"{key} = {value} is not within 0..{most:.0e}".replace("e+0", "e").replace("e+", "e"),
                "",
            )
    patterns = {"id": _ID, "released": _RELEASED, "licence": _LICENCE}
    shapes = {"id": "org/repo", "released": "2025-04-28 or 2025-04", "licence": "an SPDX or LicenseRef- id"}
    for key, pattern in patterns.items():
        if table.get(key) and not pattern.fullmatch(table[key]):
            return key, f"{key} = {table[key]!r} is not {shapes[key]}", ""
    choices = {"kind": ("dense", "moe"), "role": ROLES, "thinking": THINKING}
    for key, allowed in choices.items():
        if key in table and table[key] not in allowed:
            return key, f"{key} = {table[key]!r} is not one of {', '.join(filter(None, allowed))}", ""
    if table.get("active_b", 0) > table.get("params_b", table.get("active_b", 0)):
        return "active_b", f"active_b = {table['active_b']} exceeds params_b = {table['params_b']}", ""
    if not table["sources"]:
        return "sources", "sources is empty", "name what the facts were read from"
    return None


def _parts(table: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Check what a table says in lists."""
    for key in ("sources", "base", "modalities", "languages"):
        if not all(isinstance(item, str) and item for item in table.get(key, ())):
            return key, f"{key} holds something other than names", ""
    if unknown := set(table.get("modalities", ())) - set(MODALITIES):
        return "modalities", f"modality {sorted(unknown)[0]!r} is not one of {', '.join(MODALITIES)}", ""
    for name in table.get("languages", ()):
        if not CODE.fullmatch(name) and name not in sets():
            return "languages", f"{name!r} is not an ISO 639 code or a set of languages", ""
    for key, source in table.get("not_published", {}).items():
        if key not in KEYS or not isinstance(source, str) or not source:
            return "not_published", f"not_published: {key} needs to be a fact with a source", ""
    if fault := _stretch_fault(table.get("stretch")):
        return "stretch", fault, ""
    for parent in table.get("base", ()):
        if not _ID.fullmatch(parent):
            return "base", f"base names {parent!r}, which is not org/repo", ""
    for group in table.get("layers", ()):
        if fault := _layers_fault(group):
            return "layers", fault, ""
    return _scores(table.get("scores", ()))


# kind of layer -> the sizes it must state (of a delta rule or linear attention the count may be all that is known)
_SIZES = {
    "full": ("kv_heads", "head_dim"),
    "window": ("kv_heads", "head_dim", "window"),
    "latent": ("latent",),
    "compressed": ("kv_heads", "head_dim", "stride"),
    "mamba2": ("state", "conv"),
    "deltanet": (),
    "linear": (),
    "shortconv": ("conv",),
    "plain": (),
}


def _layers_fault(group: Any) -> str:
    if not isinstance(group, dict) or group.get("kind") not in KINDS:
        return f"a group of layers needs a kind out of {', '.join(KINDS)}"
    if unknown := group.keys() - _LAYER:
        return f"a group of layers has no {sorted(unknown)[0]!r}"
    sizes = {k: v for k, v in group.items() if k != "kind"}
    for key, value in sizes.items():
        if type(value) is not int or not 0 <= value < 1 << 31:
            return f"{group['kind']} layers: {key} = {value!r} is not a size"
    for key in ("count", *_SIZES[group["kind"]]):
        if not sizes.get(key):
            return f"{group['kind']} layers need {key}"
    return ""


def _stretch_fault(stretch: Any) -> str:
    if stretch is None:
        return ""
    wanted = _STRETCH if stretch.get("kind") == "yarn" else _STRETCH - {"theta"}
    if set(stretch) != wanted or stretch["kind"] not in ("yarn", "none"):
        return f"a stretch has {', '.join(sorted(wanted))}, and its kind is yarn or none"
    factor, original = stretch["factor"], stretch["original"]
    if type(factor) not in _NUMBER or type(original) is not int or not (1 < factor <= 1000 and original > 0):
        return f"a stretch of {original!r} tokens by {factor!r} is none"
    return ""


def _scores(scores: list[Any]) -> tuple[str, str, str] | None:
    seen = set()
    for score in scores:
        if fault := _score_fault(score):
            return "scores", fault, ""
        benchmark, setting = score["benchmark"], score["setting"]
        if benchmark not in BENCHMARKS:
            known = f"known: {', '.join(BENCHMARKS)}"
            return (
                "scores",
                f"unknown benchmark {benchmark!r}",
                suggestion(benchmark, list(BENCHMARKS), known),
            )
        if (benchmark, setting) in seen:
            return "scores", f"{benchmark} ({setting}) is given twice", "tell settings apart"
        seen.add((benchmark, setting))
    return None


def _score_fault(score: Any) -> str:
    if not isinstance(score, dict) or score.keys() != _SCORE:
        return f"a score has {', '.join(sorted(_SCORE))}"
    texts = [score[k] for k in ("benchmark", "setting", "source")]
    if not all(isinstance(t, str) for t in texts) or not score["benchmark"] or not score["source"]:
        return "a score needs a benchmark and a source"
    value = score["value"]
    if isinstance(value, bool) or not isinstance(value, _NUMBER) or not 0 <= value <= 100:
        return f"{score['benchmark']} = {value!r} is not within 0..100"
    return ""


def _type_name(kind: type | tuple[type, ...]) -> str:
    names = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", date: "a date"}
    return "a number" if isinstance(kind, tuple) else names.get(kind, "a table")


def _line(text: str, number: int, key: str) -> int:
    """Return the line of `key` in the `number`-th [[model]] table (0: before the first), or the table's own."""
    seen, at = 0, 1
    for row, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith("[["):
            seen += 1
            at = row if seen == number else at
        if seen == number and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return row
    return at


def _fault(where: str, line: int | str, message: str, hint: str = "") -> StoreError:
    way_out = hint or "mend that line, or move the file away: the rest of the catalogue does without it"
    return StoreError(f"{where}:{line}: {message}", way_out)


# --- sets of languages that models' cards and labs name ---------------------------------------------
# By the key under which data/models cites them.
# What a set claims beyond the codes it names is a number, never a guess.

CODE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, slots=True)
class Languages:
    """What is stated: the codes named, how many are claimed (0: those named), and the keys of the sources."""

    codes: tuple[str, ...]
    stated: int = 0
    sources: tuple[str, ...] = ()


def spelled(names: Iterable[str]) -> Languages:
    """Return the languages that `names` stand for, each an ISO code or a set's key; raise KeyError for neither."""
    codes: dict[str, None] = {}
    stated, sources = 0, []
    for name in names:
        if CODE.fullmatch(name):
            codes[name] = None
            continue
        named_set = sets()[name]
        codes |= dict.fromkeys(named_set.codes)
        stated = max(stated, named_set.stated)
        sources += named_set.sources
    return Languages(tuple(codes), stated, tuple(sources))


def known(code: str) -> bool:
    """Return whether a code names a language: one of ISO 639-1, "mul", or a longer one that a set names."""
    iso639_1 = data_table("languages.toml")["iso639_1"].split()
    return code in iso639_1 or code == "mul" or any(code in s.codes for s in sets().values())


@cache
def sets() -> dict[str, Languages]:
    """Return the sets that the shipped data names."""
    return {
        name: Languages(
            tuple(raw["codes"].split()), raw.get("stated", 0), (raw["source"],) if "source" in raw else ()
        )
        for name, raw in data_table("languages.toml")["sets"].items()
    }


# --- lists what an entry of the catalogue lacks: the facts that its size and fit need ---------------
# An entry may lack one of them only where `not_published` names the source that was looked through.

_APART = 0.08  # of its exact weights that a name's round number may be off


def gaps(model: Model) -> tuple[str, ...]:
    """Return what is missing or contradicts itself, a line each; empty for a complete entry."""
    excused = {key for key, _ in model.not_published}
    missing = [
        f"{key} is missing, and not_published names no source that was looked through"
        for key, told in _NEEDED_FACTS.items()
        if not told(model) and key not in excused
    ]
    stale = [f"not_published names {key}, which is known" for key in sorted(excused) if getattr(model, key)]
    return (*missing, *stale, *_contradictions(model))


# fact -> whether an entry has it
_NEEDED_FACTS: dict[str, Callable[[Model], bool]] = {
    "layers": lambda m: bool(m.layers),
    "context": lambda m: m.context > 0,
    "parameters": lambda m: m.parameters > 0 or m.tensor_bytes > 0,
    "native": lambda m: bool(m.native),
    "dimensions": lambda m: m.role != "embedder" or m.dimensions > 0,
    "experts": lambda m: m.kind != "moe" or m.experts > 0,
}


def _contradictions(model: Model) -> list[str]:
    contradictions = []
    exact, whole = model.text_parameters or model.parameters, model.parameters
    if model.text_parameters > whole > 0:
        contradictions.append(f"text_parameters = {model.text_parameters:,} exceed parameters = {whole:,}")
    if model.active_parameters > exact > 0:
        contradictions.append(f"active_parameters = {model.active_parameters:,} exceed {exact:,}")
    told = model.params_b * 1e9
    if whole and not (exact * (1 - _APART) <= told <= whole * (1 + _APART)):
        contradictions.append(f"params_b = {model.params_b} is far from {exact / 1e9:.4g} counted")
    if model.vocab and model.hidden and exact and model.vocab * model.hidden > exact:
        contradictions.append(
            f"a table of {model.vocab:,} x {model.hidden:,} has more weights than the model"
        )
    return contradictions
