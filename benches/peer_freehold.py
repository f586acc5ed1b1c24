"""Freehold as a child process, measured through its public API like any user's program.

Requests as in peer_llama_cpp.py: load, prefill, decode, logits, tokenize; and ceilings.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import freehold
from benches.peer import sample_prompt, serve
from freehold import _native

ATTEMPTS = 8  # the model may end a random prompt's answer early; llama.cpp's driver runs past the end


class Peer:
    """The loaded model. Every timed prompt differs from the last, so no cache of prefixes can answer it."""

    def __init__(self) -> None:
        self.model: Any = None
        self.vocab = 0
        self._salt = 0

    def load(self, path: str, threads: int, context: int, **_unused: Any) -> dict[str, Any]:
        """Load the file, packed weights and all; the cache is f16, and every token is decoded plainly."""
        start = time.perf_counter()
        self.model = freehold.load(path, threads=threads, context=context, speculate=False)
        seconds = time.perf_counter() - start
        self.vocab = int(self.model.logits([0]).shape[-1])
        version = f"freehold {freehold.__version__}"
        return {"name": "freehold", "version": version, "vocab": self.vocab, "load_s": seconds}

    def prefill(self, tokens: int) -> dict[str, Any]:
        """Time a prompt of `tokens` tokens, in seconds."""
        return {"seconds": self._run(tokens, 1).prefill_s}

    def decode(self, prompt: int, tokens: int) -> dict[str, Any]:
        """Time `tokens` greedy steps after a prompt; one more token is asked for, which prefill pays."""
        for _ in range(ATTEMPTS):
            usage = self._run(prompt, tokens + 1)
            if usage.completion_tokens > tokens // 2:
                return {"seconds": usage.decode_s * tokens / (usage.completion_tokens - 1)}
        raise RuntimeError(f"{ATTEMPTS} prompts in a row ended after a few tokens")

    def _run(self, prompt: int, tokens: int) -> Any:
        self._salt += 1
        ids = sample_prompt(prompt, self.vocab, self._salt)
        usage = self.model.generate(ids, max_tokens=tokens, temperature=0).usage
        if usage.cached_tokens:
            raise RuntimeError(f"{usage.cached_tokens} prompt tokens came from the cache")
        return usage

    def logits(self, ids: list[int], out: str) -> dict[str, Any]:
        """Write the logits after each of `ids` to the file `out`: raw float32 [T, V]."""
        rows = self.model.logits(ids)
        rows.tofile(out)
        return {"rows": rows.shape[0], "vocab": rows.shape[1]}

    def tokenize(self, text: str, special: bool) -> dict[str, Any]:
        """Turn text into ids."""
        return {"ids": list(self.model.tokenize(text, special=special))}

    def ceilings(self, threads: int) -> dict[str, Any]:
        """Measure what memory and the integer units of this machine give."""
        return {
            "read_gb_s": _native.measure_read_gb_s(threads),
            "int8_gops": _native.measure_int8_gops(threads),
        }


if __name__ == "__main__":
    serve(Peer())
