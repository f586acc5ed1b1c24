"""whisper.cpp's driver for ears/transcribe.py: pywhispercpp on a ggml file of halves, greedy.

Path: ears/transcribe.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pywhispercpp.model import Model  # pyright: ignore[reportMissingImports]

from benches.drivers.ears_driver import Hearer, Row
from benches.lib.driver import serve


class WhisperCpp(Hearer):
    """A loaded model."""

    def load(self, path: str, threads: int) -> dict[str, Any]:
        """Load a ggml file."""
        quiet: dict[str, Any] = {
            "print_progress": False,
            "print_realtime": False,
            "redirect_whispercpp_logs_to": None,
        }
        self._model = Model(
            path, n_threads=threads, no_context=True, greedy={"best_of": 1}, language="en", **quiet
        )
        return {"version": f"pywhispercpp {version('pywhispercpp')}"}

    def segments(self, path: str, **setting: Any) -> list[Row]:
        """Return what is said in a recording; its times are hundredths of a second."""
        heard = self._model.transcribe(path, **setting)
        return [(each.t0 / 100, each.t1 / 100, each.text) for each in heard]


if __name__ == "__main__":
    serve(WhisperCpp())
