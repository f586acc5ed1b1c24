"""Teaching by examples: a step of it, the base's own text against forgetting, and what was known before and after.

Knows rows of answers and a model; knows no file of the user's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from freehold.adapt.evals.divergence import held_out_text
from freehold.adapt.sampling import AnswerRow
from freehold.adapt.training.packed import divergence
from freehold.adapt.training.steps import PASS_TOKENS, Optimizer, Order, parts
from freehold.adapt.training.trainee import Trainee
from freehold.base.serving import Job
from freehold.base.types import Message

if TYPE_CHECKING:
    import torch

    from freehold.adapt.sampling import SamplingModel
    from freehold.run.local import LLM


# --- a step of teaching -----------------------------------------------------------------------------
# The loss on a batch of answers, and how far the model has moved on the text of its base.
# The loss is the mean negative log-probability of the answers' tokens, over the whole batch; to it is added
# the mean KL(base || tuned) at the tokens of a few replay rows, over the whole vocabulary.


@dataclass(slots=True)
class TeachingCourse:
    """Learns answers. `replay`: the base's own text, `rehearsed` rows of it a step, which count `weight` times."""

    trainee: Trainee
    optimizer: Optimizer
    rows: Sequence[AnswerRow]
    order: Order
    replay: Sequence[ReplayRow] = ()
    rehearsed: int = 0
    weight: float = 0.0
    _base: BaseActivations = field(init=False)

    def __post_init__(self) -> None:
        self._base = BaseActivations(self.trainee)

    def step(self, step: int) -> dict[str, Any]:
        """Learn from one batch; return its line."""
        batch = [self.rows[i] for i in self.order.of(step)]
        if self.rehearsed and self.replay:
            line = self.learn(batch, *self._base.of(self.replay, self.rehearsed, step))
        else:
            line = self.learn(batch)
        rate = self.optimizer.rate
        return {**line, "gradient": self.optimizer.step(), "rate": rate}

    def learn(
        self, batch: Sequence[AnswerRow], replay: Sequence[ReplayRow] = (), base: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Add a batch's gradients, in passes that memory holds: of replay rows with the first, which costs the least.

        Return the mean loss and how many tokens count, and `drift`, the mean divergence from the base.
        """
        tokens, total, drift = sum(len(row.answer) for row in batch), 0.0, None
        for part in parts(batch, lambda row: len(row.ids), PASS_TOKENS):
            rows = [*part, *replay]
            states = self.trainee.states([row.ids for row in rows], wanted=[row.wanted for row in rows])
            taught = sum(states.counts[: len(part)])
            loss = -states.head.log_probs(states.rows[:taught], states.targets[:taught]).sum() / tokens
            total += float(loss.detach())
            if replay and base is not None:
                mean = divergence(states.rows[taught:], states.head, base, states.head).mean()
                loss, drift, replay = loss + self.weight * mean, float(mean.detach()), ()
            loss.backward()
        line = {"loss": total, "tokens": tokens}
        return line if drift is None else {**line, "drift": drift}


# --- how far a model has moved from its base on text of the base's own ------------------------------
# The mean KL(base || tuned) a token, to be added.
# The base's last activations on a group of rows are computed once.

TOGETHER = 8  # rows in one pass of the base, which unpacks all weights: two alone cost half as much


class BaseActivations:
    """The last activations of a trainee without its adapter, kept by the number of the group of rows.

    Neighbouring groups are computed in one pass, the same ones wherever a run begins, so a resumed one has the same
    bits.
    """

    def __init__(self, trainee: Trainee) -> None:
        self._trainee = trainee
        self._held: dict[int, torch.Tensor] = {}

    def of(
        self, rows: Sequence[ReplayRow], count: int, step: int
    ) -> tuple[Sequence[ReplayRow], torch.Tensor]:
        """Return the rows that a step rehearses, and the activations: one for each of their tokens that count."""
        number, chosen = group(rows, count, step)
        if number not in self._held:
            self._compute(rows, count, number)
        return chosen, self._held[number]

    def _compute(self, rows: Sequence[ReplayRow], count: int, number: int) -> None:
        together = max(TOGETHER // count, 1)
        first = number - number % together
        # Past the last group the first ones follow again: those belong to another pass.
        near = (group(rows, count, step) for step in range(first, first + together))
        missing = {each: chosen for each, chosen in near if each >= first}
        all_rows = [row for each in missing.values() for row in each]
        ids, wanted = [row.ids for row in all_rows], [row.wanted for row in all_rows]
        states = self._trainee.states(ids, wanted=wanted, adapter=False).rows
        sizes = [sum(sum(row.wanted) for row in each) for each in missing.values()]
        self._held |= zip(missing, states.split(sizes), strict=True)


class Nearness:
    """Compares a trainee with its base on `count` of the rows a step."""

    def __init__(self, trainee: Trainee, rows: Sequence[ReplayRow], count: int) -> None:
        self._trainee, self._rows, self._count = trainee, rows, count
        self._base = BaseActivations(trainee)

    def mean(self, step: int) -> torch.Tensor:
        """Return the mean divergence on the rows of a step; differentiable."""
        rows, base = self._base.of(self._rows, self._count, step)
        states = self._trainee.states([row.ids for row in rows], wanted=[row.wanted for row in rows])
        return divergence(states.rows, states.head, base, states.head).mean()


# --- text of the base model's own -------------------------------------------------------------------
# On which a tuned model is kept near it: what would be forgotten is rehearsed.
# The base writes it once, before the first step, by our engine at temperature 1: answers to questions of
# ours, and plain text after a few words. So no data set is needed, and what is rehearsed is what the base
# believes. At each step the tuned model's distribution over some of these rows is compared with the base's,
# over the whole vocabulary.

_TEXTS = tomllib.loads(
    resources.files("freehold.adapt").joinpath("teaching.toml").read_text(encoding="utf-8")
)
QUESTIONS: tuple[str, ...] = tuple(_TEXTS["questions"])
OPENINGS: tuple[str, ...] = tuple(_TEXTS["openings"])
ANSWER, PLAIN = 40, 48  # tokens of each


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """Token ids, and from which place on the distributions are compared."""

    ids: tuple[int, ...]
    first: int

    @property
    def wanted(self) -> list[bool]:
        """For each token after the first whether it counts, as Trainee.states takes it."""
        return [i >= self.first for i in range(1, len(self.ids))]


def written(model: SamplingModel, seed: int, most: int) -> list[ReplayRow]:
    """Have the base write: questions' answers (where it chats) and openings' continuations, in turn.

    `most`: rows that the run rehearses; a short run needs no others. The same model and seed give the same rows,
    and fewer are the first of them.
    """
    kinds = 2 if model.info.can_chat else 1
    count = -(-most // kinds)
    plain = [model.tokenizer.encode(text) for text in OPENINGS[:count]]
    rows = _sampled(model, plain, seed, PLAIN, 1)
    if kinds == 1:
        return rows
    chats = [model.render([Message("user", text)]) for text in QUESTIONS[:count]]
    answered = _sampled(model, chats, seed + len(OPENINGS), ANSWER, 0)
    return [row for both in zip(answered, rows, strict=True) for row in both][:most]


def _sampled(
    model: SamplingModel, prompts: Sequence[Sequence[int]], seed: int, tokens: int, first: int
) -> list[ReplayRow]:
    """Continue prompts; `first` 0: what is compared begins with the continuation."""
    seeds = [seed + i for i in range(len(prompts))]
    samples = model.sample(prompts, seeds=seeds, max_tokens=tokens) if prompts else []
    return [
        ReplayRow((*prompt, *answers[0].ids), first or len(prompt))
        for prompt, answers in zip(prompts, samples, strict=True)
    ]


def group(rows: Sequence[ReplayRow], count: int, step: int) -> tuple[int, Sequence[ReplayRow]]:
    """Return the number and the rows of the group that a step rehearses: all groups in turn, then again."""
    groups = max(len(rows) // count, 1)
    number = step % groups
    return number, rows[number * count : (number + 1) * count]


# --- what a model knew before and should know after -------------------------------------------------
# 24 facts of ours, and the loss on a text that is never trained on.
# A fact counts where the answer's text holds one of its words. Small models know some of them; the same ones
# count before and after.

# Tokens of the text a window, and how many: a standard error near 0.06 nat, paired far less.
WINDOW, WINDOWS = 192, 8
# windows in one pass, which unpacks the weights once; a slice of the head takes 50 MB for them
WINDOWS_TOGETHER = 4
FACT_TOKENS = 24  # tokens of an answer


class Fact(NamedTuple):
    """A question, and what a right answer has in it."""

    question: str
    words: tuple[str, ...]


FACTS = tuple(Fact(question, tuple(words)) for question, *words in _TEXTS["facts"])


def known_facts(model: LLM, adapter: str = "") -> list[bool]:
    """Ask all facts, greedily, and return which answers are right."""
    greedy = {"temperature": 0.0, "seed": 0}
    jobs = [
        Job(
            messages=(Message("user", fact.question),),
            max_tokens=FACT_TOKENS,
            sampling=greedy,
            adapter=adapter,
        )
        for fact in FACTS
    ]
    right = [False] * len(FACTS)
    for i, answer in model.answer_many(jobs):
        text = getattr(answer, "text", "").casefold()
        right[i] = any(word.casefold() in text for word in FACTS[i].words)
    return right


def still_known(
    model: LLM, trainee: Trainee, adapter: str, was: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Return a receipt's `control` and `text_loss`: facts and text without the adapter and with it.

    `was`: what known_facts returned of the model itself, where it was asked before.
    """
    was, now = was or known_facts(model), known_facts(model, adapter)
    losses = [text_loss(trainee, adapter=tuned) for tuned in (False, True)]
    return {
        "control": compared_facts(was, now),
        "text_loss": {"before": losses[0], "after": losses[1], "rise": losses[1] - losses[0]},
    }


def compared_facts(was: Sequence[bool], now: Sequence[bool]) -> dict[str, int]:
    """Return how many facts were known, how many still are, and how many were lost and gained."""
    both = list(zip(was, now, strict=True))
    return {
        "facts": len(both),
        "before": sum(was),
        "after": sum(now),
        "lost": sum(a and not b for a, b in both),
        "gained": sum(b and not a for a, b in both),
    }


def text_rows(trainee: Trainee) -> list[list[int]]:
    """Cut windows out of the whole held-out text, evenly apart."""
    tokenizer = trainee.tokenizer
    start, ids = tokenizer.encode("", special=False), tokenizer.encode(held_out_text(), bos=False)
    step = max((len(ids) - WINDOW) // (WINDOWS - 1), 1)
    return [[*start, *ids[i : i + WINDOW]] for i in range(0, len(ids) - WINDOW + 1, step)][:WINDOWS]


def text_loss(trainee: Trainee, *, adapter: bool) -> float:
    """Return the mean loss on the held-out text, in nats per token, as the trainer computes it."""
    import torch

    with torch.no_grad():
        rows = text_rows(trainee)
        log_probs = [
            each
            for first in range(0, len(rows), WINDOWS_TOGETHER)
            for each in trainee.log_probs(rows[first : first + WINDOWS_TOGETHER], adapter=adapter)
        ]
    return -float(torch.cat(log_probs).double().mean())
