"""faster-whisper's driver for ears/transcribe.py: int8, greedy, one window after another or batched with its detector.

Path: ears/transcribe.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ctranslate2  # pyright: ignore[reportMissingImports]
import faster_whisper  # pyright: ignore[reportMissingImports]

from benches.drivers.ears_driver import Hearer, Row
from benches.lib.driver import serve


class FasterWhisper(Hearer):
    """A loaded model, alone and batched."""

    def load(self, folder: str, threads: int) -> dict[str, Any]:
        """Load a folder of CTranslate2, with int8 weights."""
        self._alone = faster_whisper.WhisperModel(
            folder, device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )
        self._batched = faster_whisper.BatchedInferencePipeline(self._alone)
        return {
            "version": f"faster-whisper {faster_whisper.__version__} (CTranslate2 {ctranslate2.__version__})"
        }

    def segments(self, path: str, batch: int = 0, **setting: Any) -> list[Row]:
        """Return what is said in a recording; `batch` 0: one window after another."""
        setting |= {"language": "en", "beam_size": 1, "condition_on_previous_text": False}
        model = self._batched if batch else self._alone
        heard, _ = model.transcribe(path, **setting, **({"batch_size": batch} if batch else {}))
        return [(each.start, each.end, each.text) for each in heard]


if __name__ == "__main__":
    serve(FasterWhisper())
