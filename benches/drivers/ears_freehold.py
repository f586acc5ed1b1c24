"""Freehold's driver for ears/transcribe.py.

Path: ears/transcribe.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import freehold
from benches.drivers.ears_driver import Hearer, Row
from benches.lib.driver import serve
from freehold import _native
from freehold.run.local.speech import load_speech


class Freehold(Hearer):
    """A loaded speech model."""

    def load(self, folder: str, threads: int, detector: str) -> dict[str, Any]:
        """Load a folder; int8 panels, as everywhere."""
        self._speech = load_speech(folder, threads=threads, detector=detector or None)
        return {"version": f"freehold {freehold.__version__} ({_native.isa()})"}

    def segments(self, path: str, **setting: Any) -> list[Row]:
        """Return what is said in a recording."""
        transcript = self._speech.transcribe(path, language="en", **setting)
        return [(each.start, each.end, each.text) for each in transcript.segments]

    def ceilings(self, threads: list[int]) -> dict[str, list[float]]:
        """Measure the machine's int8 units, for each of `threads`; the best of three, as noise only takes."""
        return {
            "measure_int8_gops": [max(_native.measure_int8_gops(n) for _ in range(3)) for n in threads],
        }


if __name__ == "__main__":
    serve(Freehold())
