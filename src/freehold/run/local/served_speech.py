"""A speech model as an engine process has it: recordings are opened, and transcribed part by part.

Knows a loaded Speech, jobs and threads; knows no socket. A part is some chunks whose texts are written together and to
their end, so nothing of a recording runs while its next part was not asked for, and recordings take turns.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from freehold import _native as native
from freehold.base.errors import EngineClosed, Overloaded, UsageError
from freehold.base.serving import (
    MAX_SPEECH_PROMPT,
    EmbedJob,
    EngineStats,
    Job,
    ModelInfo,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
    hears_alone,
)
from freehold.base.types import SamplingParams, Turn
from freehold.run.formats import open_model_file
from freehold.run.formats.filemap import file_facts
from freehold.run.local.speech import Speech, load_speech
from freehold.run.local.transcribing import RATE, Hearing, Listening, Transcriber
from freehold.run.sounds import open_sound
from freehold.run.store import ModelRef

PART = 8  # chunks whose texts are written together; the first parts of a stream have 1, 2 and 4
# Seconds of all recordings that are open, 1.4 GB of samples; one alone is opened however long it is.
MOST_OPEN_S = 6 * 3600.0
MAX_LANGUAGE = 32  # characters of a code
WAIT_S = 0.1  # between two looks whether a part is wanted still
CLIENTS = 64  # whose last parts are known: more than have recordings open
_TASKS = ("transcribe", "translate")


def open_served_speech(ref: ModelRef, threads: int | None = None) -> ServedSpeech:
    """Load a speech model for an engine process. Raises what load_speech raises."""
    started = time.perf_counter()
    speech = load_speech(ref, threads=threads)
    with closing(open_model_file(ref.path)) as opened:
        weights = ref.digest or file_facts(opened.paths)
    return ServedSpeech(speech, ref, weights, time.perf_counter() - started)


class ServedSpeech:
    """A Speech whose recordings come as jobs from callers that are not trusted. Safe from many threads."""

    def __init__(self, speech: Speech, ref: ModelRef, weights: str, load_s: float) -> None:
        """`weights`: names its files; `load_s`: seconds that loading took."""
        self._speech, self._ref, self._weights, self._load_s = speech, ref, weights, load_s
        self._turns = PartTurns()
        self._samples = OpenSamples(int(MOST_OPEN_S * RATE))
        self._closed = threading.Event()
        self._beats = 0

    @property
    def path(self) -> Path:
        """The folder of its weights."""
        return self._ref.path

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        engine = self._speech.engine
        return ModelInfo(
            name=self._ref.name,
            quantization=self._ref.rounding or "q8",
            context=engine.context,
            trained_context=engine.context,
            kv_tokens=self.stats.blocks * native.BLOCK_TOKENS,
            threads=engine.threads,
            load_s=self._load_s,
            memory_bytes=self._speech.nbytes + engine.cache_bytes,
            cache_bytes=engine.cache_bytes,
            vocab=engine.model.tokens,
            can_chat=False,
            can_fill=False,
            can_hear=True,
            languages=self._speech.languages,
            default_sampling=SamplingParams(temperature=0.0),
            notes=self._ref.notes,
            weights=self._weights,
        )

    @property
    def stats(self) -> EngineStats:
        """The engine's state; signs of work between its steps count as steps."""
        stats = self._speech.engine.stats()
        return replace(stats, steps=stats.steps + self._beats)

    def beat(self) -> None:
        """Count work between steps, such as a part of the encoder's."""
        self._beats += 1

    def pump(self, timeout: float) -> bool:
        """Wait: the threads that transcribe compute their own steps."""
        if self._closed.wait(timeout):
            raise EngineClosed(f"{self._ref.name} is closed", "load it again")
        return False

    def close(self) -> None:
        """Free the model; later calls raise EngineClosed."""
        self._closed.set()
        self._speech.engine.close()  # ends what runs, which `Speech.close` would wait for

    # --- recordings ----------------------------------------------------------------------------------

    def listen(self, data: bytes, job: SpeechJob, skip: int) -> ServedHearing:
        """Open a recording and find its speech; its first `skip` chunks were transcribed before.

        Raises UsageError, UnsupportedModel for what the model cannot do, Overloaded beside too many long recordings.
        """
        listening = _listening(job)
        transcriber = self._speech.transcriber
        transcriber.begin(np.zeros(0, np.float32), listening)  # refuses before the work of opening
        room = TakenSamples(self._samples)
        try:
            try:
                sound = open_sound(data, job.most_s, room.take)
            except UsageError as e:
                raise UsageError(e.message, e.hint, e.field or "file") from e
            hearing = transcriber.begin(sound.samples, listening)
            return ServedHearing(self, transcriber, hearing, listening, room, job, skip)
        except BaseException:
            room.close()
            raise

    @property
    def turns(self) -> PartTurns:
        """Whose part is transcribed."""
        return self._turns

    # --- what a speech model does not do -------------------------------------------------------------

    def _refuse(self) -> NoReturn:
        raise hears_alone(self._ref.name)

    def start(self, job: Job) -> Any:
        """Refuse a chat."""
        self._refuse()

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Refuse text."""
        self._refuse()

    def detokenize(self, ids: Any) -> str:
        """Refuse ids."""
        self._refuse()

    def token_texts(self, ids: Any) -> list[bytes]:
        """Refuse ids."""
        self._refuse()

    def render(self, messages: Any, think: bool | None, turn: Turn = "new") -> list[int]:
        """Refuse a chat."""
        self._refuse()

    def count(self, job: Job) -> int:
        """Refuse a chat."""
        self._refuse()

    def template(self) -> dict[str, Any]:
        """Refuse: there is no template."""
        self._refuse()

    def add_adapter(self, name: str, path: str) -> ModelInfo:
        """Refuse an adapter."""
        raise UsageError(f"{self._ref.name} does not support adapters: it only transcribes recordings")

    def remove_adapter(self, name: str) -> ModelInfo:
        """Refuse an adapter."""
        raise UsageError(f"{self._ref.name} has no adapters")

    def embed_job(self, job: EmbedJob) -> Any:
        """Refuse texts."""
        self._refuse()


class ServedHearing:
    """A recording that is open: its texts, a part at a time."""

    def __init__(
        self,
        served: ServedSpeech,
        transcriber: Transcriber,
        hearing: Hearing,
        listening: Listening,
        room: TakenSamples,
        job: SpeechJob,
        skip: int,
    ) -> None:
        self._served, self._transcriber, self._room = served, transcriber, room
        self._hearing, self._listening = hearing, listening
        self._next = min(skip, len(hearing.parts))
        self._together = 1 if job.soon else PART
        self._client = job.client or job.tenant
        self.facts = SpeechFacts(len(hearing.recording) / RATE, hearing.speech_s, len(hearing.parts))

    def part(self, pause: Callable[[], None]) -> SpeechPart | None:
        """Transcribe the next chunks; None after the last ones. `pause` is called between pieces of the work."""
        chunks = self._hearing.parts[self._next : self._next + self._together]
        if not chunks:
            return None
        some = replace(self._hearing, parts=chunks)

        def paused() -> None:
            self._served.beat()
            pause()

        with self._served.turns.mine(self._client, paused):
            texts = [*self._transcriber.texts(some, self._listening, paused)]
        self._hearing.language = some.language
        self._next += len(chunks)
        self._together = min(2 * self._together, PART)
        return SpeechPart(
            tuple(segment for segments in texts for segment in segments),
            tuple(chunk.spans[0].begin / RATE for chunk in chunks),
            some.speech_s,
            some.language,
        )

    def close(self) -> None:
        """Forget the recording."""
        self._room.close()


def _listening(job: SpeechJob) -> Listening:
    """Check a job's fields. Raises UsageError."""
    if job.task not in _TASKS:
        raise UsageError(f"task is {job.task!r}; expected {' or '.join(_TASKS)}")
    if len(job.language) > MAX_LANGUAGE:
        raise UsageError(
            f"language has {len(job.language):,} characters; expected a code such as en", field="language"
        )
    if len(job.prompt) > MAX_SPEECH_PROMPT:
        raise UsageError(
            f"the prompt has {len(job.prompt):,} characters; the limit is {MAX_SPEECH_PROMPT:,}",
            "leave its beginning out: the model reads the last 223 tokens",
            "prompt",
        )
    if job.temperature is not None and not 0 <= job.temperature <= 1:
        raise UsageError(f"temperature is {job.temperature}; expected 0 to 1", field="temperature")
    return Listening(job.language, job.task, job.prompt, job.words, job.temperature)


