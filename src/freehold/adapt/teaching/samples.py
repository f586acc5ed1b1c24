"""A user's examples: conversations whose assistant turns are to be learnt.

    {"prompt": "Three chairs, Monday, 2 p.m.", "completion": "MO14:chair*3"}
    {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}

Knows texts; knows no tokenizer. Each assistant turn is learnt after the prompt that the server would build
from the turns before it: a template that shortens old turns is applied as it is when serving.
Path: finetune -> read_samples -> ChatSample.turns -> rows.AnswerRows
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.adapt.lines import DataLines, check_keys, messages_of, read_lines, text_of
from freehold.errors import UsageError
from freehold.types import Message

EXAMPLE = '{"prompt": "...", "completion": "..."}'
_KEYS = ("prompt", "completion", "messages")


@dataclass(frozen=True, slots=True)
class ChatSample:
    """A conversation that ends with the assistant's message."""

    line: int
    messages: tuple[Message, ...]

    @property
    def key(self) -> str:
        """Equal keys are the same conversation."""
        return json.dumps([[m.role, m.content] for m in self.messages])

    @property
    def turns(self) -> list[tuple[tuple[Message, ...], str]]:
        """Return each assistant turn with the messages before it."""
        return [(self.messages[:i], m.content) for i, m in enumerate(self.messages) if m.role == "assistant"]


def read_samples(path: Path) -> DataLines[ChatSample]:
    """Read a file of examples. Raises UsageError naming every bad line, repeated examples too."""
    return read_lines(path, _sample, EXAMPLE, same=lambda s: s.key)


def _sample(number: int, table: Mapping[str, Any]) -> ChatSample:
    check_keys(table, _KEYS)
    if "messages" not in table:
        texts = text_of(table, "prompt"), text_of(table, "completion")
        return ChatSample(number, (Message("user", texts[0]), Message("assistant", texts[1])))
    if len(table) > 1:
        raise UsageError("a line has either messages, or prompt and completion")
    messages = messages_of(table["messages"], last="assistant")
    if messages[0].role == "assistant":
        raise UsageError("the first message is the assistant's: there is nothing that it answers")
    return ChatSample(number, messages)
