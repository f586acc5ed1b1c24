"""Writes a tool's schema as rules of Gemma 4's notation: keys without quotes, strings between <|"|>, else as in JSON.

Whatever the rules admit fits the schema: a keyword that they cannot keep is refused, never passed over. But `format`
is a remark, as JSON schema has it, and numbers are those that a machine's word holds, without exponents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from freehold.base.errors import UsageError
from freehold.run.tokenizer.dialects.grammar import (
    IMPLIED,
    Spell,
    apart,
    bounded,
    implied,
    is_of,
    target,
    text_until,
    whole,
)

QUOTE = '<|"|>'
MAX_DEPTH = 64  # as deep as values are read
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
        if depth > MAX_DEPTH:
            raise UsageError(f"it is more than {MAX_DEPTH} levels deep")
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
        for _ in range(MAX_DEPTH):
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
