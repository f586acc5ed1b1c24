"""Rates how open a model is: a spectrum, the OSI's definition, and the class in the Model Openness Framework.

Its licences and its ancestors' place it; what else is published (data, code) comes from dated facts. Claims no
class without a source: an empty one is not known.
Path: cli/license -> openness -> lineage.standing, data/openness.toml.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from freehold.advisor.lineage import Subject, standing

LEVELS = {
    1: "fully open: weights, data and code",
    2: "open weights, permissive licence",
    3: "open weights, custom licence",
    4: "open weights, significant restrictions",
    5: "closed: an API, no weights",
    0: "not known",
}
_KIND = {"permissive": 2, "custom": 3, "restricted": 4, "service": 5}


@dataclass(frozen=True, slots=True)
class Openness:
    """`level` is a key of LEVELS. `osi`: passes, would, fails, or empty; `mof`: I, II, III, or empty."""

    level: int
    osi: str
    mof: str
    says: str
    source: str

    @property
    def name(self) -> str:
        """The level in words."""
        return LEVELS[self.level]


def openness(subject: Subject) -> Openness:
    """Place a subject; the least open of its own and its ancestors' licences counts."""
    if subject.yours:
        return Openness(0, "", "", "the weights are your own, so you decide", "")
    levels = [min((_KIND[c.kind] for c in s.choices), default=0) for s in standing(subject)]
    least = 0 if 0 in levels else max(levels)
    entry, source = _entry(subject.name)
    if entry.get("level") == 1 and least > 2:
        entry = {}  # what is open in all its parts is not so under others' terms
    level = 1 if entry.get("level") == 1 and least in (1, 2) else least
    osi = entry.get("osi", "fails" if least in (3, 4, 5) else "")
    mof = entry.get("mof", "")
    says = entry.get("says") or _says(least)
    return Openness(level, osi, mof, says, source)


def _says(level: int) -> str:
    if level == 2:
        return (
            "the licence is free; no source states whether data and code are published, as the OSI requires"
        )
    if level == 5:
        return "the weights are not published; the terms of the service apply"
    if level in (3, 4):
        return "the licence limits use, so it is not an open source licence in the OSI's sense"
    return "the licence of the model or of one of its ancestors is not known"


def _entry(name: str) -> tuple[dict[str, Any], str]:
    data = _data()
    for entry in data["model"]:
        if any(fnmatchcase(name.lower(), p.lower()) for p in entry["names"]):
            return entry, data["source"]["osi"]["text"]
    return {}, data["source"]["mof"]["text"]


@cache
def _data() -> dict[str, Any]:
    path = resources.files("freehold.catalog").joinpath("data", "openness.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))
