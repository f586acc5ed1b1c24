"""The fields of POST /v1/responses: types, ranges, and what becomes of each.

Sampling and the like are those of the other generating requests; a field is honoured, refused by name, or named in
`warnings`. Knows the wire's fields and Job's; knows no route and no store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from freehold.base.serving import MAX_LOGPROBS, MAX_MESSAGES, MAX_TOOLS, Job
from freehold.base.types import Format, Message, Overflow, SignedThinking, Tool, ToolCall
from freehold.serve.http.core.fields import MAX_WARNINGS, Count, Pictures, doc, parts_of, schema_format
from freehold.serve.http.core.limits import typed
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.fields.chat import Content, ContentPart, pieces_of, text_of
from freehold.serve.http.openai.fields.generating import Generating, format_of, shared_job
from freehold.serve.http.openai.fields.offers import BUILT_IN, Offered, as_arguments, read_tools

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
SHOWN = ("file_search_call.results", "code_interpreter_call.outputs")  # values of include
IN_THE_OPEN = f"include {ENCRYPTED} was ignored: reasoning comes in the open"
Key = Annotated[str, Meta(min_length=1, max_length=64)]
Value = Annotated[str, Meta(max_length=512)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ReasoningOptions(Struct, kw_only=True):
    """How much to think, and under which name to show it."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseTextOptions(Struct, kw_only=True):
    """What the text must be."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class SchemaFormat(Struct, kw_only=True):
    """A format with a schema."""

    schema: dict[str, Any]


class ResponseRequest(Generating, kw_only=True):
    """POST /v1/responses: items to answer. The fields of the other generating requests also apply here, except `n`."""

    input: Annotated[
        str | Annotated[list[Any], Meta(max_length=MAX_MESSAGES)],
        Meta(
            description="Text, or items: message, reasoning, function_call, function_call_output, custom_tool_call, "
            "custom_tool_call_output, code_interpreter_call, shell_call, shell_call_output, apply_patch_call, "
            "apply_patch_call_output, mcp_approval_response, item_reference."
        ),
    ]
    instructions: Annotated[
        str | None, doc("The first system turn; those of earlier responses do not apply.")
    ] = None
    previous_response_id: Annotated[
        Annotated[str, Meta(max_length=128)] | None,
        doc("A stored response whose chat this request continues."),
    ] = None
    store: Annotated[bool | None, doc("Store the response for later requests. Default true.")] = None
    tools: Annotated[
        Annotated[list[Any], Meta(max_length=MAX_TOOLS)] | None,
        Meta(
            description="`function`, `custom`, `mcp` with the `server_label` of a configured server, `file_search` "
            "with `vector_store_ids`, `code_interpreter`, `shell` and `apply_patch`; other types are ignored, with a "
            "warning."
        ),
    ] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        Meta(
            description="`auto`, `none`, `required`, a tool by `type` and `name`, or `allowed_tools` of a `mode`."
        ),
    ] = None
    parallel_tool_calls: Annotated[bool | None, doc("false: at most one call per answer. Default true.")] = (
        None
    )
    max_tool_calls: Annotated[
        Count | None, doc("Maximum calls of code_interpreter and shell that the server runs.")
    ] = None
    max_output_tokens: Annotated[
        Count | None, doc("Maximum tokens of the answer, including reasoning; overrides max_tokens.")
    ] = None
    reasoning: Annotated[
        ReasoningOptions | None,
        Meta(
            description="`effort`: `none` turns thinking off; other levels work if the model has them. `summary`: "
            "the full reasoning is returned as the summary."
        ),
    ] = None
    think: Annotated[bool | None, doc("Turn reasoning on or off, if the model has a switch.")] = None
    text: Annotated[ResponseTextOptions | None, doc("`format`: `text`, `json_object` or `json_schema`.")] = (
        None
    )
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        doc("Return each token's log-probability, and those of this many alternatives."),
    ] = None
    include: Annotated[
        Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=32)] | None,
        doc(f"`{LOGPROBS}`, {', '.join(f'`{each}`' for each in SHOWN)}; other values give a warning."),
    ] = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None,
        doc("If a chat is longer than the context, `auto` drops the oldest turns and `disabled` fails."),
    ] = None
    overflow: Annotated[Overflow | None, doc("Freehold's name for the same; overrides truncation.")] = None
    metadata: Annotated[
        Annotated[dict[Key, Value], Meta(max_length=16)] | None,
        doc("Returned with the response."),
    ] = None
    background: Annotated[
        bool | None, doc("true is not supported: use /v1/batches for requests that can wait.")
    ] = None


# Of OpenAI's fields, those that would change the answer.
_REFUSED = ("conversation", "prompt", "moderation")


def refuse_unsupported(r: ResponseRequest, raw: dict[str, Any]) -> None:
    """Refuse by name what cannot be honoured."""
    for name in _REFUSED:
        if raw.get(name) is not None:
            raise _unsupported(name, f"{name} is not supported by this server")
    if r.background:
        raise _unsupported("background", "background is not supported; use POST /v1/batches")
    if r.n not in (None, 1):
        raise _unsupported("n", f"n is {r.n}; a response has one answer")


def _unsupported(name: str, message: str) -> Refused:
    return Refused(400, message, param=name, code="unsupported_parameter")


def response_job(
    r: ResponseRequest,
    items: Sequence[Any],
    known: int,
    tenant: str,
    warnings: list[str],
    pictures: Pictures,
    served: Sequence[Tool] = (),
) -> tuple[Job, Offered]:
    """Return the job of a request whose whole chat is `items`, `known` of them from earlier responses.

    `served`: tools of its MCP servers.
    """
    offered = read_tools(r.tools or (), r.tool_choice, warnings, served)
    limit = r.max_output_tokens if r.max_output_tokens is not None else r.max_tokens
    if limit == 0:
        raise Refused(400, "max_output_tokens is 0; expected 1 or more", param="max_output_tokens")
    if r.return_token_ids:
        warnings.append("return_token_ids was ignored: responses have no place for them")
    think, effort = _thinking(r)
    messages = read_items(items, r.instructions, known, warnings, pictures)
    job = shared_job(
        r,
        tenant,
        messages=messages,
        max_tokens=limit,
        logprobs=_logprobs(r, warnings),
        think=think,
        effort=effort,
        tools=offered.tools,
        tool_choice=offered.choice,
        tool_name=offered.name,
        parallel_tool_calls=r.parallel_tool_calls is not False,
        format=_format(r, warnings),
        overflow=r.overflow or ("drop-oldest" if r.truncation == "auto" else "error"),
    )
    return job, offered


def summarized(r: ResponseRequest) -> bool:
    """Return whether reasoning is to go by the name of a summary."""
    return r.reasoning is not None and (r.reasoning.summary or r.reasoning.generate_summary) is not None


def echo(r: ResponseRequest, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a response repeats of its request."""
    reasoning, text = r.reasoning or ReasoningOptions(), r.text or ResponseTextOptions()
    return {
        "instructions": r.instructions,
        "max_output_tokens": r.max_output_tokens,
        "max_tool_calls": r.max_tool_calls,
        "metadata": r.metadata or {},
        "parallel_tool_calls": r.parallel_tool_calls is not False,
        "previous_response_id": r.previous_response_id,
        "prompt_cache_key": r.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
        "safety_identifier": r.safety_identifier,
        "service_tier": "default",
        "store": r.store is not False,
        "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        "tool_choice": raw.get("tool_choice") or "auto",
        "tools": raw.get("tools") or [],
        "top_logprobs": r.top_logprobs or 0,
        "truncation": r.truncation or "disabled",
        "user": r.user,
    }


