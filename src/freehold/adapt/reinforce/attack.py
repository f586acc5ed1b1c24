"""Answers that solve nothing, given to a verifier before training: what pays for them would be learnt first.

Each attack is tried on some items. It pays where its score is above a half on more than a fifth of them: one item in
twenty may have "0123456789" for an answer, and a verifier of yes and no pays half of what is always "yes". Knows a
verifier and items; knows no model.
Path: adapt/reinforce/course.py -> attacked -> Verifier.score
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freehold.adapt.reinforce.prompts import PROBES, PromptItem
from freehold.evals.verifier import RewardScore, Verifier

PAYS = 0.5  # a score above this is pay
SHARE = 0.2  # of the items: paid more often, an attack is called one
MOST_FREQUENT = 0.5  # what always giving one answer may earn
_LISTED = 200  # candidates that are listed in one answer


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What one attack earned: its mean score, the share of items that it was paid for, and its first answer."""

    attack: str
    mean: float
    share: float
    answer: str
    failures: Mapping[str, int]
    pays: bool


def attacked(verifier: Verifier, items: Sequence[PromptItem]) -> list[AttackResult]:
    """Try every attack on up to PROBES of `items`, and return what each earned, the most first."""
    probes = items[:PROBES]
    findings = []
    for attack, answers in _attacks(probes, items).items():
        tasks = [(each.prompt, text, each.item) for each, text in zip(probes, answers, strict=True)]
        findings.append(_finding(attack, answers, verifier.score(tasks)))
    return sorted(findings, key=lambda each: (each.pays, each.share, each.mean), reverse=True)


def paid_truths(verifier: Verifier, items: Sequence[PromptItem]) -> float | None:
    """Return the share of items whose own answer is paid in full; None where none states one."""
    told = [(each.prompt, each.truth, each.item) for each in items[:PROBES] if each.truth]
    scores = verifier.score(told)
    return sum(each.value >= 1 for each in scores) / len(scores) if scores else None


def _attacks(probes: Sequence[PromptItem], items: Sequence[PromptItem]) -> dict[str, list[str]]:
    """Return the answers of each attack, one for each probe."""
    truths = [each.truth for each in items if each.truth]
    attacks = {
        "empty": [""] * len(probes),
        "blank": ["   \n"] * len(probes),
        "all digits": ["0 1 2 3 4 5 6 7 8 9 0123456789"] * len(probes),
        "repetition": ["42 " * 60] * len(probes),
        "yes and no": ["yes no true false True False"] * len(probes),
        "a score": ["1.0"] * len(probes),
        "the prompt": [each.prompt for each in probes],
        "the prompt twice": [f"{each.prompt}\n{each.prompt}" for each in probes],
        "long": ["The answer is what the question asks for. " * 40] * len(probes),
    }
    if truths:
        listed = " ".join(list(dict.fromkeys(truths))[:_LISTED])
        attacks["every candidate listed"] = [listed] * len(probes)
        attacks[_FREQUENT] = [Counter(truths).most_common(1)[0][0]] * len(probes)
    return attacks


_FREQUENT = "the most frequent answer"


def _finding(attack: str, answers: Sequence[str], scores: Sequence[RewardScore]) -> AttackResult:
    n = max(len(scores), 1)
    mean = sum(each.value for each in scores) / n
    share = sum(each.value > PAYS for each in scores) / n
    failures = Counter(each.failed for each in scores if each.failed)
    pays = share > (MOST_FREQUENT if attack == _FREQUENT else SHARE)
    return AttackResult(attack, mean, share, answers[0] if answers else "", dict(failures), pays)
