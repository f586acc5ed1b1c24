"""BFCL's single-turn categories in Python: does a model call the right functions with the right arguments?

The data is that of the `bfcl-eval` package. "tools" offers the functions through the chat template, as its "FC" mode;
"text" describes them in a system message and reads Python calls from the answer, for templates without tools. The two
are tasks of their own: their scores cannot be compared. Java and JavaScript values, several turns and web search are
refused by name.
Path: open_task -> bfcl -> EvalTask; calls.calls_fault
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from freehold.config import nearest
from freehold.errors import UsageError
from freehold.evals.items import EvalItem, EvalQuestion, EvalTask, ItemMark, ModelReply
from freehold.evals.tasks.calls import Call, calls_fault, text_calls
from freehold.evals.wheels import data_file
from freehold.store.events import OnEvent
from freehold.types import Message, Tool

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
        question = EvalQuestion(chat, tools=tuple(map(_tool, functions)), max_tokens=_TOKENS)
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
    """Put the functions into the system message."""
    told = _SYSTEM.format(json.dumps(functions))
    if chat[0].role == "system":
        return (Message("system", f"{chat[0].content}\n\n{told}"), *chat[1:])
    return (Message("system", told), *chat)


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)[:64]


def _tool(function: Mapping[str, Any]) -> Tool:
    return Tool(_safe(function["name"]), function["description"], _schema(function["parameters"]))


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
