"""CTranslate2's driver for ears/shapes.py: the encoder and the decoder of a Whisper with random weights, in int8.

Path: ears/shapes.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ctranslate2  # pyright: ignore[reportMissingImports]
import numpy as np

from benches.drivers.ears_driver import timed
from benches.lib.driver import serve
from benches.lib.random_whisper import END, START, no_marks


class CTranslate2:
    """A loaded model."""

    def load(self, folder: str, threads: int, bands: int, vocab: int) -> dict[str, Any]:
        """Load a folder, with int8 weights."""
        self._model = ctranslate2.models.Whisper(
            folder, device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1
        )
        self._bands, self._vocab, self._drawn = bands, vocab, 0
        return {"version": f"CTranslate2 {ctranslate2.__version__}"}

    def encode(self, windows: int) -> dict[str, Any]:
        """Encode windows together."""
        frames = self._windows(windows)
        return timed(lambda: self._model.encode(frames, to_cpu=True))

    def decode(self, windows: int, count: int) -> dict[str, Any]:
        """Write `count` tokens of each window at once; keys and values of sound are part of it."""
        rows = np.array(self._model.encode(self._windows(1), to_cpu=True))
        sound = ctranslate2.StorageView.from_array(np.repeat(rows, windows, axis=0))
        prompts = [[START, no_marks(self._vocab)]] * windows
        options: dict[str, Any] = {"suppress_blank": False, "suppress_tokens": [END]}
        return timed(
            lambda: self._model.generate(sound, prompts, beam_size=1, max_length=count + 2, **options)
        )

    def _windows(self, count: int) -> Any:
        self._drawn += 1
        draw = np.random.default_rng(self._drawn)
        return ctranslate2.StorageView.from_array(
            draw.standard_normal((count, self._bands, 3000)).astype(np.float32)
        )


if __name__ == "__main__":
    serve(CTranslate2())
