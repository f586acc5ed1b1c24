"""The fields of POST /v1/chat/completions and of its messages, and the job that they make; OpenAI's unknown fields.

Knows the wire's fields and Job's; knows no route and no model. docs/reference/http.md is made from these structs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from heapq import nsmallest
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.base.serving import MAX_LOGPROBS, MAX_MESSAGES, Job
from freehold.base.types import Message, Overflow, Part, Turn
from freehold.serve.http.core.fields import (
    EFFORTS,
    MAX_WARNINGS,
    Count,
    Pictures,
    doc,
    ignored,
    parts_of,
    unknown,
)
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.fields.generating import Generating, StreamOptions, shared_job
from freehold.serve.http.openai.fields.offers import Choice, Offered, Offers, Uses, called, offered


class ChatRequest(Generating, kw_only=True):
    """POST /v1/chat/completions: a chat to answer."""

    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)],
        Meta(
            description="The chat: text, or parts of type text and, for vision models, image_url: a data: URL or, for "
            "hosted models only, an address; for models that accept audio, input_audio: data in base64 and format."
        ),
    ]
    max_completion_tokens: Annotated[
        Count | None,
        doc("OpenAI's newer name for max_tokens, which it overrides. Default: the rest of the context."),
    ] = None
    logprobs: Annotated[bool | None, doc("Return each token's log-probability.")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        doc("Also return those of this many alternatives."),
    ] = None
    think: Annotated[bool | None, doc("Turn reasoning on or off, if the model has a switch.")] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        Meta(
            description="`none` turns thinking off; otherwise low, medium or high, if the model's template has "
            "levels. If it has none, there is a warning."
        ),
    ] = None
    thinking_token_budget: Annotated[
        Count | None,
        doc("As in vLLM: maximum tokens of reasoning; then the answer begins."),
    ] = None
    chat_template_kwargs: Annotated[
        TemplateOptions | None, doc("As in vLLM: `enable_thinking`, the same as think.")
    ] = None
    add_generation_prompt: Annotated[
        bool | None,
        Meta(
            description="As in vLLM: false leaves out the template's start of an answer. Default true, or false "
            "with continue_final_message."
        ),
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Meta(
            description="As in vLLM: the answer continues the last message, an assistant's, and contains only the "
            "continuation. Default false: a new answer, as in OpenAI's API."
        ),
    ] = None
    tools: Annotated[
        Offers | None,
        doc("Functions or free-form tools that the model may call; the client runs them."),
    ] = None
    tool_choice: Annotated[
        Choice | None,
        Meta(
            description="`auto` (default), `none`, `required`, one tool that must be called, or `allowed_tools`."
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, doc("False: an answer ends with its first call. Default true.")
    ] = None
    overflow: Annotated[
        Overflow | None,
        Meta(
            description="If a chat is longer than the context: `error` (default), or `drop-oldest`, which the "
            "receipt reports."
        ),
    ] = None


def chat_job(
    r: ChatRequest, tenant: str, client: str, warnings: list[str], pictures: Pictures
) -> tuple[Job, Offered]:
    """Return the job of a chat request, and what it offers."""
    tools = offered(r.tools or (), r.tool_choice, warnings)
    top = None
    if r.logprobs:
        top = r.top_logprobs or 0
    elif r.top_logprobs:
        raise Refused(400, "top_logprobs needs logprobs true", param="top_logprobs")
    limited = "max_tokens" if r.max_completion_tokens is None else "max_completion_tokens"
    limit = getattr(r, limited)
    if limit == 0:
        raise Refused(400, f"{limited} is 0; expected 1 or more", param=limited)
    messages = read_messages(r.messages, pictures)
    job = shared_job(
        r,
        tenant,
        client=client,
        messages=messages,
        max_tokens=limit,
        logprobs=top,
        think=_think(r),
        think_tokens=r.thinking_token_budget,
        effort=EFFORTS.get(r.reasoning_effort or ""),
        tools=tools.tools,
        tool_choice=tools.choice,
        tool_name=tools.name,
        parallel_tool_calls=r.parallel_tool_calls is not False,
        overflow=r.overflow or "error",
        turn=turn_of(r.add_generation_prompt, r.continue_final_message),
    )
    return job, tools


def _think(r: ChatRequest) -> bool | None:
    if r.think is not None:
        return r.think
    options = r.chat_template_kwargs
    if options is not None and (options.enable_thinking is not None or options.thinking is not None):
        return options.enable_thinking if options.enable_thinking is not None else options.thinking
    return False if r.reasoning_effort == "none" else None


# --- the messages of OpenAI's chats: their fields, and how they become the turns of a job -----------


class ImageAddress(Struct, kw_only=True):
    """A picture: a `data:` URL, or an address that a provider fetches and this server never does."""

    url: str
    detail: Annotated[str, Meta(max_length=16)] | None = None


class InputAudio(Struct, kw_only=True):
    """A sound: the bytes of its file in base64. `format` is only shown: what the bytes begin with decides."""

    data: str
    format: Annotated[str, Meta(max_length=32)] | None = None


class ContentPart(Struct, kw_only=True):
    """A piece of a message's content: text, a picture, a sound, or an assistant's refusal."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageAddress | None = None
    input_audio: InputAudio | None = None
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
    """Return message number `i`; refuse parts that are no text, picture or sound, and what says nothing."""
    if m.content is None and m.role in _SPEAKERS:
        where = f"messages[{i}].content"
        message = f"{where} is missing or null; expected the text of the {m.role} message"
        raise Refused(400, message, param=where, code="missing_required_parameter")
    content = m.content or m.refusal or ""
    pieces = () if isinstance(content, str) else pieces_of(content, f"messages[{i}].content", pictures)
    return Message(
        "system" if m.role == "developer" else m.role,
        content if isinstance(content, str) else text_of(pieces),
        m.reasoning_content or m.reasoning or "",
        called(m.tool_calls, f"messages[{i}].tool_calls") if m.tool_calls else (),
        m.tool_call_id or "",
        m.name or "",
        parts_of(pieces),
    )


