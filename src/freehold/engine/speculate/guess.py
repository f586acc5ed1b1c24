"""Guessed tokens, and how often such guesses held.

Knows token ids and evidence: the length of a match, or a draft model's own confidence. Knows no cost.
Path: Speculation.extend -> Guess.gains; Speculation.learn -> Guess.learn -> Chances.add
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from freehold.engine.speculate.lookup import LONGEST, MAX_DRAFT, Match

LEAST_GAIN = 0.02  # guesses less likely than this to become a token are not looked at
# By the bits of a match's length: 0, 1, 2-3, 4-7, ... 64 and more. A guess that holds makes the match longer.
MATCH_PRIOR = (0.1, 0.2, 0.35, 0.6, 0.75, 0.88, 0.94, 0.97)
_KINDS = [min(length.bit_length(), len(MATCH_PRIOR) - 1) for length in range(LONGEST + MAX_DRAFT)]
DRAFT_PRIOR = (0.2, 0.4, 0.55, 0.7, 0.9)  # by the chance the draft model gave it: up to 0.2, 0.4, ... 1
ANY_PRIOR = 0.7  # over all kinds
FORCED_PRIOR = (0.99,)  # a format lets nothing else come


class Chances:
    """How often guesses held, by kind of evidence and in all: running means, ever open to change."""

    WINDOW = 32.0  # guesses a mean remembers, about

    def __init__(self, prior: Sequence[float], weight: float = 3.0) -> None:
        self._mean = [*prior, ANY_PRIOR]
        self._count = [weight] * len(self._mean)

    def __getitem__(self, kind: int) -> float:
        return self._mean[kind]

    @property
    def any(self) -> float:
        """The chance of a guess whose kind is not known yet."""
        return self._mean[-1]

    def add(self, kind: int, held: bool) -> None:
        """Take in whether a guess held."""
        for i in (kind, -1):
            self._count[i] = min(self._count[i] + 1.0, self.WINDOW)
            self._mean[i] += (held - self._mean[i]) / self._count[i]


@dataclass(slots=True)
class Guess:
    """Tokens that may come next, and the kind of evidence for each."""

    chances: Chances
    tokens: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    @classmethod
    def of_match(cls, chances: Chances, match: Match) -> Guess:
        """Take over what a lookup found."""
        kinds = _KINDS[match.length : match.length + len(match.draft)]
        return cls(chances, list(match.draft), kinds)

    @classmethod
    def of_format(cls, chances: Chances, tokens: Sequence[int]) -> Guess:
        """Take over what a format says must come."""
        return cls(chances, list(tokens), [0] * len(tokens))

    def cut(self, count: int) -> None:
        """Keep the first tokens only."""
        del self.tokens[count:], self.kinds[count:]

    def gains(self) -> list[float]:
        """Return the chance of each token to be reached and to hold, as far as it is worth a look."""
        out, gain = [], 1.0
        for kind in self.kinds:
            gain *= self.chances[kind]
            if gain < LEAST_GAIN:
                break
            out.append(gain)
        return out

    def add(self, token: int, confidence: float) -> float:
        """Add a draft model's token; return the chance that it holds if all before it do."""
        self.tokens.append(token)
        self.kinds.append(min(int(confidence * len(DRAFT_PRIOR)), len(DRAFT_PRIOR) - 1))
        return self.chances[self.kinds[-1]]

    def learn(self, made: Sequence[int]) -> None:
        """Compare with what came. A guess that was not verified teaches as much, and costs nothing."""
        for token, kind, came in zip(self.tokens, self.kinds, made, strict=False):
            self.chances.add(kind, token == came)
            if token != came:
                return
