"""Sets of languages that models' cards and labs name, by the key under which data/models cites them.

Knows ISO 639 codes; knows no model. What a set claims beyond the codes it names is a number, never a guess.
Path: models._finish -> spelled -> Model.languages -> Model.speaks.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

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
    return (
        code in _raw()["iso639_1"].split() or code == "mul" or any(code in s.codes for s in sets().values())
    )


@cache
def sets() -> dict[str, Languages]:
    """Return the sets that the shipped data names."""
    return {
        name: Languages(
            tuple(raw["codes"].split()), raw.get("stated", 0), (raw["source"],) if "source" in raw else ()
        )
        for name, raw in _raw()["sets"].items()
    }


@cache
def _raw() -> dict[str, Any]:
    text = resources.files("freehold.catalog").joinpath("data", "languages.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
