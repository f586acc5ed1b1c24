"""Prompts of named lengths from real sentences in an order drawn anew for each. Knows no server.

Path: race.py, soak.py or chaos.py -> Prompts.draw
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benches.lib.environments import ROOT

TEXT = ROOT / "tests" / "vectors" / "text.txt"


def tokenizer_of(path: Path) -> Any:
    """Read the tokenizer of a GGUF file."""
    from freehold.run.formats import open_model_file
    from freehold.run.tokenizer import tokenizer_from_gguf

    file: Any = open_model_file(path)
    tokenizer = tokenizer_from_gguf(file.metadata)
    file.close()
    return tokenizer


class Prompts:
    """Draws prompts; the same seed draws the same ones. No two begin alike, so no cache answers for a model."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        text = TEXT.read_text(encoding="utf-8").replace("\n", " ")
        self._sentences = [part.strip() + "." for part in text.split(". ") if part.strip()]
        self._tokenizer, self._random, self._drawn = tokenizer, random.Random(seed), 0

    def draw(self, tokens: int) -> str:
        """Give a text of exactly so many tokens, at least sixteen."""
        self._drawn += 1
        parts = [f"Note {self._random.randrange(10**6)}.{self._drawn}:"]
        while self._count(" ".join(parts)) < tokens:
            for _ in range(1 + tokens // 400):
                parts.append(self._random.choice(self._sentences))
        words = " ".join(parts).split(" ")
        low, high = 1, len(words)  # most words that still fit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self._count(" ".join(words[:middle])) <= tokens else (low, middle - 1)
            )
        text = " ".join(words[:low])
        while self._count(text) < tokens:
            text += " a"
        return text

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))
