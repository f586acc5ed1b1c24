"""What an engine asks of an answer's rules, whatever they are made of: a format, or marks of time in a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from freehold.run.engine.constrain.grammar import Mask


class TokenMatcher(Protocol):
    """How far one answer has come in its rules. One thread at a time."""

    @property
    def is_free(self) -> bool:
        """Whether every token may come next."""
        ...

    @property
    def token_s(self) -> float:
        """Seconds of processor that the next token takes in a parser, about."""
        ...

    @property
    def untaken_s(self) -> float:
        """Seconds of a parser that `take_seconds` has not returned yet."""
        ...

    def mask_of(self, logits: NDArray[np.float32] | np.int64) -> Mask | None:
        """Return which tokens may come next, bool [tokens], by the row they are chosen from; None: every one may."""
        ...

    def forced(self) -> list[int]:
        """Return the tokens that must come next, as far as they are known."""
        ...

    def count_valid(self, ids: Sequence[int]) -> int:
        """Return how many of these tokens may come, one after another."""
        ...

    def advance(self, id: int) -> None:
        """Take the token that was chosen."""
        ...

    def take_seconds(self) -> float:
        """Return what a parser spent since the last call."""
        ...


class TokenRules(Protocol):
    """The rules of a request's answers."""

    def matcher(self, stop_ids: frozenset[int]) -> TokenMatcher:
        """Return the state before an answer's first token. Raises UsageError for rules that allow none."""
        ...
