"""A speech model in this process: windows of sound become features, and features with a prompt become tokens.

Knows a tower, an engine whose sequences begin with rows of sound, and the rules of a transcript; knows no recording, no
chunk and no text. Windows of several recordings share the engine's steps as chats do. Cross keys and values of a window
are computed once: they are the prefix of every sequence that hears it.

The engine makes no token of a sequence whose last one was not taken. So texts that are written together are taken from
together (`SpeechModel.ended`), and the cache has room for all of them (`speech_engine`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from freehold.base.machine import available_bytes
from freehold.base.types import KvType, SamplingParams
from freehold.run.engine.cache.blocks import blocks_for
from freehold.run.engine.cache.capacity import MEMORY_SHARE, bytes_per_block
from freehold.run.engine.engine import Engine
from freehold.run.engine.generation import Generation
from freehold.run.engine.pictures import PictureIds, PromptPictures
from freehold.run.engine.sequence import Sequence as EngineSequence
from freehold.run.local.speech_rules import (
    FirstRow,
    RowKeeper,
    SpeechTokens,
    TranscriptMatcher,
    TranscriptRules,
)
from freehold.run.models.load import LoadedModel
from freehold.run.models.seeing import LoadedTower

F32 = NDArray[np.float32]

HEARD = 64  # windows whose features are kept: 3 MB each of the base model
BATCH = 4  # windows that the encoder takes at once
MAX_TOKENS = 224  # of a text
TOGETHER = 8  # windows whose texts are written at once, where the cache has room for them


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A window as the decoder hears it."""

    digest: bytes  # of its frames and the encoder
    features: F32 = field(repr=False)  # [rows, width]


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer of the decoder to one window. `tokens` are without the one that ends it."""

    tokens: tuple[int, ...]
    sum_logprob: float  # of tokens and end, of what the rules left
    no_speech_prob: float
    temperature: float
    ended: bool  # by itself, and not by the limit of tokens

    @property
    def mean_logprob(self) -> float:
        """Log-probability of a token, as thresholds count it."""
        return self.sum_logprob / (len(self.tokens) + 1)


class WriteOptions(TypedDict, total=False):
    """What may be said of a text beside its window and its prompt."""

    marks: bool  # with marks of time
    temperature: float
    seed: int
    max_tokens: int


class WindowText:
    """The text of one window on its way, and how likely the window has no speech. Closed, it stops within a step."""

    def __init__(
        self, heard: Heard, text: Generation, first: Generation, tokens: SpeechTokens, temperature: float
    ) -> None:
        """`first`: the one token after the start alone, which is as likely no speech as the window has none."""
        self.heard, self.temperature = heard, temperature
        self._text, self._first, self._tokens = text, first, tokens
        self._ids: list[int] = []
        text.start()
        first.start()

    @property
    def sequence(self) -> EngineSequence:
        """What a step must compute next, of the two."""
        return self._first.sequence if self._text.sequence.done else self._text.sequence

    def take(self) -> bool:
        """Take the tokens that were made; tell whether there were any, or none will come. Raises their error."""
        fresh = [out.id for out in self._text.take()]
        self._ids += fresh
        self._first.take()
        return bool(fresh) or self.done

    @property
    def done(self) -> bool:
        """Whether it was written to its end."""
        return self._text.done and self._first.done

    def decoded(self) -> Decoded:
        """Return what was written, once it is done."""
        assert self.done, "its tokens were taken"
        ended = self._text.finish_reason == "stop"
        matcher = self._text.sequence.matcher
        assert isinstance(matcher, TranscriptMatcher), "a transcript's"
        if ended:
            matcher.count(self._tokens.end)
        ids = tuple(self._ids[:-1] if ended else self._ids)
        no_speech = float(probabilities(self._first)[self._tokens.no_speech])
        return Decoded(ids, matcher.sum_logprob, no_speech, self.temperature, ended)

    def close(self) -> None:
        """Stop; safe to call twice, and when it is done."""
        self._text.close()
        self._first.close()


class SpeechModel:
    """A tower that hears and the engine behind it; safe from many threads."""

    def __init__(self, tower: LoadedTower, engine: Engine, tokens: SpeechTokens) -> None:
        self.tokens, self._tower, self._engine = tokens, tower, engine
        self.bands: int = tower.cfg.bands
        self.rows: int = tower.cfg.positions
        self.together = max(1, min(TOGETHER, engine.free_blocks // blocks_for(engine.context)))
        self._ids = PictureIds()
        self._heard: OrderedDict[bytes, Heard] = OrderedDict()
        self._lock = Lock()

    @property
    def digest(self) -> str:
        """What tells apart models that hear differently: their files, and how they are rounded."""
        return self._tower.digest

    @property
    def tower_bytes(self) -> int:
        """Bytes of the encoder's packed weights."""
        return self._tower.nbytes

    def encode(self, windows: Sequence[F32], pause: Callable[[], None]) -> list[Heard]:
        """Compute features of windows, float32 [bands, 2 * rows] each, or find them among the latest.

        `pause` is called between sections of the work; what it raises ends it.
        """
        digests = [hashlib.sha256(self._tower.digest.encode() + w.tobytes()).digest() for w in windows]
        known = {digest: heard for digest in digests if (heard := self._known(digest)) is not None}
        missing = {d: w for d, w in zip(digests, windows, strict=True) if d not in known}
        plan = self._tower.plan(1, 1)
        for first in range(0, len(missing), BATCH):
            some = list(missing)[first : first + BATCH]
            windows_left: Any = [
                (plan, (missing[digest],)) for digest in some
            ]  # arrays of floats, not of bytes
            features = self._tower.features(windows_left, pause)
            for digest, rows in zip(some, features, strict=True):
                known[digest] = self._keep(Heard(digest, rows))
        return [known[digest] for digest in digests]

    def _known(self, digest: bytes) -> Heard | None:
        with self._lock:
            heard = self._heard.get(digest)
            if heard is not None:
                self._heard.move_to_end(digest)
            return heard

    def _keep(self, heard: Heard) -> Heard:
        with self._lock:
            self._heard[heard.digest] = heard
            while len(self._heard) > HEARD:
                self._heard.popitem(last=False)
        return heard

    def starts(self, heard: Heard) -> F32:
        """Return the probabilities of every token after the start alone, float32 [V]: of no speech, of languages."""
        first = self._start(heard)
        next(first)
        return probabilities(first)

    def language(self, heard: Heard) -> Mapping[str, float]:
        """Return the probability of each language that the model knows; none of an English model."""
        languages = self.tokens.languages
        if not languages:
            return {}
        row = self.starts(heard)
        total = sum(float(row[id]) for id in languages.values())
        return {code: float(row[id]) / total for code, id in languages.items()}

    def write(
        self,
        heard: Heard,
        prompt: Sequence[int],
        *,
        marks: bool = True,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = MAX_TOKENS,
    ) -> WindowText:
        """Begin to continue the prompt of a window: greedily at temperature 0, else drawn with a seed."""
        text = self._engine.generate(
            self._prompt(heard, prompt),
            SamplingParams(temperature=temperature, seed=seed),
            max_tokens=max_tokens,
            stop_ids=(self.tokens.end,),
            constraint=TranscriptRules(self.tokens, marks),
            pictures=self._sound(heard, prompt),
        )
        return WindowText(heard, text, self._start(heard), self.tokens, temperature)

    def ended(
        self, texts: Sequence[WindowText], pause: Callable[[], None] = lambda: None
    ) -> list[WindowText]:
        """Continue texts together until some are done; return those. `pause` is called after each step."""
        while not (done := [each for each in texts if each.done]):
            self._engine.advance(texts[0].sequence, lambda: any([each.take() for each in texts]))
            pause()
        return done

    def decode(
        self, heard: Sequence[Heard], prompts: Sequence[Sequence[int]], **options: Unpack[WriteOptions]
    ) -> list[Decoded]:
        """Continue the prompt of each window, all together; options as of `write`."""
        texts = [self.write(each, prompt, **options) for each, prompt in zip(heard, prompts, strict=True)]
        left = texts
        while left:
            done = self.ended(left)
            left = [each for each in left if each not in done]
        return [each.decoded() for each in texts]

    def _start(self, heard: Heard) -> Generation:
        prompt = [self.tokens.start]
        return self._engine.generate(
            self._prompt(heard, prompt),
            max_tokens=1,
            constraint=FirstRow(),
            pictures=self._sound(heard, prompt),
        )

    def _prompt(self, heard: Heard, prompt: Sequence[int]) -> list[int]:
        return [*self._ids.of(heard.digest, self.rows), *prompt]

    def _sound(self, heard: Heard, prompt: Sequence[int]) -> PromptPictures:
        rows = np.concatenate([np.arange(self.rows), np.full(len(prompt), -1)]).astype(np.int32)
        return PromptPictures(
            heard.features, rows, self.tokens.end, apart=self.rows, digests=((heard.digest, self.rows),)
        )


def probabilities(first: Generation) -> F32:
    """Return those of every token that a FirstRow's answer was chosen from, float32 [V]."""
    keeper = first.sequence.matcher
    assert isinstance(keeper, RowKeeper) and keeper.row is not None, "a token was chosen"
    weights = np.exp(keeper.row - keeper.row.max(), dtype=np.float64)
    return np.asarray(weights / weights.sum(), np.float32)


def speech_engine(model: LoadedModel, kv_type: KvType) -> Engine:
    """Return an engine whose cache holds TOGETHER windows with their texts, or as many as memory has room for.

    Raises CapacityExceeded where it has room for none.
    """
    window = blocks_for(model.context)
    room = int(available_bytes() * MEMORY_SHARE) // (window * bytes_per_block(model, kv_type))
    return Engine(model, speculate=False, kv_type=kv_type, blocks=window * max(1, min(TOGETHER, room)))