def _thinking(r: ResponseRequest) -> tuple[bool | None, str | None]:
    effort = r.reasoning.effort if r.reasoning else None
    if effort == "none":
        return (False if r.think is None else r.think), None
    return r.think, effort


def _logprobs(r: ResponseRequest, warnings: list[str]) -> int | None:
    wanted = r.include or []
    for name in dict.fromkeys(wanted):
        if name == ENCRYPTED:
            warnings.append(IN_THE_OPEN)
        elif name not in (LOGPROBS, *SHOWN):
            warnings.append(f"include {name!r} was ignored")
    if r.top_logprobs or LOGPROBS in wanted:
        return r.top_logprobs or 0
    return None


def _format(r: ResponseRequest, warnings: list[str]) -> Format | None:
    """Read `text.format`, or any of the names that the other generating requests have for it."""
    text = r.text or ResponseTextOptions()
    if text.verbosity is not None:
        warnings.append("text.verbosity was ignored: say it in the instructions")
    own, other = _text_format(text.format), format_of(r)
    if own is not None and other is not None:
        message = "text.format and another field both say what the text must be"
        raise Refused(400, message, param="text.format")
    return own or other


def _text_format(format: dict[str, Any] | None) -> Format | None:
    kind = "text" if format is None else format.get("type")
    if format is None or kind == "text":
        return None
    if kind == "json_object":
        return Format("json")
    if kind != "json_schema":
        message = f"text.format.type is {str(kind)[:60]!r}; expected text, json_object or json_schema"
        raise Refused(400, message, param="text.format.type", code="invalid_value")
    return schema_format(typed(format, SchemaFormat, "text.format").schema, "text.format.schema")


