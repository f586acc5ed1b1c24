"""Makes a job of Anthropic's request: messages, tools, choice, thinking, format, sampling; and warns of unknown fields.

A field is honoured, refused by name because leaving it out would change the answer, or named in the warnings.
Knows the wire's fields and Job's; knows no route. `fit` adapts the job to the model (whether it thinks).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import msgspec

from freehold.base.serving import Job, ModelInfo
from freehold.base.types import CacheTime, Format, Image, Message, SignedThinking, Tool, ToolCall
from freehold.base.types import ToolChoice as Choice
from freehold.serve.http.anthropic.fields import (
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
from freehold.serve.http.anthropic.shape import thought_in
from freehold.serve.http.core.fields import (
    EFFORTS,
    MAX_WARNINGS,
    Pictures,
    bounded,
    ignored,
    parts_of,
    sampling_of,
    schema_format,
    unknown,
)
from freehold.serve.http.core.problems import Refused, is_stamped
from freehold.serve.http.core.receipt import Tally

_CHOICES: dict[str, Choice] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
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
        sampling=sampling_of(r),
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
        effort=EFFORTS.get(r.output_config.effort or "") if r.output_config else None,
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


def _stops(texts: Sequence[str]) -> tuple[str, ...]:
    for i, text in enumerate(texts):
        if not text.strip():
            where = f"stop_sequences[{i}]"
            message = f"{where} is blank; each stop sequence must contain non-whitespace"
            raise Refused(400, message, param=where)
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
            warnings.append(f"{where} of type {tool.type!r} was ignored: this server does not run tools")
            continue
        read = _tool(tool, where)
        if read.name in {**shown, **deferred}:
            message = f"{where}.name is {read.name!r}, as another's; expected one of its own"
            raise Refused(400, message, param=where)
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
        message = f"tool_choice is {choice_param.type!r}, and there are no tools"
        raise Refused(400, message, param="tool_choice")
    if choice_param.type != "tool":
        return choice, ""
    if name not in {tool.name for tool in tools}:
        message = f"tool_choice.name is {name!r}; expected one of the tools"
        raise Refused(400, message, param="tool_choice.name")
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


# --- unknown fields ---------------------------------------------------------------------------------

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
            message = f"{name} is not supported by this server"
            raise Refused(400, message, param=name, code="unsupported_parameter")
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


# --- Anthropic's messages: blocks in, turns of a chat out, in an order that every chat template takes -------------
# - Turns of one role in a row become one turn; the chat begins with the user. An assistant's turn at its end is the
#   beginning of the answer.
# - Results of tools come first in the turn after the calls that they answer, each with one of their ids.
# - A system message within the chat stays where it is, as a tagged part of the user's turn: at the head of the prompt
#   it would change the beginning, and nothing after it could come from the prefix cache.

# Claude Code writes a line like it before its system prompt, and another one into every request.
BILLING = "x-anthropic-billing-header:"
_BETWEEN = "\n"  # texts of one turn
_REMINDER = "<system-reminder>\n{}\n</system-reminder>"
_REMINDED = "a system message within the chat was taken as a part of the user's turn"
# Blocks that only a server of Anthropic's can read back.
_FOREIGN = ("redacted_thinking", "server_tool_use", "compaction", "fallback")


@dataclass(slots=True)
class Turn:
    """Consecutive messages of one role; the first is messages[at]."""

    role: str  # user or assistant
    at: int
    pieces: list[str | Image] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    signed: list[SignedThinking] = field(default_factory=list)
    cache: CacheTime = ""
    results: list[Message] = field(default_factory=list)
    spoke: bool = False  # it has a text that is its own, not a system message's
    chars: int = 0  # of its own texts

    def say(self, text: str) -> None:
        """Add a text of its own."""
        self.chars += len(text)
        self.pieces.append(text)
        self.spoke = True

    def show(self, picture: Image) -> None:
        """Add a picture."""
        self.pieces.append(picture)
        self.spoke = True

    @property
    def texts(self) -> list[str]:
        """The texts alone."""
        return texts_of(self.pieces)

    def remind(self, text: str) -> None:
        """Add a system message's text."""
        self.pieces.append(_REMINDER.format(text))

    @property
    def is_empty(self) -> bool:
        """Whether it is an assistant's that says nothing."""
        return self.role == "assistant" and not (
            any(self.pieces) or any(self.thinking) or self.calls or self.signed
        )

    def messages(self) -> Iterator[Message]:
        """Return the turn as messages for a template."""
        if self.role == "assistant":
            # The blocks of one answer are joined to the exact text of its generation, so that the cache has it.
            text, thought = "".join(self.texts), "".join(self.thinking)
            signed = tuple(self.signed)
            yield Message("assistant", text, thought, tuple(self.calls), signed=signed, cache=self.cache)
            return
        yield from self.results
        if self.pieces or not self.results:
            parts = parts_of(self.pieces)
            yield Message("user", _BETWEEN.join(self.texts), parts=parts, cache=self.cache)


