"""What a step's answers look like beside their scores: length, repetition, how many differ, where two verifiers part.

A policy that learns to please a verifier rather than to solve its items shows here first: answers grow, repeat or
become one and the same, or a second verifier disagrees. Knows texts and scores; knows no model.
Path: adapt/reinforce/course.py -> looks, parted -> the step's line
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from freehold.evals.verifier import RewardScore

NGRAM = 4  # words of a piece whose repetition is counted
APART = 0.5  # scores that differ by more part


@dataclass(frozen=True, slots=True)
class AnswerLooks:
    """Means over a step's answers. `repetition`: share of pieces of 4 words that occurred in their answer before."""

    tokens: float
    repetition: float
    distinct: float  # share of different answers within a group, mean over groups
    cut: float  # share that reached the limit of tokens


@dataclass(frozen=True, slots=True)
class Parting:
    """An answer that two verifiers score apart."""

    prompt: str
    answer: str
    score: float
    check: float


def looks(texts: Sequence[Sequence[str]], tokens: Sequence[int], cut: Sequence[bool]) -> AnswerLooks:
    """Describe the answers of a step: texts by group, each answer's tokens, and whether it was cut at the limit."""
    all_texts = [text for group in texts for text in group]
    return AnswerLooks(
        tokens=sum(tokens) / len(tokens),
        repetition=sum(map(repetition, all_texts)) / len(all_texts),
        distinct=sum(len(set(group)) / len(group) for group in texts) / len(texts),
        cut=sum(cut) / len(cut),
    )


def repetition(text: str) -> float:
    """Return the share of a text's pieces of NGRAM words that it had before."""
    words = text.split()
    pieces = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def failures(scores: Sequence[RewardScore]) -> dict[str, int]:
    """Count failures by kind, the most frequent first."""
    return dict(Counter(each.failed for each in scores if each.failed).most_common())


def parted(
    prompts: Sequence[str], texts: Sequence[str], scores: Sequence[RewardScore], check: Sequence[RewardScore]
) -> list[Parting]:
    """Return the answers that two verifiers score apart, the widest first."""
    partings = [
        Parting(prompt, text, one.value, other.value)
        for prompt, text, one, other in zip(prompts, texts, scores, check, strict=True)
        if abs(one.value - other.value) > APART
    ]
    return sorted(partings, key=lambda each: -abs(each.score - each.check))
