"""Write console/src/api/types.ts from the structs and typed dictionaries that the server answers its page with.

Run: python tools/console_types.py [--check], after one of them changed; tests/http/test_console_types.py checks the
committed file. By hand beside it: reports.ts, what other rooms print as JSON; run.ts, the events of a run.
Types leave nothing in the built page; `make console` notes the digests of its sources.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

from freehold.serve.chats import types as chats
from freehold.serve.http.console import chats as windows
from freehold.serve.http.console import live, login, pictures, training, usage

TYPES = Path(__file__).parent.parent / "console" / "src" / "api" / "types.ts"
HEADER = """\
// The JSON of /console/api, written by tools/console_types.py from the server's declarations.

import type { Receipt, Savings, TrainingVerb } from "./reports";

export type * from "./reports";

"""
# Literals and tuples with a name in TypeScript.
ALIASES: dict[str, Any] = {
    "Role": chats.Role,
    "MessageState": chats.ChatState,
    "ToolState": chats.ToolState,
    "Thumb": chats.Verdict,
    "Leaf": windows.Leaf,
}
STRUCTS = {
    chats.ChatCard: "Card",
    chats.AttachedFile: "AttachedFile",
    chats.AskedTool: "ToolCall",
    chats.SavedMessage: "Message",
    chats.ChatSettings: "ChatSettings",
    windows.ChatWindow: "OpenedChat",
    chats.ChatMatch: "Match",
}
DICTIONARIES = [
    kind
    for module in (login, pictures, live, usage, training)
    for kind in vars(module).values()
    if is_typeddict(kind) and kind.__module__ == module.__name__
]
NAMES: dict[type, str] = {
    **STRUCTS,
    **{kind: kind.__name__ for kind in DICTIONARIES},
    usage.SpanSum: "LedgerSum",
}
# Objects of which Python does not know the fields.
OBJECTS = {
    ("SavedMessage", "receipt"): "Receipt | null",
    ("SavedMessage", "error"): "{ message: string; code?: string; hint?: string } | null",
    ("UsageFacts", "savings"): "Savings | null",
    ("TrainingRow", "verb"): 'TrainingVerb | ""',
}
# Fields that the page leaves out of messages of its own, which are not saved yet.
UNSAVED = {("SavedMessage", name) for name in ("outcome", "edited", "error", "verdict")}
PLAIN = {str: "string", bool: "boolean", int: "number", float: "number", NoneType: "null", Any: "unknown"}


def main(arguments: list[str]) -> int:
    """Write the file, or with --check return 1 where the committed one differs."""
    text = generated()
    if arguments == ["--check"]:
        return int(TYPES.read_text(encoding="utf-8") != text)
    TYPES.write_text(text, encoding="utf-8")
    return 0


def generated() -> str:
    """Return the file."""
    aliases = [f"export type {name} = {_written(alias)};" for name, alias in ALIASES.items()]
    return HEADER + "\n".join(aliases) + "\n" + "".join(_interface(kind) for kind in NAMES)


def _interface(kind: type) -> str:
    lines = [f"  {field}" for field in _fields(kind)]
    doc = inspect.cleandoc(kind.__doc__ or "").replace("\n", " ")
    return "\n".join(["", f"/** {doc} */", f"export interface {NAMES[kind]} {{", *lines, "}", ""])


def _fields(kind: type) -> Iterator[str]:
    comments = _comments(kind)
    for name, hint in get_type_hints(kind, include_extras=True).items():
        key = (kind.__name__, name)
        if get_origin(hint) is NotRequired:
            (hint,), optional = get_args(hint), True
        else:
            optional = key in UNSAVED or _is_left_out(kind, name)
        written = OBJECTS.get(key) or _named(hint)
        if optional and _is_left_out(kind, name):  # it is null nowhere: the default is left out
            written = written.removesuffix(" | null")
        yield f"{name}{'?' if optional else ''}: {written};{comments.get(name, '')}"


def _is_left_out(kind: type, name: str) -> bool:
    """Return whether a struct's field with its default value is left out of the JSON."""
    if not issubclass(kind, msgspec.Struct) or not kind.__struct_config__.omit_defaults:
        return False
    return not next(field for field in msgspec.structs.fields(kind) if field.name == name).required


def _comments(kind: type) -> dict[str, str]:
    """Return the comments behind a class's fields."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, (tree,) = source.splitlines(), ast.parse(source).body
    fields = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    behind = {ast.unparse(each.target): lines[each.lineno - 1].partition("  # ")[2] for each in fields}
    return {name: f" // {text.replace('None', 'null')}" for name, text in behind.items() if text}


def _named(hint: Any) -> str:
    """Return a type in TypeScript, by its name where it has one."""
    alias = next((name for name, each in ALIASES.items() if each == hint), "")
    return alias or NAMES.get(hint) or _written(hint)


def _written(hint: Any) -> str:
    """Return a type in TypeScript. Raises KeyError for one that is not expected here."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(json.dumps(each) for each in arguments)
    if origin is dict:
        key, value = map(_named, arguments)
        return f"Record<{key}, {value}>"
    if origin in (list, tuple) and (origin is list or arguments[1:] == (...,)):
        item = _named(arguments[0])
        return f"({item})[]" if " | " in item else f"{item}[]"
    if origin is tuple:
        return f"[{', '.join(map(_named, arguments))}]"
    if arguments:  # a union
        return " | ".join(map(_named, arguments))
    return PLAIN[hint]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
