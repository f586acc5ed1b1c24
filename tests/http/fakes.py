"""ModelManager, ModelHandle and Stream by script: pieces, pauses, and an error at any phase; no engine, no process.

A word with the space before it is one token; its id is its place in a list that grows.
"""

from __future__ import annotations

import asyncio
import math
import re
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.base.serving import (
    Begin,
    CounterTable,
    EmbedJob,
    EngineStats,
    EstimatedCount,
    Job,
    LoadedInfo,
    ModelInfo,
    Origin,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
    SpeechSource,
    StoredModel,
    Vectors,
    reads_text,
)
from freehold.base.types import (
    Chunk,
    Message,
    SamplingParams,
    Segment,
    TokenLogprob,
    ToolPiece,
    Turn,
    Usage,
    Word,
)

CONTEXT = 4096
_WORD = re.compile(r"\s*\S+|\s+")


@dataclass
class Script:
    """What a model does with every job. `fail` is raised at `fail_at`: "use", "start", or before piece number N."""

    text: str = "Hello there, world."
    thinking: str = ""
    thinks: Literal["none", "switch", "always"] = "switch"
    calls: tuple[tuple[str, str], ...] = ()  # (tool, arguments) of each call, after the text
    stop: str = ""  # the stop string that ends the answer
    delay: float = 0.0  # before each piece
    start_delay: float = 0.0  # before the engine takes a job
    count_delay: float = 0.0  # before tokens are counted, and after texts were embedded
    use_delay: float = 0.0  # before a model is loaded
    fail: BaseException | None = None
    fail_at: str | int = "start"
    cached: int = 0
    dropped: int = 0
    warnings: tuple[str, ...] = ()
    together: bool = False  # all pieces are there at once: `more` stays true
    after: str = ""  # text that comes after the calls
    chunks: tuple[
        Chunk, ...
    ] = ()  # the answer, instead of what the other fields make of it; the last one ends it
    sees: bool = False
    fetches: bool = False  # addresses of pictures too
    hears: bool = False  # a speech model: each sentence of `text` is a chunk of two seconds
    model: str = ""  # which model answers, as a route says
    rounds: tuple[
        Script, ...
    ] = ()  # of its jobs in turn, instead of this one; the last one of all that follow
    remote: bool = False  # no ids of the prompt, no tokenizer, an estimate of tokens
    gate: threading.Event | None = None  # until it is set no piece comes and no token is counted
    load_gate: threading.Event | None = None  # until it is set no model is loaded

    async def pause(self, seconds: float, gate: threading.Event | None) -> None:
        """Wait `seconds`, and until the gate opens if there is one."""
        if seconds:
            await asyncio.sleep(seconds)
        while gate is not None and not gate.is_set():
            await asyncio.sleep(0.002)


def stored(name: str, parent: str = "") -> StoredModel:
    return StoredModel(name, 1000, 1_700_000_000.0, "d" * 64, parent)


@dataclass
class FakeLoaded:
    """The fields of LoadedInfo, to be changed by a test."""

    name: str
    info: ModelInfo
    stats: EngineStats = field(default_factory=EngineStats)
    expires_at: float | None = None
    in_flight: int = 0
    restarts: int = 0
    slow_readers: int = 0
    pid: int = 1


def info_of(name: str) -> ModelInfo:
    return ModelInfo(
        name=name,
        quantization="Q4_0",
        context=CONTEXT,
        trained_context=CONTEXT,
        kv_tokens=CONTEXT,
        threads=1,
        load_s=0.1,
        memory_bytes=10_000,
        vocab=50_000,
        can_chat=True,
        can_fill=True,
        default_sampling=SamplingParams(temperature=0.7),
    )


class Words:
    """A tokenizer of words."""

    def __init__(self) -> None:
        self._words: list[str] = []

    def encode(self, text: str) -> list[int]:
        return [self._id(w) for w in _WORD.findall(text)]

    def bytes_of(self, id: int) -> bytes:
        return self._words[id].encode() if id < len(self._words) else b"?"

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.bytes_of, ids)).decode()

    def _id(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)


