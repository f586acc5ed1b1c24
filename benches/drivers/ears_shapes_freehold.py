"""Freehold's driver for ears/shapes.py: the encoder and the decoder of a Whisper with random weights.

Path: ears/shapes.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import freehold
from benches.drivers.ears_driver import timed
from benches.lib.driver import serve
from benches.lib.random_whisper import END, START, no_marks
from freehold import _native
from freehold.run.formats.ctranslate2 import open_ctranslate2
from freehold.run.local.speech_model import Heard, SpeechModel, SpeechTokens, speech_engine
from freehold.run.models.load import load_model
from freehold.run.models.seeing import load_tower


class Freehold:
    """A loaded model."""

    def load(self, folder: str, threads: int) -> dict[str, Any]:
        """Load a folder; int8 panels, as everywhere."""
        with closing(open_ctranslate2(folder)) as opened:
            vocab = opened.config.get_int("vocab_size")
            model = load_model(opened, threads=threads, tokens=vocab, rounding="q8")
        tower = load_tower(Path(folder), model, rounding="q8")
        assert tower is not None
        first = no_marks(vocab) + 1
        tokens = SpeechTokens(START, END, first - 4, first - 6, None, first - 2, first - 1, first, {}, (), ())
        self._engine = speech_engine(model, "f16")
        self._model = SpeechModel(tower, self._engine, tokens)
        self._drawn = 0
        return {"version": f"freehold {freehold.__version__} ({_native.isa()})"}

    def encode(self, windows: int) -> dict[str, Any]:
        """Encode windows, one after another."""
        frames = self._windows(windows)
        return timed(lambda: self._model.encode(frames, lambda: None))

    def decode(self, windows: int, count: int) -> dict[str, Any]:
        """Write `count` tokens of each window at once; what is kept of sound is part of it."""
        (sound,) = self._model.encode(self._windows(1), lambda: None)
        sounds = [
            Heard(bytes([i]) + sound.digest, sound.features) for i in range(windows)
        ]  # nothing is shared
        prompt = [START, self._model.tokens.no_marks]

        def write() -> None:
            texts = [
                self._engine.generate(
                    self._model._prompt(each, prompt),
                    max_tokens=count,
                    pictures=self._model._sound(each, prompt),
                )
                for each in sounds
            ]
            for text in texts:
                text.start()
            while not all([(text.take() and text.done) or text.done for text in texts]):
                self._engine.drive(0.0)

        return timed(write)

    def _windows(self, count: int) -> list[np.ndarray]:
        self._drawn += 1
        draw = np.random.default_rng(self._drawn)
        shape = (self._model.bands, 2 * self._model.rows)
        return [draw.standard_normal(shape).astype(np.float32) for _ in range(count)]

    def ceilings(self, threads: list[int]) -> dict[str, list[float]]:
        """Measure the machine's int8 units, for each of `threads`; the best of three, as noise only takes."""
        return {
            "measure_int8_gops": [max(_native.measure_int8_gops(n) for _ in range(3)) for n in threads],
        }


if __name__ == "__main__":
    serve(Freehold())
