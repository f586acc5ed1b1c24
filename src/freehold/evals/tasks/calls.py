"""Compares function calls with what BFCL allows for each parameter.

Its rules, as its documentation and data have them: the function and its required parameters must be there and no
others; a value must have its parameter's type, where an integer may stand for a float; it must be one of the values
that are listed, strings compared without case, blanks and , . / - _ * ^; "" in a list means that the parameter may be
left out. Several calls may come in any order.
Path: bfcl -> calls_fault; text_calls
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

Call = tuple[str, Mapping[str, Any]]  # function, arguments

_TYPES: dict[str, type] = {
    "string": str,
    "any": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
_FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


def calls_fault(calls: Sequence[Call], functions: Sequence[Mapping[str, Any]], wanted: Sequence[Any]) -> str:
    """Return in a few words why `calls` are not those that are wanted, or ""."""
    if len(calls) != len(wanted):
        return f"{len(calls)} calls instead of {len(wanted)}"
    described = {f["name"]: f for f in functions}
    left = list(calls)
    for answer in wanted:
        ((name, allowed),) = answer.items()
        faults = [_fault(call, described[name], allowed) for call in left]
        if "" not in faults:
            return faults[0] if len(faults) == 1 else f"no call fits {name}"
        del left[faults.index("")]
    return ""


def _fault(call: Call, function: Mapping[str, Any], allowed: Mapping[str, list[Any]]) -> str:
    name, arguments = call
    if name != function["name"]:
        return f"calls {name!r}, not {function['name']!r}"
    properties = function["parameters"]["properties"]
    for required in function["parameters"].get("required", ()):
        if required not in arguments:
            return f"{required} is missing"
    for parameter, value in arguments.items():
        if parameter not in properties or parameter not in allowed:
            return f"{parameter} is unexpected"
        if not _fits(value, allowed[parameter], properties[parameter]):
            return f"{parameter} = {value!r}"[:120]
    missing = [p for p, values in allowed.items() if p not in arguments and "" not in values]
    return f"{missing[0]} is missing" if missing else ""


def _fits(value: Any, allowed: list[Any], schema: Mapping[str, Any]) -> bool:
    kind = _TYPES[schema["type"]]
    if schema["type"] == "tuple" and isinstance(value, tuple):
        value = list(value)
    if kind is float and type(value) is int:
        value = float(value)
    sample = next((a for a in allowed if a != ""), "")
    if sample != "" and type(sample) is not kind:  # a variable's name, or null, is wanted in place of a value
        return type(value) in (kind, type(sample)) and value in allowed
    if type(value) is not kind:
        return False
    if kind is dict:
        return any(_same_object(value, a) for a in allowed if isinstance(a, dict))
    if kind is list and _item_kind(schema) is dict:
        return any(_same_objects(value, a) for a in allowed if isinstance(a, list))
    if kind is list:
        return any(
            [_plain(v) for v in value] == [_plain(v) for v in a] for a in allowed if isinstance(a, list)
        )
    return _plain(value) in [_plain(a) for a in allowed]


def _item_kind(schema: Mapping[str, Any]) -> type | None:
    return _TYPES.get(schema.get("items", {}).get("type", ""))


def _same_objects(value: list[Any], allowed: list[Any]) -> bool:
    if len(value) != len(allowed):
        return False
    return all(isinstance(v, dict) and _same_object(v, a) for v, a in zip(value, allowed, strict=True))


def _same_object(value: dict[str, Any], allowed: dict[str, list[Any]]) -> bool:
    """Compare an object's values with those that are listed for each key."""
    for key, member in value.items():
        if key not in allowed or _plain(member) not in [_plain(a) for a in allowed[key]]:
            return False
    return all(key in value or "" in values for key, values in allowed.items())


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def text_calls(text: str) -> list[Call]:
    """Return the calls of an answer that is Python: [f(a=1), g(b="x")], in a code block or not.

    Raises ValueError for anything else: an argument without a name, or one that is not a constant.
    """
    fenced = _FENCE.search(text)
    source = (fenced[1] if fenced else text).strip()
    if not source.startswith("["):
        source = f"[{source}]"
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise ValueError(f"is not a list of calls: {e}"[:120]) from None
    if not isinstance(tree, ast.List):
        raise ValueError("is not a list of calls")
    try:
        return [_call(node) for node in tree.elts]
    except RecursionError:
        raise ValueError("nests too deep") from None


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(k.arg is None for k in node.keywords):
        raise ValueError("is not a call with named arguments")
    return ast.unparse(node.func), {str(k.arg): _value(k.value) for k in node.keywords}


def _value(node: ast.expr) -> Any:
    """Return a constant's value; of another expression its text, as a variable's name is wanted sometimes."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ast.unparse(node)