def read_chat(
    system: str | Sequence[TextBlock] | None,
    messages: Sequence[InputMessage],
    warnings: list[str],
    pictures: Pictures,
) -> tuple[Message, ...]:
    """Return the chat; add to `warnings` what was left out of it. Raises Refused."""
    numbered = _shown(messages)
    leading = [*takewhile(lambda each: each[1].role == "system", numbered)]
    texts = [*_system(system, warnings), *(_system_text(m, i) for i, m in leading)]
    prompt = _BETWEEN.join(text for text in texts if text)
    turns: list[Turn] = []
    reader = _TurnReader(warnings, pictures)
    for i, message in numbered[len(leading) :]:
        role = "assistant" if message.role == "assistant" else "user"
        if not turns or turns[-1].role != role:
            turns.append(Turn(role, i))
        reader.read(message, i, turns[-1])
    if turns and turns[-1].is_empty:  # an answer that is begun with nothing is a new one
        turns.pop()
    _check_order(turns)
    chat = [m for turn in turns for m in turn.messages()]
    if not prompt:
        return tuple(chat)
    kept = () if isinstance(system, str) or system is None else system
    return (Message("system", prompt, cache=cached(*kept)), *chat)


def _shown(messages: Sequence[InputMessage]) -> list[tuple[int, InputMessage]]:
    """Return the messages that are kept, with their indices: some are for one turn of the user only."""
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    return [(i, m) for i, m in enumerate(messages) if m.clear_at != "next_user_message" or i > last]


def _system(system: str | Sequence[TextBlock] | None, warnings: list[str]) -> Iterator[str]:
    blocks = (
        [system]
        if isinstance(system, str)
        else [_text(b, f"system[{i}]") for i, b in enumerate(system or ())]
    )
    for text in blocks:
        if text.startswith(BILLING):
            text = text.partition("\n")[2].lstrip("\n")
            warnings.append(
                f"the line {BILLING} of system was left out of the prompt: it changes with every request, "
                "and nothing after it would be found in the cache"
            )
        yield text


def _system_text(message: InputMessage, i: int) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    return _BETWEEN.join(_text(b, f"messages[{i}].content[{j}]") for j, b in enumerate(message.content))


