"""What is right in a transcript: words, invented text, and where sentences begin. Knows no engine.

Words are compared in lower case and without punctuation, by the fewest changes; of several ways, the one that leaves
words out last.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

INVENTED = 3  # words in a row that were not said
APART_S = 2.0  # a pause that no sentence should cross
CROSSING_S = 1.0  # of speech on either side, for a text that crosses it


@dataclass(frozen=True)
class Said:
    """A clip within a recording: seconds of its first word and of its last word's end, and its words."""

    begin: float
    end: float
    words: tuple[str, ...]


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(re.findall(r"[\w']+", text.lower()))


def judge(said: Sequence[Said], rows: Sequence[tuple[float, float, str]]) -> dict[str, Any]:
    """Return a transcript's mistakes: `errors` of `words`, `invented` runs of words, texts in no speech (`in_pauses`)
    or over a long pause (`across`), and `begins`: by how many seconds the text of a clip begins late."""
    right = [(clip, word) for clip, each in enumerate(said) for word in each.words]
    heard = [(row, word) for row, (_, _, text) in enumerate(rows) for word in words_of(text)]
    pairs, errors = aligned([word for _, word in right], [word for _, word in heard])
    begins: dict[int, float] = {}
    for i, j in pairs:
        clip, row = right[i][0], heard[j][0]
        first_of_row = j == 0 or heard[j - 1][0] != row
        first_of_clip = i == 0 or right[i - 1][0] != clip
        if first_of_row and first_of_clip:
            begins[clip] = rows[row][0] - said[clip].begin
    late = [abs(each) for each in begins.values()]
    return {
        "words": len(right),
        "errors": errors,
        "invented": _runs({j for _, j in pairs}, len(heard)),
        "in_pauses": sum(
            all(end <= each.begin or begin >= each.end for each in said) for begin, end, _ in rows
        ),
        "across": sum(_crosses(said, begin, end) for begin, end, _ in rows),
        "clips": len(said),
        "begun": len(begins),
        "begins": {"median": float(np.median(late)), "worst": max(late)} if late else {},
    }


def aligned(right: Sequence[str], heard: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Return which words stand for each other, by their places, and how many changes there are at least."""
    n, m = len(right), len(heard)
    cost = np.zeros((n + 1, m + 1), np.int32)
    cost[:, 0], cost[0] = np.arange(n + 1), np.arange(m + 1)
    columns = np.arange(m + 1)
    for i in range(1, n + 1):
        same = np.array([word == right[i - 1] for word in heard], np.int32)
        row = cost[i - 1] + 1
        row[1:] = np.minimum(row[1:], cost[i - 1, :-1] + 1 - same)
        cost[i] = np.minimum.accumulate(row - columns) + columns  # words that are heard and were not said
    pairs: list[tuple[int, int]] = []
    i, j = n, m
    while i and j:
        if cost[i, j] == cost[i - 1, j - 1] + (right[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif cost[i, j] == cost[i, j - 1] + 1:
            j -= 1
        else:
            i -= 1
    return pairs[::-1], int(cost[n, m])


def _runs(matched: set[int], count: int) -> int:
    """Return how many runs of INVENTED words and more match nothing."""
    marks = "".join("." if j in matched else "x" for j in range(count))
    return len(re.findall(f"x{{{INVENTED},}}", marks))


def _crosses(said: Sequence[Said], begin: float, end: float) -> bool:
    """Tell whether a text holds speech, a long pause and speech again."""
    parts = [each for each in said if min(end, each.end) - max(begin, each.begin) >= CROSSING_S]
    return any(b.begin - a.end >= APART_S for a, b in itertools.pairwise(parts))
