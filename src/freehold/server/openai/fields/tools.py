"""Tools in OpenAI's chats: what is offered, what is chosen, what an assistant called.

Knows the wire's shapes and ours; what they come to is offers.py's. docs/reference/http.md is made from these structs.
Path: ChatRequest -> offered, called -> Job
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from freehold.server.core.fields import MAX_WARNINGS, ignored
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.offers import Name, Offered, as_arguments, read_tools
from freehold.serving import MAX_TOOLS
from freehold.types import ToolCall


class FunctionOffer(Struct, kw_only=True):
    """A function: its name, what it does, and the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # a call always fits its schema here where it is constrained


class CustomOffer(Struct, kw_only=True):
    """A free-form tool, which takes a text; a grammar in `format` is shown to the model and not enforced."""

    name: Name
    description: str | None = None
    format: dict[str, Any] | None = None


class ToolOffer(Struct, kw_only=True):
    """A tool: what it is lies under the name of its type."""

    type: str = "function"
    function: FunctionOffer | None = None
    custom: CustomOffer | None = None


class ToolName(Struct, kw_only=True):
    """Which tool."""

    name: Name


class AllowedTools(Struct, kw_only=True):
    """The tools that the model is told of, and whether it must call one of them."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)]


class NamedChoice(Struct, kw_only=True, forbid_unknown_fields=True):
    """The one tool that has to be called, or several that are allowed."""

    type: Literal["function", "custom", "allowed_tools"] = "function"
    function: ToolName | None = None
    custom: ToolName | None = None
    allowed_tools: AllowedTools | None = None


class FunctionUse(Struct, kw_only=True):
    """A function that was called, and the JSON text of its arguments."""

    name: Name
    arguments: str = "{}"


class CustomUse(Struct, kw_only=True):
    """A free-form tool that was called, and its text."""

    name: Name
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
    """Return what the request offers; refuse tools and choices that are nothing by their own type."""
    for i, tool in enumerate(tools):
        if tool.type not in ("function", "custom") or getattr(tool, tool.type) is None:
            raise Refused(
                400,
                f"tools[{i}] is of type {tool.type[:40]!r}; expected function or custom, and an object of that name",
                param=f"tools[{i}]",
                code="unsupported_parameter",
            )
    if isinstance(choice, NamedChoice) and getattr(choice, choice.type) is None:
        at = f"tool_choice.{choice.type}"
        raise Refused(400, f"{at} is missing", param=at, code="missing_required_parameter")
    return read_tools(msgspec.to_builtins(tools), msgspec.to_builtins(choice), warnings)


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
    known = {"function": set(FunctionOffer.__struct_fields__), "custom": set(CustomOffer.__struct_fields__)}
    found: dict[str, None] = {}
    for tool in tools:
        within = [name for kind in known for name in (tool.get(kind) or {}).keys() - known[kind]]
        for name in [*(tool.keys() - set(ToolOffer.__struct_fields__)), *within]:
            found[ignored(name, "tools")] = None
    return list(found)[:MAX_WARNINGS]
