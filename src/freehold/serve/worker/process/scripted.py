"""A model that computes nothing: the engine process's own path, to be measured and tested without weights.

Knows jobs and HostedModel; knows no engine. Token k of answer i follows from the seed and the position, so
that a resumed answer equals one that was never interrupted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import EngineClosed, UsageError
from freehold.base.serving import (
    Begin,
    EmbedJob,
    EngineStats,
    Job,
    ModelInfo,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
    hears_alone,
    reads_text,
)
from freehold.base.types import (
    Audio,
    Chunk,
    Image,
    Message,
    SamplingParams,
    Segment,
    Turn,
    Usage,
    media_type_of,
)
from freehold.serve.worker.wire import Script

VOCAB = 50_000
CHUNK = 1000  # bytes of a recording that a script hears as one chunk of a second


def scripted_tokens(seed: int, index: int, count: int) -> list[int]:
    """Return the tokens that answer `index` of a job with `seed` has."""
    return [((seed + index) * 7919 + place * 104_729) % VOCAB for place in range(count)]


class ScriptedModel:
    """Answers every job with `script.words` words, one a step."""

    def __init__(self, script: Script) -> None:
        time.sleep(script.load_s)
        self._script = script
        self._live: list[ScriptedJob] = []
        self._turn = threading.Condition()
        self._steps = self._tokens = self._prompts = 0
        self._progress_at = time.monotonic()
        self._closed = False

    @property
    def path(self) -> None:
        """There is no file."""

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        context = self._script.context
        return ModelInfo(
            name="scripted",
            quantization="",
            context=context,
            trained_context=context,
            kv_tokens=context * 64,
            threads=1,
            load_s=self._script.load_s,
            memory_bytes=0,
            vocab=VOCAB,
            can_chat=not self._script.hears,
            can_fill=False,
            default_sampling=SamplingParams(),
            can_see=self._script.sees,
            can_hear=self._script.hears,
        )

    @property
    def stats(self) -> EngineStats:
        """Statistics as an engine counts them."""
        return EngineStats(
            steps=self._steps,
            running=len(self._live),
            prompt_tokens=self._prompts,
            generated_tokens=self._tokens,
            progress_at=self._progress_at,
        )

    def start(self, job: Job) -> ScriptedJob:
        """Prepare a job; its prompt has a token for each word."""
        if self._script.hears:
            raise hears_alone("scripted")
        if (job.messages is None) == (job.prompt is None):
            raise UsageError("a job is a chat or a prompt")
        words = min(job.max_tokens or self._script.words, self._script.words)
        return ScriptedJob(self, job, words, self._script.context)

    def dies_at(self, job: Job) -> int:
        """Return the word at which a job ends the process, -1 for none."""
        return self._script.poison_at if self._script.poison and job.prompt == self._script.poison else -1

    def enter(self, answer: ScriptedJob) -> None:
        """Add an answer to the steps."""
        with self._turn:
            self._live.append(answer)
            self._prompts += answer.prompt_tokens
            self._turn.notify()

    def leave(self, answer: ScriptedJob) -> None:
        """Remove an answer from the steps."""
        with self._turn:
            if answer in self._live:
                self._live.remove(answer)

    def pump(self, timeout: float) -> bool:
        """Make one word for each live answer."""
        with self._turn:
            if not self._live:
                self._turn.wait(timeout)
            live = list(self._live)
        if self._closed:
            raise EngineClosed("the script is closed")
        if not live:
            return False
        if self._script.step_s:
            time.sleep(self._script.step_s)
        self._steps += 1
        self._progress_at = time.monotonic()
        for answer in live:
            self._tokens += answer.step()
            if answer.made == answer.words:
                self.leave(answer)
        return True

    def close(self) -> None:
        """Refuse later steps."""
        self._closed = True
        with self._turn:
            self._turn.notify_all()

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Return a number for each word."""
        return [sum(word.encode()) % VOCAB for word in text.split()]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return a word for each id, as text."""
        return "".join(f" w{id}" for id in ids)

    def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        """Return a word for each id."""
        return [f" w{id}".encode() for id in ids]

    def render(self, messages: Sequence[Message], think: bool | None, turn: Turn = "new") -> list[int]:
        """Return the ids of all words of a chat, and for each picture an id that follows from its bytes.

        Raises UsageError that names a picture which begins as none does.
        """
        return [
            id
            for message in messages
            for part in message.parts or (message.content,)
            for id in (self.tokenize(part) if isinstance(part, str) else [self._seen(part)])
        ]

    def _seen(self, image: Image | Audio) -> int:
        if not self._script.sees or isinstance(image, Audio):
            raise UsageError("scripted reads text alone")
        data = image.decoded()
        if not media_type_of(data):
            raise UsageError(f"{image.place} is not a picture", "send a PNG", image.place)
        return crc32(data) % VOCAB

    def count(self, job: Job) -> int:
        """Count the words of a chat."""
        return len(self.render(job.messages or (), None))

    def template(self) -> dict[str, Any]:
        """There is no template."""
        return {}

    def add_adapter(self, name: str, path: str) -> ModelInfo:
        """Refuse: a script has no weights."""
        raise UsageError("a script has no adapters")

    def remove_adapter(self, name: str) -> ModelInfo:
        """Refuse: a script has no adapters."""
        raise UsageError("a script has no adapters")

    def listen(self, data: bytes, job: SpeechJob, skip: int) -> ScriptedHearing:
        """Open a recording; `skip`: chunks that were heard before."""
        if not self._script.hears:
            raise reads_text("scripted")
        if b"broken" in data:
            raise UsageError("the recording is broken", "send a WAV", "file")
        return ScriptedHearing(self._script, data, job, skip, self.beat)

    def beat(self) -> None:
        """Count a step."""
        self._steps += 1

    def embed_job(self, job: EmbedJob) -> ScriptedVectors:
        """Return a direction that follows from a text's first id."""
        ids = [self.tokenize(text) if isinstance(text, str) else list(text) for text in job.texts]
        turns = np.array([each[0] if each else 0 for each in ids], np.float64)
        vectors = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
        return ScriptedVectors(vectors, tuple(map(len, ids)))


