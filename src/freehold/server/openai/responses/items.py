"""From the items of a request to the turns of a chat.

A call joins the assistant's turn before it, reasoning goes to the turn it led to, and a result finds the call it
answers. What the chat could not say is refused by name, with the item's place in the list.
Knows the API's items and Message; knows no request and no store. Path: response_job -> read_items -> messages
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.server.core.fields import MAX_WARNINGS
from freehold.server.core.limits import typed
from freehold.server.core.pictures import Pictures, parts_of
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.messages import Content, ContentPart, pieces_of, text_of
from freehold.server.openai.fields.offers import as_arguments
from freehold.server.openai.responses.sealed import opened
from freehold.serving import MAX_MESSAGES, MAX_TOOLS
from freehold.types import Message, SignedThinking, ToolCall

Id = Annotated[str, Meta(min_length=1, max_length=256)]
# What an item may hold besides, that is its history and none of the chat.
_KNOWN = frozenset(
    ["type", "id", "status", "phase", "annotations", "logprobs", "encrypted_content", "caller"]
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
            raise Refused(
                400,
                f"no item answers the call {id[:60]!r}; expected an output of each",
                param="input",
                code="invalid_value",
            )
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
            raise Refused(
                400,
                f"{at} is of type {str(kind)[:60]!r}; this server reads {known}",
                param=f"{at}.type",
                code="unsupported_item",
            )
        self._note_strangers(item, reader.struct)
        reader.read(self, typed(item, reader.struct, at), at)

    def message(self, item: MessageItem, at: str) -> None:
        role = "system" if item.role == "developer" else item.role
        pieces = pieces_of(item.content, f"{at}.content", self._pictures)
        content = text_of(pieces)
        if role == "system" and not self.messages:
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

    def output(self, item: OutputItem, at: str) -> None:
        name = self._names.get(item.call_id)
        if name is None:
            raise Refused(
                400,
                f"{at} answers the call {item.call_id[:60]!r}, which no item before it makes",
                param=f"{at}.call_id",
                code="invalid_value",
            )
        self._due.pop(item.call_id, None)
        pieces = pieces_of(item.output, f"{at}.output", self._pictures)
        message = Message("tool", text_of(pieces), tool_call_id=item.call_id, name=name)
        self._add(replace(message, parts=parts_of(pieces)))

    def _called(self, call: ToolCall, at: str) -> None:
        if call.id in self._names:
            raise Refused(
                400, f"{at} has the call_id {call.id[:60]!r} of an earlier call", param=f"{at}.call_id"
            )
        self._names[call.id] = call.name
        self._due[call.id] = None
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant" or self._thinking or self._signed:
            self._add(self._thought(Message("assistant", "")))
        if len(self._calls) == MAX_TOOLS:
            raise Refused(
                400, f"{at} is call {MAX_TOOLS + 1} of a turn; expected at most {MAX_TOOLS}", param=at
            )
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

    def _note_strangers(self, item: dict[str, Any], kind: type[Struct]) -> None:
        for name in item.keys() - set(kind.__struct_fields__) - _KNOWN:
            if item[name] is not None and len(self.warnings) < MAX_WARNINGS:
                self.warnings[f"field {name[:60]!r} of items was ignored"] = None


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
}


def read_items(
    items: Sequence[Any],
    instructions: str | None,
    known: int,
    warnings: list[str],
    pictures: Pictures,
) -> tuple[Message, ...]:
    """Return the chat. `known`: this many of `items`, at the start, come from earlier responses."""
    if len(items) > MAX_MESSAGES:
        raise Refused(
            400, f"the chat has {len(items):,} items; expected at most {MAX_MESSAGES:,}", param="input"
        )
    if not items:
        raise Refused(400, "input is empty; expected a text, or items", param="input")
    reading = Reading(instructions, pictures)
    for i, item in enumerate(items):
        reading.add(item, f"input[{i - known}]" if i >= known else "previous_response_id")
    warnings += reading.warnings
    return reading.chat()
