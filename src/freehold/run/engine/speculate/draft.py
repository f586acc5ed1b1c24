"""Draft tokens, and how often such tokens were accepted.

Knows token ids and evidence: the length of an n-gram match, a draft model's own confidence, or a token's place in a
head's draft; knows costs only as a function of a step's tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# N-gram lookup: drafts what followed the longest end of a sequence that occurred earlier.
# An edit, a quotation, a table or a loop repeats itself, and finding that costs microseconds. Memory: about
# 250 bytes a token of the sequence.
# Tokens that are hashed. Six find the place among many alike (indentation, commas); two find it again right after a
# difference.
KEYS = (6, 2)
LINKS = 4  # earlier places of one hash that are compared, latest first
LONGEST = 64  # tokens compared; a longer match says nothing more
MAX_DRAFT = 63  # with the newest token: 64 of a step


@dataclass(frozen=True, slots=True)
class NgramMatch:
    """What followed an earlier occurrence of the sequence's last `length` tokens."""

    length: int
    tokens: tuple[int, ...]


class NgramLookup:
    """An index over the places of one sequence; it shares the sequence's list of tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._indexed = 0  # places before this one are in the index
        self._latest: tuple[dict[int, int], ...] = tuple({} for _ in KEYS)
        self._earlier = tuple(array("i") for _ in KEYS)  # place -> the one before it with the same hash
        self._last_match = 0  # where the last match continued; 0: nowhere
        self._found_at = 0  # how long the sequence was then

    def find(self, most: int = MAX_DRAFT) -> NgramMatch | None:
        """Return the longest match, the latest of equals, with at most `most` tokens to follow."""
        self._index()
        tokens = self._tokens
        end = len(tokens)
        # After a difference the text often continues one token later: a changed word in a copied text.
        candidate = self._last_match + end - self._found_at if self._last_match else 0
        length, place = (self._agreement(candidate), candidate) if 0 < candidate < end else (-1, 0)
        if length < LONGEST:
            length, place = self._longest(length, place)
        self._last_match, self._found_at = place, end
        if place == 0 or most < 1:
            return None
        draft = tokens[place : place + most]
        while len(draft) < most:  # the match reaches to the end: the text repeats itself
            draft += draft
        return NgramMatch(length, tuple(draft[:most]))

    def _index(self) -> None:
        """Add every place that a token follows; a place is the position of what follows a hash."""
        tokens = self._tokens
        for size, latest, earlier in zip(KEYS, self._latest, self._earlier, strict=True):
            for place in range(self._indexed, len(tokens)):
                key = hash(tuple(tokens[max(place - size, 0) : place]))
                earlier.append(latest.get(key, 0))
                latest[key] = place
        self._indexed = len(tokens)

    def _longest(self, length: int, place: int) -> tuple[int, int]:
        end = len(self._tokens)
        for size, latest, earlier in zip(KEYS, self._latest, self._earlier, strict=True):
            at = latest.get(hash(tuple(self._tokens[max(end - size, 0) :])), 0)
            for _ in range(LINKS):
                if at == 0:
                    break
                agreed = self._agreement(at)
                if agreed >= size and agreed > length:
                    length, place = agreed, at
                at = earlier[at]
            if length >= size:
                break
        return length, place

    def _agreement(self, place: int) -> int:
        """Count the tokens before `place` that equal the sequence's last ones."""
        tokens, end = self._tokens, len(self._tokens)
        most = min(place, LONGEST)
        for n in range(1, most + 1):
            if tokens[place - n] != tokens[end - n]:
                return n - 1
        return most


# Sizes of a step that are tried: a tile's widths, then steps of about a third; a cost is soon known for each.
LADDER = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_TRIED = frozenset(LADDER)
MARGIN = 1.05  # a draft must promise this much more than plain decoding
LEAST_GAIN = 0.02  # draft tokens less likely than this to be accepted are left out
# By the bits of a match's length: 0, 1, 2-3, 4-7, ... 64 and more. An accepted token makes the match longer.
MATCH_PRIOR = (0.1, 0.2, 0.35, 0.6, 0.75, 0.88, 0.94, 0.97)
_BUCKETS = [min(length.bit_length(), len(MATCH_PRIOR) - 1) for length in range(LONGEST + MAX_DRAFT)]
MODEL_PRIOR = (0.2, 0.4, 0.55, 0.7, 0.9)  # by the probability the draft model gave it: up to 0.2, 0.4, ... 1
OVERALL_PRIOR = 0.7
# By the place in a head's draft, each if those before it are accepted. Users report 0.80 of the first place
# (Qwen3.6-35B-A3B), 0.92 for code and 0.47 for stories of one model, and 0.92, 0.81, 0.60 by depth (GLM-5.3-Flash).
# The prior is below that: rates rise as fast as they fall, and the first answer of an engine is to lose little.
HEAD_PRIOR = (0.7, 0.6, 0.5, 0.4)
FORCED_PRIOR = (0.99,)  # the grammar allows nothing else


