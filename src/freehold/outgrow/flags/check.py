"""Checks flags that a user gives an engine: known, of the right kind, and opening no door.

    own = checked(schema, ("--max-num-seqs=64", "-tp=2"))    # {"--max-num-seqs": PlannedFlag, ...}; raises UsageError

Everything is refused before an engine starts, with the nearest name. doors.toml says what is refused and why.
Knows a schema and that table; knows no plan.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from freehold.base.errors import UsageError
from freehold.outgrow.contract import PlannedFlag
from freehold.outgrow.flags.schema import FlagSchema, FlagSpec, alike

BY_OPTION = "given by --engine-flag"
_OFF = "--no-"
_NEGATIVE = re.compile(r"-\d+(?:\.\d+)?")
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")  # what Python would import


@dataclass(frozen=True, slots=True)
class FlagRule:
    """A rule of doors.toml."""

    name: re.Pattern[str]
    why: str
    hint: str = ""
    only: frozenset[str] = frozenset()  # values that are taken all the same
    closed: frozenset[str] = frozenset()  # the only values that are refused; empty: all
    secret: bool = False  # its value is not repeated
    dotted: bool = False  # only values that are a class's name, pkg.Class, are refused

    def shuts(self, value: str | None) -> bool:
        """Say whether the flag is refused with this value."""
        if self.dotted:
            return value is not None and _DOTTED.fullmatch(value) is not None
        if self.closed:
            return value in self.closed
        return value is None or value not in self.only


def checked(schema: FlagSchema, flags: Iterable[str]) -> dict[str, PlannedFlag]:
    """Return flags by their full names. Raises UsageError for one that is unknown, wrong, dangerous or given twice.

    Each is "--name=value", "--name value" or "--name"; short forms, aliases and `--no-` forms are the engine's own.
    """
    accepted: dict[str, PlannedFlag] = {}
    for text in flags:
        spec, flag = _checked(schema, text.strip())
        if spec.name in accepted and not spec.repeats:
            raise UsageError(f"{spec.name} is given twice", "give each flag once")
        accepted[spec.name] = flag
    return accepted


def refused(schema: FlagSchema, spelling: str, value: str | None) -> FlagRule | None:
    """Return the rule that refuses a flag in this spelling; None: it is taken. A key of a flag counts as the flag."""
    head = spelling.partition(".")[0]
    spec = schema.find(head)
    names = [head]
    if not (head.startswith(_OFF) and spec is not None and spec.kind == "on-off"):
        every = [head] if spec is None else [spec.name, *spec.also]
        names = [n for n in every if not n.startswith(_OFF)]
    plain = [alike(n).lstrip("-") for n in names]
    return next((d for d in _doors("any") if d.shuts(value) and any(map(d.name.fullmatch, plain))), None)


def _checked(schema: FlagSchema, text: str) -> tuple[FlagSpec, PlannedFlag]:
    spelling, value = _parted(text)
    if door := refused(schema, spelling, value):
        shown = f"{spelling} {value}" if value and not door.secret else spelling
        raise UsageError(f"{shown} is refused: {door.why}", door.hint or "leave it out")
    if refusal := _refused_key(spelling, value):
        raise UsageError(
            f"{spelling}: {refusal[0]} is refused: {refusal[1].why}", refusal[1].hint or "leave it out"
        )
    spec = schema.find(spelling) or _within(schema, spelling)
    if spec is None:
        raise UsageError(f"{schema.title} has no flag {spelling}", _instead(schema, spelling))
    if problem := _misread(spec, value) or _problem(spec, spelling, value):
        raise UsageError(f"{spelling}: {problem}", f"write --engine-flag={_pattern(spec)}")
    name = spelling if "." in spelling else spec.name
    if spec.kind == "on-off" and spelling.startswith(_OFF):
        name = next(s for s in (spec.name, *spec.also) if alike(s) == alike(spelling))
    return spec, PlannedFlag(name, value, BY_OPTION)


def _refused_key(spelling: str, value: str | None) -> tuple[str, FlagRule] | None:
    """Return a key of a flag's JSON, or of its dotted name, that is refused, and the rule; None: all are taken."""
    _, *path = spelling.split(".")
    pairs: list[tuple[str, Any]] = [*((key, {}) for key in path[:-1]), *((key, value) for key in path[-1:])]
    if value is not None and value.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):  # other text is refused by its kind, or is a text
            pairs += _pairs(json.loads(value))
    for key, held in pairs:
        plain = alike(key)
        text = None if isinstance(held, dict | list) else held if isinstance(held, str) else json.dumps(held)
        for rule in _doors("key"):
            if rule.name.fullmatch(plain) and rule.shuts(text):
                return key, rule
    return None


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON value with what it holds, however deep."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            yield from each.items()
            left += each.values()
        elif isinstance(each, list):
            left += each


