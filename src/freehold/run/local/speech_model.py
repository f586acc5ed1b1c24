"""A speech model in this process: windows of sound become features, and features with a prompt become tokens.

Knows a tower, an engine whose sequences begin with rows of sound, and the rules of a transcript; knows no recording, no
chunk and no text. Windows of several recordings share the engine's steps as chats do. Cross keys and values of a window
are computed once: they are the prefix of every sequence that hears it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.types import SamplingParams
from freehold.run.engine.engine import Engine
from freehold.run.engine.generation import Generation
from freehold.run.engine.pictures import PictureIds, PromptPictures
from freehold.run.local.speech_rules import (
    FirstRow,
    RowKeeper,
    SpeechTokens,
    TranscriptMatcher,
    TranscriptRules,
)
from freehold.run.models.seeing import LoadedTower

F32 = NDArray[np.float32]

HEARD = 64  # windows whose features are kept: 3 MB each of the base model
BATCH = 4  # windows that the encoder takes at once


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


class SpeechModel:
    """A tower that hears and the engine behind it; safe from many threads."""

    def __init__(self, tower: LoadedTower, engine: Engine, tokens: SpeechTokens) -> None:
        self.tokens, self._tower, self._engine = tokens, tower, engine
        self.bands: int = tower.cfg.bands
        self.rows: int = tower.cfg.positions
        self._ids = PictureIds()
        self._heard: OrderedDict[bytes, Heard] = OrderedDict()
        self._lock = Lock()

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
        prompt = [self.tokens.start]
        listened = self._engine.generate(
            self._prompt(heard, prompt),
            max_tokens=1,
            constraint=FirstRow(),
            pictures=self._sound(heard, prompt),
        )
        next(listened)
        keeper = listened.sequence.matcher
        assert isinstance(keeper, RowKeeper) and keeper.row is not None, "a token was chosen"
        row = keeper.row
        weights = np.exp(row - row.max(), dtype=np.float64)
        return np.asarray(weights / weights.sum(), np.float32)

    def language(self, heard: Heard) -> Mapping[str, float]:
        """Return the probability of each language that the model knows; none of an English model."""
        languages = self.tokens.languages
        if not languages:
            return {}
        row = self.starts(heard)
        total = sum(float(row[id]) for id in languages.values())
        return {code: float(row[id]) / total for code, id in languages.items()}

    def decode(
        self,
        heard: Sequence[Heard],
        prompts: Sequence[Sequence[int]],
        *,
        marks: bool = True,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 224,
    ) -> list[Decoded]:
        """Continue the prompt of each window: greedily at temperature 0, else drawn with a seed."""
        rules = TranscriptRules(self.tokens, marks)
        sampling = SamplingParams(temperature=temperature, seed=seed)
        running = [
            self._engine.generate(
                self._prompt(each, prompt),
                sampling,
                max_tokens=max_tokens,
                stop_ids=(self.tokens.end,),
                constraint=rules,
                pictures=self._sound(each, prompt),
            )
            for each, prompt in zip(heard, prompts, strict=True)
        ]
        for generation in running:
            generation.start()
        return [self._decoded(g, each, temperature) for g, each in zip(running, heard, strict=True)]

    def _decoded(self, generation: Generation, heard: Heard, temperature: float) -> Decoded:
        ids = [out.id for out in generation]
        ended = generation.finish_reason == "stop"
        matcher = generation.sequence.matcher
        assert isinstance(matcher, TranscriptMatcher), "a transcript's"
        if ended:
            matcher.count(self.tokens.end)
        tokens = tuple(ids[:-1] if ended else ids)
        no_speech = float(self.starts(heard)[self.tokens.no_speech])
        return Decoded(tokens, matcher.sum_logprob, no_speech, temperature, ended)

    def _prompt(self, heard: Heard, prompt: Sequence[int]) -> list[int]:
        return [*self._ids.of(heard.digest, self.rows), *prompt]

    def _sound(self, heard: Heard, prompt: Sequence[int]) -> PromptPictures:
        rows = np.concatenate([np.arange(self.rows), np.full(len(prompt), -1)]).astype(np.int32)
        return PromptPictures(
            heard.features, rows, self.tokens.end, apart=self.rows, digests=((heard.digest, self.rows),)
        )
