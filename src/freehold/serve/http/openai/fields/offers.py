"""Tools that a request offers, and the choice among them, as a Job has them: for chats and for responses.

A free-form tool (`custom`) is described to the model as a function with one text argument. Tools that a provider would
run itself (web search, MCP servers, ...) are left out, with a warning each: agents send them to any server.
Knows what a tool is by its own fields; chats nest them under the name of the type (tools.py), responses have them flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from freehold.base.serving import MAX_TOOLS
from freehold.base.types import Tool, ToolCall, ToolChoice
from freehold.serve.http.core.fields import MAX_WARNINGS, bounded, ignored
from freehold.serve.http.core.limits import typed
from freehold.serve.http.core.problems import Refused

# Tools that OpenAI's API defines itself: by their type, the names by which the model calls them.
BUILT_IN = {"code_interpreter": "python", "shell": "shell", "apply_patch": "apply_patch"}
INPUT = "input"  # the one argument by which a free-form tool is described to the model
ToolLabel = Annotated[str, Meta(min_length=1, max_length=256)]


class FunctionTool(Struct, kw_only=True):
    """A function: its name, what it does, and the JSON schema of its arguments."""

    name: ToolLabel
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # a call always fits its schema here where it is constrained


class CustomTool(Struct, kw_only=True):
    """A free-form tool, which takes a text; a grammar in `format` is shown to the model and not enforced."""

    name: ToolLabel
    description: str | None = None
    format: dict[str, Any] | None = None


class CustomFormat(Struct, kw_only=True):
    """What a free-form tool's text must be: any text, or a grammar's."""

    type: str = "text"
    syntax: str = ""
    definition: str = ""


class Chosen(Struct, kw_only=True):
    """A choice that names tools: one, or several that are allowed."""

    type: str
    name: ToolLabel | None = None
    mode: str | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)] = []


@dataclass(frozen=True, slots=True)
class Offered:
    """The tools in the prompt, and which of them may or must be called. `custom`: names of free-form tools."""

    tools: tuple[Tool, ...]
    custom: frozenset[str]
    choice: ToolChoice
    name: str = ""


_NONE_OFFERED = Offered((), frozenset(), "auto")


class Offering:
    """Tools of a request, added one after the other, then the choice among them."""

    def __init__(self, warnings: list[str]) -> None:
        self._warnings = warnings
        self._tools: dict[str, Tool] = {}
        self._custom: set[str] = set()
        self._left_out: dict[str, None] = {}

    def function(self, tool: FunctionTool, at: str) -> None:
        """Add a function. Raises Refused for a name that is taken, and for parameters beyond the limit."""
        parameters = bounded(tool.parameters or {}, f"{at}.parameters")
        self.add(Tool(tool.name, tool.description or "", parameters, bool(tool.strict)), at)

    def custom(self, tool: CustomTool, at: str) -> None:
        """Add a free-form tool as a function of one text."""
        description = tool.description or ""
        form = typed(flat(tool.format), CustomFormat, f"{at}.format") if tool.format else CustomFormat()
        if form.definition:
            description += f"\n\nThe text follows this {form.syntax} grammar:\n{form.definition}"
            self._warnings.append(f"the grammar of {tool.name!r} is shown to the model and not enforced")
        argument = {"type": "string", "description": "The text that the tool takes, as it is."}
        parameters = {
            "type": "object",
            "properties": {INPUT: argument},
            "required": [INPUT],
            "additionalProperties": False,
        }
        self.add(Tool(tool.name, description.strip(), parameters), at)
        self._custom.add(tool.name)

    def leave_out(self, kind: object) -> None:
        """Warn of a tool that a provider would run itself."""
        self._left_out[f"tools of type {str(kind)[:60]!r} were ignored: this server runs none itself"] = None

    def offered(self, choice: Chosen | str | None) -> Offered:
        """Return the tools and the choice. Raises Refused for a choice of what is not offered."""
        self._warnings += [*self._left_out][:MAX_WARNINGS]
        tools, custom = tuple(self._tools.values()), frozenset(self._custom)
        match choice:
            case None | "auto":
                return Offered(tools, custom, "auto")
            case "none":
                return Offered(tools, custom, "none")
            case "required":
                return Offered(_some(tools), custom, "required")
            case Chosen():
                return self._among(choice, tools, custom)
        raise _wrong(f"tool_choice is {choice[:60]!r}; expected auto, none, required or an object")

    def _among(self, chosen: Chosen, tools: tuple[Tool, ...], custom: frozenset[str]) -> Offered:
        if chosen.type in ("function", "custom"):
            if chosen.name not in self._tools:
                raise _wrong(f"tool_choice names {str(chosen.name)[:60]!r}, which is not one of the tools")
            return Offered(tools, custom, "required", chosen.name or "")
        if (name := BUILT_IN.get(chosen.type)) is not None:
            if name not in self._tools:
                raise _wrong(f"tool_choice names {chosen.type}, which is not one of the tools")
            return Offered(tools, custom, "required", name)
        if chosen.type == "file_search":  # it runs before the model answers, whatever that chooses
            return Offered(tools, custom, "auto")
        if chosen.type != "allowed_tools":
            kind = chosen.type[:60]
            raise _wrong(f"tool_choice names a tool of type {kind!r}, which this server does not run")
        names = [flat(each).get("name") or BUILT_IN.get(str(each.get("type"))) for each in chosen.tools]
        allowed = tuple(tool for tool in tools if tool.name in names)
        match chosen.mode or "auto":
            case "auto":
                return Offered(allowed, custom, "auto")
            case "required":
                return Offered(_some(allowed), custom, "required")
            case mode:
                raise _wrong(f"tool_choice.mode is {mode[:60]!r}; expected auto or required")

    def add(self, tool: Tool, at: str) -> None:
        """Add a tool. Raises Refused for a name that is taken."""
        if tool.name in self._tools:
            raise Refused(400, f"{at} has the name {tool.name!r} of an earlier tool", param=f"{at}.name")
        self._tools[tool.name] = tool


def read_tools(
    tools: Sequence[Any], choice: Any, warnings: list[str], served: Sequence[Tool] = ()
) -> Offered:
    """Return what a request for a response offers: each tool an object, its fields beside its type.

    `served`: tools of its MCP servers and those that are built in, which are among `tools` by other fields.
    """
    offering = Offering(warnings)
    for tool in served:
        offering.add(tool, "tools")
    for i, raw in enumerate(tools):
        at = f"tools[{i}]"
        if not isinstance(raw, dict):
            raise Refused(400, f"{at} is not an object", param=at, code="invalid_value")
        match raw.get("type"):
            case "function":
                offering.function(typed(flat(raw), FunctionTool, at), at)
            case "custom":
                offering.custom(typed(flat(raw), CustomTool, at), at)
            case "mcp" | "file_search" | "code_interpreter" | "shell" | "apply_patch":
                pass
            case kind:
                offering.leave_out(kind)
    return offering.offered(
        typed(flat(choice), Chosen, "tool_choice") if isinstance(choice, dict) else choice
    )


def flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Lift the fields under the name of the type, as some clients send them."""
    inner = raw.get(str(raw.get("type")))
    return {**raw, **inner} if isinstance(inner, dict) else raw


