"""A model in a process of its own, for fit.py: loads a file, fills its context, answers, and says its memory.

Speculation is off: what guesses add is benches/engine/speculation.py's question.
Path: fit.py -> peer.Child -> this file
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import freehold
from benches.lib.driver import _answers, _memory, serve
from benches.lib.load_text import TEXT
from freehold import SamplingParams


class Model:
    """The loaded file and the answer under way."""

    def load(self, path: str, context: int) -> dict[str, Any]:
        """Load; return the seconds it took."""
        started = time.perf_counter()
        self.model = freehold.load(path, context=context, speculate=False)
        took = time.perf_counter() - started
        words = list(self.model.tokenize(TEXT.read_text(encoding="utf-8"), special=False))
        self.words = words * (2 + context // len(words))
        return {"load_s": took}

    def prefill(self, tokens: int, steps: int, salt: int) -> dict[str, Any]:
        """Time a prompt to its first token; another `salt` is another prompt."""
        ids = [self.words[salt], *self.words[997 * salt % 5000 :][: tokens - 1]]
        self.answer = self.model._engine.generate(ids, SamplingParams(temperature=0.0), max_tokens=steps)
        started = time.perf_counter()
        next(self.answer)
        return {"tok_s": tokens / (time.perf_counter() - started)}

    def decode(self) -> dict[str, Any]:
        """Time the rest of the answer, by the median of its steps."""
        times = [time.perf_counter(), *(time.perf_counter() for _ in self.answer)]
        return {"tok_s": 1 / statistics.median(b - a for a, b in itertools.pairwise(times))}

    def memory(self) -> dict[str, Any]:
        """Return the most bytes that were resident so far."""
        return _memory()


if __name__ == "__main__":
    serve(Model(), _answers())