@dataclass(frozen=True, slots=True)
class ScriptedVectors:
    """Embeddings of texts."""

    vectors: NDArray[np.float32]
    tokens: tuple[int, ...]
    cut: tuple[int, ...] = ()


class ScriptedHearing:
    """A recording whose chunks are a second each; a chunk's text is the sum of its bytes, and takes `step_s`."""

    def __init__(
        self, script: Script, data: bytes, job: SpeechJob, skip: int, beat: Callable[[], None]
    ) -> None:
        self._script, self._job, self._next, self._beat = script, job, skip, beat
        self._chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
        self.facts = SpeechFacts(len(data) / CHUNK, float(len(self._chunks)), len(self._chunks))

    def part(self, pause: Callable[[], None]) -> SpeechPart | None:
        """Hear a chunk. One that holds the script's poison ends the process."""
        if self._next >= len(self._chunks):
            return None
        chunk, at = self._chunks[self._next], float(self._next)
        if self._script.poison and self._script.poison.encode() in chunk:
            os._exit(9)
        for _ in range(10):
            time.sleep(self._script.step_s / 10)
            self._beat()
            pause()
        self._next += 1
        segment = Segment(at, at + 1, f"w{sum(chunk)}", (sum(chunk) % VOCAB,))
        return SpeechPart((segment,), (at,), 1.0, self._job.language or "en")

    def close(self) -> None:
        """Forget it."""
        self._chunks.clear()


class ScriptedJob:
    """One job's answers, which advance together."""

    def __init__(self, model: ScriptedModel, job: Job, words: int, context: int) -> None:
        self._model, self.words = model, words
        seed = job.sampling.get("seed")
        seed = seed if isinstance(seed, int) else 0
        self._dies_at = model.dies_at(job)
        self._tokens = [scripted_tokens(seed, i, words) for i in range(job.n)]
        self._sent = [len(job.resume[i]) if i < len(job.resume) else 0 for i in range(job.n)]
        self.made = min(self._sent)
        prompt = model.render(job.messages, None) if job.messages is not None else job.prompt
        ids = model.tokenize(prompt) if isinstance(prompt, str) else list(prompt or ())
        self.prompt_tokens = len(ids)
        self.begin = Begin(context, tuple(ids), SamplingParams(seed=seed), words)
        self.done = False
        self.prefill = None  # it reads no prompt

    def enter(self) -> None:
        """Begin."""
        self._model.enter(self)

    def step(self) -> int:
        """Make the next word of each answer."""
        if self.made == self._dies_at:
            os._exit(9)
        self.made = min(self.made + 1, self.words)
        return len(self._tokens)

    def take(self) -> list[tuple[int, Chunk]]:
        """Return the words made since."""
        pieces = []
        for index, tokens in enumerate(self._tokens):
            for id in tokens[self._sent[index] : self.made]:
                pieces.append((index, Chunk(f" w{id}", token_ids=(id,))))
            self._sent[index] = max(self._sent[index], self.made)
        if self.made == self.words and not self.done:
            self.done = True
            usage = Usage(self.prompt_tokens, self.words)
            pieces += [(i, Chunk(finish_reason="length", usage=usage)) for i in range(len(self._tokens))]
        return pieces

    def cancel(self) -> None:
        """Stop."""
        self._model.leave(self)