def as_arguments(text: str) -> str:
    """Return the arguments of a call of a free-form tool."""
    return msgspec.json.encode({INPUT: text}).decode()


def input_of(arguments: str) -> str:
    """Return the text within such arguments; anything else that the model wrote comes back unchanged."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    text = value.get(INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def _some(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    if not tools:
        raise _wrong("tool_choice requires a call, and there is no function or custom tool to call")
    return tools


def _wrong(message: str) -> Refused:
    return Refused(400, message, param="tool_choice", code="invalid_value")


# --- tools in OpenAI's chats: those on offer, the choice among them, and calls of earlier turns -----
# docs/reference/http.md is made from these structs.


class ToolOffer(Struct, kw_only=True):
    """A tool: the field named as its type describes it."""

    type: str = "function"
    function: FunctionTool | None = None
    custom: CustomTool | None = None


class ToolName(Struct, kw_only=True):
    """Which tool."""

    name: ToolLabel


class AllowedTools(Struct, kw_only=True):
    """The tools in the prompt, and whether the model must call one of them."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)]


class NamedChoice(Struct, kw_only=True, forbid_unknown_fields=True):
    """The one tool that has to be called, or several that are allowed."""

    type: Literal["function", "custom", "allowed_tools"] = "function"
    function: ToolName | None = None
    custom: ToolName | None = None
    allowed_tools: AllowedTools | None = None

    def chosen(self) -> Chosen:
        """Return the choice as responses have it. Raises Refused where the object of its type is missing."""
        tool, several = self.function if self.type == "function" else self.custom, self.allowed_tools
        if self.type == "allowed_tools" and several is not None:
            return Chosen(type=self.type, mode=several.mode, tools=several.tools)
        if self.type != "allowed_tools" and tool is not None:
            return Chosen(type=self.type, name=tool.name)
        at = f"tool_choice.{self.type}"
        raise Refused(400, f"{at} is missing", param=at, code="missing_required_parameter")


