"""Prepares tools' schemas for dialects, and writes calls as a Lark grammar, in llguidance's variant of Lark.

A call begins as the family's templates write it, names a tool that was given, and has arguments by that tool's own
schema. Knows forms and schemas; knows no tokens but how a mark is spelled, which its caller says.

Gemma 4's notation has keys without quotes, strings between <|"|>, and else is JSON. Whatever its rules admit fits the
schema: a keyword that they cannot keep is refused, never passed over. But `format` is a remark, as JSON schema has it,
and numbers are those that a machine's word holds, without exponents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any
from urllib.parse import unquote

from freehold.base.errors import UsageError
from freehold.base.types import Tool

# --- schemas for dialects: the types of raw text, and closing objects to other properties -----------

# Blanks between the parts of JSON. Without a bound a small model may write them until its context is full.
BLANKS = r"[ \n\t]{1,40}"
_AS_PYTHON = {"True": True, "False": False, "None": None}  # as templates that print values write them
_WORDS = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}
MAX_DEPTH = 32  # of schemas that are closed
# Beside these, `properties` are not all that an object may have.
_OTHERS = {
    *("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"),
    *("patternProperties", "unevaluatedProperties", "additionalProperties"),
}
_DEFINED = ("$defs", "definitions")
# Which values a keyword speaks of, where a schema names no type.
IMPLIED = {
    **dict.fromkeys(("properties", "required", "additionalProperties"), "object"),
    **dict.fromkeys(("items", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("pattern", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}


def closed(schema: Any, depth: int = 0) -> Any:
    """Return the schema with no properties allowed but the named ones, where it does not mention others.

    JSON schema allows any others; the author of a schema means the named ones, and a small model adds more without end.
    Parts of an `allOf` add up, so they stay open, and so do definitions where a schema has one.
    """
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return schema
    out: dict[str, Any] = dict(schema)
    defined = [name for name in _DEFINED if name in schema]
    for group in ("properties", *([] if defined and _has(schema, "allOf") else defined)):
        members = schema.get(group)
        if isinstance(members, dict):
            out[group] = {key: closed(value, depth + 1) for key, value in members.items()}
    for choice in ("anyOf", "oneOf"):
        if isinstance(members := schema.get(choice), list):
            out[choice] = [closed(value, depth + 1) for value in members]
    if isinstance(schema.get("items"), dict):
        out["items"] = closed(schema["items"], depth + 1)
    named, needed = schema.get("properties"), schema.get("required", [])
    others = _OTHERS & schema.keys() or not isinstance(needed, list)
    if isinstance(named, dict) and named and not others and all(str(name) in named for name in needed):
        out["additionalProperties"] = False
    return out


def _has(schema: object, name: str) -> bool:
    """Tell whether some object within `schema` has a member of this name."""
    level: list[Any] = [schema]
    while level:
        if any(isinstance(node, dict) and name in node for node in level):
            return True
        groups = [node.values() if isinstance(node, dict) else node for node in level]
        level = [child for group in groups for child in group if isinstance(child, dict | list)]
    return False


def typed(text: str, key: str, schema: Mapping[str, object]) -> Any:
    """Convert `text` to the type of parameter `key` in `schema`; text that does not convert stays text."""
    choices, wanted = _constants(_property(key, schema)), kinds_of(key, schema)
    if text in [choice for choice in choices if isinstance(choice, str)]:
        return text
    value = read_value(text.strip())
    if not isinstance(value, str) and any(type(value) is type(c) and value == c for c in choices):
        return value
    if not wanted or wanted == {"string"}:
        return text
    if value is None:
        return None if "null" in wanted or "string" not in wanted else text
    if "string" in wanted and not isinstance(value, (dict, list)):
        return value if is_of(value, wanted) and not isinstance(value, str) else text
    return value if is_of(value, wanted) else text


def kinds_of(key: str, schema: Mapping[str, object]) -> frozenset[str]:
    """Return the types of parameter `key` in `schema`; none where it does not say."""
    one = _property(key, schema)
    return types_of(one, root=schema) or frozenset(implied(one))


def _property(key: str, schema: Mapping[str, object]) -> Any:
    properties = schema.get("properties")
    return resolved(properties.get(key) if isinstance(properties, Mapping) else None, schema, strict=False)


def _constants(schema: object) -> list[Any]:
    """Return the values that `schema` and its choices name."""
    if not isinstance(schema, Mapping):
        return []
    named = schema.get("enum", [schema["const"]] if "const" in schema else [])
    constants = [*named] if isinstance(named, list) else []
    for group in ("anyOf", "oneOf"):
        members = schema.get(group)
        for member in members if isinstance(members, list) else ():
            constants += [member["const"]] if isinstance(member, Mapping) and "const" in member else []
    return constants


def target(ref: object, root: Mapping[str, object]) -> Any:
    """Return what a reference within `root` points to. Raises UsageError for one that leaves it or leads nowhere."""
    at: Any = root
    try:
        if not str(ref).startswith("#"):
            raise KeyError(ref)
        for part in unquote(str(ref).removeprefix("#")).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            at = at[int(key)] if isinstance(at, list) else at[key]
    except (LookupError, TypeError, ValueError):
        raise UsageError(f"$ref {ref!r} is not within the schema") from None
    return at


def resolved(schema: object, root: Mapping[str, object], *, strict: bool = True) -> Any:
    """Follow a reference that has only remarks beside it. Raises UsageError, or keeps the reference."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        if schema.keys() - {"$ref", "description", "title", "default", "examples"}:
            break
        try:
            schema = target(schema["$ref"], root)
        except UsageError:
            if strict:
                raise
            break
    return schema


