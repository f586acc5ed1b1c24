"""The fields of Ollama's generating requests: types, ranges, and what becomes of each.

A field is honoured, refused by name because leaving it out would change the answer, or named in the answer's
warnings. Knows the wire's fields and Job's; knows no route and no model.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from freehold.base.errors import BadTemplate
from freehold.base.serving import MAX_LOGPROBS, MAX_MESSAGES, MAX_TEMPLATE_CHARS, MAX_TOOLS, Job
from freehold.base.types import Format, Image, Message, Overflow, Tool, ToolCall, Turn
from freehold.run.store import parameters
from freehold.run.store.parameters import Parameters
from freehold.run.tokenizer.gotemplate import is_go, to_jinja
from freehold.serve.http.core.fields import (
    MAX_PICTURES,
    MAX_WARNINGS,
    Name,
    Pictures,
    TokenId,
    bounded,
    doc,
    ignored,
    schema_format,
    unknown,
)
from freehold.serve.http.core.problems import Refused

Options = Annotated[
    dict[str, Any],
    Meta(
        description=f"How to sample and how much: {', '.join(parameters.HONOURED)}. Others are named in warnings."
    ),
]
Think = bool | Literal["low", "medium", "high", "max"]
MAX_CALLS = 128  # of tools in one message
MAX_UNANSWERED = 1024  # calls that results without an id are looked for among: the latest


class OllamaGenerating(Struct, kw_only=True):
    """Fields that chats and texts share."""

    model: Annotated[Name, doc("The model's name; `:latest` may be left out.")]
    stream: Annotated[bool | None, doc("Send one line of JSON per piece. Default true.")] = None
    format: Annotated[
        str | dict[str, Any] | None,
        doc('`"json"`, or a JSON schema that the answer must satisfy.'),
    ] = None
    options: Options | None = None
    keep_alive: Annotated[
        float | str | None,
        doc("How long the model stays in memory: seconds or `10m`; negative: no limit; 0: unload it."),
    ] = None
    think: Annotated[
        Think | None,
        doc("Turn reasoning on or off, or set its level, if the model supports it."),
    ] = None
    truncate: Annotated[
        bool | None,
        Meta(
            description="true: drop the oldest messages of a chat that is too long; the receipt reports how many. "
            "Otherwise, such a chat is an error."
        ),
    ] = None
    shift: Annotated[
        bool | None, doc("Not used: an answer ends at the end of the context, with done_reason length.")
    ] = None
    logprobs: Annotated[bool | None, doc("Return each token's log-probability.")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        doc("Also return those of this many alternatives."),
    ] = None


class CalledFunction(Struct, kw_only=True):
    """What an assistant called."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: dict[str, Any] | None = None
    index: int | None = None


class Called(Struct, kw_only=True):
    """One use of a tool."""

    function: CalledFunction
    id: Annotated[str, Meta(max_length=256)] | None = None
    type: str | None = None


class OllamaMessage(Struct, kw_only=True):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[str], Meta(max_length=MAX_PICTURES)] | None = None
    tool_calls: Annotated[list[Called], Meta(max_length=MAX_CALLS)] | None = None
    tool_name: Annotated[str, Meta(max_length=256)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=256)] | None = None


