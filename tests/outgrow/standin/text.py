"""A language model of one hash: the next token depends on all text before it, so any continuation is exact.

Token ids below 256 are bytes of UTF-8; 256 and up are the words of WORDS, each with its leading space.
"""

from __future__ import annotations

import hashlib
import re

_STARTS = ("am", "be", "co", "du", "el", "fi", "ga", "hi")
_ENDS = ("ber", "lar", "mond", "nist", "pora", "quil", "rent", "step")
WORDS = tuple(f" {start}{end}" for start in _STARTS for end in _ENDS)
_IDS = {word: 256 + i for i, word in enumerate(WORDS)}
_PIECES = re.compile("(" + "|".join(WORDS) + ")(?![a-z])")


def encode(text: str) -> list[int]:
    """Return token ids."""
    ids: list[int] = []
    for piece in _PIECES.split(text):
        ids += [_IDS[piece]] if piece in _IDS else piece.encode()
    return ids


def decode(ids: list[int]) -> str:
    """Return the text of token ids. Raises IndexError for an id beyond the vocabulary."""
    data = b"".join(bytes([i]) if i < 256 else WORDS[i - 256].encode() for i in ids)
    return data.decode("utf-8", "replace")


def next_id(text: str, salt: str = "") -> int:
    """Return the id that follows `text`; `salt` is the seed where the temperature is not 0."""
    said = hashlib.blake2b((salt + text).encode(), digest_size=4).digest()
    return 256 + int.from_bytes(said, "big") % len(WORDS)


def answer(text: str, tokens: int, salt: str = "") -> str:
    """Return what the model says to `text` in so many tokens: what a test expects."""
    said = ""
    for _ in range(tokens):
        said += WORDS[next_id(text + said, salt) - 256]
    return said


def rendered(messages: list[dict[str, object]], *, open_end: bool) -> str:
    """Return a chat as the prompt that the model reads; `open_end`: its last turn is continued."""
    turns = [f"<{m['role']}>{_said(m.get('content'))}" for m in messages]
    return "\n".join(turns) if open_end else "\n".join([*turns, "<assistant>"])


def _said(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
