"""Makes a job of Anthropic's request: tools, choice, thinking, format, sampling; and warns of unknown fields.

A field is honoured, refused by name because leaving it out would change the answer, or named in the warnings.
Knows the wire's fields and Job's; knows no route. `fit` adapts the job to the model (whether it thinks).
Path: messages.py -> message_job -> Job; Computing -> fit
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from freehold.server.anthropic.chat import cached, missing, read_chat, references
from freehold.server.anthropic.fields import (
    Block,
    CountRequest,
    DocumentSource,
    InputMessage,
    MessagesRequest,
    OutputFormat,
    ResultPart,
    TextBlock,
    Thinking,
    ToolChoice,
    ToolParam,
)
from freehold.server.core.fields import LEAST_MASS, MAX_WARNINGS, ignored, unknown
from freehold.server.core.formats import bounded, schema_format
from freehold.server.core.pictures import Pictures
from freehold.server.core.problems import Refused
from freehold.server.core.receipt import Tally
from freehold.serving import Job, ModelInfo
from freehold.types import Format, Message, Tool
from freehold.types import ToolChoice as Choice

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")
_CHOICES: dict[str, Choice] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
_EFFORTS = {
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}  # templates know three
# Leaving these out changes what the answer is made from. The values are those that ask for nothing.
_REFUSED: dict[str, tuple[object, ...]] = {"mcp_servers": ([],), "container": ()}


def message_job(r: MessagesRequest, tenant: str, warnings: list[str], pictures: Pictures) -> Job:
    """Return the job of a request to answer."""
    thinking = r.thinking
    if thinking is not None and thinking.budget_tokens is not None and thinking.budget_tokens >= r.max_tokens:
        raise Refused(
            400,
            f"thinking.budget_tokens is {thinking.budget_tokens:,}; expected fewer than max_tokens, {r.max_tokens:,}",
            param="thinking.budget_tokens",
        )
    return replace(
        counted_job(r, warnings, pictures),
        max_tokens=r.max_tokens,
        sampling=_sampling(r),
        stop=_stops(r.stop_sequences or ()),
        overflow=r.overflow or "error",
        priority=r.priority or "interactive",
        tenant=tenant,
        timeout_s=r.timeout,
        whole=not r.stream,
    )


def counted_job(r: CountRequest, warnings: list[str], pictures: Pictures) -> Job:
    """Return the part of a job that says what its prompt is."""
    tools = _tools(r, warnings)
    choice, name = _choice(r.tool_choice, tools)
    think, budget = _think(r.thinking)
    format, chat = _format(r), read_chat(r.system, r.messages, warnings, pictures)
    if r.cache_control is not None:
        chat = (*chat[:-1], replace(chat[-1], cache=cached(r)))
    begun = chat[-1].role == "assistant"
    if begun:
        _check_begun(chat[-1], think=think, format=format)
    return Job(
        messages=chat,
        turn="continue" if begun else "new",
        tools=tools,
        cache_tools=cached(*(r.tools or ())),
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=not (r.tool_choice and r.tool_choice.disable_parallel_tool_use),
        think=think,
        think_tokens=budget,
        effort=_EFFORTS.get(r.output_config.effort or "") if r.output_config else None,
        format=format,
    )


def _check_begun(last: Message, *, think: bool | None, format: Format | None) -> None:
    """Raise Refused (400), as Anthropic does, for a begun answer that cannot be continued."""
    why = ""
    if not last.content:
        why = "the final block in an assistant message cannot be `thinking`"
    elif last.content[-1].isspace():
        why = "final assistant content cannot end with trailing whitespace"
    elif think and not last.thinking:
        why = "when thinking is enabled, a final assistant message must start with a thinking block"
    elif format is not None:
        why = "a begun answer cannot be constrained by a format; leave out one of the two"
    if why:
        raise Refused(400, f"messages: {why}", param="messages", code="invalid_value")


def _sampling(r: MessagesRequest) -> dict[str, object]:
    settings = {name: v for name in _SAMPLING if (v := getattr(r, name)) is not None}
    return {**settings, "top_p": LEAST_MASS} if r.top_p == 0 else settings


def _stops(texts: Sequence[str]) -> tuple[str, ...]:
    for i, text in enumerate(texts):
        if not text.strip():
            where = f"stop_sequences[{i}]"
            raise Refused(
                400, f"{where} is blank; each stop sequence must contain non-whitespace", param=where
            )
    return tuple(texts)


def fit(job: Job, info: ModelInfo, tally: Tally) -> Job:
    """Return the job adapted to a model: clients send the same `thinking` to every model."""
    if job.think and info.thinking == "none":
        tally.warn(f"thinking was left out: {info.name} does not think before it answers")
        return replace(job, think=None, think_tokens=None)
    if job.think is False and info.thinking == "always":
        tally.warn(f"thinking could not be disabled: {info.name} always thinks before it answers")
        return replace(job, think=None)
    return job


def _tools(r: CountRequest, warnings: list[str]) -> tuple[Tool, ...]:
    """Return the tools that are shown. Deferred ones come last, in the order in which they were found."""
    shown: dict[str, Tool] = {}
    deferred: dict[str, Tool] = {}
    searched = False  # a search tool of Anthropic's is not run here: then all tools are in the prompt
    for i, tool in enumerate(r.tools or ()):
        where = f"tools[{i}]"
        if tool.type not in (None, "custom"):
            searched = searched or tool.type.startswith("tool_search_tool")
            warnings.append(f"{where} of type {tool.type!r} was ignored: this server has no tools of its own")
            continue
        read = _tool(tool, where)
        if read.name in {**shown, **deferred}:
            raise Refused(
                400, f"{where}.name is {read.name!r}, as another's; expected one of its own", param=where
            )
        (deferred if tool.defer_loading else shown)[read.name] = read
    names = list(deferred) if searched else dict.fromkeys(references(r.messages))
    return (*shown.values(), *(deferred[name] for name in names if name in deferred))


def _tool(param: ToolParam, where: str) -> Tool:
    if param.name is None:
        raise missing(where, "name")
    if param.input_schema is None:
        raise missing(where, "input_schema")
    schema = bounded(param.input_schema, f"{where}.input_schema")
    return Tool(param.name, param.description or "", schema, bool(param.strict))


def _choice(choice_param: ToolChoice | None, tools: Sequence[Tool]) -> tuple[Choice, str]:
    if choice_param is None:
        return "auto", ""
    choice, name = _CHOICES[choice_param.type], choice_param.name or ""
    if choice == "required" and not tools:
        raise Refused(
            400, f"tool_choice is {choice_param.type!r}, and there are no tools", param="tool_choice"
        )
    if choice_param.type != "tool":
        return choice, ""
    if name not in {tool.name for tool in tools}:
        raise Refused(
            400, f"tool_choice.name is {name!r}; expected one of the tools", param="tool_choice.name"
        )
    return choice, name


def _think(param: Thinking | None) -> tuple[bool | None, int | None]:
    if param is None or param.type == "adaptive":
        return None, None
    if param.type == "disabled":
        return False, None
    if param.budget_tokens is None:
        raise missing("thinking", "budget_tokens")
    return True, param.budget_tokens


def _format(r: CountRequest) -> Format | None:
    places = [("output_config.format", r.output_config.format if r.output_config else None)]
    places.append(("output_format", r.output_format))
    formats: list[tuple[str, OutputFormat]] = [(name, f) for name, f in places if f is not None]
    if not formats:
        return None
    if len(formats) == 2 and formats[0][1] != formats[1][1]:
        raise Refused(400, "output_config.format and output_format differ; give one", param="output_format")
    name, format = formats[0]
    return schema_format(format.schema, f"{name}.schema")


# --- unknown fields -------------------------------------------------------------------------------------

_SILENT = {"cache_control", "type"}  # of any block or tool
_OF_BLOCKS = _SILENT | {"citations", "caller"}  # what an answer of Anthropic's has, come back
# A tool's fields that ask for nothing we could do or leave: calls always follow the schema, in one piece or many.
_OF_TOOLS = _SILENT | {"strict", "eager_input_streaming"}


def unknown_fields(raw: dict[str, Any], kind: type[CountRequest]) -> list[str]:
    """Return a warning for each unknown field. Raises Refused for one that would change the answer."""
    warnings: dict[str, None] = {}
    known = MessagesRequest.__struct_fields__  # a chat to count may come with all that it will be asked with
    for name in sorted(raw.keys() - set(known)):
        value = raw[name]
        if name in _REFUSED and value is not None and value not in _REFUSED[name]:
            raise Refused(
                400, f"{name} is not supported by this server", param=name, code="unsupported_parameter"
            )
        if value is not None and name not in _REFUSED and len(warnings) < MAX_WARNINGS:
            warnings[unknown(name, kind.__struct_fields__)] = None
    for place, name in _within(raw):
        warnings[ignored(name, place)] = None
        if len(warnings) > MAX_WARNINGS:
            break
    return list(warnings)[:MAX_WARNINGS]


def _within(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (place, name) of each unknown field further in; `raw` has the types of the structs already."""
    for tool in raw.get("tools") or ():
        if tool.get("type") in (None, "custom"):
            yield from _extra(tool, ToolParam, "tools", _OF_TOOLS)
    for name, kind in (("tool_choice", ToolChoice), ("thinking", Thinking)):
        yield from _extra(raw.get(name) or {}, kind, name)
    if not isinstance(system := raw.get("system") or "", str):
        yield from (extra for block in system for extra in _extra(block, TextBlock, "system"))
    for message in raw["messages"]:
        yield from _extra(message, InputMessage, "messages")
        if isinstance(content := message.get("content"), list):
            yield from (extra for block in content for extra in _in_block(block, Block))


def _in_block(block: dict[str, Any], kind: type[Block | ResultPart | TextBlock]) -> Iterator[tuple[str, str]]:
    yield from _extra(block, kind, "blocks", _SILENT if _cites(block) else _OF_BLOCKS)
    if isinstance(content := block.get("content"), list) and kind is not TextBlock:
        inner = ResultPart if kind is Block else TextBlock
        yield from (extra for each in content for extra in _in_block(each, inner))
    if isinstance(source := block.get("source"), dict):
        yield from _extra(source, DocumentSource, "sources", _SILENT | {"media_type", "url", "file_id"})


def _cites(block: dict[str, Any]) -> bool:
    """Return whether a block asks for citations, which this server does not make."""
    citations = block.get("citations")
    return isinstance(citations, dict) and bool(citations.get("enabled"))


def _extra(
    value: dict[str, Any], kind: type[msgspec.Struct], place: str, silent: set[str] = _SILENT
) -> Iterator[tuple[str, str]]:
    for name in value.keys() - set(kind.__struct_fields__) - silent:
        if value[name]:
            yield place, name