def implied(schema: object) -> list[str]:
    """Return the types that the keywords of a schema speak of."""
    return sorted({IMPLIED[key] for key in schema if key in IMPLIED}) if isinstance(schema, Mapping) else []


def types_of(schema: object, depth: int = 0, root: Mapping[str, object] | None = None) -> frozenset[str]:
    """Return the types that `schema` allows, by name; none where it does not say. `root`: where references lead."""
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    named = schema.get("type")
    types = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    choices = schema.get("enum")
    if not types and isinstance(choices, list):
        types = {"string" if isinstance(c, str) else "null" if c is None else "number" for c in choices}
    referred = [resolved({"$ref": schema["$ref"]}, root, strict=False)] if root and "$ref" in schema else []
    for group in ("anyOf", "oneOf", "allOf"):
        members = schema.get(group)
        for member in [*(members if isinstance(members, list) else ()), *referred]:
            types |= types_of(member, depth + 1, root)
    return frozenset(name for name in types if isinstance(name, str))


def apart(one: object, other: object) -> bool:
    """Tell whether types, constants or a property that both need show that nothing fits both schemas."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    values = [[s["const"]] if "const" in s else s.get("enum") for s in (one, other)]
    if isinstance(values[0], list) and isinstance(values[1], list):
        return not any(value in values[1] for value in values[0])
    kinds = [types_of(s) | ({"integer"} if "number" in types_of(s) else set()) for s in (one, other)]
    if all(kinds) and values == [None, None] and not kinds[0] & kinds[1]:
        return True
    named = [s.get("properties", {}) for s in (one, other)]
    needed = set(one.get("required", [])) & set(other.get("required", []))
    return any(apart(named[0].get(name), named[1].get(name)) for name in needed)


def read_value(text: str) -> Any:
    """Return the value of JSON text, or of Python's words for true, false and null; the text itself otherwise."""
    if text in _AS_PYTHON:
        return _AS_PYTHON[text]
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def is_of(value: Any, wanted: frozenset[str]) -> bool:
    """Tell whether a value is of one of the types."""
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in wanted
    if isinstance(value, float) and value.is_integer() and "integer" in wanted:
        return True
    return any(isinstance(value, kind) for name, kind in _WORDS.items() if name in wanted)


# What an object's own schema may say beside its properties; anything else that bounds it is refused.
_BOUNDS = {
    *("$ref", "allOf", "anyOf", "oneOf", "not", "if", "enum", "const", "minProperties", "maxProperties"),
    *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties"),
}


def members(parameters: Mapping[str, object]) -> list[tuple[str, Any, bool]]:
    """Return (name, schema, whether it is required) of each property. Raises UsageError for other bounds."""
    if bounds := _BOUNDS & parameters.keys():
        raise UsageError(f"{min(bounds)!r} of all parameters cannot be kept in the model's own notation")
    properties, required = parameters.get("properties"), parameters.get("required")
    named = dict(properties) if isinstance(properties, Mapping) else {}
    needed = [str(name) for name in required] if isinstance(required, list) else []
    named |= {name: {} for name in needed if name not in named}
    return [(name, schema, name in needed) for name, schema in named.items()]


