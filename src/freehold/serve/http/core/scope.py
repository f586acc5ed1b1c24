"""The models as one key sees them: those of its scope, each of which counts the tokens it answers with.

Every protocol asks through this view (HttpCall.models), so that none of them can skip a scope or a budget. A request
starts once all that it may cost is reserved, and gets fewer tokens where its key has no more.
Knows keys, accounts and the contract of serving.py; knows no protocol.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from typing import TypeVar

from freehold.base.catalog.entries import suggestions
from freehold.base.errors import ModelNotFound
from freehold.base.prompts import PromptSize, prompt_size
from freehold.base.serving import (
    CHUNK_TOKENS,
    SPEECH_TOKENS,
    DelegatingHandle,
    DelegatingTokenizer,
    EmbedJob,
    Job,
    LoadedInfo,
    ModelDirectory,
    ModelHandle,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
    SpeechSource,
    SpeechStream,
    StoredModel,
    Stream,
    TokenizerFace,
    Vectors,
    prefill_of,
)
from freehold.base.types import Chunk, Message, Turn
from freehold.serve.http.core.accounts import Accounts, Reserved
from freehold.serve.http.core.keys import Key

ROOM_WAIT_S = 10.0  # for requests in flight that end, and give back what they did not cost
# Of an answer whose request names no limit, at most, where the budget has not four times as many.
ANSWER_TOKENS = 8192
ENDS = 2  # tokens that a model writes around a text it embeds, at most
MANY = 500  # messages or texts; measuring as many takes a millisecond
MOST_NAME = 200  # characters of a name for which similar ones are looked for
W = TypeVar("W", Job, EmbedJob)
T = TypeVar("T")
Turns = Callable[[], AbstractAsyncContextManager[None]]


class NamingDirectory:
    """Models of which an unknown name is refused with the nearest ones.

    `turn`: the caller's at threads, which look names up; None where there is one caller.
    """

    def __init__(self, models: ModelDirectory, turn: Turns | None = None) -> None:
        self._models, self._turn = models, turn or nullcontext

    async def names(self) -> Sequence[StoredModel]:
        async with self._turn():
            return await self._models.names()

    def loaded(self) -> Sequence[LoadedInfo]:
        return self._models.loaded()

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        return await self._found(name, lambda: self._models.use(name, keep_alive))

    async def name_of(self, name: str) -> str:
        return await self._found(name, lambda: self._in_turn(lambda: self._models.name_of(name)))

    async def stamp_of(self, name: str) -> str:
        return await self._found(name, lambda: self._in_turn(lambda: self._models.stamp_of(name)))

    def _check(self, name: str) -> None:
        """Raise ModelNotFound for a name that may not be used."""

    async def _in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        async with self._turn():
            return await work()

    async def _found(self, name: str, finding: Callable[[], Awaitable[T]]) -> T:
        """Raise ModelNotFound with the nearest names that may be used, or the catalogue's."""
        try:
            self._check(name)
            return await finding()
        except ModelNotFound as e:
            wanted = name[:MOST_NAME]
            names = [each.name for each in await self.names()]
            where, near = await self._in_turn(lambda: asyncio.to_thread(_nearest, wanted, names))
            if not near or wanted in near:
                raise
            raise ModelNotFound(f"{e.message}; nearest {where}: {' or '.join(near)}", e.hint) from e


def _nearest(wanted: str, names: list[str]) -> tuple[str, list[str]]:
    """Return where names like `wanted` are, and which."""
    near = get_close_matches(wanted, names, cutoff=0.5)
    return ("here", near) if near else ("in the catalogue", suggestions(wanted))


class ScopedDirectory(NamingDirectory):
    """What a key may ask. A model outside its scope does not exist for it."""

    def __init__(
        self, models: ModelDirectory, key: Key, accounts: Accounts, turn: Turns | None = None
    ) -> None:
        super().__init__(models, turn)
        self._key, self._accounts = key, accounts

    async def names(self) -> Sequence[StoredModel]:
        return [each for each in await super().names() if self._key.may_use(each.name)]

    def loaded(self) -> Sequence[LoadedInfo]:
        return [each for each in super().loaded() if self._key.may_use(each.name)]

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        return MeteredHandle(await super().use(name, keep_alive), self._key, self._accounts)

    def _check(self, name: str) -> None:
        if not self._key.may_use(name):
            raise ModelNotFound(
                f"there is no model {name[:200]!r} for the key {self._key.name}",
                "GET /v1/models lists what this key may use",
            )


