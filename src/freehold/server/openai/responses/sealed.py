"""What a provider signed of its reasoning, as the `encrypted_content` of a reasoning item, out and back.

Knows blocks and one string; knows no item's other fields. Path: ReasoningOutput -> sealed; items.py -> opened
"""

from __future__ import annotations

from freehold.types import SignedThinking

_SIGNED, _REDACTED = "signed.", "redacted."


def sealed(block: SignedThinking) -> str:
    """Return a block for a client to carry; its text is in the item itself."""
    return _REDACTED + block.redacted if block.redacted else _SIGNED + block.signature


def opened(content: str, text: str) -> SignedThinking | None:
    """Return the block again, None for what was not made here. `text`: the item's."""
    if content.startswith(_REDACTED):
        return SignedThinking(redacted=content[len(_REDACTED) :])
    if content.startswith(_SIGNED):
        return SignedThinking(text, content[len(_SIGNED) :])
    return None
