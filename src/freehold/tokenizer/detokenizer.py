"""Turns a stream of token ids into text, whole characters only.

Knows bytes and UTF-8; knows no stop strings and no thinking tags (local does).
Path: Engine.step -> Detokenizer.push -> Chunk.text
"""

from __future__ import annotations

import codecs

from freehold.tokenizer.core import Tokenizer


class Detokenizer:
    """Decode ids one by one; the pieces joined equal `Tokenizer.decode` of all ids.

    A character whose bytes are spread over tokens is buffered until it is whole; bytes that can no longer
    become one turn into U+FFFD. `at_start` False: the text continues an earlier one, so a SentencePiece
    leading space is kept. `shown`: control tokens that are spelled though `special` is False. One instance
    per stream, one thread at a time.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special: bool = False,
        at_start: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._special, self._shown = special, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = at_start and tokenizer.strips_leading_space

    def push(self, id: int) -> str:
        """Add one id and return the text that became certain (often empty)."""
        special = self._special or id in self._shown
        return self._trimmed(self._decoder.decode(self._tokenizer.token_bytes(id, special=special)))

    def finish(self) -> str:
        """End the stream and return what was buffered, U+FFFD for half a character."""
        return self._trimmed(self._decoder.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
