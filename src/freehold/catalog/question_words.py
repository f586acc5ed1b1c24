"""The words that questions about models are understood by: tables of data, names of devices and of models.

Knows words and what each says; reads no question.
Path: questions.question -> phrases, device_names -> Clause
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from freehold.catalog.entries import entries
from freehold.catalog.hardware import devices
from freehold.catalog.models import models
from freehold.catalog.tasks import tasks

_ATOM = re.compile(r"[$]?[^\W_]+(?:[.][^\W_]+)*(?:[+]+)?")
LONGEST = 5  # words of a phrase
_TUNED = re.compile(r"-(instruct|chat|it|hf|bf16)+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Clause:
    """Something understood: `what` it is (task, language, hardware, ...), its value, and the words that said so."""

    what: str
    value: str
    words: str
    says: str = ""  # what it was taken as, or how it changes an answer, where that is not plain


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What no model is judged for, and the answer to it. `reads`: a modality that models can be asked to read."""

    name: str
    words: tuple[str, ...]
    says: str
    hint: str
    reads: str = ""


def atoms_of(text: str) -> list[str]:
    """Return the words: hyphens, slashes and colons part them, points inside do not; 8xh200 is three."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("×", "x"))  # 1,000
    plain = re.sub(r"(?<=\d)\s*[x*]\s*(?=[a-z])", " x ", plain)
    return _ATOM.findall(plain)


def gpu_part(gib: float = 0.0) -> Clause:
    """Return the usual GPU of a size; without one, the first of the table."""
    table = {float(k): v for k, v in tables()["gpu"].items() if k != "words"}
    if not gib:
        name = next(iter(table.values()))
        return Clause("hardware", name, "", f"which GPU is not said; taken as {name}, --on says otherwise")
    name = table.get(max((m for m in table if m <= gib), default=min(table)), "")
    return Clause("hardware", name, "", f"taken as {name}, --on says otherwise")


@cache
def tables() -> dict[str, Any]:
    """Return questions.toml."""
    text = resources.files("freehold.catalog").joinpath("data", "questions.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def language_name(code: str) -> str:
    """Return a language's English name; the code where the tables have none."""
    if code == "mul":
        return "many languages"
    words = tables()["languages"].get(code)
    return words[0].capitalize() if words else code


def results_in(code: str) -> list[str]:
    """Return the benchmarks whose results are of a language, the closest first."""
    return [name for name, codes in tables()["results"].items() if code in codes]


@cache
def unanswerable() -> tuple[Unanswered, ...]:
    """Return what no model is judged for."""
    return tuple(
        Unanswered(u["name"], tuple(u["words"]), u["says"], u["hint"], u.get("reads", ""))
        for u in tables()["unanswered"]
    )


@cache
def device_names() -> Mapping[tuple[str, ...], str]:
    """Return the devices by the words of their names, in the plural too."""
    names: dict[tuple[str, ...], str] = {}
    for device in devices():
        for name in (device.name, *device.aliases):
            words = tuple(atoms_of(name))
            names[words] = device.name
            names.setdefault(tuple(atoms_of(f"{name}s")), device.name)
    return names


@cache
def phrases() -> Mapping[tuple[str, ...], list[Clause]]:
    """Return every known phrase and what it says."""
    words = tables()
    clauses: dict[tuple[str, ...], list[Clause]] = {}

    def add(phrase: str, part: Clause | None) -> None:
        known = clauses.setdefault(tuple(atoms_of(phrase)), [])
        known += [part] if part else []

    for phrase in words["filler"]:
        add(phrase, None)
    _add_plain(words, add)
    for one in tasks():
        for phrase in (*one.words, one.id):
            add(phrase, Clause("task", one.id, ""))
        for phrase in one.hints:
            add(phrase, Clause("hint", one.id, ""))
    for other in unanswerable():
        for phrase in other.words:
            add(phrase, Clause(other.name, other.name, "", other.says))
    for name, model_id in _model_names().items():
        clauses.setdefault(name, [Clause("model", model_id, "")])
    return {phrase: _joined(parts) for phrase, parts in clauses.items()}


def _add_plain(words: Mapping[str, Any], add: Callable[[str, Clause | None], None]) -> None:
    """Add the lists of words of questions.toml."""
    for phrase in words["private"]:
        add(phrase, Clause("private", "yes", "", "an open model on hardware of yours sends nothing out"))
    for phrase in words["cheapest"]:
        add(phrase, Clause("cheapest", "yes", ""))
    for phrase in words["commercial"]:
        add(phrase, Clause("purpose", "commercial", ""))
    for phrase in words["hardware_asked"]:
        add(phrase, Clause("hardware needed", "yes", ""))
    for what, table in (("language", "languages"), ("country_not", "country_not"), ("subject", "subjects")):
        for code, phrases in words[table].items():
            for phrase in phrases:
                add(phrase, Clause(what, code, "", _SAYS.get(what, "")))
    for phrase, tokens in words["context"].items():
        add(phrase, Clause("context", f"{tokens}", "", f"{tokens:,} tokens"))
    for place in words["hardware"]:
        _add_hardware(place, add)
    for phrase in words["gpu"]["words"]:
        add(phrase, gpu_part())


def _add_hardware(place: Mapping[str, Any], add: Callable[[str, Clause | None], None]) -> None:
    """Add the words for hardware; "this laptop" is the one that is asked."""
    for phrase in place["words"]:
        add(phrase, Clause("hardware", place["on"], "", f"taken as {place['says']}"))
        if place["on"]:
            add(f"this {phrase}", Clause("hardware", "", "", "taken as this machine"))


_SAYS = {
    "subject": "no published result of the catalogue is of this subject: measure your own cases with --try"
}


def _joined(parts: list[Clause]) -> list[Clause]:
    """Return a phrase's parts; the kinds of work it names as one."""
    others = [p for p in parts if p.what not in ("task", "hint")]
    for what in ("task", "hint"):
        names = " ".join(dict.fromkeys(p.value for p in parts if p.what == what))
        others += [Clause(what, names, "")] if names else []
    return others


@cache
def _model_names() -> Mapping[tuple[str, ...], str]:
    """Return models by the words of their names, with and without what says that they are tuned."""
    names: dict[tuple[str, ...], str] = {}
    for model in models():
        tail = model.id.rpartition("/")[2]
        for name in (tail, _TUNED.sub("", tail), model.name):
            words = tuple(atoms_of(name))
            known_apart = len(words) > 1 or any(c.isdigit() for word in words for c in word)
            if words and known_apart and len(words) <= LONGEST:
                names.setdefault(words, model.name or model.id)
    for entry in entries():
        if entry.default and any(c.isdigit() for c in entry.family):
            names.setdefault(tuple(atoms_of(entry.family)), entry.name)
    return names
