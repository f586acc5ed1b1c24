"""Fields of OpenAI's requests that this server does not have: refused where they would change the answer, or warned of.

Knows names of fields, also those of vLLM and llama.cpp; knows no value that is honoured.
Path: a route's handler -> unknown_fields, unknown_message_fields -> warnings
"""

from __future__ import annotations

from functools import cache
from heapq import nsmallest
from typing import Any

from msgspec import Struct

from freehold.server.core.fields import MAX_WARNINGS, ignored, unknown
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.chat import ChatRequest
from freehold.server.openai.fields.generating import Generating, StreamOptions
from freehold.server.openai.fields.messages import ChatMessage

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
                raise Refused(
                    400,
                    f"{name[:60]} is not supported by this server{instead or ' yet'}",
                    param=name,
                    code="unsupported_parameter",
                )
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
        for name in message.keys() - _MESSAGE_FIELDS:
            if not message[name]:
                continue
            if name in _IN_MESSAGE:
                where = f"messages[{i}].{name}"
                raise Refused(
                    400,
                    f"{where} is not supported by this server yet",
                    param=where,
                    code="unsupported_parameter",
                )
            if len(warnings) < MAX_WARNINGS:
                warnings[ignored(name, "messages")] = None
    return list(warnings)
