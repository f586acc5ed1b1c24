"""What a policy earns on prompts that it never trained on, before and after: the same prompts and seeds, compared.

Greedy answers are what a user gets, sampled ones what training moves; both are scored by the run's verifier. Answers
and scores are kept in a file of the run, so an interrupted run measures its beginning once. Knows a policy and a
verifier; knows no update.
Path: adapt/reinforce/course.py -> measured, change -> evals.paired.compared
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freehold.adapt.reinforce.policy import seeds_of
from freehold.adapt.reinforce.prompts import PromptItem
from freehold.adapt.run import on_disk, write_whole
from freehold.adapt.sampling import AS_IT_IS, GREEDY, SamplingModel
from freehold.errors import StoreError
from freehold.evals.paired import compared
from freehold.evals.verifier import Verifier
from freehold.models.lora import Adapter
from freehold.types import SamplingParams

_STEP = 0  # whose seeds the sampled answers have: before the first


@dataclass(frozen=True, slots=True)
class UnseenScore:
    """Answers to the unseen prompts, in their order, with their scores."""

    greedy: tuple[str, ...]
    greedy_scores: tuple[float, ...]
    sampled: tuple[str, ...]
    sampled_scores: tuple[float, ...]
    tokens: float  # of a greedy answer, in the mean

    def passed(self, at: float, *, sampled: bool = False) -> list[bool]:
        """Return which answers score `at` or more."""
        return [score >= at for score in (self.sampled_scores if sampled else self.greedy_scores)]


def measured(
    sampler: SamplingModel,
    verifier: Verifier,
    items: Sequence[PromptItem],
    *,
    seed: int,
    max_tokens: int,
    adapter: Adapter | None,
) -> UnseenScore:
    """Answer every item greedily and once sampled, and score both."""
    prompts = [sampler.render(each.messages) for each in items]
    seeds = seeds_of(seed, _STEP, len(items))

    def answered(sampling: SamplingParams) -> tuple[tuple[str, ...], tuple[float, ...], float]:
        samples = sampler.sample(
            prompts, seeds=seeds, max_tokens=max_tokens, sampling=sampling, adapter=adapter
        )
        texts = [text_of(sampler, each[0].ids) for each in samples]
        scores = verifier.score(
            [(each.prompt, text, each.item) for each, text in zip(items, texts, strict=True)]
        )
        tokens = sum(len(each[0].ids) for each in samples) / len(items)
        return tuple(texts), tuple(each.value for each in scores), tokens

    greedy, greedy_scores, tokens = answered(GREEDY)
    sampled, sampled_scores, _ = answered(AS_IT_IS)
    return UnseenScore(greedy, greedy_scores, sampled, sampled_scores, tokens)


def text_of(sampler: SamplingModel, ids: Sequence[int]) -> str:
    """Return an answer's text as verifiers get it: without control tokens, and without blanks around it."""
    return sampler.detokenize(ids).strip()


def change(before: UnseenScore, after: UnseenScore, at: float) -> dict[str, Any]:
    """Return the receipt's part: pass rates and mean scores before and after, and the chance of such a split."""
    report: dict[str, Any] = {"prompts": len(before.greedy), "passes_at": at}
    for name, sampled in (("greedy", False), ("sampled", True)):
        old, new = (each.passed(at, sampled=sampled) for each in (before, after))
        pairs = compared(new, old)
        means = [
            sum(scores) / len(scores)
            for scores in (
                (each.sampled_scores if sampled else each.greedy_scores) for each in (before, after)
            )
        ]
        report[name] = {
            "before": sum(old) / len(old),
            "after": sum(new) / len(new),
            "mean_before": means[0],
            "mean_after": means[1],
            "gained": pairs.wins,
            "lost": pairs.losses,
            "p": pairs.p,
        }
    report["tokens_before"], report["tokens_after"] = before.tokens, after.tokens
    return report


def kept(path: Path) -> UnseenScore | None:
    """Return what `keep` wrote; None where it did not. Raises StoreError for a damaged file."""
    if not path.exists():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        tokens = float(table.pop("tokens"))
        return UnseenScore(**{name: tuple(values) for name, values in table.items()}, tokens=tokens)
    except (ValueError, TypeError, KeyError) as e:
        raise StoreError(f"{path} is damaged: {e}", "start anew with --fresh") from e


def keep(path: Path, score: UnseenScore) -> None:
    """Write a score; the file is there whole or not at all. Raises StoreError."""
    text = json.dumps(asdict(score), indent=1) + "\n"
    with on_disk(path):
        write_whole(path, lambda file: file.write(text.encode()))
