"""Tools in OpenAI's chats: what is offered, what is chosen, what an assistant called.

Knows the wire's shapes and ours; knows no dialect. docs/reference/http.md is made from these structs.
Path: ChatRequest -> offered, choice, called -> Job
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.server.problems import Refused
from freehold.types import MAX_TOOLS, Tool, ToolCall, ToolChoice

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class FunctionOffer(Struct, kw_only=True):
    """A function: its name, what it does, and the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # a call always fits its schema here where it is constrained


class ToolOffer(Struct, kw_only=True):
    """A tool; only functions so far."""

    type: str = "function"
    function: FunctionOffer | None = None


class FunctionName(Struct, kw_only=True):
    """Which function."""

    name: Name


class NamedChoice(Struct, kw_only=True, forbid_unknown_fields=True):
    """The one function that has to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class FunctionUse(Struct, kw_only=True):
    """A function that was called, and the JSON text of its arguments."""

    name: Name
    arguments: str = "{}"


class ToolUse(Struct, kw_only=True):
    """A call of an assistant's turn."""

    id: Annotated[str, Meta(max_length=512)] = ""
    type: Literal["function"] = "function"
    function: FunctionUse


Offers = Annotated[list[ToolOffer], Meta(max_length=MAX_TOOLS)]
Uses = Annotated[list[ToolUse], Meta(max_length=MAX_TOOLS)]
Choice = Literal["auto", "none", "required"] | NamedChoice


def offered(tools: Sequence[ToolOffer]) -> tuple[Tool, ...]:
    """Return the tools; refuse those that are no functions."""
    out = []
    for i, tool in enumerate(tools):
        function = tool.function
        if tool.type != "function" or function is None:
            raise Refused(
                400,
                f"tools[{i}] is of type {tool.type[:40]!r}; this server calls functions",
                param=f"tools[{i}]",
                code="unsupported_parameter",
            )
        out.append(Tool(function.name, function.description or "", function.parameters or {}))
    return tuple(out)


def chosen(choice: Choice | None) -> tuple[ToolChoice, str]:
    """Return (tool_choice, tool_name) of a job."""
    if isinstance(choice, NamedChoice):
        return "required", choice.function.name
    return choice or "auto", ""


def called(uses: Sequence[ToolUse]) -> tuple[ToolCall, ...]:
    """Return the calls of an assistant's turn."""
    return tuple(ToolCall(use.id, use.function.name, use.function.arguments or "{}") for use in uses)


def tool_strangers(tools: Sequence[Any]) -> list[str]:
    """Return a warning for each field of tools that is not known."""
    known = (set(ToolOffer.__struct_fields__), set(FunctionOffer.__struct_fields__))
    found: dict[str, None] = {}
    for tool in tools:
        function = tool.get("function") or {}
        for name in [*(tool.keys() - known[0]), *(function.keys() - known[1])]:
            found[f"field {name[:60]!r} of tools was ignored"] = None
    return list(found)[:20]