class _TurnReader:
    """Reads message after message into turns. It remembers the calls, which results name by their ids."""

    def __init__(self, warnings: list[str], pictures: Pictures) -> None:
        self._warnings, self._pictures = warnings, pictures
        self._names: dict[str, str] = {}  # id of a call -> name of its tool

    def read(self, message: InputMessage, i: int, turn: Turn) -> None:
        if message.role == "system":
            text = _system_text(message, i)
            if text:
                turn.remind(text)
                self._warn(_REMINDED)
            return None
        if isinstance(message.content, str):
            return turn.say(message.content) if message.content else None
        if message.content is None:
            raise missing(f"messages[{i}]", "content")
        read = self._read_assistant if message.role == "assistant" else self._read_user
        for j, block in enumerate(message.content):
            read(block, f"messages[{i}].content[{j}]", turn)
            if block.type != "tool_result":
                turn.cache = cached(block) or turn.cache
        return None

    def _read_assistant(self, block: Block, where: str, turn: Turn) -> None:
        """Read a block of an assistant's turn."""
        match block.type:
            case "text":
                turn.say(_text(block, where))
            case "thinking":
                self._thought(block, where, turn)
            case "redacted_thinking" if is_stamped(block.data or ""):
                turn.signed.append(_placed(SignedThinking(redacted=block.data or ""), turn))
            case "tool_use":
                self._call(block, where, turn)
            case foreign if foreign in _FOREIGN or foreign.endswith("_tool_result"):
                self._warn(
                    f"blocks of type {foreign!r} were left out: only a server of Anthropic's can read them"
                )
            case _:
                raise _unsupported(block, where)

    def _thought(self, block: Block, where: str, turn: Turn) -> None:
        thinking, signature = _present(block.thinking, where, "thinking"), block.signature or ""
        turn.thinking.append(thinking or thought_in(signature))
        if is_stamped(signature):
            turn.signed.append(_placed(SignedThinking(thinking, signature), turn))

    def _call(self, block: Block, where: str, turn: Turn) -> None:
        id, name = _present(block.id, where, "id"), _present(block.name, where, "name")
        if id in self._names:
            raise _bad(f"{where}.id", f"is {id[:60]!r}, as an earlier tool_use's; expected one of its own")
        self._names[id] = name
        arguments = msgspec.json.encode(block.input if block.input is not None else {}).decode()
        turn.calls.append(ToolCall(id, name, arguments))

    def _read_user(self, block: Block, where: str, turn: Turn) -> None:
        """Read a block of a user's turn."""
        match block.type:
            case "tool_result":
                self._result(block, where, turn)
            case "text" | "document" | "search_result":
                turn.say(_content(block, where))
            case "image":
                turn.show(self._picture(block, where))
            case "mid_conv_system":
                turn.remind(_content(block, where))
                self._warn(_REMINDED)
            case _:
                raise _unsupported(block, where)

    def _result(self, block: Block, where: str, turn: Turn) -> None:
        id = _present(block.tool_use_id, where, "tool_use_id")
        if turn.spoke:
            raise _bad(where, "is a tool_result after a text of the same turn; expected results first")
        content, inner = block.content, f"{where}.content"
        parts = content if isinstance(content, list) else [ResultPart(type="text", text=content or "")]
        pieces = [
            self._picture(p, f"{inner}[{k}]") if p.type == "image" else _content(p, f"{inner}[{k}]")
            for k, p in enumerate(parts)
        ]
        if block.is_error:  # in words, for models of which no template and no wire has a place for it
            pieces[:1] = [f"Error: {p}" if isinstance(p, str) else p for p in pieces[:1] or [""]]
        text = _BETWEEN.join(texts_of(pieces))
        message = Message("tool", text, tool_call_id=id, name=self._names.get(id, ""))
        failed, kept = bool(block.is_error), cached(*parts, block)
        turn.results.append(replace(message, parts=parts_of(pieces), cache=kept, failed=failed))

    def _picture(self, block: Block | ResultPart, where: str) -> Image:
        source = block.source
        if isinstance(source, DocumentSource) and source.type == "base64":
            media_type = _present(source.media_type, f"{where}.source", "media_type")
            data = _present(source.data, f"{where}.source", "data")
            return self._pictures.in_base64(media_type, data, where, block.type)
        if isinstance(source, DocumentSource) and source.type == "url":
            url = _present(source.url, f"{where}.source", "url")
            return self._pictures.at_url(url, where, block.type)
        message = f"{where} is of type 'image' without a source of type base64 or url"
        raise Refused(400, message, param=where, code="unsupported_content")

    def _warn(self, warning: str) -> None:
        if len(self._warnings) < MAX_WARNINGS and warning not in self._warnings:
            self._warnings.append(warning)


def texts_of(pieces: Sequence[str | Image]) -> list[str]:
    """Return the texts among texts and pictures."""
    return [piece for piece in pieces if isinstance(piece, str)]


def cached(*blocks: TextBlock | Block | ResultPart | ToolParam | CountRequest) -> CacheTime:
    """Return for how long the last of these blocks that says so is to be kept."""
    times: list[CacheTime] = [
        block.cache_control.ttl or "5m" for block in blocks if block.cache_control is not None
    ]
    return times[-1] if times else ""


def _placed(block: SignedThinking, turn: Turn) -> SignedThinking:
    """Return a block with its place in the answer so far."""
    return replace(block, text_before=turn.chars, calls_before=len(turn.calls))