class FakeStream:
    def __init__(self, served: FakeServed, job: Job, script: Script) -> None:
        self._served, self._job, self._script = served, job, script
        self.closed = self.ended = False
        prompt = served.prompt_ids(job)
        params = replace(SamplingParams(temperature=0.7, seed=7), **dict(job.sampling))
        scored = None
        if job.prompt_logprobs is not None:
            scored = (None, *(self._logprob(i, job.prompt_logprobs) for i in prompt[1:]))
        room = CONTEXT - len(prompt)
        limit = room if job.max_tokens is None else min(job.max_tokens, room)
        self.begin = Begin(
            CONTEXT,
            () if script.remote else tuple(prompt),
            params,
            limit,
            script.dropped,
            scored,
            warnings=script.warnings,
            model=script.model,
        )
        self._pieces = self._made()
        self._left = job.n
        self._queue: list[tuple[int, Chunk]] = []

    @property
    def more(self) -> bool:
        return self._script.together and self._left > 0

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        index, chunk = await anext(self._pieces)
        self._left -= chunk.finish_reason is not None
        return index, chunk

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self._served.loaded.in_flight -= 1
        await self._pieces.aclose()

    async def _made(self) -> AsyncIterator[tuple[int, Chunk]]:
        script, job = self._script, self._job
        for chunk in script.chunks:
            await script.pause(script.delay, script.gate)
            yield 0, chunk
        if script.chunks:
            self.ended = True
            return
        made = [Chunk(thinking=w) for w in _WORD.findall(script.thinking)]
        made += [Chunk(w) for w in _WORD.findall(script.text)]
        made += [Chunk(tool_calls=(piece,)) for piece in _pieces(script.calls)]
        made += [Chunk(w) for w in _WORD.findall(script.after)]
        limit, whole = self.begin.max_tokens, len(made)
        made = made[:limit]
        for i, chunk in enumerate(made):
            for index in range(job.n):
                if script.fail is not None and script.fail_at == i and index == 0:
                    raise script.fail
                await script.pause(script.delay, script.gate)
                (id,) = self._served.words.encode(chunk.text or chunk.thinking or "call")
                logprobs = () if job.logprobs is None else (self._logprob(id, job.logprobs),)
                yield index, replace(chunk, token_ids=(id,), logprobs=logprobs)
        cut = len(made) < whole or (job.max_tokens is not None and len(made) == job.max_tokens)
        reason = "length" if cut else "tool_calls" if script.calls else "stop"
        prompt = len(self.begin.prompt_ids)
        for index in range(job.n):
            usage = Usage(prompt, len(made), script.cached, 0.01, 0.02)
            yield index, Chunk(finish_reason=reason, usage=usage, stop="" if cut else script.stop)
        self.ended = True

    def _logprob(self, id: int, alternatives: int) -> TokenLogprob:
        top = tuple((id + k, -0.5 - k) for k in range(alternatives))
        texts = tuple(
            self._served.words.bytes_of(id) if k == 0 else b"other%d" % k for k in range(alternatives)
        )
        return TokenLogprob(id, -0.5, top, self._served.words.bytes_of(id), texts)


def _pieces(calls: Sequence[tuple[str, str]]) -> Iterator[ToolPiece]:
    """Cut each call in three: its name, and two halves of its arguments."""
    for i, (name, arguments) in enumerate(calls):
        half = len(arguments) // 2
        yield ToolPiece(i, f"call_{i}", name)
        yield ToolPiece(i, arguments=arguments[:half])
        yield ToolPiece(i, arguments=arguments[half:])