# --- calls as Lark ----------------------------------------------------------------------------------

Spell = Callable[[str], str]  # a text as a Lark expression: its control tokens by their ids
# (rule, a tool's schema, spell): its rules
Arguments = Callable[[str, Mapping[str, object], Spell], Iterable[str]]

# JSON as models write it: one blank after colons and commas. Free blanks cost small models their way.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Of an object that a model began by itself, in its own style: as many blanks as indented JSON needs.
_BLANKS = f"(?:{BLANKS})?"
_FREE_STYLE = {"whitespace_pattern": BLANKS}
_TOKEN = re.compile(r"<\[\d+\]>")


def json_arguments(rule: str, parameters: Mapping[str, object], spell: Spell) -> list[str]:
    """Return the rule of arguments that are a JSON object."""
    return [f"{rule}: {_json(parameters)}"]


@dataclass(frozen=True, slots=True)
class CallForm:
    """The texts around a call's name and arguments, as a family's templates write them."""

    head: str
    middle: str
    tail: str
    before: str = ""  # once, before the first call
    between: str | None = None  # None: one call is all
    after: str = ""  # once, after the last call
    numbered: str = ""  # a Lark expression of the text between a name and `middle`
    arguments: Arguments = json_arguments
    # Thinking that may come before all, as messages: how one begins, what it has none of but at its end (the first of
    # these), and what follows it.
    thought: tuple[str, tuple[str, ...], str] | None = None