class MeteredHandle(DelegatingHandle):
    """A model whose tokens are booked on a key's account."""

    def __init__(self, handle: ModelHandle, key: Key, accounts: Accounts) -> None:
        super().__init__(handle)
        self._key, self._accounts = key, accounts

    @property
    def tokenizer(self) -> TokenizerFace | None:
        inner = self.handle.tokenizer
        return None if inner is None else MeteredTokenizer(inner, self._key, self._accounts)

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        bounded, reserved = await self._reserve(job, self._bounded)
        try:
            stream = await self.handle.start(bounded, keep_alive)
        except BaseException:
            reserved.close()
            raise
        begin = stream.begin
        if begin.prompt_ids:  # they are counted now
            reserved.keep(min(len(begin.prompt_ids) + job.n * begin.max_tokens, reserved.tokens))
        return MeteredStream(stream, reserved, job.max_tokens, bounded.max_tokens)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        def spend(tokens: int) -> None:
            reserved.spend(tokens)
            if computed is not None:
                computed(tokens)

        job, reserved = await self._reserve(job, self._sized)
        try:
            return await self.handle.embed(job, keep_alive, spend)
        finally:
            reserved.close()

    async def _reserve(
        self, work: W, bounded: Callable[[W, int], Awaitable[tuple[W, int]]]
    ) -> tuple[W, Reserved]:
        """Return the work as the budget allows it, and its reservation, waiting a while for requests in flight."""
        accounts, key, tokens = self._accounts, self._key, 0
        if not key.tokens:
            return work, Reserved(accounts, key.name, 0)
        try:
            async with asyncio.timeout(ROOM_WAIT_S):
                while True:
                    job, tokens = await bounded(work, accounts.left(key))
                    if (reserved := accounts.reserve(key, tokens)) is not None:
                        return job, reserved
                    await accounts.given_back(key)
        except TimeoutError:
            raise accounts.in_use(key, tokens) from None

    async def _bounded(self, job: Job, left: int) -> tuple[Job, int]:
        """Return the job with a limit that `left` tokens cover, and the most that it costs then."""
        context = self.handle.info.context  # 0: an adopted engine does not say
        if job.max_tokens is None:  # leaves the key's other requests something
            wanted = max(left // 4 if context else 0, ANSWER_TOKENS)
        else:
            wanted = job.max_tokens
        wanted = min(wanted, context or wanted)
        prompt = (await _size(job)).most
        if prompt + job.n * wanted > left:
            prompt = await self.handle.count(job)
            least = prompt + min(job.n, job.n * wanted)
            if least > left:
                raise self._accounts.too_little(
                    self._key, f"has {left:,} tokens left today, and this request costs {least:,} at least"
                )
            wanted = min(wanted, (left - prompt) // job.n)
        limit = None if job.max_tokens is None and wanted == context else wanted
        return replace(job, max_tokens=limit), prompt + job.n * wanted

    async def _sized(self, job: EmbedJob, left: int) -> tuple[EmbedJob, int]:
        """Return the job, and the most that it costs."""
        most, tokenizer = (await _size(job)).most, self.handle.tokenizer
        if most > left and tokenizer is not None:
            counts = [
                len(await tokenizer.tokenize(t, client=job.client) if isinstance(t, str) else t)
                for t in job.texts
            ]
            most = sum(counts) + ENDS * len(counts)
        if most > left:
            raise self._accounts.too_little(
                self._key, f"has {left:,} tokens left today, and these texts may cost {most:,}"
            )
        return job, most

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> SpeechStream:
        if self._key.tokens:
            self._accounts.left(self._key)  # before the work of opening, after which its length is known
        stream = await self.handle.hear(job, recording, keep_alive)
        if not self._key.tokens:
            return MeteredSpeech(stream, Reserved(self._accounts, self._key.name, 0))
        try:
            return MeteredSpeech(stream, await self._reserve_speech(stream.facts))
        except BaseException:
            await stream.aclose()
            raise

    async def _reserve_speech(self, facts: SpeechFacts) -> Reserved:
        """Reserve what a recording costs at most, waiting a while for requests in flight."""
        accounts, key = self._accounts, self._key
        tokens = speech_tokens_of(facts.speech_s) + CHUNK_TOKENS * facts.chunks
        try:
            async with asyncio.timeout(ROOM_WAIT_S):
                while (left := accounts.left(key)) >= tokens:
                    if (reserved := accounts.reserve(key, tokens)) is not None:
                        return reserved
                    await accounts.given_back(key)
        except TimeoutError:
            raise accounts.in_use(key, tokens) from None
        raise accounts.too_little(
            key,
            f"has {left:,} tokens left today, and this recording may cost {tokens:,}: {SPEECH_TOKENS} for each second "
            f"of speech, and its text",
        )

    async def count(self, job: Job) -> int:
        with self._accounts.counting(self._key, chars_of(job.messages or ())):
            return await self.handle.count(job)


def speech_tokens_of(seconds: float) -> int:
    """Return what seconds of speech count for on a key's account."""
    return math.ceil(SPEECH_TOKENS * seconds)


class MeteredSpeech:
    """A transcript that books each part when it comes."""

    def __init__(self, stream: SpeechStream, reserved: Reserved) -> None:
        self._stream, self._reserved = stream, reserved
        self.facts = stream.facts

    def __aiter__(self) -> MeteredSpeech:
        return self

    async def __anext__(self) -> SpeechPart:
        part = await self._stream.__anext__()
        self._reserved.spend(speech_tokens_of(part.speech_s) + part.tokens)
        return part

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._reserved.close()


class MeteredTokenizer(DelegatingTokenizer):
    """A tokenizer whose use takes from a key's rate of counting."""

    def __init__(self, tokenizer: TokenizerFace, key: Key, accounts: Accounts) -> None:
        super().__init__(tokenizer)
        self._key, self._accounts = key, accounts

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        with self._accounts.counting(self._key, len(text)):
            return await self.inner.tokenize(text, special, client)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        with self._accounts.counting(self._key, len(ids)):
            return await self.inner.detokenize(ids, client)

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        with self._accounts.counting(self._key, chars_of(messages)):
            return await self.inner.render(messages, think, turn, client)


def chars_of(messages: Sequence[Message]) -> int:
    """Return how many characters a chat has."""
    return sum(
        len(m.content) + len(m.thinking) + sum(len(c.arguments) for c in m.tool_calls) for m in messages
    )


async def _size(work: Job | EmbedJob) -> PromptSize:
    """Measure a prompt, one of many texts beside the loop."""
    texts = work.texts if isinstance(work, EmbedJob) else work.messages or ()
    return prompt_size(work) if len(texts) <= MANY else await asyncio.to_thread(prompt_size, work)


class MeteredStream:
    """A stream that books its tokens when it is closed, whole or cut off."""

    def __init__(self, stream: Stream, reserved: Reserved, wanted: int | None, limit: int | None) -> None:
        """`wanted`: tokens of an answer that the request asked for; `limit`: that it gets."""
        self._stream, self._reserved = stream, reserved
        self._prompt = len(stream.begin.prompt_ids)  # where ids are not reported, the usage counts them
        self._generated: dict[int, int] = {}  # answer -> its tokens
        self._booked = False
        self.begin = stream.begin
        if limit is not None and limit != wanted and self.begin.max_tokens >= limit:
            warning = f"max_tokens was set to {limit:,}, by what the key's token budget has left for today"
            self.begin = replace(self.begin, warnings=(*self.begin.warnings, warning), budgeted=True)

    @property
    def more(self) -> bool:
        return self._stream.more

    @property
    def prefill(self) -> tuple[int, int] | None:
        return prefill_of(self._stream)

    def __aiter__(self) -> MeteredStream:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        index, chunk = await self._stream.__anext__()
        if chunk.usage is None:
            self._generated[index] = self._generated.get(index, 0) + len(chunk.token_ids)
        else:
            self._generated[index] = chunk.usage.completion_tokens
            self._prompt = self._prompt or chunk.usage.prompt_tokens
        return index, chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            if not self._booked:
                self._booked = True
                self._reserved.spend(self._prompt + sum(self._generated.values()))
                self._reserved.close()
