"""A chat's branch as a job: its messages, with files before their text, and what its settings ask for.

Knows a chat, its pictures and a job's fields; knows no run.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.chats.pictures import ChatPictures, is_reference
from freehold.chats.types import UNSEEN_PICTURES, ChatSettings, SavedChat, SavedMessage, ToolState
from freehold.errors import StoreError, UsageError
from freehold.server.core.fields import Count, Pictures, Share, parts_of
from freehold.server.core.limits import typed
from freehold.server.core.problems import Refused
from freehold.server.core.receipt import Tally
from freehold.serving import Job, ModelInfo
from freehold.types import MAX_SEED, Image, Message, Tool, ToolCall
from freehold.worker.wire import MAX_PICTURES_BYTES

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
    def of(
        cls, chat: SavedChat, leaf: str, model: str, settings: ChatSettings, stored: ChatPictures
    ) -> RunPlan:
        """Plan the answer to the branch that ends at `leaf`, whose pictures are read from the disk. Raises Refused."""
        sampling = sampling_of(settings)
        sampling.setdefault("seed", secrets.randbits(SEED_BITS))
        if settings.max_tokens is not None and settings.max_tokens < 1:
            raise Refused(400, f"max_tokens is {settings.max_tokens}; expected 1 or more", param="max_tokens")
        pictures = BranchPictures(stored)
        messages = messages_of(chat.branch(leaf), settings.system, pictures)
        return cls(model, messages, settings, sampling, pictures.sent)

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


class BranchPictures:
    """Reads the pictures of a branch from the disk, up to what one job may have."""

    def __init__(self, stored: ChatPictures) -> None:
        self.sent = Pictures()  # the user's: no answer is made without them, while a tool's may be left out
        self._stored = stored
        self._urls: dict[str, str] = {}  # by reference
        self._bytes = 0

    def of_user(self, name: str, where: str) -> Image:
        """Return a picture that the user sent; `name` is what the message has of it. Raises Refused."""
        try:
            return self.sent.at_url(self._url(name), where, "image")
        except StoreError as e:
            raise Refused(400, f"{where}: {e.message}; {e.hint}", param="images", code="no_picture") from None

    def of_tool(self, name: str, where: str) -> Image | None:
        """Return a picture of a tool's result, None for one that is lost. Raises Refused."""
        try:
            return Image.at(self._url(name), place=where)
        except (StoreError, UsageError):
            return None

    def _url(self, name: str) -> str:
        """Return a picture as a data: URL. Raises Refused, and StoreError for one that is lost."""
        stored = is_reference(name)
        if not stored and not name.startswith("data:"):  # an engine would fetch what no page shows
            message = f"the picture {name[:80]!r} is an address; a chat has references and data: URLs"
            raise Refused(400, message, param="images")
        self._bytes += self._stored.size(name) if stored else len(name) * 3 // 4
        if self._bytes > MAX_PICTURES_BYTES:
            most = f"more than {MAX_PICTURES_BYTES:,} bytes, the limit of a request"
            hint = "delete a message with pictures, or start another chat"
            message = f"the pictures of this chat have {most}; {hint}"
            raise Refused(400, message, param="images", code="pictures_too_large")
        if stored and name not in self._urls:
            self._urls[name] = self._stored.url(name)
        return self._urls.get(name, name)


def messages_of(branch: Sequence[SavedMessage], system: str, pictures: BranchPictures) -> list[Message]:
    """Return a branch as a chat."""
    names = {call.id: call.name for message in branch for call in message.calls}
    begin = [Message("system", system)] if system else []
    return [*begin, *(_message(m, i, names, pictures) for i, m in enumerate(branch))]


def _message(m: SavedMessage, place: int, names: dict[str, str], pictures: BranchPictures) -> Message:
    if m.role == "assistant":
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in m.calls)
        return Message("assistant", m.content, m.thinking, calls)
    where = f"messages[{place}].images"
    if m.role == "tool":
        seen = [pictures.of_tool(name, f"{where}[{i}]") for i, name in enumerate(m.images)]
        kept = [image for image in seen if image is not None]
        return tool_message(m.content, m.call, names.get(m.call, ""), m.outcome, kept)
    text = with_files(m)
    sent = [pictures.of_user(name, f"{where}[{i}]") for i, name in enumerate(m.images)]
    return Message(m.role, text, parts=parts_of([*sent, text]))


def tool_message(
    content: str, call: str, name: str, outcome: ToolState | None, images: Sequence[Image]
) -> Message:
    """Return the result of a tool, its pictures behind the text that names them."""
    return Message(
        "tool",
        content,
        tool_call_id=call,
        name=name,
        parts=parts_of([content, *images]),
        failed=outcome in ("denied", "failed"),
    )


def shown_to(job: Job, info: ModelInfo, tally: Tally) -> Job:
    """Leave the pictures of tools out of a job for a model that reads text alone: the user did not send them."""
    if info.can_see or not any(m.role == "tool" and m.parts for m in job.messages or ()):
        return job
    messages = [
        replace(m, content=m.content + UNSEEN_PICTURES, parts=()) if m.role == "tool" and m.parts else m
        for m in job.messages or ()
    ]
    return replace(job, messages=tuple(messages))


def with_files(m: SavedMessage) -> str:
    """Return a message's text with its files before it, as the terminal puts them."""
    parts = [f"File {file.name}:\n```\n{file.text.rstrip()}\n```\n\n" for file in m.files]
    return "".join([*parts, m.content])