def lark(form: CallForm, tools: Sequence[Tool], spell: Spell, *, many: bool, opened: str = "") -> str:
    """Return the grammar of calls of `tools`. `opened`: the mark that was written already."""
    first = form.before + form.head
    if not first.startswith(opened):
        raise ValueError(f"{opened!r} does not open a call")  # our own invariant
    rest = first[len(opened) :]
    repeated = f" (between {spell(form.head)} call)*" if many and form.between is not None else ""
    behind = _spelled(spell, form.after)
    if repeated and not form.after and (form.between or "").isspace():
        behind = f"between? {behind}"  # a model that continued to the next line may still end
    thought = "thought* " if form.thought and not opened else ""
    lines = [f"start: {thought}{_spelled(spell, rest)} call{repeated} {behind}"]
    if form.thought and thought:
        head, marks, follows = form.thought
        lines.append(f"thought: {spell(head)} thinking {spell(follows)}")
        lines += text_until("thinking", marks, spell)
    if repeated:
        lines.append(f"between: {_spelled(spell, form.between or '')}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        middle = [spell(tool.name + form.middle)]
        if form.numbered:
            middle = [spell(tool.name), form.numbered, spell(form.middle)]
        parts = [*middle, f"arguments_{i}", _spelled(spell, form.tail)]
        lines.append(f"call_{i}: {' '.join(filter(None, parts))}")
        lines += form.arguments(f"arguments_{i}", tool.parameters, spell)
    return "\n".join(lines) + "\n"


def lark_of_bare(tools: Sequence[Tool]) -> str:
    """Return the grammar of a call without marks from the tool's name on, whatever blanks it is laid out with."""
    lines = ["start: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        name = json.dumps(f'"{tool.name}"', ensure_ascii=False)
        lines.append(f"call_{i}: {name} key arguments_{i} close")
        lines.append(f"arguments_{i}: {_json(tool.parameters, _FREE_STYLE)}")
    between = f'/{_BLANKS},{_BLANKS}"(arguments|parameters)"{_BLANKS}:{_BLANKS}/'
    return "\n".join([*lines, f"key: {between}", f"close: /{_BLANKS}\\}}/"]) + "\n"


def pattern_of_bare(tools: Sequence[Tool]) -> str:
    """Return a regular expression that finds a call without marks, begun so far that its arguments are due.

    Its match ends before the tool's name. An object that has a tool's name and then something else is none.
    """
    names = "|".join(re.escape(f'"{tool.name}"') for tool in tools)
    behind = rf'(?:{names}){_BLANKS},{_BLANKS}"(?:arguments|parameters)"{_BLANKS}:{_BLANKS}\{{'
    return rf'\n[ \t]*(?:```\w*{_BLANKS})?\{{{_BLANKS}"name"{_BLANKS}:{_BLANKS}(?={behind})'


def _spelled(spell: Spell, text: str) -> str:
    return spell(text) if text else '""'


def _json(schema: Mapping[str, object], style: Mapping[str, object] = STYLE) -> str:
    return f"%json {json.dumps({'x-guidance': style, **whole(schema)})}"


def whole(parameters: Mapping[str, object]) -> dict[str, Any]:
    """Return the schema of a tool's arguments: of an object, and of no properties that a tool does not name."""
    return {**closed(dict(parameters)), "type": "object"}


def text_until(rule: str, marks: Sequence[str], spell: Spell, *also: str) -> list[str]:
    """Return `rule`, of a text and the first of `marks`: the text has none of them, and is of each terminal in `also`.

    A control token ends any terminal. What is none must end its own, or would be taken for more of the text.
    """
    free = "/(?s:.*)/"
    text = " & ".join([free, *(f"~({free} {json.dumps(mark)} {free})" for mark in marks), *also])
    end, terminal = spell(marks[0]), rule.upper()
    token = _TOKEN.search(end)
    if token is None:
        return [f"{rule}: {terminal}", f"{terminal}: ({text}) {end}"]
    before = end[: token.start()].strip()
    return [
        f"{rule}: {terminal} {end[token.start() :]}",
        f"{terminal}: " + (f"({text}) {before}" if before else text),
    ]


def bounded(schema: Mapping[str, Any]) -> list[str]:
    """Return the terminals of texts that keep to a string schema's pattern and lengths."""
    also = [_searched(schema["pattern"])] if "pattern" in schema else []
    if "minLength" in schema or "maxLength" in schema:
        most = int(schema["maxLength"]) if "maxLength" in schema else ""
        also.append(f"/(?s:.{{{int(schema.get('minLength', 0))},{most}}})/")
    return also


def _searched(pattern: str) -> str:
    """Return the terminal of texts in which `pattern` is found; what it anchors is the text's own beginning or end."""
    begun, ended = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = pattern[begun : len(pattern) - ended]
    spelled = re.sub(r"\\.|/", lambda part: r"\/" if part[0] == "/" else part[0], inner, flags=re.DOTALL)
    return f"/{'' if begun else '(?s:.*)'}(?:{spelled}){'' if ended else '(?s:.*)'}/"


# --- Gemma 4's notation ----------------------------------------------------------------------------

QUOTE = '<|"|>'
NOTATION_DEPTH = 64  # as deep as values are read
MAX_RULES = 4096  # choices within choices multiply
MAX_ITEMS = 1000  # that a list is counted up to
_LARGE = 1 << 62  # llguidance counts in 64 bits
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.$-]*")
_CHOICES = ("$ref", "allOf", "anyOf", "oneOf")
_KEPT = {*IMPLIED, *_CHOICES, "type", "enum", "const"}
_BEYOND = {
    *("patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired"),
    *("dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems", "prefixItems"),
    *("additionalItems", "contains", "uniqueItems", "not", "if", "$dynamicRef", "$recursiveRef"),
}


def arguments(rule: str, parameters: Mapping[str, object], spell: Spell) -> list[str]:
    """Return the rule of arguments that fit `parameters`, and those it needs. Raises UsageError for what none keeps."""
    rules = Rules(rule, whole(parameters), spell)
    return rules.all(rule, lambda: rules.value(rules.root, 0))


class Rules:
    """The rules of one tool's arguments. A notation with other marks overrides how they are spelled."""

    comma, colon = '","', '":"'

    def __init__(self, name: str, root: Mapping[str, Any], spell: Spell) -> None:
        self.root, self.lines = root, []
        self._name, self._count, self._spell = name, 0, spell
        self._refs: dict[str, str] = {}

    def all(self, rule: str, begin: Callable[[], str]) -> list[str]:
        """Return `rule`, which is what `begin` returns, and those it needs. Raises UsageError for what none keeps."""
        try:
            return [f"{rule}: {begin()}", *self.lines]
        # A keyword's value is not of the kind it must be.
        except (AttributeError, TypeError, ValueError, RecursionError) as e:
            raise UsageError(f"it is not a JSON schema: {e}") from e

    def value(self, schema: object, depth: int) -> str:
        """Return an expression of the values that fit `schema`."""
        if depth > NOTATION_DEPTH:
            raise UsageError(f"it is more than {NOTATION_DEPTH} levels deep")
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise UsageError(f"nothing fits {schema!r}")
        for key in _BEYOND & schema.keys():
            if schema[key] is not False or key == "not":
                raise UsageError(f"{key!r} cannot be kept in the model's own notation", "leave it out")
        for group in _CHOICES:
            if group in schema:
                return self._choice(group, schema, depth)
        if "const" in schema or "enum" in schema:
            return self._constants(schema)
        if not _KEPT & schema.keys():
            return self._any()
        return _either(self._of_kind(kind, schema, depth) for kind in _kinds(schema))

    # --- choices -------------------------------------------------------------------------------------

    def _choice(self, group: str, schema: Mapping[str, Any], depth: int) -> str:
        rest = {key: value for key, value in schema.items() if key != group}
        if group == "$ref" and not _KEPT & rest.keys():
            return self._referred(schema["$ref"], depth)
        members = [{"$ref": schema["$ref"]}] if group == "$ref" else schema[group]
        if not isinstance(members, list) or not members:
            raise UsageError(f"{group!r} is {members!r}; expected schemas")
        if group in ("$ref", "allOf"):
            return self.value(reduce(self._both, members, rest), depth + 1)
        choices = [self._resolved(member) for member in members]
        if group == "oneOf" and not all(apart(a, b) for i, a in enumerate(choices) for b in choices[:i]):
            raise UsageError("one value may fit two of 'oneOf'", "use anyOf")
        if _KEPT & rest.keys():
            members = [self._both(rest, member) for member in members]
        return _either(self.value(member, depth + 1) for member in members)

    def _both(self, one: Mapping[str, Any], other: object) -> Mapping[str, Any]:
        """Return the schema of what fits `one` and `other`."""
        other = self._resolved(other)
        if other is True:
            return one
        if not isinstance(other, Mapping):
            raise UsageError(f"nothing fits {other!r}")
        named = {"properties", "additionalProperties"}
        shared = {key for key in _KEPT & one.keys() & other.keys() if one[key] != other[key]} - {"required"}
        shared |= named & other.keys() if named & one.keys() else set()
        if shared:
            raise UsageError(f"{min(shared)!r} is said twice of one value", "say it once")
        needed = [*one.get("required", []), *other.get("required", [])]
        return {**one, **other, **({"required": needed} if needed else {})}

    def _resolved(self, schema: object) -> object:
        """Follow a reference that has no other key beside it."""
        for _ in range(NOTATION_DEPTH):
            if not isinstance(schema, Mapping) or _KEPT & schema.keys() != {"$ref"}:
                break
            schema = target(schema["$ref"], self.root)
        return schema

    def _referred(self, ref: str, depth: int) -> str:
        """Return the rule of a reference; it may come to itself."""
        if ref not in self._refs:
            self._refs[ref] = self._next()
            self.lines.append(f"{self._refs[ref]}: {self.value(target(ref, self.root), depth + 1)}")
        return self._refs[ref]

    # --- values --------------------------------------------------------------------------------------

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "object":
            return f'"{{" {self._fields(schema, depth)} "}}"'
        if kind == "array":
            return self._list(schema, depth)
        if kind == "string":
            return self._text(schema)
        scalar: dict[str, Any] = {"type": kind}
        if kind in ("number", "integer"):
            bounds = {key: value for key, value in schema.items() if IMPLIED.get(key) == "number"}
            scalar |= {"minimum": -_LARGE, "maximum": _LARGE, **bounds}
            scalar["minimum"], scalar["maximum"] = _within(scalar["minimum"]), _within(scalar["maximum"])
        elif kind not in ("boolean", "null"):
            raise UsageError(f"there is no type {kind!r}")
        return self._rule(f"%json {json.dumps(scalar)}")

    def _fields(self, schema: Mapping[str, Any], depth: int, *, named: bool = False) -> str:
        """Return what an object holds; `named`: as keyword arguments."""
        key, colon = (json.dumps, '"="') if named else (self._key, None)
        more = schema.get("additionalProperties", True)
        needed = schema.get("required", [])
        properties = {**dict.fromkeys(needed, more), **schema.get("properties", {})}
        first = rest = '""'
        if more is not False:
            other = self._entry(self._other(properties, named=named), more, depth, colon)
            first, rest = f"({other} ({self.comma} {other})*)?", f"({self.comma} {other})*"
        for name in sorted(properties, key=str.lower, reverse=True):  # in the order its templates have
            entry = self._entry(key(name), properties[name], depth, colon)
            alone, after = f"{entry} {rest}", f"{self.comma} {entry} {rest}"
            if name not in needed:
                alone, after = f"{alone} | {first}", f"({self.comma} {entry})? {rest}"
            first, rest = self._rule(alone), self._rule(after)
        return first

    def _entry(self, key: str, schema: object, depth: int, colon: str | None = None) -> str:
        return self._rule(f"{key} {colon or self.colon} ({self.value(schema, depth + 1)})")

    def _key(self, name: str) -> str:
        return json.dumps(name) if _PLAIN.fullmatch(name) else self._quoted(name)

    def _other(self, names: Iterable[str], *, named: bool = False) -> str:
        """Return the terminal of keys beside `names`."""
        but = "".join(f" & ~{json.dumps(name)}" for name in names if _PLAIN.fullmatch(name))
        rule = self._next().upper()
        self.lines.append(f"{rule}: /{_PLAIN.pattern}/{but}")
        return rule

    def _list(self, schema: Mapping[str, Any], depth: int) -> str:
        item = self._rule(self.value(schema.get("items", True), depth + 1))
        low, high = int(schema.get("minItems", 0)), min(int(schema.get("maxItems", MAX_ITEMS)), MAX_ITEMS)
        if low > high:
            raise UsageError(f"a list of {low:,} items or more cannot be enforced; the limit is {high:,}")
        times = f"{{{max(low - 1, 0)},{max(high - 1, 0)}}}" if low or "maxItems" in schema else "*"
        some = f"{item} ({self.comma} {item}){times}" if high else '""'
        return f'"[" {some} "]"' if low else f'"[" ({some})? "]"'

    def _text(self, schema: Mapping[str, Any]) -> str:
        rule = self._next()
        self.lines += text_until(rule, (QUOTE,), self._spell, *bounded(schema))
        return f"{self._spell(QUOTE)} {rule}"

    def _any(self) -> str:
        """Return the rule of any value at all."""
        kinds = ("object", "array", "string", "number", "boolean", "null")
        if "" not in self._refs:
            self._refs[""] = self._next()
            body = _either(self._of_kind(kind, {}, 0) for kind in kinds)
            self.lines.append(f"{self._refs['']}: {body}")
        return self._refs[""]

    # --- constants -----------------------------------------------------------------------------------

    def _constants(self, schema: Mapping[str, Any]) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        beside = _KEPT & schema.keys() - {"const", "enum", "type"}
        if beside or not isinstance(values, list) or {"const", "enum"} <= schema.keys():
            raise UsageError(f"{min(beside or {'const'})!r} beside constants cannot be enforced", "remove it")
        kinds = frozenset(_kinds(schema))
        fitting = [self._constant(value) for value in values if "type" not in schema or is_of(value, kinds)]
        if not fitting:
            raise UsageError("nothing fits an enum without values of its type")
        return _either(fitting)

    def _constant(self, value: object) -> str:
        if isinstance(value, str):
            return self._quoted(value)
        if isinstance(value, Mapping):
            keys = sorted(value, key=str.lower)
            pairs = (f"{self._key(key)} {self.colon} {self._constant(value[key])}" for key in keys)
            return f" {self.comma} ".join(pairs).join(('"{" ', ' "}"'))
        if isinstance(value, list):
            return f" {self.comma} ".join(map(self._constant, value)).join(('"[" ', ' "]"'))
        return json.dumps(json.dumps(value))

    def _quoted(self, text: str) -> str:
        if QUOTE in text:
            raise UsageError(f"{text!r} cannot be spelled: {QUOTE} would end it")
        quote = self._spell(QUOTE)
        return f"{quote} {json.dumps(text, ensure_ascii=False)} {quote}"

    # --- rules ---------------------------------------------------------------------------------------

    def _next(self) -> str:
        self._count += 1
        if self._count > MAX_RULES:
            raise UsageError(f"it comes to more than {MAX_RULES:,} rules", "make it simpler")
        return f"{self._name}_{self._count}"

    def _rule(self, body: str) -> str:
        rule = self._next()
        self.lines.append(f"{rule}: {body}")
        return rule


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    """Return the types that a schema names, or else those that its keywords speak of."""
    named = schema.get("type", implied(schema))
    return [named] if isinstance(named, str) else named


def _within(bound: float) -> float:
    return max(-_LARGE, min(_LARGE, bound))


def _either(choices: Iterable[str]) -> str:
    return " | ".join(f"({choice})" for choice in choices)
