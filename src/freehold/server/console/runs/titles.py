"""Titles of chats: the model that answered says in a few words what a chat is about, on idle capacity.

Only engines that run here already are asked: a title is worth neither money nor a load. What a model says is a title
where it is short; otherwise the chat keeps its first line. Knows a chat and a job; knows no page.
Path: ChatRun.concluded -> titling -> TitleRun -> Computing -> ChatWriter.set
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from freehold.chats.types import ChatChange, ChatFinish, SavedChat
from freehold.errors import FreeholdError
from freehold.server.console.runs.run import ConsoleRun
from freehold.server.core.computing import Computing
from freehold.serving import Begin, Job, ModelHandle
from freehold.types import Chunk, Message

MOST_ANSWERS = 2  # after which a chat without a title keeps its first line
MOST_CHARS, MOST_WORDS = 60, 8  # of a title; a model that says more has not understood
SHOWN = 800  # characters of a message that the model reads
TIMEOUT_S = 120.0  # on a machine that is never idle there is no title
ASK = "Say in two to six words what this chat is about. Write these words only, no sentence.\n\n"


class TitleRun(ConsoleRun):
    """Asks the model of a run for a title of its chat, behind all other work."""

    def __init__(self, run: ConsoleRun, prompt: str) -> None:
        super().__init__(run, run.folder, run.chat, run.model)
        self._prompt, self._text = prompt, ""

    @property
    def asking(self) -> bool:
        return True  # no drain waits for a title

    async def compute(self) -> None:
        self.work.model = self.model
        job = Job(
            messages=(Message("user", self._prompt),),
            max_tokens=24,
            sampling={"temperature": 0.0},
            think=False,
            priority="batch",
            tenant=self.tenant,
            timeout_s=TIMEOUT_S,
        )
        await Computing(self, [job], keep_alive=None, warnings=()).run(self.model, self._opened, self._take)

    async def _opened(self, served: ModelHandle, job: int, begin: Begin) -> None:
        pass

    async def _take(self, job: int, chunks: list[tuple[int, Chunk]]) -> None:
        self._text += "".join(chunk.text for _, chunk in chunks)

    async def concluded(self, finish: ChatFinish, error: dict[str, Any] | None) -> None:
        if error is None and (title := cleaned(self._text)):
            with suppress(FreeholdError):  # a chat that was deleted, or a full disk
                await asyncio.to_thread(self._write, title)

    def _write(self, title: str) -> None:
        if not self.folder.read(self.chat).card.named:  # its user may have named it meanwhile
            with self.folder.writer(self.chat) as writer:
                writer.set(ChatChange(title=title))


async def titling(run: ConsoleRun) -> TitleRun | None:
    """Begin to ask for a title; None where the chat needs none, or its model is not an engine in memory."""
    loaded = {each.name for each in run.server.models.loaded()}
    if not run.server.titles or run.server.health.stopping or run.model.partition("+")[0] not in loaded:
        return None
    with suppress(FreeholdError):
        if prompt := prompt_of(await asyncio.to_thread(run.folder.read, run.chat)):
            title = TitleRun(run, prompt)
            title.start()
            return title
    return None


def prompt_of(chat: SavedChat) -> str:
    """Return what to ask the model for a chat's title; "" for a chat that has one, or keeps its first line."""
    messages = [m for m in chat.branch() if m.role in ("user", "assistant") and m.content]
    answers = sum(m.role == "assistant" for m in messages)
    if chat.card.named or not 1 <= answers <= MOST_ANSWERS:
        return ""
    names = {"user": "User", "assistant": "Assistant"}
    return ASK + "\n\n".join(f"{names[m.role]}: {m.content[:SHOWN]}" for m in messages)


def cleaned(text: str) -> str:
    """Return the title in what a model said; "" where that is none."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    title = " ".join(line.removeprefix("Title:").split()).strip(" \"'*#`.:_“”«»")
    short = len(title) <= MOST_CHARS and len(title.split()) <= MOST_WORDS
    return title if short and any(char.isalnum() for char in title) else ""