class FakeHearing:
    """A recording whose chunks have the sentences of the script."""

    def __init__(self, served: FakeServed, job: SpeechJob, data: bytes) -> None:
        self._script, self.job, self.data = served.script, job, data
        self._sentences = re.findall(r"[^.]+[.]?", served.script.text)
        self.facts = SpeechFacts(
            2.0 * len(self._sentences) + 0.25, 2.0 * len(self._sentences), len(self._sentences)
        )
        self.closed = False
        self.made = 0

    def __aiter__(self) -> FakeHearing:
        return self

    async def __anext__(self) -> SpeechPart:
        script, at = self._script, self.made
        if at == len(self._sentences):
            raise StopAsyncIteration
        if script.fail is not None and script.fail_at == at:
            raise script.fail
        await script.pause(script.delay, script.gate)
        self.made += 1
        text, start = self._sentences[at].strip(), 2.0 * at
        words = tuple(
            Word(word, start + i / 10, start + i / 10 + 0.05) for i, word in enumerate(text.split())
        )
        told = Segment(
            start, start + 1.5, text, (7, 8), 0.0, -0.25, 1.5, 0.01, words if self.job.words else ()
        )
        return SpeechPart((told,), (start,), 2.0, self.job.language or "en")

    async def aclose(self) -> None:
        self.closed = True


class FakeServed:
    def __init__(self, name: str, script: Script) -> None:
        self.name, self.script, self.words = name, script, Words()
        self.loaded = FakeLoaded(name, self._info(script))
        self.jobs: list[Job] = []
        self.counted: list[Job] = []
        self.counters: list[str] = []  # clients whose tokens were counted
        self.turns: list[Turn] = []
        self.keep_alives: list[float | None] = []
        self.embeddings: list[EmbedJob] = []
        self.streams: list[FakeStream] = []
        self.hearings: list[FakeHearing] = []

    def _info(self, script: Script) -> ModelInfo:
        senses = {"can_see": script.sees, "can_fetch": script.fetches, "can_hear": script.hears}
        return replace(info_of(self.name), thinking=script.thinks, **senses)

    @property
    def info(self) -> ModelInfo:
        return self.loaded.info

    @property
    def stats(self) -> EngineStats:
        return self.loaded.stats

    @property
    def tokenizer(self) -> FakeServed | None:
        return None if self.script.remote else self

    async def start(self, job: Job, keep_alive: float | None = None) -> FakeStream:
        self.jobs.append(job)
        self.keep_alives.append(keep_alive)
        if self.script.start_delay:
            await asyncio.sleep(self.script.start_delay)
        if self.script.fail is not None and self.script.fail_at == "start":
            raise self.script.fail
        self.loaded.in_flight += 1
        rounds = self.script.rounds
        script = rounds[min(len(self.jobs), len(rounds)) - 1] if rounds else self.script
        stream = FakeStream(self, job, script)
        self.streams.append(stream)
        return stream

    def prompt_ids(self, job: Job) -> list[int]:
        if job.messages is not None:
            return self.words.encode(" ".join(m.content for m in job.messages))
        return self.words.encode(job.prompt) if isinstance(job.prompt, str) else list(job.prompt or ())

    async def _lingers(self) -> None:
        await self.script.pause(self.script.count_delay, self.script.gate)

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        self.counters.append(client)
        await self._lingers()
        return self.words.encode(text)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        self.counters.append(client)
        return self.words.decode(ids)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        return [self.words.bytes_of(i) for i in ids]

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        self.counters.append(client)
        self.turns.append(turn)
        return self.words.encode(" ".join(m.content for m in messages))

    async def count(self, job: Job) -> int:
        self.counted.append(job)
        self.counters.append(job.client)
        tokens = len(self.prompt_ids(job))
        return EstimatedCount(tokens) if self.script.remote else tokens

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        """Count letters: a text's vector has a place for each of a, b and c, at unit length."""
        self.embeddings.append(job)
        self.keep_alives.append(keep_alive)
        if self.script.fail is not None and self.script.fail_at == "embed":
            raise self.script.fail
        words = [text if isinstance(text, str) else self.words.decode(text) for text in job.texts]
        rows = [[text.count(letter) for letter in "abc"][: job.dimensions] for text in words]
        unit = [[n / (math.hypot(*row) or 1.0) for n in row] for row in rows]
        data = struct.pack(f"<{len(unit) * len(unit[0])}f", *(n for row in unit for n in row))
        if computed is not None:
            computed(sum(len(self.words.encode(text)) for text in words))
        await self._lingers()
        cut = tuple(i for i, text in enumerate(words) if "long" in text and job.truncate)
        return Vectors(data, len(unit[0]), tuple(len(self.words.encode(text)) for text in words), cut)

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> FakeHearing:
        self.keep_alives.append(keep_alive)
        if not self.script.hears:
            raise reads_text(self.name)
        if self.script.fail is not None and self.script.fail_at == "start":
            raise self.script.fail
        data = b""
        while len(data) < recording.size:
            data += await recording.read(len(data), 1 << 16)
        self.hearings.append(FakeHearing(self, job, data))
        return self.hearings[-1]

    async def template(self) -> dict[str, Any]:
        return {"chat_template": "{{ messages }}", "eos_token": "<eos>"}