def pieces_of(content: Content, at: str, pictures: Pictures) -> list[Part]:
    """Return the texts, pictures and sounds of a message; refuse parts that are none of these."""
    if isinstance(content, str):
        return [content]
    return [_piece(part, f"{at}[{i}]", pictures) for i, part in enumerate(content)]


def text_of(pieces: Sequence[Part]) -> str:
    """Return the texts among them, joined."""
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _piece(part: ContentPart, where: str, pictures: Pictures) -> Part:
    if part.type == "input_audio" and part.input_audio is not None:
        return pictures.sound(part.input_audio.data, part.input_audio.format or "", where)
    if part.type in ("image_url", "input_image") and part.image_url is not None:
        address = part.image_url
        if isinstance(address, str):
            address = ImageAddress(url=address, detail=part.detail)
        return pictures.at_url(address.url, where, part.type, address.detail or "")
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
        raise Refused(
            400,
            f"{where} is of type {part.type[:40]!r}; this server reads text, image_url and input_audio",
            param=where,
            code="unsupported_content",
        )
    return text


# --- fields that this server does not have: refused where they would change the answer, or warned of

# Fields we do not honour yet and that change an answer -> values under which they change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(["functions", "documents", "bad_words", "stop_token_ids", "logits_processors"], ([],)),
    "function_call": ("none", "auto"),
    **dict.fromkeys(["structural_tag", "audio", "web_search_options", "prefill"], ()),
    "modalities": (["text"],),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "min_tokens": (0,),
    **dict.fromkeys(["allowed_token_ids", "prompt_logprobs", "prompt_embeds", "chat_template", "lora"], ()),
    **dict.fromkeys(["include_stop_str_in_output", "continue_final_message"], (False,)),
    **dict.fromkeys(["return_tokens_as_token_ids", "return_prompt_text", "echo"], (False,)),
    **dict.fromkeys(
        ["add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens"], (True,)
    ),
    **dict.fromkeys(["truncate_prompt_tokens", "repetition_detection"], ()),
    **dict.fromkeys(["mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range"], (0, 0.0)),
    "suffix": ("",),
    "add_special_tokens": (True,),
}
# OpenAI's own, not used here -> values that ask for nothing.
_UNUSED: dict[str, tuple[object, ...]] = {
    "store": (False,),
    "metadata": ({},),
    "verbosity": ("medium",),
    "prediction": (),
}
_INSTEAD = {"functions": "tools", "function_call": "tool_choice"}  # OpenAI's older names
_NEUTRAL_IN_CHAT = {**_NEUTRAL, "add_special_tokens": (False,)}  # there the template writes them
_ALIASES = {
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "penalty_window",
    "n_predict": "max_tokens",
}


def unknown_fields(raw: dict[str, Any], kind: type[Struct]) -> list[str]:
    """Return a warning for each field that means nothing here; refuse those that would change the answer."""
    neutral = _NEUTRAL_IN_CHAT if kind is ChatRequest else _NEUTRAL
    warnings = []
    options = raw.get("stream_options") if issubclass(kind, Generating) else None
    if options and not raw.get("stream"):
        warnings.append("field 'stream_options' was ignored: stream is not true")
    elif options:
        lost = nsmallest(MAX_WARNINGS, options.keys() - set(StreamOptions.__struct_fields__))
        warnings += [ignored(name, "stream_options") for name in lost]
    for name in sorted(raw.keys() - _fields_of(kind)):
        value = raw[name]
        if name in neutral:
            if value is not None and value not in neutral[name]:
                instead = f"; send {_INSTEAD[name]}" if name in _INSTEAD else ""
                message = f"{name[:60]} is not supported by this server{instead or ' yet'}"
                raise Refused(400, message, param=name, code="unsupported_parameter")
        elif name in _UNUSED:
            if value is not None and value not in _UNUSED[name]:
                warnings.append(f"field {name!r} was ignored: this server does not use it")
        elif value is not None and len(warnings) < MAX_WARNINGS:  # each looks for the nearest known name
            warnings.append(unknown(name, kind.__struct_fields__, _ALIASES.get(name, "")))
    return warnings[:MAX_WARNINGS]


@cache
def _fields_of(kind: type[Struct]) -> frozenset[str]:
    return frozenset(kind.__struct_fields__)


# Fields of a message that are part of its prompt elsewhere.
_IN_MESSAGE = ("function_call", "audio")
_MESSAGE_FIELDS = frozenset(ChatMessage.__struct_fields__)


def unknown_message_fields(messages: list[dict[str, Any]]) -> list[str]:
    """Do the same for the fields of messages, which must be of the right type already."""
    warnings: dict[str, None] = {}
    for i, message in enumerate(messages):
        if message.keys() <= _MESSAGE_FIELDS:
            continue
        for name in message.keys() - _MESSAGE_FIELDS:
            if not message[name]:
                continue
            if name in _IN_MESSAGE:
                where = f"messages[{i}].{name}"
                why = f"{where} is not supported by this server yet"
                raise Refused(400, why, param=where, code="unsupported_parameter")
            if len(warnings) < MAX_WARNINGS:
                warnings[ignored(name, "messages")] = None
    return list(warnings)
