"""BFCL's single-turn categories in Python: does a model call the right functions with the right arguments?

The data is that of the `bfcl-eval` package. "tools" offers the functions through the chat template, as its "FC" mode;
"text" describes them in a system message and reads Python calls from the answer, for templates without tools. The two
are tasks of their own: their scores cannot be compared. Java and JavaScript values, several turns and web search are
refused by name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from freehold.adapt.evals.evaluate import EvalItem, EvalQuestion, EvalTask, ItemMark, ModelReply
from freehold.adapt.evals.wheels import data_file
from freehold.base.config import nearest
from freehold.base.errors import UsageError
from freehold.base.types import Message, Tool
from freehold.run.store.contract import OnEvent

STYLES = ("tools", "text")
CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    *("live_irrelevance", "live_relevance"),
)
_NONE = ("irrelevance", "live_irrelevance")  # no call is right
_ANY = ("live_relevance",)  # any call is right
_PACKAGE, _TOKENS = "bfcl-eval", 512
_SCHEMA_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_SYSTEM = (
    "You can call the functions below, which are described as JSON. Answer with the calls alone, as a Python list with "
    'named arguments, for example [weather(city="Rome", days=2)]. If no function serves the request, say so in a '
    "sentence instead.\n\n{}"
)


def bfcl(
    category: str, home: Path, style: str, *, offline: bool, on_event: OnEvent
) -> Callable[[bool], EvalTask]:
    """Return a maker of the task. Raises UsageError for a category that is not one of these."""
    if category not in CATEGORIES:
        near = nearest(category, list(CATEGORIES))
        hint = f"did you mean bfcl:{near}?" if near else f"one of {', '.join(CATEGORIES)}"
        raise UsageError(f"bfcl:{category} is not a category that is scored here", hint)
    name = f"BFCL_v4_{category}.json"
    docs = _lines(data_file(_PACKAGE, name, home, offline=offline, on_event=on_event))
    answers: dict[str, Any] = {}
    if category not in (*_NONE, *_ANY):
        rows = _lines(data_file(_PACKAGE, f"possible_answer/{name}", home, offline=offline))
        answers = {row["id"]: row["ground_truth"] for row in rows}

    def eval_items(tools: bool) -> EvalTask:
        chosen = style or ("tools" if tools else "text")
        items = tuple(_item(doc, answers.get(doc["id"]), category, chosen) for doc in docs)
        task = f"bfcl_{category}" + ("" if chosen == "tools" else "_text")
        config = {"category": category, "style": chosen, "package": _PACKAGE}
        return EvalTask(task, items, ("acc",), original=len(items), config=config)

    return eval_items


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines() if line.strip()]


def _item(doc: Mapping[str, Any], wanted: Any, category: str, style: str) -> EvalItem:
    functions = doc["function"]
    chat = tuple(Message(m["role"], m["content"]) for m in doc["question"][0])
    if style == "tools":
        tools = tuple(Tool(_safe(f["name"]), f["description"], _schema(f["parameters"])) for f in functions)
        question = EvalQuestion(chat, tools=tools, max_tokens=_TOKENS)
    else:
        question = EvalQuestion(_told(chat, functions), max_tokens=_TOKENS)
    names = {_safe(f["name"]): f["name"] for f in functions}

    def mark(reply: ModelReply) -> ItemMark:
        try:
            calls = _called(reply, names) if style == "tools" else text_calls(reply.text)
        except ValueError as e:
            calls, why = [], str(e)
        else:
            why = ""
        if category in _NONE:
            return ItemMark({"acc": float(not calls)}, f"calls {calls[0][0]}" if calls else "")
        if category in _ANY:
            return ItemMark({"acc": float(bool(calls))}, "" if calls else "no call")
        why = why or calls_fault(calls, functions, wanted)
        return ItemMark({"acc": float(not why)}, why)

    target = json.dumps(wanted if wanted is not None else category)
    return EvalItem(doc, question, target, mark, f"bfcl {category} {style} {target}")


def _called(reply: ModelReply, names: Mapping[str, str]) -> list[Call]:
    """Return the calls under the functions' own names, which may have dots that no chat API allows."""
    calls: list[Call] = []
    for name, arguments in reply.calls:
        values = json.loads(arguments)
        if not isinstance(values, dict):
            raise ValueError("arguments are not an object")
        calls.append((names.get(name, name), values))
    return calls


def _told(chat: Sequence[Message], functions: Any) -> tuple[Message, ...]:
    told = _SYSTEM.format(json.dumps(functions))
    if chat[0].role == "system":
        return (Message("system", f"{chat[0].content}\n\n{told}"), *chat[1:])
    return (Message("system", told), *chat)


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)[:64]


def _schema(value: Any) -> Any:
    """Return BFCL's description of parameters as a JSON schema: its types are Python's."""
    if isinstance(value, list):
        return [_schema(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    schema = {key: _schema(each) for key, each in value.items() if key != "optional"}
    kind = value.get("type")
    if isinstance(kind, str):
        schema["type"] = _SCHEMA_TYPES.get(kind, kind)
    return schema


# --- compares function calls with what BFCL allows for each parameter -------------------------------
# Its rules, as its documentation and data have them: the function and its required parameters must be there
# and no others; a value must have its parameter's type, where an integer may stand for a float; it must be
# one of the values that are listed, strings compared without case, blanks and , . / - _ * ^; "" in a list
# means that the parameter may be left out. Several calls may come in any order.

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
    if kind is list:
        lists = [a for a in allowed if isinstance(a, list)]
        if _TYPES.get(schema.get("items", {}).get("type", "")) is dict:
            return any(_same_objects(value, a) for a in lists)
        return any([_plain(v) for v in value] == [_plain(v) for v in a] for a in lists)
    return _plain(value) in [_plain(a) for a in allowed]


def _same_objects(value: list[Any], allowed: list[Any]) -> bool:
    if len(value) != len(allowed):
        return False
    return all(isinstance(v, dict) and _same_object(v, a) for v, a in zip(value, allowed, strict=True))


def _same_object(value: dict[str, Any], allowed: dict[str, list[Any]]) -> bool:
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
