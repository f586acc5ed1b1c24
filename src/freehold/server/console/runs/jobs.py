"""A chat's branch as a job: its messages, with files before their text, and what its settings ask for.

Knows a chat and a job's fields; knows no run and no disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.chats.types import ChatSettings, SavedChat, SavedMessage
from freehold.server.core.fields import Count, Pictures, Share, parts_of
from freehold.server.core.limits import typed
from freehold.server.core.problems import Refused
from freehold.serving import Job
from freehold.types import MAX_SEED, Image, Message, Tool, ToolCall

SEED_BITS = 32  # of a seed that is drawn here: a page's numbers have 53
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingFields(Struct, kw_only=True, omit_defaults=True):
    """The sampling that a chat may ask for; the engine checks what the bounds here leave open."""

    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Count | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    penalty_window: Count | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None


@dataclass(slots=True)
class RunPlan:
    """What one run computes: of which model, from which messages, by which settings."""

    model: str
    messages: list[Message]
    settings: ChatSettings
    sampling: dict[str, Any]
    pictures: Pictures = field(default_factory=Pictures)
    extends: Message | None = None  # an answer that was cut off, which the next one continues

    @classmethod
    def of(cls, chat: SavedChat, leaf: str, model: str, settings: ChatSettings) -> RunPlan:
        """Plan the answer to the branch that ends at `leaf`. Raises Refused."""
        sampling = sampling_of(settings)
        sampling.setdefault("seed", secrets.randbits(SEED_BITS))
        if settings.max_tokens is not None and settings.max_tokens < 1:
            raise Refused(400, f"max_tokens is {settings.max_tokens}; expected 1 or more", param="max_tokens")
        pictures = Pictures()
        messages = messages_of(chat.branch(leaf), settings.system, pictures)
        return cls(model, messages, settings, sampling, pictures)

    def job(self, tenant: str, tools: Sequence[Tool] = ()) -> Job:
        """Return the job of the next answer."""
        begun = (self.extends,) if self.extends is not None else ()
        return Job(
            messages=(*self.messages, *begun),
            turn="continue" if begun else "new",
            max_tokens=self.settings.max_tokens,
            sampling=self.sampling,
            think=self.settings.think,
            overflow=self.settings.overflow,
            tools=tuple(tools),
            tenant=tenant,
        )


def sampling_of(settings: ChatSettings) -> dict[str, Any]:
    """Return the fields of SamplingParams that settings state. Raises Refused for wrong or unknown ones."""
    unknown = sorted(settings.sampling.keys() - set(SamplingFields.__struct_fields__))
    if unknown:
        names = ", ".join(SamplingFields.__struct_fields__)
        message = f"settings.sampling has the unknown field {unknown[0][:60]!r}; known are {names}"
        raise Refused(400, message, param="settings.sampling")
    fields = typed(settings.sampling, SamplingFields, "settings.sampling")
    return {name: v for name, v in msgspec.to_builtins(fields).items() if v is not None}


def messages_of(branch: Sequence[SavedMessage], system: str, pictures: Pictures) -> list[Message]:
    """Return a branch as a chat."""
    names = {call.id: call.name for message in branch for call in message.calls}
    begin = [Message("system", system)] if system else []
    return [*begin, *(_message(m, i, names, pictures) for i, m in enumerate(branch))]


def _message(m: SavedMessage, place: int, names: dict[str, str], pictures: Pictures) -> Message:
    if m.role == "assistant":
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in m.calls)
        return Message("assistant", m.content, m.thinking, calls)
    if m.role == "tool":
        failed = m.outcome in ("denied", "failed")
        return Message("tool", m.content, tool_call_id=m.call, name=names.get(m.call, ""), failed=failed)
    text = with_files(m)
    seen: list[str | Image] = [
        pictures.at_url(_within(url), f"messages[{place}].images[{i}]", "image")
        for i, url in enumerate(m.images)
    ]
    return Message(m.role, text, parts=parts_of([*seen, text]))


def _within(url: str) -> str:
    """Refuse the address of a picture: an engine would fetch what no page shows, at the wish of who wrote the chat."""
    if not url.startswith("data:"):
        raise Refused(400, f"the picture {url[:80]!r} is an address; a chat has data: URLs", param="images")
    return url


def with_files(m: SavedMessage) -> str:
    """Return a message's text with its files before it, as the terminal puts them."""
    parts = [f"File {file.name}:\n```\n{file.text.rstrip()}\n```\n\n" for file in m.files]
    return "".join([*parts, m.content])
