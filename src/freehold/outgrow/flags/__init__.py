"""Flags of other engines as data: what each version takes, and which of a user's own may be given.

    own = checked(schema, ("--max-num-seqs=64", "-tp=2"))    # {"--max-num-seqs": PlannedFlag, ...}; raises UsageError

Versions are data/ENGINE-VERSION.json, made by tools/engine_schema.py; nothing of an engine is imported. A user's flags
are checked before an engine starts: known, of the right kind, and opening no door; doors.toml says what is refused and
why. Knows names, kinds, choices and that table; knows no plan.
Path: drivers -> flags.nearest -> FlagSchema -> flags.checked -> PlannedFlag
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from freehold.base.config import nearest as nearest_word
from freehold.base.errors import UsageError
from freehold.outgrow.contract import PlannedFlag

Kind = Literal["switch", "on-off", "int", "float", "size", "text", "json"]
# 4096, 4k, 4K, 1.5M; vLLM takes "auto" and -1 besides
_SIZE = re.compile(r"-1|auto|\d+(?:\.\d+)?[kKmMgGtT]?")


@dataclass(frozen=True, slots=True)
class FlagSpec:
    """One flag of an engine. A switch has no value; an on-off flag has none either, and a `--no-` form."""

    name: str
    kind: Kind
    also: tuple[str, ...] = ()  # other spellings
    choices: tuple[str, ...] = ()  # the only words it takes; empty: any of its kind
    none: bool = False  # takes the word None besides
    many: bool = False  # takes several words
    bare: bool = False  # may be given without a value
    repeats: bool = False  # each further one adds
    status: str = ""  # beta, prototype or deprecated, where the engine says so

    @property
    def takes_value(self) -> bool:
        """Whether a value follows it."""
        return self.kind not in ("switch", "on-off")

    def wrong(self, value: str) -> str:
        """Say what is wrong with a value; "" for nothing."""
        if self.none and value in ("None", ""):
            return ""
        if self.choices and not self.many:
            return "" if value in self.choices else f"{value!r} is not one of {shown(value, self.choices)}"
        words = value.split() if self.many else [value]
        bad = next((w for w in words if not self._fits(w)), None)
        return "" if bad is None else f"{bad[:200]!r} is not {_NAMED[self.kind]}"

    def _fits(self, word: str) -> bool:
        try:
            if self.kind == "int":
                int(word)
            elif self.kind == "float":
                float(word)
            elif self.kind == "json":
                json.loads(word)
        except (ValueError, RecursionError):
            return False
        return self.kind != "size" or _SIZE.fullmatch(word) is not None


_NAMED = {
    "int": "a whole number",
    "float": "a number",
    "size": "a number of tokens",
    "json": "JSON",
    "text": "text",
}


def shown(word: str, known: tuple[str, ...]) -> str:
    """Write choices for people: all of a few, else those that look most like `word`."""
    if len(known) <= 12:
        return ", ".join(known)
    near = nearest_word(word, known)
    return f"its {len(known)} choices" + (f": did you mean {near}?" if near else f", such as {known[0]}")


@dataclass(frozen=True, slots=True)
class FlagSchema:
    """Every flag of one version of an engine."""

    engine: str
    version: str
    flags: Mapping[str, FlagSpec]  # by name
    spellings: Mapping[str, str]  # any spelling, dashes and underscores alike -> a name

    @property
    def title(self) -> str:
        """As a plan names it: vllm 0.32.0."""
        return f"{self.engine} {self.version}"

    def find(self, spelling: str) -> FlagSpec | None:
        """Return the flag spelled so; a single dash, underscores and dashes count as the engine's parser has them."""
        name = self.spellings.get(spelling) or self.spellings.get(alike(spelling))
        return self.flags[name] if name else None

    def has(self, spelling: str) -> bool:
        """Say whether the engine itself spells a flag so."""
        spec = self.find(spelling)
        return spec is not None and spelling in (spec.name, *spec.also)

    def near(self, spelling: str, taken: Callable[[str], bool] = lambda name: True) -> str:
        """Return the spelling that looks most like it, or ""; those that are `taken` go before others."""
        wanted = alike(spelling)
        short = not wanted.startswith("--")
        known = [s for s in self.spellings if s.startswith("--") != short and s == alike(s)]
        for among in ([s for s in known if taken(s)], known):
            if near := nearest_word(wanted, among) or _by_words(wanted, among):
                spec = self.flags[self.spellings[near]]  # with the underscores that the engine has in it
                return next(s for s in (spec.name, *spec.also) if alike(s) == near)
        return ""


def _by_words(wanted: str, known: list[str]) -> str:
    """Return the spelling that shares most words with it: people shorten and lengthen names."""
    words = _words(wanted)
    ranked = sorted(known, key=lambda n: (-len(words & _words(n)), len(n)))
    return ranked[0] if ranked and words & _words(ranked[0]) else ""


def _words(name: str) -> set[str]:
    return {w for w in name.strip("-").split("-") if len(w) > 1}


def alike(spelling: str) -> str:
    """Return a spelling with dashes for underscores; what stands for one dash stays."""
    dashes = len(spelling) - len(spelling.lstrip("-"))
    return spelling[:dashes] + spelling[dashes:].replace("_", "-")