class FunctionUse(Struct, kw_only=True):
    """A function that was called, and the JSON text of its arguments."""

    name: ToolLabel
    arguments: str = "{}"


class CustomUse(Struct, kw_only=True):
    """A free-form tool that was called, and its text."""

    name: ToolLabel
    input: str


class ToolUse(Struct, kw_only=True):
    """A call of an assistant's turn."""

    id: Annotated[str, Meta(max_length=512)] = ""
    type: Literal["function", "custom"] = "function"
    function: FunctionUse | None = None
    custom: CustomUse | None = None


Offers = Annotated[list[ToolOffer], Meta(max_length=MAX_TOOLS)]
Uses = Annotated[list[ToolUse], Meta(max_length=MAX_TOOLS)]
Choice = Literal["auto", "none", "required"] | NamedChoice


def offered(tools: Sequence[ToolOffer], choice: Choice | None, warnings: list[str]) -> Offered:
    """Return what the request offers. Raises Refused for a tool or a choice without the object of its type."""
    if not tools and choice is None:
        return _NONE_OFFERED
    offering = Offering(warnings)
    for i, tool in enumerate(tools):
        at = f"tools[{i}]"
        if tool.type == "function" and tool.function is not None:
            offering.function(tool.function, at)
        elif tool.type == "custom" and tool.custom is not None:
            offering.custom(tool.custom, at)
        else:
            kind = tool.type[:40]
            message = f"{at} is of type {kind!r}; expected function or custom, and an object of that name"
            raise Refused(400, message, param=at, code="unsupported_parameter")
    return offering.offered(choice.chosen() if isinstance(choice, NamedChoice) else choice)


def called(uses: Sequence[ToolUse], at: str) -> tuple[ToolCall, ...]:
    """Return the calls of an assistant's turn."""
    calls = []
    for i, use in enumerate(uses):
        if use.type == "function" and use.function is not None:
            calls.append(ToolCall(use.id, use.function.name, use.function.arguments or "{}"))
        elif use.type == "custom" and use.custom is not None:
            calls.append(ToolCall(use.id, use.custom.name, as_arguments(use.custom.input)))
        else:
            where = f"{at}[{i}].{use.type}"
            raise Refused(400, f"{where} is missing", param=where, code="missing_required_parameter")
    return tuple(calls)


def unknown_tool_fields(tools: Sequence[Any]) -> list[str]:
    """Return a warning for each field of tools that is not known."""
    if not tools:
        return []
    known = {"function": set(FunctionTool.__struct_fields__), "custom": set(CustomTool.__struct_fields__)}
    unknown: dict[str, None] = {}
    for tool in tools:
        within = [name for kind in known for name in (tool.get(kind) or {}).keys() - known[kind]]
        for name in [*(tool.keys() - set(ToolOffer.__struct_fields__)), *within]:
            unknown[ignored(name, "tools")] = None
        if len(unknown) >= MAX_WARNINGS:
            break
    return list(unknown)[:MAX_WARNINGS]