# --- from the items of a request to the turns of a chat ---------------------------------------------
# A call joins the assistant's turn before it, reasoning goes to the turn it led to, and a result finds the
# call it answers. What the chat could not say is refused by name, with the item's place in the list.

Id = Annotated[str, Meta(min_length=1, max_length=256)]
# What an item may hold besides, that is its history and none of the chat.
_KNOWN = frozenset(
    ["type", "id", "status", "phase", "annotations", "logprobs", "encrypted_content", "caller", "created_by"]
)


class MessageItem(Struct, kw_only=True):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class ReasoningItem(Struct, kw_only=True):
    """What the model thought before its next turn."""

    summary: Annotated[list[ContentPart], Meta(max_length=1024)] = []
    content: Annotated[list[ContentPart], Meta(max_length=1024)] | None = None
    encrypted_content: str | None = None  # what a provider signed, as output.py wrote it


class CallItem(Struct, kw_only=True):
    """A function that the model called."""

    call_id: Id
    name: Id
    arguments: str


class CustomItem(Struct, kw_only=True):
    """A free-form tool that the model called."""

    call_id: Id
    name: Id
    input: str


class OutputItem(Struct, kw_only=True):
    """What came of a call."""

    call_id: Id
    output: Content
    name: str | None = None


class CodeItem(Struct, kw_only=True):
    """Code that `code_interpreter` ran. `outputs` None: the request left out what it printed."""

    id: Id
    code: str | None = None
    container_id: str = ""
    outputs: list[dict[str, Any]] | None = None


class ShellAction(Struct, kw_only=True):
    """The commands of a call of `shell`."""

    commands: Annotated[list[str], Meta(max_length=256)]
    timeout_ms: int | None = None
    max_output_length: int | None = None


class ShellItem(Struct, kw_only=True):
    """A call of `shell`."""

    call_id: Id
    action: ShellAction
    environment: dict[str, Any] | None = None


class ShellOutputItem(Struct, kw_only=True):
    """What came of a call of `shell`."""

    call_id: Id
    output: Annotated[list[dict[str, Any]], Meta(max_length=256)]
    max_output_length: int | None = None


class PatchItem(Struct, kw_only=True):
    """A change of a file that the model wants."""

    call_id: Id
    operation: dict[str, Any]


class PatchOutputItem(Struct, kw_only=True):
    """What came of a change."""

    call_id: Id
    status: Literal["completed", "failed"]
    output: str | None = None


NOT_SENT = "[The output of this call is not in the request: include code_interpreter_call.outputs.]"


def outputs_text(outputs: Sequence[Mapping[str, Any]]) -> str:
    """Return the outputs of code as a model reads them."""
    logs = "".join(str(each.get("logs", "")) for each in outputs if each.get("type") == "logs").rstrip("\n")
    pictures = sum(each.get("type") == "image" for each in outputs)
    shown = f"[{pictures} pictures, shown to the user]" if pictures > 1 else "[a picture, shown to the user]"
    return "\n".join([*([logs] if logs else []), *([shown] if pictures else [])]) or "[no output]"