def _check_order(turns: Sequence[Turn]) -> None:
    """Refuse a chat whose turns do not fit together."""
    if not turns or turns[0].role != "user":
        raise _bad("messages", "does not begin with a user's turn; expected role 'user' first")
    if turns[-1].calls:
        raise _bad("messages", "ends with a tool_use; expected a tool_result for it, in a user's turn")
    calls: list[ToolCall] = []
    for turn in turns:
        if turn.role == "user":
            _check_results(turn, calls)
        calls = turn.calls


def _check_results(turn: Turn, calls: Sequence[ToolCall]) -> None:
    where, known = f"messages[{turn.at}]", {c.id for c in calls}
    counts = Counter(r.tool_call_id for r in turn.results)
    for id, results in counts.items():
        if id not in known:
            message = f"has a tool_result for {id[:60]!r}, which is not a tool_use of the turn before it"
            raise _bad(where, message)
        if results > 1:
            raise _bad(where, f"has {results:,} tool_results for {id[:60]!r}; expected one")
    missing = [c.id for c in calls if c.id not in counts]
    if missing:
        message = f"has no tool_result for {_list(missing)}; expected one for each tool_use before it"
        raise _bad(where, message)
    if not counts and not any(isinstance(piece, Image) or piece.strip() for piece in turn.pieces):
        raise _bad(where, "has no content; expected text or tool_results")


def references(messages: Sequence[InputMessage]) -> list[str]:
    """Return the names of the tools that results refer to, in order."""
    lists = (m.content for m in messages if isinstance(m.content, list))
    parts = (b.content for blocks in lists for b in blocks if isinstance(b.content, list))
    return [p.tool_name for each in parts for p in each if p.type == "tool_reference" and p.tool_name]


def _content(block: Block | ResultPart, where: str) -> str:
    """Return the text of a block that is text or holds it."""
    if block.type == "text":
        return _text(block, where)
    if isinstance(block, ResultPart) and block.type == "tool_reference":
        return f"{_present(block.tool_name, where, 'tool_name')} can be called now."
    if block.type == "mid_conv_system" and isinstance(block.content, list):
        return _joined(block.content, f"{where}.content")
    if block.type == "search_result" and isinstance(block.content, list):
        named = [block.title or "", block.source if isinstance(block.source, str) else ""]
        return _BETWEEN.join(t for t in [*named, _joined(block.content, f"{where}.content")] if t)
    if block.type == "document" and isinstance(block.source, DocumentSource):
        return _document(block, block.source, where)
    raise _unsupported(block, where)


def _document(block: Block | ResultPart, source: DocumentSource, where: str) -> str:
    if source.type == "text" and source.data is not None:
        text = source.data
    elif source.type == "content" and source.content is not None:
        inner = source.content
        text = inner if isinstance(inner, str) else _joined(inner, f"{where}.source.content")
    else:
        message = f"is of type {source.type!r}; documents are read as text: send a PDF's pages as images"
        raise _bad(f"{where}.source", message)
    return _BETWEEN.join(t for t in [block.title or "", block.context or "", text] if t)


def _joined(blocks: Iterable[TextBlock | ResultPart], where: str) -> str:
    return _BETWEEN.join(_text(b, f"{where}[{i}]") for i, b in enumerate(blocks))


def _text(block: TextBlock | ResultPart | Block, where: str) -> str:
    if block.type != "text":
        raise _unsupported(block, where)
    return _present(block.text, where, "text")


def _present(value: str | None, where: str, name: str) -> str:
    if value is None:
        raise missing(where, name)
    return value


def missing(where: str, name: str) -> Refused:
    """Return the refusal of an object that lacks what its type needs."""
    path = f"{where}.{name}"
    return Refused(400, f"{path} is missing", param=path, code="missing_required_parameter")


def _list(ids: Sequence[str]) -> str:
    shown = ", ".join(repr(id[:60]) for id in ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"


def _bad(where: str, what: str) -> Refused:
    return Refused(400, f"{where} {what}", param=where, code="invalid_value")


def _unsupported(block: TextBlock | ResultPart | Block, where: str) -> Refused:
    return Refused(
        400,
        f"{where} is of type {block.type!r}, which this server does not read there; it reads text so far",
        param=where,
        code="unsupported_content",
    )
