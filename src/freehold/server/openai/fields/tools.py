"""Tools in OpenAI's chats: those on offer, the choice among them, and calls of earlier turns.

Knows the wire's shapes; offers.py makes a Job's tools of them. docs/reference/http.md is made from these structs.
Path: ChatRequest -> offered, called -> Job
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.server.core.fields import MAX_WARNINGS, ignored
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.offers import (
    Chosen,
    CustomTool,
    FunctionTool,
    Offered,
    Offering,
    ToolLabel,
    as_arguments,
)
from freehold.serving import MAX_TOOLS
from freehold.types import ToolCall


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
    offering = Offering(warnings)
    for i, tool in enumerate(tools):
        at = f"tools[{i}]"
        if tool.type == "function" and tool.function is not None:
            offering.function(tool.function, at)
        elif tool.type == "custom" and tool.custom is not None:
            offering.custom(tool.custom, at)
        else:
            kind = tool.type[:40]
            raise Refused(
                400,
                f"{at} is of type {kind!r}; expected function or custom, and an object of that name",
                param=at,
                code="unsupported_parameter",
            )
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
