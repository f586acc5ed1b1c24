"""What a model hears: a sound of a chat becomes the rows that its tower makes of its samples.

A sound is opened before its prompt is laid out, as no header says how many samples there are; those that were opened
last are kept for the tower. Knows a tower and samples; knows no prompt (senses.py), and no form of sound but through
sounds/.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.types import Audio, Image
from freehold.run import sounds
from freehold.run.local.senses import PLANS, PlacedPicture, Sense, named, version_of
from freehold.run.models.seeing import LoadedTower
from freehold.run.models.tower import PicturePlan
from freehold.run.sounds import open_sound
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]

BEYOND = 4  # times the seconds that a tower takes are opened: a file of megabytes may last for hours
KEPT = 8  # sounds whose samples are kept until the tower takes them


class Ears(Sense):
    """A tower of sounds beside an engine; safe from many threads. Close it when done."""

    part = Audio
    what = "sound"

    def __init__(self, tower: LoadedTower, tokenizer: Tokenizer, disk: Path | None = None) -> None:
        """`disk`: a folder in which features outlive the process.

        Raises UnsupportedModel where the vocabulary has no token that marks a sound.
        """
        folder = None if disk is None else disk / "sounds"
        super().__init__(tower, tokenizer, folder, self._samples, sounds, version_of("av"))
        self._plans: OrderedDict[bytes, PicturePlan] = OrderedDict()
        self._open: OrderedDict[bytes, F32] = OrderedDict()
        self._lock = Lock()  # of the tables

    @property
    def counts(self) -> dict[str, int]:
        """Its fields of EngineStats."""
        return {"sounds_encoded": self.cache.computed, "sound_hits": self.cache.hits}

    def placed(self, part: Image | Audio, place: str, client: str) -> PlacedPicture:
        """Return a sound with what its samples become."""
        assert isinstance(part, Audio)
        with named(place):
            data = part.decoded()
        key = hashlib.sha256(data).digest()
        with self._lock:
            plan = self._plans.get(key)
        if plan is None:
            with named(place):
                samples = self._opened(data)
                plan = self.tower.plan(len(samples), 1)
            with self._lock:
                self._plans[key], self._open[key] = plan, samples
                for table, most in ((self._plans, PLANS), (self._open, KEPT)):
                    while len(table) > most:
                        table.popitem(last=False)
        whole = hashlib.sha256(self.basis + key).digest()
        return PlacedPicture(data, whole, plan, place, sense=self.what)

    def _samples(self, data: bytes, plan: PicturePlan) -> Sequence[Any]:
        """Return what the tower takes of a sound: its samples, float32 [n]."""
        with self._lock:
            samples = self._open.pop(hashlib.sha256(data).digest(), None)
        return (self._opened(data) if samples is None else samples,)

    def _opened(self, data: bytes) -> F32:
        """Return a sound's samples: of some seconds more than the tower takes, which then says so."""
        return open_sound(data, BEYOND * self.tower.tower.most_seconds).samples
