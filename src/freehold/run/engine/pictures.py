"""Pictures in a prompt: the ids that stand for their rows, and what a step needs of them.

Knows features, rows and places; knows no pixels and no tower. Rows of pictures are tokens beyond the vocabulary:
ids from PICTURE_IDS on are handed out once, the same for equal pictures, so the prefix tree compares pictures as it
compares words.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import CapacityExceeded

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

PICTURE_IDS = 1 << 31  # the first; a vocabulary ends far below, and four bytes of a key hold as many again
LAST_ID = (1 << 32) - 1
# Pictures whose ids are known: an older one that comes back gets new ids, and matches nothing.
REMEMBERED = 1 << 16


class PictureIds:
    """Hands out ids, from any thread: equal digests get equal ids while they are remembered."""

    def __init__(self) -> None:
        self._next = PICTURE_IDS
        self._known: OrderedDict[bytes, range] = OrderedDict()
        self._lock = Lock()

    def of(self, digest: bytes, rows: int) -> range:
        """Return the ids of a picture's rows. `digest` tells pictures apart that a model computes differently.

        Raises CapacityExceeded after two thousand million rows.
        """
        with self._lock:
            ids = self._known.pop(digest, None)
            if ids is None:
                if self._next + rows > LAST_ID:
                    raise CapacityExceeded(
                        f"this engine has numbered {self._next - PICTURE_IDS:,} rows of pictures, as many as it can",
                        "restart it",
                    )
                ids = range(self._next, self._next + rows)
                self._next = ids.stop
            self._known[digest] = ids
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return ids


@dataclass(frozen=True, slots=True, eq=False)
class PromptPictures:
    """The pictures of one prompt. `places`: of a model that turns by time, row and column; None: by position alone."""

    features: F32  # [rows of all pictures, width]
    rows: I32  # [prompt], which row of `features` a token is, -1 for a word
    placeholder: int  # a word of the vocabulary, whose embedding is replaced
    places: I32 | None = None  # [prompt, 3]
    after: int = 0  # the place of the first token after the prompt, in all three numbers
    spans: tuple[tuple[int, int], ...] = ()  # [first, end) of tokens that see each other, in order
    apart: int = 0  # rows that the prompt begins with and another plan computes: Family.prefix
    # SHA-256 of all that each picture's features depend on, and its rows, in order; (): nothing outlives the process.
    digests: tuple[tuple[bytes, int], ...] = ()

    @property
    def portable(self) -> int:
        """How many tokens another process can know again: all, or without digests those before the first picture."""
        return sys.maxsize if self.digests else int(np.argmax(self.rows >= 0))

    def key(self, tokens: Ordered[int], first: int, count: int) -> bytes:
        """Spell `count` of a sequence's tokens from `first` on, so that no two pictures are spelled alike.

        Four bytes a token, the highest first: a word as itself, a picture's row as PICTURE_IDS and its number in the
        picture. Then the digest of each picture among them, in order: what comes before says how many there are.
        """
        rows = self.rows[first : first + count]
        spelled = np.array(tokens[first : first + count], ">u4")
        shown = np.flatnonzero(rows >= 0)
        if not len(shown) or not self.digests:
            return spelled.tobytes()
        starts = np.cumsum([0, *(n for _, n in self.digests[:-1])])
        pictures = np.searchsorted(starts, rows[shown], side="right") - 1
        spelled[shown] = rows[shown] - starts[pictures] + PICTURE_IDS
        return spelled.tobytes() + b"".join(self.digests[i][0] for i in np.unique(pictures))

    def marked(self, ids: Ordered[int]) -> tuple[int, ...]:
        """Return a prompt with the placeholder for rows of pictures: the same in every process."""
        return tuple(self.placeholder if id >= PICTURE_IDS else id for id in ids)

    def uncut(self, first: int, count: int) -> int:
        """Return how many tokens from `first` on a step computes instead of `count`, so that it cuts no span.

        The step ends before a span that it would cut; where it begins with one, it takes all of it. Rows that are
        computed apart may be cut anywhere, and nothing follows them in their chunk.
        """
        if first < self.apart:
            return min(count, self.apart - first)
        end = first + count
        begin, whole = next(((b, e) for b, e in self.spans if b < end < e), (end, end))
        return begin - first if begin > first else whole - first

    def ends_at(self, first: int, count: int) -> I32:
        """Return before which position each of `count` tokens from `first` on stops looking: int32 [count]."""
        ends = np.arange(first + 1, first + count + 1, dtype=np.int32)
        for begin, end in self.spans:
            ends[max(begin - first, 0) : max(end - first, 0)] = end
        return ends

    def places_at(self, first: int, count: int) -> I32:
        """Return where `count` tokens from `first` on lie: int32 [count, 3]. Tokens of the answer count on."""
        positions = np.arange(first, first + count)
        if self.places is None:
            return same_places(positions)
        places = same_places(positions - len(self.rows) + self.after)
        inside = self.places[first : first + count]
        places[: len(inside)] = inside
        return places


def same_places(positions: NDArray[np.integer]) -> I32:
    """Return positions of words as places: int32 [n, 3], the three numbers alike."""
    return np.repeat(np.asarray(positions, np.int32)[:, None], 3, axis=1)


def joined_rows(
    pictures: Ordered[PromptPictures | None], chunks: Ordered[tuple[int, int]]
) -> tuple[F32 | None, I32]:
    """Return the features that a step reads, float32 [n, width] or None, and each row's place in them, -1 for a word.

    `chunks`: of each sequence of the step, in order, its first token and how many.
    """
    features: list[F32] = []
    rows: list[I32] = []
    count = 0
    for each, (first, tokens) in zip(pictures, chunks, strict=True):
        moved = np.full(tokens, -1, np.int32)
        inside = each.rows[first : first + tokens] if each is not None else moved[:0]
        shown = np.flatnonzero(inside >= 0)
        if each is not None and len(shown):
            moved[shown] = np.arange(count, count + len(shown), dtype=np.int32)
            features.append(each.features[inside[shown]])
            count += len(shown)
        rows.append(moved)
    return (np.concatenate(features) if features else None), np.concatenate(rows)