class OllamaFunction(Struct, kw_only=True):
    """What a model may ask to have run."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolGiven(Struct, kw_only=True):
    """A tool; only functions."""

    function: OllamaFunction
    type: Literal["function"] | None = None


class OllamaChatRequest(OllamaGenerating, kw_only=True):
    """POST /api/chat: a chat to answer; without messages the model is loaded, or unloaded with keep_alive 0."""

    messages: Annotated[
        Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] | None,
        doc("The chat. If it ends with an assistant message, the answer continues it."),
    ] = None
    tools: Annotated[
        Annotated[list[ToolGiven], Meta(max_length=MAX_TOOLS)] | None,
        doc("Functions that the model may call."),
    ] = None


class GenerateRequest(OllamaGenerating, kw_only=True):
    """POST /api/generate: one prompt to answer; without one the model is loaded, or unloaded with keep_alive 0."""

    prompt: Annotated[str | None, doc("The prompt; with raw or suffix, the text to continue.")] = None
    suffix: Annotated[str | None, doc("Fill in the text between prompt and suffix, if the model can.")] = None
    system: Annotated[str | None, doc("Replaces the model's own system prompt.")] = None
    template: Annotated[
        str | None,
        Meta(
            description="Replaces the model's own template: a Go template with .System, .Prompt, .Response, if, "
            "and, or, not; or Jinja over messages. Not with raw, suffix or context."
        ),
    ] = None
    context: Annotated[
        Annotated[list[TokenId], Meta(max_length=1 << 20)] | None,
        doc("The context of an earlier answer, which the chat continues."),
    ] = None
    raw: Annotated[bool | None, doc("Continue the prompt as it is, without a template.")] = None
    images: Annotated[
        list[str] | None,
        doc("Pictures in base64, for vision models; not with raw, suffix or context."),
    ] = None


@dataclass(frozen=True, slots=True)
class OllamaJob:
    """A request, read: what to do, and what to tell."""

    job: Job
    context: int | None  # the room that was asked for
    warnings: list[str]


def chat_job(r: OllamaChatRequest, raw: Mapping[str, Any], tenant: str, pictures: Pictures) -> OllamaJob:
    """Return the job of a chat."""
    warnings = unknown_fields(raw, OllamaChatRequest) + _unknown_message_fields(raw.get("messages") or [])
    job, options = _shared(r, tenant, warnings)
    ids = CallIds()
    messages = [_message(m, i, ids, pictures) for i, m in enumerate(r.messages or [])]
    turn: Turn = "new"
    if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
        if messages[-1].content or messages[-1].thinking:
            turn = "continue"
        else:  # an answer that is begun with nothing is a new one
            messages.pop()
    job = replace(job, messages=tuple(messages), turn=turn, tools=_tools(r.tools or []))
    return OllamaJob(job, options.context, warnings)


def text_job(r: GenerateRequest, raw: Mapping[str, Any], tenant: str, pictures: Pictures) -> OllamaJob:
    """Return the job of a prompt: a chat of one turn, or with raw or suffix a text as it is.

    With `context` its messages are yet to be put after those ids (generate.py).
    """
    warnings = unknown_fields(raw, GenerateRequest)
    _refuse_text_fields(r)
    job, options = _shared(r, tenant, warnings)
    prompt = r.prompt or ""
    if r.raw or r.suffix:
        job = replace(job, prompt=prompt, suffix=r.suffix or None, overflow="error", think=None)
    else:
        system = (Message("system", r.system),) if r.system else ()
        parts = _pictured(prompt, r.images, "images", pictures)
        user = Message("user", prompt, parts=parts)
        job = replace(job, messages=(*system, user), template=_template(r.template))
    return OllamaJob(job, options.context, warnings)


def unknown_fields(raw: Mapping[str, Any], kind: type[Struct]) -> list[str]:
    """Return a warning for each field that `kind` lacks."""
    warnings = []
    for name in sorted(raw.keys() - set(kind.__struct_encode_fields__)):
        if raw[name] is None or len(warnings) == MAX_WARNINGS:
            continue
        near = f"options.{name}" if name in parameters.HONOURED else ""
        warnings.append(unknown(name, kind.__struct_encode_fields__, near))
    return warnings


def is_empty(r: OllamaChatRequest | GenerateRequest) -> bool:
    """Tell whether nothing is asked but that the model be loaded, or unloaded."""
    return not r.messages if isinstance(r, OllamaChatRequest) else not (r.prompt or r.suffix)


def _shared(r: OllamaGenerating, tenant: str, warnings: list[str]) -> tuple[Job, Parameters]:
    options = parameters.read(r.options or {})
    warnings += options.warnings
    if r.shift:
        warnings.append("shift was ignored: an answer ends where the context does, with done_reason length")
    if r.top_logprobs and not r.logprobs:
        raise Refused(400, "top_logprobs needs logprobs true", param="top_logprobs")
    think, effort = _think(r.think, warnings)
    overflow: Overflow = "drop-oldest" if r.truncate else "error"
    job = Job(
        max_tokens=options.max_tokens,
        sampling=options.sampling,
        stop=options.stop,
        logprobs=(r.top_logprobs or 0) if r.logprobs else None,
        think=think,
        effort=effort,
        format=_format(r.format),
        overflow=overflow,
        tenant=tenant,
        whole=r.stream is False,
    )
    return job, options


def _think(think: Think | None, warnings: list[str]) -> tuple[bool | None, str | None]:
    if not isinstance(think, str):
        return think, None
    if think == "max":
        warnings.append("think 'max' is read as 'high', the most that templates know")
    return True, "high" if think == "max" else think


def _format(format: str | dict[str, Any] | None) -> Format | None:
    if format is None or format == "":
        return None
    if isinstance(format, dict):
        return schema_format(format, "format")
    if format != "json":
        raise Refused(400, f"format is {format[:60]!r}; expected 'json' or a JSON schema", param="format")
    return Format("json")


def _tools(tools: Sequence[ToolGiven]) -> tuple[Tool, ...]:
    functions = [bounded(tool.function, f"tools[{i}].function") for i, tool in enumerate(tools)]
    return tuple(Tool(f.name, f.description or "", f.parameters or {}) for f in functions)


class CallIds:
    """Gives calls that came without an id one, and finds the call that a tool's result without one answers.

    Each call enters and leaves a queue of its name and one of its id once, so a chat is read in linear time.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, str]] = {}  # number -> (tool's name, id) of calls not answered yet
        self._of_name = defaultdict[str, deque[int]](deque)  # numbers, some of calls that were answered since
        self._of_id = defaultdict[str, deque[int]](deque)
        self._call_count = 0

    def called(self, name: str, id: str | None) -> str:
        """Note a call; return its id."""
        self._call_count += 1
        id = id or f"call_{self._call_count}"
        self._open[self._call_count] = (name, id)
        self._of_name[name].append(self._call_count)
        self._of_id[id].append(self._call_count)
        if len(self._open) > MAX_UNANSWERED:
            del self._open[next(iter(self._open))]
        return id

    def answered(self, name: str, id: str | None) -> tuple[str, str]:
        """Return (id, name) of the call that a result answers; results come in the order of calls."""
        number: int | None
        if id:
            number = self._first(self._of_id.get(id))
        else:
            number = self._first(self._of_name.get(name)) if name else next(iter(self._open), None)
        if number is None:
            return id or "", name
        tool, known = self._open.pop(number)
        return known, name or tool

    def _first(self, numbers: deque[int] | None) -> int | None:
        """Return the oldest of these calls that is open; those before it are forgotten."""
        while numbers:
            number = numbers.popleft()
            if number in self._open:
                return number
        return None


