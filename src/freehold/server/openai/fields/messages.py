"""The messages of OpenAI's chats: their fields, and how they become the turns of a job.

Knows roles, content parts and the order of calls and results; knows no sampling and no route.
Path: ChatRequest.messages -> read_messages -> Message
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from freehold.server.core.pictures import Pictures, parts_of
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.offers import Uses, called
from freehold.types import Image, Message, Turn


class ImageAddress(Struct, kw_only=True):
    """A picture: a `data:` URL, or an address that a provider fetches and this server never does."""

    url: str
    detail: Annotated[str, Meta(max_length=16)] | None = None


class ContentPart(Struct, kw_only=True):
    """A piece of a message's content: text, a picture, or an assistant's refusal."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageAddress | None = None
    detail: Annotated[str, Meta(max_length=16)] | None = None


Content = str | Annotated[list[ContentPart], Meta(max_length=1024)]


class ChatMessage(Struct, kw_only=True):
    """One turn. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Uses | None = None
    tool_call_id: Annotated[str, Meta(max_length=512)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None


_SPEAKERS = ("system", "developer", "user")  # of whom content is all there is


class TemplateOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's options for the chat template."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


def turn_of(opens: bool | None, continues: bool | None) -> Turn:
    """Return how a prompt ends by vLLM's two fields; 400 for both."""
    if continues and opens:
        raise Refused(
            400,
            "continue_final_message and add_generation_prompt are both true; expected at most one of them",
            param="continue_final_message",
        )
    return "continue" if continues else "none" if opens is False else "new"


def read_messages(turns: Sequence[ChatMessage], pictures: Pictures) -> tuple[Message, ...]:
    """Return the turns of a chat; 400 for calls and results that do not belong together."""
    messages = tuple(read_message(m, i, pictures) for i, m in enumerate(turns))
    _check_order(messages)
    return messages


def _check_order(messages: Sequence[Message]) -> None:
    """Refuse (400) what OpenAI refuses: a result for no call of the turn before it, and a call without a result.

    Ids may be left out, as many clients of other servers do: a result without one is the next call's.
    """
    open_calls: set[str] = set()  # ids of the calls that results may answer here
    due: list[str] = []  # of those, what has no result yet
    for i, message in enumerate(messages):
        if message.role != "tool":
            _check_answered(due, i)
            due = [call.id for call in message.tool_calls]
            open_calls = {*due}
        elif not open_calls or (
            message.tool_call_id and message.tool_call_id not in open_calls and "" not in open_calls
        ):
            raise Refused(
                400,
                f"messages[{i}] answers the call {message.tool_call_id[:60]!r}, which the turn before it does not make",
                param=f"messages[{i}].tool_call_id",
            )
        elif message.tool_call_id in due:
            due.remove(message.tool_call_id)
        elif message.tool_call_id not in open_calls:
            del due[:1]
    _check_answered(due, len(messages))


def _check_answered(due: Sequence[str], i: int) -> None:
    if due:
        raise Refused(
            400,
            f"the call {due[0][:60]!r} has no result before messages[{i}]; expected a tool message for each",
            param=f"messages[{i}].role",
        )


def read_message(m: ChatMessage, i: int, pictures: Pictures) -> Message:
    """Return message number `i`; refuse parts that are neither text nor a picture, and what says nothing."""
    if m.content is None and m.role in _SPEAKERS:
        where = f"messages[{i}].content"
        raise Refused(
            400,
            f"{where} is missing or null; expected the text of the {m.role} message",
            param=where,
            code="missing_required_parameter",
        )
    pieces = pieces_of(m.content or m.refusal or "", f"messages[{i}].content", pictures)
    return Message(
        "system" if m.role == "developer" else m.role,
        text_of(pieces),
        m.reasoning_content or m.reasoning or "",
        called(m.tool_calls or (), f"messages[{i}].tool_calls"),
        m.tool_call_id or "",
        m.name or "",
        parts_of(pieces),
    )


def pieces_of(content: Content, at: str, pictures: Pictures) -> list[str | Image]:
    """Return the texts and pictures of a message; refuse parts that are neither."""
    if isinstance(content, str):
        return [content]
    return [_piece(part, f"{at}[{i}]", pictures) for i, part in enumerate(content)]


def text_of(pieces: Sequence[str | Image]) -> str:
    """Return the texts among them, joined."""
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _piece(part: ContentPart, where: str, pictures: Pictures) -> str | Image:
    if part.type in ("image_url", "input_image") and part.image_url is not None:
        address = part.image_url
        if isinstance(address, str):
            address = ImageAddress(url=address, detail=part.detail)
        return pictures.at_url(address.url, where, part.type, address.detail or "")
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
        raise Refused(
            400,
            f"{where} is of type {part.type[:40]!r}; this server reads text and pictures with an image_url",
            param=where,
            code="unsupported_content",
        )
    return text
