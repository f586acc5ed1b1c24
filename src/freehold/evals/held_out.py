"""A text of our own that nothing is calibrated or trained on: stories, manuals, letters, code, tables, four languages.

Kinds take turns, so that a measurement that stops early has seen all of them. The text never changes: figures that
name its digest can be compared.
Path: adapt/quantize/report.py -> held_out_text
"""

from __future__ import annotations

from importlib.resources import files

SHA256 = "09dd2e2a9c92a979a34bb096ab2feec20122d5440abb6e2b81e94d7689b8790a"


def held_out_text() -> str:
    """Return the text, about 12,000 tokens."""
    return (files("freehold.evals") / "held_out.txt").read_text(encoding="utf-8")