def _message(m: OllamaMessage, i: int, ids: CallIds, pictures: Pictures) -> Message:
    parts = _pictured(m.content or "", m.images, f"messages[{i}].images", pictures)
    content, thinking = m.content or "", m.thinking or ""
    if m.role == "tool":
        id, name = ids.answered(m.tool_name or "", m.tool_call_id)
        return Message("tool", content, tool_call_id=id, name=name, parts=parts)
    if m.tool_calls and m.role != "assistant":
        message = f"messages[{i}] is a {m.role}'s and has tool_calls"
        raise Refused(400, message, param=f"messages[{i}].tool_calls")
    calls = tuple(
        ToolCall(
            ids.called(c.function.name, c.id),
            c.function.name,
            msgspec.json.encode(c.function.arguments or {}).decode(),
        )
        for c in m.tool_calls or []
    )
    return Message(m.role, content, thinking, calls, parts=parts)


_MESSAGE_FIELDS = frozenset(OllamaMessage.__struct_fields__)


def _unknown_message_fields(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {name for message in messages for name in message.keys() - _MESSAGE_FIELDS if message[name]}
    return [ignored(name, "messages") for name in sorted(names)[:MAX_WARNINGS]]


def _refuse_text_fields(r: GenerateRequest) -> None:
    if r.images and (r.raw or r.suffix or r.context):
        message = "images are part of a chat: they go with none of raw, suffix and context"
        raise Refused(400, message, param="images", code="unsupported_content")
    if r.raw and (r.system or r.context or r.template):
        message = "raw continues a prompt as it is: it goes with none of system, template and context"
        raise Refused(400, message, param="raw")
    for name in ("suffix", "context"):
        if r.template and getattr(r, name):
            why = f"template cannot be combined with {name}"
            raise Refused(400, why, param="template")
    if r.context and r.suffix:
        raise Refused(400, "context is of a talk; it does not go with suffix", param="context")
    if r.think and (r.raw or r.suffix):
        raise Refused(400, "think needs a template; it goes with neither raw nor suffix", param="think")


def _template(template: str | None) -> str:
    """Return a request's template in Jinja. Raises Refused for what cannot be honoured exactly."""
    if template and len(template) > MAX_TEMPLATE_CHARS:
        message = f"template has {len(template):,} characters; expected at most {MAX_TEMPLATE_CHARS:,}"
        raise Refused(400, message, param="template")
    try:
        return to_jinja(template) if template and is_go(template) else template or ""
    except BadTemplate as e:
        raise Refused(400, f"{e.message}; {e.hint}", param="template", code="template_refused") from e


def _pictured(
    text: str, images: Sequence[str] | None, where: str, pictures: Pictures
) -> tuple[str | Image, ...]:
    """Return a message's parts: its text, then its pictures, which come in base64 without a type."""
    shown = [pictures.in_base64("", data, f"{where}[{k}]", "image") for k, data in enumerate(images or ())]
    return ((text, *shown) if text else tuple(shown)) if shown else ()
