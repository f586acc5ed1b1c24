"""From the tools of a request to those a model is told of, and the choice among them: of responses and of chats.

A free-form tool (`custom`) is told of as a function with one text argument. Tools that a provider would run itself
(web search, MCP servers, ...) are left out, with a warning each: agents send them to whoever answers.
Responses have tools and choices flat, chats have what is in them under the name of their type. Knows both and Tool;
knows no template. Path: response_job, chat_job -> read_tools -> Offered
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.server.core.limits import typed
from freehold.server.core.problems import Refused
from freehold.types import MAX_FORMAT_CHARS, Tool, ToolChoice

INPUT = "input"  # the one argument by which a free-form tool is described to the model
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class FunctionTool(Struct, kw_only=True):
    """A function: its name, what it does, and the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomFormat(Struct, kw_only=True):
    """What a free-form tool's text must be: any text, or a grammar's."""

    type: str = "text"
    syntax: str = ""
    definition: str = ""


class CustomTool(Struct, kw_only=True):
    """A tool that takes a text, such as a patch."""

    name: Name
    description: str | None = None
    format: CustomFormat | None = None


class Chosen(Struct, kw_only=True):
    """A choice that names tools: one, or several that are allowed."""

    type: str
    name: Name | None = None
    mode: str | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)] = []


@dataclass(frozen=True, slots=True)
class Offered:
    """What the model is told of, and what it may or must call. `custom`: names of those that are free-form."""

    tools: tuple[Tool, ...]
    custom: frozenset[str]
    choice: ToolChoice
    name: str = ""


def read_tools(tools: Sequence[Any], choice: Any, warnings: list[str]) -> Offered:
    """Return what the request offers."""
    made: dict[str, Tool] = {}
    custom: set[str] = set()
    left_out: dict[str, None] = {}
    for i, raw in enumerate(tools):
        at = f"tools[{i}]"
        if not isinstance(raw, dict):
            raise Refused(400, f"{at} is no object", param=at, code="invalid_value")
        kind = raw.get("type")
        if kind == "custom":
            tool = _custom(typed(_flat(raw), CustomTool, at), warnings)
            custom.add(tool.name)
        elif kind == "function":
            tool = _function(typed(_flat(raw), FunctionTool, at), at)
        else:
            left_out[f"tools of type {str(kind)[:60]!r} were ignored: this server runs none itself"] = None
            continue
        if tool.name in made:
            raise Refused(400, f"{at} has the name {tool.name!r} of an earlier tool", param=f"{at}.name")
        made[tool.name] = tool
    warnings += [*left_out][:20]
    return _chosen(made, frozenset(custom), choice)


def as_arguments(text: str) -> str:
    """Return the arguments of a call of a free-form tool."""
    return msgspec.json.encode({INPUT: text}).decode()


def input_of(arguments: str) -> str:
    """Return the text within such arguments; a model that wrote something else is shown as it wrote."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    text = value.get(INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Lift what lies under the name of the type, in a tool's format too."""
    inner = raw.get(str(raw.get("type")))
    flat = {**raw, **inner} if isinstance(inner, dict) else raw
    return {**flat, "format": _flat(flat["format"])} if isinstance(flat.get("format"), dict) else flat


def _function(tool: FunctionTool, at: str) -> Tool:
    parameters = tool.parameters or {}
    size = len(msgspec.json.encode(parameters))
    if size > MAX_FORMAT_CHARS:
        raise Refused(
            400,
            f"{at}.parameters has {size:,} bytes; expected at most {MAX_FORMAT_CHARS:,}",
            param=f"{at}.parameters",
        )
    return Tool(tool.name, tool.description or "", parameters)


def _custom(tool: CustomTool, warnings: list[str]) -> Tool:
    description, told = tool.description or "", "The text that the tool takes, as it is."
    form = tool.format
    if form is not None and form.definition:
        description += f"\n\nThe text follows this {form.syntax} grammar:\n{form.definition}"
        warnings.append(f"the grammar of {tool.name!r} is shown to the model and not enforced")
    argument = {"type": "string", "description": told}
    return Tool(
        tool.name,
        description.strip(),
        {
            "type": "object",
            "properties": {INPUT: argument},
            "required": [INPUT],
            "additionalProperties": False,
        },
    )


def _chosen(made: dict[str, Tool], custom: frozenset[str], choice: Any) -> Offered:
    tools = tuple(made.values())
    if choice is None or choice in ("auto", "none"):
        return Offered(tools, custom, choice or "auto")
    if choice == "required":
        return Offered(_some(tools), custom, "required")
    if not isinstance(choice, dict):
        raise _wrong(f"tool_choice is {str(choice)[:60]!r}; expected auto, none, required or an object")
    named = typed(_flat(choice), Chosen, "tool_choice")
    if named.type in ("function", "custom"):
        return Offered(tools, custom, "required", _known(named.name, made))
    if named.type == "allowed_tools":
        mode = named.mode or "auto"
        if mode not in ("auto", "required"):
            raise _wrong(f"tool_choice.mode is {mode[:60]!r}; expected auto or required")
        names = [_flat(each).get("name") for each in named.tools]
        allowed = tuple(tool for tool in tools if tool.name in names)
        return Offered(_some(allowed) if mode == "required" else allowed, custom, mode)
    raise _wrong(f"tool_choice names a tool of type {named.type[:60]!r}, which this server does not run")


def _some(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    if not tools:
        raise _wrong("tool_choice wants a call, and there is no function or custom tool to call")
    return tools


def _known(name: str | None, made: dict[str, Tool]) -> str:
    if name not in made:
        raise _wrong(f"tool_choice names {str(name)[:60]!r}, which is none of the tools")
    return name or ""


def _wrong(message: str) -> Refused:
    return Refused(400, message, param="tool_choice", code="invalid_value")
