"""N-gram lookup: drafts what followed the longest end of a sequence that occurred earlier.

Knows token ids; knows no model, no cost and no acceptance rate. An edit, a quotation, a table or a loop repeats
itself, and finding that costs microseconds. Memory: about 250 bytes a token of the sequence.
Path: Speculation.extend -> NgramLookup.find -> NgramMatch
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

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