def nearest(engine: str, version: str) -> FlagSchema:
    """Return the newest schema that is not newer than `version`; the newest of all without a version.

    Where every schema is newer, the oldest: `FlagSchema.version` says which it is, and a plan names it.
    """
    known = versions(engine)
    if not known:
        raise UsageError(f"no flags of {engine!r} are known", f"known engines: {', '.join(known_engines())}")
    wanted = number(version)
    older = [v for v in known if number(v) <= wanted] if version else list(known)
    return _read(engine, older[-1] if older else known[0])


def versions(engine: str) -> tuple[str, ...]:
    """Return the versions of an engine whose flags are known, oldest first."""
    return tuple(sorted((v for e, v in _files() if e == engine), key=number))


def known_engines() -> tuple[str, ...]:
    """Return the engines whose flags are known."""
    return tuple(sorted({e for e, _ in _files()}))


def number(version: str) -> tuple[int, ...]:
    """Return a version as numbers, without the label of a build: 0.32.0 of v0.32.0+cpu; 1.3.0 of 1.3.0rc2."""
    match = re.match(r"\d+(?:\.\d+)*", version.strip().lstrip("vb"))
    return tuple(int(n) for n in match[0].split(".")) if match else ()


@cache
def _files() -> tuple[tuple[str, str], ...]:
    folder = resources.files("freehold.outgrow.flags").joinpath("data")
    names = [p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json")]
    return tuple((e, v) for e, _, v in (name.partition("-") for name in sorted(names)))


@cache
def _read(engine: str, version: str) -> FlagSchema:
    file = resources.files("freehold.outgrow.flags").joinpath("data", f"{engine}-{version}.json")
    return schema_of(engine, version, json.loads(file.read_text(encoding="utf-8"))["flags"])


def schema_of(engine: str, version: str, rows: Iterable[Sequence[Any]]) -> FlagSchema:
    """Return a schema of rows: name, kind, and what else is known of a flag."""
    specs = []
    for name, kind, *more in rows:
        known = dict(more[0]) if more else {}
        lists = {key: tuple(known.pop(key, ())) for key in ("also", "choices")}
        specs.append(FlagSpec(name, kind, **lists, **known))
    spellings = {s: f.name for f in specs for s in (f.name, *f.also)}
    flags = {f.name: f for f in specs}
    return FlagSchema(engine, version, flags, {**{alike(s): n for s, n in spellings.items()}, **spellings})


# --- the flags of llama.cpp's server, from what `llama-server --help` prints ----------------------------
#     help_rows(text)         # as a file of data/ has them: [name, kind, {also, choices, status}]
# Its help is made for people: names up to the first gap, then what stands for a value, then words. What is
# not clear (a number that may be a word) is taken as text: the server itself then has the last word.

Row = list[Any]
_NAME = re.compile(r"(?:^|, )(--?[A-Za-z][\w-]*)")
_ALLOWED = re.compile(r"allowed values: ([\w, ]+)")
_DEFAULT = re.compile(r"\bdefault: (-?\d+(\.\d+)?)\b")


def schema_of_help(text: str, version: str) -> FlagSchema:
    """Return the flags that a binary prints, as a schema of its own."""
    return schema_of("llamacpp", version, help_rows(text))


def help_rows(text: str) -> list[Row]:
    """Return a row for each flag."""
    return [_row(spec, words) for spec, words in _entries(text)]


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield the part with the names and the words about it."""
    spec, words = "", list[str]()
    for line in [*text.splitlines(), ""]:
        if spec and not line.startswith(" "):
            yield spec, " ".join(words)
            spec, words = "", []
        if line.startswith("-") and not line.startswith("-----"):
            parts = re.split(r"\s{2,}", re.sub(r",\s+", ", ", line.rstrip()), maxsplit=1)
            spec, words = parts[0], parts[1:]
        elif spec:
            words.append(line.strip())


def _row(spec: str, words: str) -> Row:
    names = _NAME.findall(spec)
    hint = spec[spec.rindex(names[-1]) + len(names[-1]) :].strip()
    plain = [n for n in names if n.startswith("--") and not n.startswith("--no-")]
    longest = [n for n in names if n.startswith("--")]
    name = (plain or longest or names)[0]
    kind, choices = _kind(names, hint, words)
    more: dict[str, Any] = {}
    if len(names) > 1:
        more["also"] = [n for n in names if n != name]
    if choices:
        more["choices"] = choices
    if "DEPRECATED" in words:
        more["status"] = "deprecated"
    return [name, kind, more] if more else [name, kind]


def _kind(names: list[str], hint: str, words: str) -> tuple[str, list[str]]:
    if not hint:
        return ("on-off" if any(n.startswith("--no-") for n in names) and len(names) > 1 else "switch"), []
    if hint[0] in "[{<" and hint[-1] in "]}>" and re.fullmatch(r"[\w|,.-]+", hint[1:-1]) and ".." not in hint:
        choices = re.split(r"[|,]", hint[1:-1])
        return "text", choices if len(choices) > 1 else []
    if allowed := _ALLOWED.search(words):
        return "text", [w.strip() for w in allowed[1].split(",") if w.strip()]
    if hint in ("N", "PORT") and (default := _DEFAULT.search(words)) and "'auto'" not in words:
        return ("float" if default[2] else "int"), []
    return "text", []


# --- a user's flags --------------------------------------------------------------------------------

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
        return f"it takes no value, but {value!r} was set" if value is not None else ""
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