# --- whose part is transcribed -------------------------------------------------------------------------


class PartTurns:
    """Lets one part be transcribed at a time: next, of the client whose last one was longest ago; then the oldest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._waiting: list[PartTurn] = []
        self._latest: OrderedDict[str, None] = OrderedDict()  # clients in the order of their last parts

    @contextmanager
    def mine(self, client: str, waits: Callable[[], None]) -> Iterator[None]:
        """Wait for a turn and have it; `waits` is called each tenth of a second, and what it raises ends the wait."""
        turn = PartTurn(client)
        with self._changed:
            self._waiting.append(turn)
        try:
            while not self._begun(turn):
                waits()
        except BaseException:
            with self._changed:
                self._waiting.remove(turn)
                self._changed.notify_all()
            raise
        try:
            yield
        finally:
            self._end(client)

    def _begun(self, turn: PartTurn) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._next() is turn, timeout=WAIT_S):
                return False
            self._waiting.remove(turn)
            self._busy = True
            return True

    def _next(self) -> PartTurn | None:
        if self._busy:
            return None
        order = {client: at for at, client in enumerate(self._latest)}
        return min(self._waiting, key=lambda turn: order.get(turn.client, -1), default=None)

    def _end(self, client: str) -> None:
        with self._changed:
            self._busy = False
            self._latest[client] = None
            self._latest.move_to_end(client)
            while len(self._latest) > CLIENTS:
                self._latest.popitem(last=False)
            self._changed.notify_all()


@dataclass(frozen=True, slots=True, eq=False)
class PartTurn:
    """One that waits."""

    client: str


# --- samples of recordings that are open --------------------------------------------------------------


class OpenSamples:
    """Counts the samples of recordings that are open, those being decoded among them; at most `most` together."""

    def __init__(self, most: int) -> None:
        self._most, self._open, self._lock = most, 0, threading.Lock()

    def change(self, before: int, after: int) -> None:
        """Count a recording's samples. Raises Overloaded where they and those of others are too many."""
        with self._lock:
            others = self._open - before
            if others and after > before and others + after > self._most:
                hours = RATE * 3600
                raise Overloaded(
                    f"recordings in progress last {others / hours:.1f} h, and this one {after / hours:.1f} h or more; "
                    f"at most {self._most / hours:.0f} h are open at a time",
                    "try again when another one has ended",
                    30.0,
                )
            self._open = others + after


@dataclass(slots=True)
class TakenSamples:
    """How many of them are one recording's."""

    _all: OpenSamples
    _samples: int = 0

    def take(self, samples: int) -> None:
        """Have `samples` in place of those before. Raises Overloaded, and then has those before."""
        self._all.change(self._samples, samples)
        self._samples = samples

    def close(self) -> None:
        """Give them back; safe to call twice."""
        self.take(0)
