"""Which parser of tool calls and of reasoning an engine takes for a model's family; parsers.toml has the names.

Each name is in its engine's registry; which family it fits is the name's plain meaning, so a plan that takes one says
so. Knows families and names; knows no file of a model.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class ParserNames:
    """What one engine calls the parsers of one family; "" where it has none."""

    tool: str = ""
    reasoning: str = ""
    template: str = ""  # among the engine's examples, where the model's own template has no tools


@dataclass(frozen=True, slots=True)
class _Family:
    key: str
    names: re.Pattern[str]
    families: frozenset[str]
    architectures: frozenset[str]
    engines: dict[str, ParserNames]


def family(names: Iterable[str], catalogued: str, architecture: str) -> str:
    """Return the key of a model's family: by the catalogue's word, else by its names, else by its architecture.

    "" where none fits. A fine-tune has its base's architecture and may speak otherwise: its name goes first.
    """
    spelled = [re.sub(r"[\s_:/]+", "-", name.lower()) for name in names if name]
    known = _families()
    by_word = (f.key for f in known if catalogued and catalogued in f.families)
    # A word of the name starts with the pattern: qwen3-8b, org-qwen3-8b, but not myqwen3.
    starts = [(name, at) for name in spelled for at in (0, *(m.end() for m in re.finditer("-", name)))]
    by_name = (f.key for f in known if any(f.names.match(name, at) for name, at in starts))
    by_shape = (f.key for f in known if architecture and architecture in f.architectures)
    return next(by_name, "") or next(by_word, "") or next(by_shape, "")


def parser_names(family: str, engine: str) -> ParserNames:
    """Return an engine's names for a family; both "" where nothing is known."""
    return next((f.engines.get(engine, ParserNames()) for f in _families() if f.key == family), ParserNames())


@cache
def _families() -> tuple[_Family, ...]:
    text = resources.files("freehold.outgrow.planning").joinpath("parsers.toml").read_text(encoding="utf-8")
    return tuple(
        _Family(
            raw["key"],
            re.compile(raw["names"]),
            frozenset(raw.get("families", ())),
            frozenset(raw.get("architectures", ())),
            {name: ParserNames(*raw[name]) for name in ("vllm", "sglang", "trtllm")},
        )
        for raw in tomllib.loads(text)["family"]
    )