def shell_text(output: Sequence[Mapping[str, Any]]) -> str:
    """Return the outputs of commands as a model reads them."""
    parts = []
    for each in output:
        outcome = each.get("outcome")
        if not isinstance(outcome, dict):
            outcome = {}
        code = outcome.get("exit_code")
        end = "[it was ended at its time limit]" if outcome.get("type") == "timeout" else ""
        end = f"[exit status {code}]" if not end and code not in (0, None) else end
        texts = [str(each.get(name) or "").rstrip("\n") for name in ("stdout", "stderr")]
        parts.append("\n".join(text for text in (*texts, end) if text) or "[no output]")
    return "\n\n".join(parts)


def commands_of(arguments: str) -> dict[str, Any]:
    """Return the action of a call of `shell`, as items have it; a text that is not JSON is one command."""
    value = _object(arguments)
    commands = value.get("commands", value.get("command", [] if value else arguments))
    commands = [commands] if isinstance(commands, str) else commands if isinstance(commands, list) else []
    limits = {name: value.get(name) for name in ("timeout_ms", "max_output_length")}
    kept = {k: v if type(v) is int and v > 0 else None for k, v in limits.items()}
    return {"commands": [each for each in commands if isinstance(each, str) and each.strip()], **kept}


def patch_of(arguments: str) -> dict[str, Any]:
    """Return the operation of a call of `apply_patch`, as items have it."""
    value = _object(arguments)
    kind = value.get("type")
    kind = kind if kind in ("create_file", "update_file", "delete_file") else "update_file"
    diff = {} if kind == "delete_file" else {"diff": str(value.get("diff") or "")}
    return {"type": kind, "path": str(value.get("path") or ""), **diff}