def _instead(schema: FlagSchema, spelling: str) -> str:
    """Return what was meant: another engine's name for the same, or the nearest name."""
    for group in _data()["same"]:
        if alike(spelling) in map(alike, group["names"]):
            counterpart = next((n for n in group["names"] if schema.has(n)), "")
            if counterpart:
                return f"{schema.engine} calls it {counterpart}"
    if near := schema.near(spelling, lambda name: refused(schema, name, None) is None):
        return f"did you mean {near}?"
    return f"freehold knows the {len(schema.flags)} flags of {schema.title}"


def _parted(text: str) -> tuple[str, str | None]:
    """Part a flag from its value, at the first `=` or space."""
    match = re.fullmatch(r"(--?[A-Za-z][\w.-]*)(?:(?:=|\s+)(.*))?", text, re.DOTALL)
    if match is None:
        environment = re.match(r"[A-Z][A-Z0-9_]*=", text)
        if environment:
            raise UsageError(
                f"{text.partition('=')[0]} is a variable of the environment, not a flag",
                "a plan sets the engine's environment: telemetry, hub and development routes are off",
            )
        raise UsageError(f"{text[:60]!r} is not a flag", "write --engine-flag=--name=value")
    value = match[2]
    if value is not None and "\0" in value:
        raise UsageError(f"{match[1]}: its value has a zero byte")
    return match[1], value


def _within(schema: FlagSchema, spelling: str) -> FlagSpec | None:
    """Return the flag of which `spelling` sets one key: vLLM takes --compilation-config.mode=3."""
    head, dot, _ = spelling.partition(".")
    spec = schema.find(head) if dot and schema.engine == "vllm" else None
    return spec if spec is not None and spec.name.endswith("-config") else None


def _problem(spec: FlagSpec, spelling: str, value: str | None) -> str:
    if "." in spelling:
        return "" if value else "it needs a value"
    if not spec.takes_value:
        return f"it takes no value, and {value!r} is given" if value is not None else ""
    if value is None:
        return "" if spec.bare else "it needs a value"
    return spec.wrong(value)


def _misread(spec: FlagSpec, value: str | None) -> str:
    """Say why an engine's parser would not take a value for one; "" where it would."""
    if value is None or not spec.takes_value:
        return ""
    words = value.split() if spec.many else [value]
    if spec.kind in ("text", "json") and any(w.startswith("-") and not _NEGATIVE.fullmatch(w) for w in words):
        return f"{value!r} begins with a dash, so the engine would read another flag"
    if value.startswith("@"):
        return f"{value!r} names a file of settings, which are not checked"
    return ""


def _pattern(spec: FlagSpec) -> str:
    value = "|".join(spec.choices) if 0 < len(spec.choices) <= 6 else spec.kind.upper()
    return f"{spec.name}={value}" if spec.takes_value else spec.name


@cache
def _doors(which: str) -> tuple[FlagRule, ...]:
    """Return the rules for any flag, or for a key of a flag's JSON."""
    return tuple(
        FlagRule(
            re.compile(raw.get("name") or raw["key"]),
            raw["why"],
            raw.get("hint", ""),
            frozenset(raw.get("only", ())),
            frozenset(raw.get("not", ())),
            raw.get("secret", False),
            raw.get("dotted", False),
        )
        for raw in _data()[which]
    )


@cache
def _data() -> dict[str, Any]:
    text = resources.files("freehold.outgrow.flags").joinpath("doors.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
