"""Finds test items in training data: equal texts, and runs of 13 words that both have.

A run that many training texts or many tests have is an instruction they share, and counts for nothing: Brown et al.
2020 (GPT-3), appendix C, set the same bound of ten. Training texts are read once, as a stream; copies of a text count
as one. Knows texts; knows no file and no format.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

WORDS = 13
COMMON = 10  # a run in more texts than this is shared by design
_WORD = re.compile(r"\w+")
_EDGE = " \t\n.!?,;:\"'`"

_Run = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test that a training text holds. `share`: of the test's runs of 13 words, those in this training text."""

    test: int
    training: int
    kind: Literal["exact", "13-gram"]
    share: float


def overlaps(training: Iterable[str], tests: Sequence[str]) -> list[Overlap]:
    """Return one overlap per test that occurs in `training`, with the training text that holds most of it.

    Indices count from 0 in the order given. Give one message per text: a test is exact where it equals a whole text,
    apart from case, white space and the punctuation around it. A test of fewer than 13 words can only be exact.
    """
    plain: dict[str, list[int]] = {}
    runs = [frozenset(_runs(text)) for text in tests]
    for i, text in enumerate(tests):
        if key := _plain(text):
            plain.setdefault(key, []).append(i)
    in_tests = Counter(run for each in runs for run in each)
    exact: dict[int, int] = {}  # test -> the first training text that equals it
    held: list[tuple[int, frozenset[_Run]]] = []  # training text, its runs that some test has
    in_training: Counter[_Run] = Counter()
    seen: set[int] = set()
    for i, text in enumerate(training):
        key = _plain(text)
        for test in plain.get(key, ()):
            exact.setdefault(test, i)
        if hash(key) in seen:
            continue
        seen.add(hash(key))
        if hit := frozenset(run for run in _runs(text) if run in in_tests):
            held.append((i, hit))
            in_training.update(hit)
    common = {run for counts in (in_tests, in_training) for run, n in counts.items() if n > COMMON}
    overlap_by_test = _longest(runs, held, common)
    overlap_by_test.update({test: Overlap(test, i, "exact", 1.0) for test, i in exact.items()})
    return [overlap_by_test[test] for test in sorted(overlap_by_test)]


def _longest(
    runs: Sequence[frozenset[_Run]], held: Sequence[tuple[int, frozenset[_Run]]], common: set[_Run]
) -> dict[int, Overlap]:
    """Return, for each test with a run in a training text, the text that has most of them."""
    of_run: dict[_Run, list[int]] = {}
    for test, each in enumerate(runs):
        for run in each - common:
            of_run.setdefault(run, []).append(test)
    best: dict[int, Overlap] = {}
    for i, hit in held:
        counts = Counter(test for run in hit for test in of_run.get(run, ()))
        for test, n in counts.items():
            share = n / len(runs[test])
            if test not in best or share > best[test].share:
                best[test] = Overlap(test, i, "13-gram", share)
    return best


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _plain(text: str) -> str:
    """Return what two equal texts share: symbols stay, so that 17+25 is not 17-25."""
    return " ".join(_folded(text).split()).strip(_EDGE)


def _runs(text: str) -> Iterable[_Run]:
    words = _WORD.findall(_folded(text))
    return zip(*(islice(words, start, None) for start in range(WORDS)), strict=False)
