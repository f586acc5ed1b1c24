"""Guesses how many tokens a text has, where nothing here has the model's tokenizer: a ratio that learns.

The guess is for windows, for explain, and for answers that broke off and carry no usage; it follows the ratio of a
target's own counts. Bounds for reservations are those of prompts.py. Knows text's length, and no tokenizer.
"""

from __future__ import annotations

import math
from dataclasses import replace

from freehold.base.prompts import PromptSize
from freehold.base.serving import Stream
from freehold.base.types import Chunk, Usage

BYTES_A_TOKEN = 4.0  # of English prose, before a target's own counts say better
LEARN = 0.2  # share of the newest answer in a ratio
LEAST, MOST = 1.0, 12.0  # bytes a token: of single bytes, and of a language's longest words


def letters_in(chunk: Chunk) -> int:
    """Return how many bytes of text a chunk adds to an answer, about."""
    letters = len(chunk.text)
    if chunk.thinking or chunk.refusal:
        letters += len(chunk.thinking) + len(chunk.refusal)
    for piece in chunk.tool_calls:
        letters += len(piece.name) + len(piece.arguments)
    return letters


class TokenRatio:
    """Bytes a token of one target, of prompts and of answers: learnt from the counts it reports.

    A count outside of LEAST to MOST bytes a token is left out: it is a mistake, or of a prompt that the provider cut.
    """

    __slots__ = ("answer", "prompt")

    def __init__(self) -> None:
        self.prompt = self.answer = BYTES_A_TOKEN

    def prompt_tokens(self, size: PromptSize) -> int:
        """Guess the tokens of a prompt."""
        return math.ceil(size.bytes / self.prompt) + size.ids

    def answer_tokens(self, length: int) -> int:
        """Guess the tokens of an answer."""
        return math.ceil(length / self.answer)

    def learn(self, size: PromptSize, prompt_tokens: int, length: int, answer_tokens: int) -> None:
        """Follow a whole answer's counts. Pictures and ids are no text, and teach nothing."""
        if not size.images and not size.ids:
            self.prompt = _followed(self.prompt, size.bytes, prompt_tokens)
        self.answer = _followed(self.answer, length, answer_tokens)


def _followed(ratio: float, length: int, tokens: int) -> float:
    """Return a ratio that has learnt from one more count, unless no text has such a one."""
    if not length or not tokens or not LEAST <= length / tokens <= MOST:
        return ratio
    return ratio + LEARN * (length / tokens - ratio)


def used_so_far(stream: Stream, ratio: TokenRatio, size: PromptSize, length: int, tokens: int) -> Usage:
    """Return what an answer that is not whole has used: what its target counted, and an estimate of the rest.

    `length`: bytes of text that came; `tokens`: ids that came, where they are reported.
    """
    reported: Usage | None = getattr(stream, "reported", None)
    answer_tokens = tokens or ratio.answer_tokens(length)
    if reported is None:
        return Usage(len(stream.begin.prompt_ids) or ratio.prompt_tokens(size), answer_tokens)
    return replace(reported, completion_tokens=max(reported.completion_tokens, answer_tokens))