class AcceptanceRates:
    """How often draft tokens were accepted, by bucket of evidence and overall: running means that keep adapting.

    `by_place`: a token's evidence is its place in the draft, so its rate is known before it is drafted.
    """

    WINDOW = 32.0  # draft tokens a mean remembers, about
    TRUST = 8.0  # draft tokens that what other sequences taught counts for, at most

    def __init__(self, prior: Sequence[float], weight: float = 3.0, *, by_place: bool = False) -> None:
        self.by_place = by_place
        self._mean = [*prior, OVERALL_PRIOR]
        self._count = [weight] * len(self._mean)
        self._shared: AcceptanceRates | None = None

    def of_sequence(self) -> AcceptanceRates:
        """Return the rates of one more sequence: they begin with these, and these learn with them."""
        own = AcceptanceRates(self._mean[:-1], by_place=self.by_place)
        own._mean[-1] = self._mean[-1]
        own._count = [min(count, self.TRUST) for count in self._count]
        own._shared = self
        return own

    def __getitem__(self, bucket: int) -> float:
        return self._mean[bucket]

    @property
    def overall(self) -> float:
        """The acceptance rate of a token whose bucket is not known yet."""
        return self._mean[-1]

    def expected(self, place: int) -> float:
        """Return the acceptance rate of a token at a place of a draft, before it is drafted."""
        return self._mean[self._bucket(place)] if self.by_place else self.overall

    def bucket(self, place: int, confidence: float) -> int:
        """Return the bucket of a drafted token: of its place, or of the probability its source gave it."""
        return self._bucket(place if self.by_place else int(confidence * (len(self._mean) - 1)))

    def _bucket(self, number: int) -> int:
        return min(number, len(self._mean) - 2)

    def add(self, bucket: int, accepted: bool) -> None:
        """Count a draft token."""
        for i in (bucket, -1):
            self._count[i] = min(self._count[i] + 1.0, self.WINDOW)
            self._mean[i] += (accepted - self._mean[i]) / self._count[i]
        if self._shared is not None:
            self._shared.add(bucket, accepted)


@dataclass(slots=True)
class Draft:
    """Tokens that may come next, and the bucket of evidence for each."""

    rates: AcceptanceRates
    tokens: list[int] = field(default_factory=list)
    buckets: list[int] = field(default_factory=list)

    @classmethod
    def of_match(cls, rates: AcceptanceRates, match: NgramMatch) -> Draft:
        """Return the tokens that followed a match."""
        buckets = _BUCKETS[match.length : match.length + len(match.tokens)]
        return cls(rates, list(match.tokens), buckets)

    @classmethod
    def of_grammar(cls, rates: AcceptanceRates, tokens: Sequence[int]) -> Draft:
        """Return tokens that a grammar forces."""
        return cls(rates, list(tokens), [0] * len(tokens))

    def cut(self, count: int) -> None:
        """Keep the first `count` tokens."""
        del self.tokens[count:], self.buckets[count:]

    def gains(self) -> list[float]:
        """Return the probability of each token to be accepted, with all before it, down to LEAST_GAIN."""
        out, gain = [], 1.0
        for bucket in self.buckets:
            gain *= self.rates[bucket]
            if gain < LEAST_GAIN:
                break
            out.append(gain)
        return out

    def add(self, token: int, confidence: float) -> float:
        """Add a token of a draft model or a head; return its acceptance rate if all before it are accepted."""
        self.buckets.append(self.rates.bucket(len(self.tokens), confidence))
        self.tokens.append(token)
        return self.rates[self.buckets[-1]]

    def learn(self, answer: Sequence[int]) -> None:
        """Count the tokens by what was generated. A draft that was not verified teaches as much, and costs nothing."""
        for token, bucket, came in zip(self.tokens, self.buckets, answer, strict=False):
            self.rates.add(bucket, token == came)
            if token != came:
                return


def best_extra(
    gains: Sequence[float],
    plain: int,
    cost: Callable[[int], float],
    fits: Callable[[int], bool] = lambda _: True,
) -> int:
    """Return how many draft tokens, likeliest first, give the most tokens a second beside `plain` newest ones.

    `gains` are the chances that each is accepted, falling. 0 when no number promises to pay; `fits` tells whether a
    step may have this many tokens.
    """
    best, extra = MARGIN * plain / cost(plain), 0
    expected = float(plain)
    for count, gain in enumerate(gains, 1):
        expected += gain
        if plain + count in _TRIED or count == len(gains):
            if not fits(plain + count):
                break
            rate = expected / cost(plain + count)
            if rate > best:
                best, extra = rate, count
    return extra
