"""Text that a terminal shows and does not obey. Path: every verb's output -> printable."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text that shows what would control the terminal: names and errors may come out of strangers' files."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
