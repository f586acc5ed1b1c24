"""The account of a run: each step's line in steps.jsonl, what unseen prompts earn before and after, the receipt.

Knows scores, advantages and updates as numbers; knows no update.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freehold.adapt.evals.paired import compared
from freehold.adapt.evals.verifier import RewardScore, Verifier
from freehold.adapt.reinforce.policy import PolicyUpdate, seeds_of
from freehold.adapt.reinforce.prompts import PromptItem
from freehold.adapt.run import on_disk, write_whole
from freehold.adapt.sampling import AS_IT_IS, GREEDY, SamplingModel
from freehold.base.errors import StoreError
from freehold.base.types import SamplingParams
from freehold.run.models.lora import Adapter

STAGES = ("sample", "score", "train")
SHOWN = 3  # answers that two verifiers score apart: in a step's line, and of the latest in the receipt


def step_line(
    scores: Sequence[Sequence[RewardScore]],
    passes_at: float,
    looks: AnswerLooks,
    update: PolicyUpdate,
    dropped: int,
    spent: Mapping[str, float],
) -> dict[str, Any]:
    """Return a step's line. `dropped`: groups whose scores were equal; `spent`: processor seconds by stage."""
    every = [each for group in scores for each in group]
    mismatch = update.mismatch
    return {
        "score": sum(each.value for each in every) / len(every),
        "passed": sum(each.value >= passes_at for each in every) / len(every),
        "groups": len(scores),
        "dropped": dropped,
        "failures": failures(every),
        "tokens": looks.tokens,
        "cut": looks.cut,
        "repetition": looks.repetition,
        "distinct": looks.distinct,
        "mismatch": mismatch.mean_size if mismatch else None,
        "mismatch_mean": mismatch.mean if mismatch else None,
        "mismatch_p99": mismatch.p99_size if mismatch else None,
        "trained_tokens": mismatch.tokens if mismatch else 0,
        "capped": update.capped,
        "gradient": update.norm,
        "rate": update.rate,
        "cpu": {stage: round(spent[stage], 3) for stage in STAGES},
    }


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the receipt's parts on a run's steps: mismatch, groups, failures, speed."""
    spent = {stage: round(sum(line["cpu"][stage] for line in lines), 2) for stage in STAGES}
    kinds: Counter[str] = Counter()
    for line in lines:
        kinds.update(line["failures"])
    measured = [line for line in lines if line["trained_tokens"]]
    parted = [line["parted"] for line in lines if "parted" in line]
    shown = [each for line in lines for each in line.get("parted_shown", ())]
    return {
        "steps": {
            "count": len(lines),
            "groups": sum(line["groups"] for line in lines),
            "dropped": sum(line["dropped"] for line in lines),
            "failures": dict(kinds),
            "score_first": lines[0]["score"] if lines else None,
            "score_last": lines[-1]["score"] if lines else None,
            "parted": sum(parted) / len(parted) if parted else None,
            "parted_shown": shown[-SHOWN:],
        },
        "mismatch": {
            "mean_size": _mean(measured, "mismatch"),
            "mean": _mean(measured, "mismatch_mean"),
            "p99_size": max((line["mismatch_p99"] for line in measured), default=None),
            "most": max((line["mismatch"] for line in measured), default=None),
            "capped": _mean(measured, "capped"),
            "unit": "nats per token, trainer less sampler",
        },
        "speed": {
            "cpu_seconds": spent,
            "sampling_share": round(spent["sample"] / max(sum(spent.values()), 1e-9), 4),
        },
    }


def _mean(lines: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean over trained tokens; None without any."""
    total, tokens = 0.0, 0
    for line in lines:
        total += line[key] * line["trained_tokens"]
        tokens += line["trained_tokens"]
    return total / tokens if tokens else None


# --- what a step's answers look like beside their scores --------------------------------------------
# Length, repetition, how many differ, where two verifiers part.
# A policy that learns to please a verifier rather than to solve its items shows here first: answers grow,
# repeat or become one and the same, or a second verifier disagrees.

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


# --- what a policy earns on prompts that it never trained on ----------------------------------------
# Before and after: the same prompts and seeds, compared.
# Greedy answers are what a user gets, sampled ones what training moves; both are scored by the run's
# verifier. Answers and scores are kept in a file of the run, so an interrupted run measures its beginning
# once.

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