def _object(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Reading:
    """The chat as far as the items were read."""

    def __init__(self, instructions: str | None, pictures: Pictures) -> None:
        # Templates know one system turn, at the start; clients send their rules in several.
        self._rules = [instructions] if instructions else []
        self.messages: list[Message] = []  # after it
        self.warnings: dict[str, None] = {}
        self._pictures = pictures
        self._signed: list[SignedThinking] = []
        self._thinking: list[str] = []  # that leads to the next turn of the assistant
        self._names: dict[str, str] = {}  # of calls, by their ids
        self._due: dict[str, None] = {}  # ids of calls without an output so far
        self._calls: list[ToolCall] = []  # of the last message, which chat() or the next message gives it

    def chat(self) -> tuple[Message, ...]:
        """Return the turns. Raises Refused for a call without an output, after which OpenAI accepts no turn."""
        if self._due:
            id = next(iter(self._due))
            message = f"no item answers the call {id[:60]!r}; expected an output of each"
            raise Refused(400, message, param="input", code="invalid_value")
        self._close()
        rules = (Message("system", "\n\n".join(self._rules)),) if self._rules else ()
        return (*rules, *self.messages)

    def add(self, item: Any, at: str) -> None:
        """Take in an item; `at` is its place in the request."""
        if not isinstance(item, dict):
            raise Refused(400, f"{at} is not an object", param=at, code="invalid_value")
        kind = item.get("type") or ("message" if "role" in item else None)
        reader = _READERS.get(kind) if isinstance(kind, str) else None
        if reader is None:
            known = ", ".join(_READERS)
            message = f"{at} is of type {str(kind)[:60]!r}; this server reads {known}"
            raise Refused(400, message, param=f"{at}.type", code="unsupported_item")
        for name in item.keys() - set(reader.struct.__struct_fields__) - _KNOWN:
            if item[name] is not None and len(self.warnings) < MAX_WARNINGS:
                self.warnings[f"field {name[:60]!r} of items was ignored"] = None
        reader.read(self, typed(item, reader.struct, at), at)

    def message(self, item: MessageItem, at: str) -> None:
        role = "system" if item.role == "developer" else item.role
        pieces = pieces_of(item.content, f"{at}.content", self._pictures)
        content = text_of(pieces)
        if role == "system" and not self.messages:
            if parts_of(pieces):
                why = (
                    f"{at}.content has a picture or audio among instructions; expected it in a user's message"
                )
                raise Refused(400, why, param=f"{at}.content", code="unsupported_content")
            self._rules.append(content)
            return
        message = Message(role, content, parts=parts_of(pieces))
        self._add(self._thought(message) if role == "assistant" else message)

    def reasoning(self, item: ReasoningItem, at: str) -> None:
        text = "".join(part.text or "" for part in item.content or item.summary)
        if text:
            self._thinking.append(text)
        if (block := opened(item.encrypted_content or "", text)) is not None:
            self._signed.append(block)

    def call(self, item: CallItem, at: str) -> None:
        self._called(ToolCall(item.call_id, item.name, item.arguments), at)

    def custom(self, item: CustomItem, at: str) -> None:
        self._called(ToolCall(item.call_id, item.name, as_arguments(item.input)), at)

    def code(self, item: CodeItem, at: str) -> None:
        self._called(
            ToolCall(item.id, BUILT_IN["code_interpreter"], _json_text({"code": item.code or ""})), at
        )
        if item.outputs is None and len(self.warnings) < MAX_WARNINGS:
            self.warnings["outputs of a code_interpreter_call were not sent: the model does not see them"] = (
                None
            )
        self._answered(item.id, at, NOT_SENT if item.outputs is None else outputs_text(item.outputs))

    def shell(self, item: ShellItem, at: str) -> None:
        action = {k: v for k, v in msgspec.to_builtins(item.action).items() if v is not None}
        self._called(ToolCall(item.call_id, BUILT_IN["shell"], _json_text(action)), at)

    def shell_output(self, item: ShellOutputItem, at: str) -> None:
        self._answered(item.call_id, at, shell_text(item.output))

    def patch(self, item: PatchItem, at: str) -> None:
        self._called(ToolCall(item.call_id, BUILT_IN["apply_patch"], _json_text(item.operation)), at)

    def patch_output(self, item: PatchOutputItem, at: str) -> None:
        self._answered(item.call_id, at, item.output or f"The change was {item.status}.")

    def _answered(self, id: str, at: str, text: str) -> None:
        """Take in the result of a call as a text."""
        self._add(Message("tool", text, tool_call_id=id, name=self._name_of(id, at)))

    def _name_of(self, id: str, at: str) -> str:
        """Return the tool of a call, which has its result now."""
        name = self._names.get(id)
        if name is None:
            why = f"{at} answers the call {id[:60]!r}, which no item before it makes"
            raise Refused(400, why, param=f"{at}.call_id", code="invalid_value")
        self._due.pop(id, None)
        return name

    def output(self, item: OutputItem, at: str) -> None:
        name = self._name_of(item.call_id, at)
        pieces = pieces_of(item.output, f"{at}.output", self._pictures)
        message = Message("tool", text_of(pieces), tool_call_id=item.call_id, name=name)
        self._add(replace(message, parts=parts_of(pieces)))

    def _called(self, call: ToolCall, at: str) -> None:
        if call.id in self._names:
            message = f"{at} has the call_id {call.id[:60]!r} of an earlier call"
            raise Refused(400, message, param=f"{at}.call_id")
        self._names[call.id] = call.name
        self._due[call.id] = None
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or self._thinking or self._signed:
            self._add(self._thought(Message("assistant", "")))
        if len(self._calls) == MAX_TOOLS:
            message = f"{at} is call {MAX_TOOLS + 1} of a turn; expected at most {MAX_TOOLS}"
            raise Refused(400, message, param=at)
        self._calls.append(call)

    def _add(self, message: Message) -> None:
        self._close()
        self.messages.append(message)

    def _close(self) -> None:
        """Give the last message its calls, all at once: one after the other each would copy those before it."""
        if self._calls:
            self.messages[-1] = replace(self.messages[-1], tool_calls=tuple(self._calls))
            self._calls = []

    def _thought(self, message: Message) -> Message:
        """Return a message of the assistant with the reasoning that led to it."""
        thoughts, signed, self._thinking, self._signed = self._thinking, self._signed, [], []
        return replace(message, thinking="\n\n".join(thoughts), signed=tuple(signed))


@dataclass(frozen=True, slots=True)
class _ItemReader:
    struct: type[Struct]
    read: Callable[[Reading, Any, str], None]


_READERS: dict[str, _ItemReader] = {
    "message": _ItemReader(MessageItem, Reading.message),
    "reasoning": _ItemReader(ReasoningItem, Reading.reasoning),
    "function_call": _ItemReader(CallItem, Reading.call),
    "function_call_output": _ItemReader(OutputItem, Reading.output),
    "custom_tool_call": _ItemReader(CustomItem, Reading.custom),
    "custom_tool_call_output": _ItemReader(OutputItem, Reading.output),
    "code_interpreter_call": _ItemReader(CodeItem, Reading.code),
    "shell_call": _ItemReader(ShellItem, Reading.shell),
    "shell_call_output": _ItemReader(ShellOutputItem, Reading.shell_output),
    "apply_patch_call": _ItemReader(PatchItem, Reading.patch),
    "apply_patch_call_output": _ItemReader(PatchOutputItem, Reading.patch_output),
}


def read_items(
    items: Sequence[Any], instructions: str | None, known: int, warnings: list[str], pictures: Pictures
) -> tuple[Message, ...]:
    """Return the chat. `known`: this many of `items`, at the start, come from earlier responses."""
    if len(items) > MAX_MESSAGES:
        message = f"the chat has {len(items):,} items; expected at most {MAX_MESSAGES:,}"
        raise Refused(400, message, param="input")
    if not items:
        raise Refused(400, "input is empty; expected a text, or items", param="input")
    reading = Reading(instructions, pictures)
    for i, item in enumerate(items):
        reading.add(item, f"input[{i - known}]" if i >= known else "previous_response_id")
    warnings += reading.warnings
    return reading.chat()


# --- what a provider signed of its reasoning: the `encrypted_content` of a reasoning item, out and back

_SIGNED, _REDACTED = "signed.", "redacted."


def sealed(block: SignedThinking) -> str:
    """Return a block for a client to carry; its text is in the item itself."""
    return _REDACTED + block.redacted if block.redacted else _SIGNED + block.signature


def opened(content: str, text: str) -> SignedThinking | None:
    """Return the block again, None for what was not made here. `text`: the item's."""
    if content.startswith(_REDACTED):
        return SignedThinking(redacted=content[len(_REDACTED) :])
    if content.startswith(_SIGNED):
        return SignedThinking(text, content[len(_SIGNED) :])
    return None


# --- tools of MCP servers ---------------------------------------------------------------------------

_MEANT = {"type", "server_label", "allowed_tools", "require_approval", "server_description"}
Label = Annotated[str, Meta(min_length=1, max_length=64)]


class ToolNames(Struct, kw_only=True):
    """Tools by name."""

    tool_names: Annotated[list[str], Meta(max_length=256)] = []


class McpTool(Struct, kw_only=True):
    """A configured server whose tools the model may call. `require_approval`: `always`, which is what holds anyway."""

    server_label: Label
    allowed_tools: Annotated[list[str], Meta(max_length=256)] | ToolNames | None = None
    require_approval: Literal["always"] | None = None
    server_description: str | None = None  # for the model, which reads the server's own words here

    @property
    def names(self) -> list[str] | None:
        """The tools that are offered; None: all."""
        allowed = self.allowed_tools
        return allowed.tool_names if isinstance(allowed, ToolNames) else allowed


def wanted(tools: Sequence[Any]) -> dict[str, McpTool]:
    """Return the MCP servers that a request names. Raises Refused for what a request may not say."""
    by_label: dict[str, McpTool] = {}
    for i, raw in enumerate(tools):
        if not isinstance(raw, dict) or raw.get("type") != "mcp":
            continue
        at = f"tools[{i}]"
        for name in sorted(raw.keys() - _MEANT):
            if raw[name] is not None:
                message = f"{at}.{name}: a request configures no server; the owner does, by freehold mcp add"
                raise Refused(400, message, param=f"{at}.{name}", code="unsupported_parameter")
        if raw.get("require_approval") not in (None, "always"):
            message = f"{at}.require_approval: a request cannot lower it; leave it out, or send always"
            raise Refused(400, message, param=f"{at}.require_approval", code="unsupported_parameter")
        tool = typed(raw, McpTool, at)
        if tool.server_label in by_label:
            raise Refused(400, f"{at} names {tool.server_label!r} again", param=f"{at}.server_label")
        by_label[tool.server_label] = tool
    return by_label