class FakeModels:
    """`scripts`: model name -> what it does; a name that is not there raises ModelNotFound."""

    def __init__(
        self, script: Script | None = None, names: Sequence[str] = ("fake:1b", "org/fake:2b")
    ) -> None:
        self._names, self.closed = names, False
        self.tables: list[CounterTable] = []
        self.origins: list[Origin] = []  # of requests, in order
        self.stamp = "files"  # of every model
        self.play(script or Script())

    def play(self, script: Script) -> None:
        """Begin anew with another script, and no model in memory."""
        self.script = script
        self.served = {name: FakeServed(name, script) for name in self._names}
        self.in_memory: dict[str, FakeServed] = {}
        self.used: list[tuple[str, float | None]] = []
        self.adapters: dict[str, StoredModel] = {}

    async def names(self) -> list[StoredModel]:
        return [*(stored(name) for name in self.served), *self.adapters.values()]

    async def use(self, name: str, keep_alive: float | None = None) -> FakeServed:
        name = name.removesuffix(":latest")
        self.used.append((name, keep_alive))
        if name not in self.served:
            raise ModelNotFound(f"there is no model {name!r}", "freehold list shows what there is")
        if name not in self.in_memory:
            await self.script.pause(self.script.use_delay, self.script.load_gate)
        if self.script.fail is not None and self.script.fail_at == "use":
            raise self.script.fail
        return self.in_memory.setdefault(name, self.served[name])

    async def name_of(self, name: str) -> str:
        if name not in self.served:
            raise ModelNotFound(f"there is no model {name!r}", "freehold list shows what there is")
        return name

    async def stamp_of(self, name: str) -> str:
        return f"{self.stamp} {await self.name_of(name)}"

    def loaded(self) -> list[LoadedInfo]:
        return [LoadedInfo(**vars(served.loaded)) for served in self.in_memory.values()]

    def asked_by(self, origin: Origin) -> FakeModels:
        self.origins.append(origin)
        return self

    def counters(self) -> list[CounterTable]:
        return self.tables

    def loading(self) -> dict[str, tuple[int, int]]:
        return {}

    async def unload(self, name: str) -> None:
        if self.in_memory.pop(name, None) is None:
            raise ModelNotFound(f"{name!r} is not in memory")

    async def retire(self, name: str) -> None:
        self.in_memory.pop(name, None)

    async def add_adapter(self, name: str, adapter: str, path: Path) -> None:
        if name not in self.served:
            raise ModelNotFound(f"there is no model {name!r}")
        self.adapters[f"{name}+{adapter}"] = stored(f"{name}+{adapter}", parent=name)

    async def remove_adapter(self, name: str, adapter: str) -> None:
        if self.adapters.pop(f"{name}+{adapter}", None) is None:
            raise ModelNotFound(f"{name} has no adapter {adapter!r}")

    async def close(self, drain_s: float) -> None:
        self.closed = True

    @property
    def in_flight(self) -> int:
        return sum(served.loaded.in_flight for served in self.served.values())


def failing(at: str | int, error: FreeholdError | BaseException) -> Script:
    return Script(fail=error, fail_at=at)
