"""Prefer: a model learns from pairs of answers which of the two to give.

Direct preference optimisation against the model without its adapter, with a likelihood term that keeps the chosen
answers likely. What was learnt is measured on pairs whose prompts were not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.evals.samples import check_keys, first_faults
from freehold.adapt.licences import base_licence
from freehold.adapt.lines import (
    DataLines,
    check_apart,
    conversation,
    held_out,
    messages_of,
    read_lines,
    text_of,
)
from freehold.adapt.loop import OnStep, OnText, TrainingLoop, TrainingRun
from freehold.adapt.run import RunFolder
from freehold.adapt.sampling import AnswerRow, AnswerRows, mismatch, served_log_probs
from freehold.adapt.settings import AlignSettings
from freehold.adapt.stages import StageBase
from freehold.adapt.teaching import Nearness, still_known, written
from freehold.adapt.training.steps import PASS_TOKENS, Optimizer, Order, parts
from freehold.adapt.training.trainee import Trainee
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.types import Message
from freehold.choose.advisor.verdict import Facts
from freehold.run.engine.cache.capacity import MIN_CONTEXT
from freehold.run.store import ModelRef

if TYPE_CHECKING:
    import torch
    from torch import Tensor


UNEVEN = 1.25  # ratio of lengths, either way, above which a note says so
SERVED_PAIRS = 16  # that the engine is asked about
ADAPTER = "tuned"  # its name in that engine


@dataclass(frozen=True, slots=True)
class _PairData:
    """Pairs to train on and pairs to test with, and their files, which may be one, with their digests."""

    trained: Sequence[Pair]
    tested: Sequence[Pair]
    path: Path
    test_path: Path
    digest: str
    test_digest: str | None

    @classmethod
    def read(cls, pairs: Path, test: Path | None, settings: AlignSettings) -> _PairData:
        """Read both files, or split the one by prompts. Raises UsageError, for a prompt on both sides too."""
        pairs_file, apart = read_pairs(pairs), read_pairs(test) if test else None
        trained, tested = list(pairs_file.items), list(apart.items) if apart else []
        if apart is None:
            trained, tested = held_out(trained, settings.test_share, settings.seed, lambda p: p.prompt)
        if not trained:
            raise UsageError(f"{pairs} leaves no pair to train on", "lower --test-share, or add pairs")
        check_apart(trained, tested, lambda p: p.prompt, lambda p: p.line)
        return cls(trained, tested, pairs, test or pairs, pairs_file.digest, apart.digest if apart else None)


@dataclass(slots=True)
class _Course:
    trainee: Trainee
    optimizer: Optimizer
    pairs: Sequence[PairRow]
    reference: PairReference
    settings: AlignSettings
    order: Order
    nearness: Nearness | None = None

    def step(self, step: int) -> dict[str, Any]:
        """Learn from one batch; return its line."""
        line = self._learn(self.order.of(step))
        if self.nearness is not None:
            drift = self.nearness.mean(step)
            (self.settings.replay_weight * drift).backward()
            line["drift"] = float(drift.detach())
        rate = self.optimizer.rate
        return {**line, "gradient": self.optimizer.step(), "rate": rate}

    def _learn(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        """Add the gradients of these pairs, in passes that memory holds; return the means over them."""
        settings, batch = self.settings, [self.pairs[i] for i in indices]
        tokens = sum(len(pair.chosen.answer) for pair in batch)
        preference, nll, done = 0.0, 0.0, 0
        margins: list[float] = []
        moved = np.zeros(2)  # from the reference's log-probabilities, chosen and rejected
        weights = {"beta": settings.beta, "smoothing": settings.smoothing, "nll": settings.nll}
        for part in passes(batch):
            reference = self.reference.of(self.trainee, indices[done : done + len(part)], part)
            now = sums(self.trainee, part)
            preferences = preference_loss(*now, *reference.T, **weights, pairs=len(batch), tokens=tokens)
            preferences.loss.backward()
            preference += preferences.preference
            nll += preferences.nll
            done += len(part)
            margins += preferences.margins.tolist()
            moved += [
                float((own.detach() - theirs).sum()) for own, theirs in zip(now, reference.T, strict=True)
            ]
        return {
            "loss": preference / len(batch),
            "nll": nll / tokens,
            "margin": float(np.mean(margins)),
            "preferred": float(np.mean(np.array(margins) > 0)),
            "chosen": moved[0] / len(batch),
            "rejected": moved[1] / len(batch),
        }

    def loop(self, run: RunFolder) -> TrainingLoop:
        """Return the loop over all steps; the reference's sums are kept with its states."""
        values = self.reference.values
        return TrainingLoop(
            run,
            self.trainee,
            self.optimizer,
            self.steps,
            arrays=lambda: {"reference": values.copy()},
            restore=lambda arrays: np.copyto(values, arrays["reference"]),
        )

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.order.steps_an_epoch


def align(
    model: ModelRef,
    pairs: Path,
    out: Path,
    settings: AlignSettings,
    *,
    adapter: Path | None = None,
    continued: bool = False,
    test: Path | None = None,
    packs: Path | None = None,
    facts: Facts | None = None,
    fresh: bool = False,
    on_note: OnText = lambda note: None,
    on_step: OnStep = lambda row: None,
) -> dict[str, Any]:
    """Train an adapter that prefers chosen answers; write it to the folder `out` and return its receipt.

    `adapter`, `continued`: as for finetune; the reference is then the model with the adapter. `test`: pairs to measure
    with; None: a share of `pairs`, taken by prompts. An interrupted run with the same arguments continues. Raises
    UsageError with the numbers, and what reading the model raises.
    """
    base = StageBase.of(model, adapter, continued=continued)
    settings = base.fitted(settings)
    data = _PairData.read(pairs, test, settings)
    licence = base_licence(model, facts or Facts())
    training = TrainingRun(
        verb="align",
        base=base,
        out=out,
        inputs={
            "model": model.name,
            "base": base.digest,
            "pairs": data.digest,
            "test": data.test_digest,
        },
        settings=settings,
        licences={"base": licence},
        fresh=fresh,
    )

    def trained(run: RunFolder) -> dict[str, Any]:
        course, unseen = _prepared(base, data, settings)
        for note in [*training.notes, *_notes(course.pairs, data)]:
            on_note(note)
        if settings.replay:
            with base.opened(packs, many=True, context=MIN_CONTEXT, threads=settings.threads) as engine:
                own = written(engine, settings.seed, course.steps * settings.replay)
            course.nearness = Nearness(course.trainee, own, settings.replay)
        loop = course.loop(run)
        loop.run(course.step, on_step)
        loop.save()
        return {
            "pairs": _counted(course.pairs, data),
            "first_loss": loop.lines()[0]["loss"],
            "before_after": measured(course.trainee, unseen),
            **served(base, packs, course.trainee, unseen, run.folder, settings),
            **loop.receipt_parts(),
        }

    return training.make(trained)


def measured(trainee: Trainee, unseen: Sequence[PairRow]) -> dict[str, Any] | None:
    """Compare pairs under the tuned model and under the model itself; None where there is none.

    `preferred`: share whose margin over the model itself is positive; `likelier`: share whose chosen answer is the
    likelier one, which needs no reference. Log-probabilities are means over answers, in nat.
    """
    from freehold.adapt.evals.paired import compared

    if not unseen:
        return None
    before, after = (all_sums(trainee, unseen, adapter=adapter) for adapter in (False, True))
    margins = (after - before) @ np.array([1.0, -1.0])
    was, is_now = ((each[:, 0] > each[:, 1]).tolist() for each in (before, after))
    return {
        "pairs": len(unseen),
        "preferred": float((margins > 0).mean()),
        "likelier_before": float(np.mean(was)),
        "likelier_after": float(np.mean(is_now)),
        "p": compared(is_now, was).p,
        "chosen_before": float(before[:, 0].mean()),
        "chosen_after": float(after[:, 0].mean()),
        "rejected_before": float(before[:, 1].mean()),
        "rejected_after": float(after[:, 1].mean()),
        "chosen_fell": bool(after[:, 0].mean() < before[:, 0].mean()),
    }


def served(
    base: StageBase,
    packs: Path | None,
    trainee: Trainee,
    unseen: Sequence[PairRow],
    adapter: Path,
    settings: AlignSettings,
) -> dict[str, Any]:
    """Ask the engine that serves, with the saved adapter: which answers it finds likelier, and what is still known."""
    some = unseen[:SERVED_PAIRS]
    rows = [row for pair in some for row in (pair.chosen, pair.rejected)]
    context = max(MIN_CONTEXT, *(len(row.ids) + 1 for row in rows)) if rows else MIN_CONTEXT
    with base.opened(packs, many=True, context=context, threads=settings.threads) as engine:
        engine.add_adapter(ADAPTER, adapter)
        log_probs = served_log_probs(engine, rows, engine.adapters.find(ADAPTER))
        known = still_known(engine, trainee, ADAPTER)
    totals = [float(each.sum()) for each in log_probs]
    likelier = [chosen > rejected for chosen, rejected in zip(totals[0::2], totals[1::2], strict=True)]
    return {
        "served": {"pairs": len(some), "likelier": float(np.mean(likelier))} if some else None,
        "mismatch": mismatch(trainee, rows, log_probs) if some else None,
        **known,
    }


def _prepared(base: StageBase, data: _PairData, settings: AlignSettings) -> tuple[_Course, list[PairRow]]:
    """Bind the base and make all rows: those of the steps, and the unseen pairs'."""
    trainee = base.trainee(settings)
    most = min(settings.max_length, trainee.source.cfg.context)
    rows = AnswerRows(trainee.tokenizer, trainee.template, trainee.name, most)
    pairs = pair_rows(rows, data.trained, data.path)
    order = Order(len(pairs), settings.batch, settings.seed)
    optimizer = settings.optimizer(trainee, settings.epochs * order.steps_an_epoch)
    course = _Course(trainee, optimizer, pairs, PairReference(len(pairs)), settings, order)
    return course, pair_rows(rows, data.tested, data.test_path)


def _notes(rows: Sequence[PairRow], data: _PairData) -> list[str]:
    """Return what the user should know before the first step."""
    sizes = lengths(rows)
    lines = [
        f"{len(data.trained):,} pairs to train on, {len(data.tested):,} to test with; "
        f"answers of {sizes.chosen:.1f} tokens chosen, {sizes.rejected:.1f} rejected (ratio {sizes.ratio:.2f})"
    ]
    if not 1 / UNEVEN <= sizes.ratio <= UNEVEN:
        longer = "longer" if sizes.ratio > 1 else "shorter"
        lines.append(
            f"chosen answers are {abs(sizes.ratio - 1):.0%} {longer}: the model will learn to write {longer} answers"
        )
    if opposite := contradictions([*data.trained, *data.tested]):
        first = f"lines {opposite[0][0]} and {opposite[0][1]}"
        lines.append(
            f"{len(opposite)} pairs choose what another rejects ({first}): --smoothing is for labels that may be wrong"
        )
    if not data.tested:
        lines.append("no pair is left to test with: what was learnt is not measured")
    return lines


def _counted(rows: Sequence[PairRow], data: _PairData) -> dict[str, Any]:
    sizes = lengths(rows)
    return {
        "trained": len(data.trained),
        "tested": len(data.tested),
        "chosen_tokens": sizes.chosen,
        "rejected_tokens": sizes.rejected,
        "length_ratio": sizes.ratio,
        "contradictions": len(contradictions([*data.trained, *data.tested])),
    }


# --- pairs as token rows, their summed log-probabilities, and the reference's, each computed once ---
# The reference is the model without its adapter, by the same arithmetic as the one that learns: the engine's
# own log-probabilities differ from it by some hundredths of a nat per token (its activations are 8 bits wide),
# so with them the first margin would not be 0. They are taken in the step that first needs them, and kept.

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PairRow:
    """Both answers of a pair as token rows."""

    chosen: AnswerRow
    rejected: AnswerRow

    @property
    def tokens(self) -> int:
        """Tokens of both rows."""
        return len(self.chosen.ids) + len(self.rejected.ids)


@dataclass(frozen=True, slots=True)
class PairLengths:
    """How long answers are, in tokens. `ratio`: mean chosen to mean rejected."""

    chosen: float
    rejected: float

    @property
    def ratio(self) -> float:
        """Above 1 where chosen answers are the longer ones: a model then learns length too."""
        return self.chosen / self.rejected


def pair_rows(rows: AnswerRows, pairs: Sequence[Pair], path: Path) -> list[PairRow]:
    """Encode pairs of the file at `path`. Raises UsageError naming the lines that are too long."""
    encoded: list[PairRow] = []
    bad: list[str] = []
    for pair in pairs:
        try:
            both = (rows.row(pair.messages, text) for text in (pair.chosen, pair.rejected))
            encoded.append(PairRow(*both))
        except FreeholdError as e:
            bad.append(f"line {pair.line}: {e.message}")
    if bad:
        raise UsageError(f"{path}: {first_faults(bad)}", "shorten these pairs, or raise --max-length")
    return encoded


def lengths(pairs: Sequence[PairRow]) -> PairLengths:
    """Return the mean lengths of the answers."""
    chosen = [len(pair.chosen.answer) for pair in pairs]
    rejected = [len(pair.rejected.answer) for pair in pairs]
    return PairLengths(float(np.mean(chosen)), float(np.mean(rejected)))


def passes(pairs: Sequence[PairRow]) -> Iterator[Sequence[PairRow]]:
    """Cut pairs into runs that one pass computes: of PASS_TOKENS, one pair at least."""
    return parts(pairs, lambda pair: pair.tokens, PASS_TOKENS)


def sums(
    trainee: Trainee, pairs: Sequence[PairRow], *, adapter: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed log-probabilities of chosen and of rejected answers, float32 [pairs]; differentiable."""
    import torch

    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    wanted = [row.wanted for row in rows]
    log_probs = trainee.log_probs([row.ids for row in rows], wanted=wanted, adapter=adapter)
    each = torch.stack([one.sum() for one in log_probs])
    return each[0::2], each[1::2]


def all_sums(trainee: Trainee, pairs: Sequence[PairRow], *, adapter: bool = True) -> F32:
    """Return the sums of many pairs without gradients: float32 [pairs, 2], chosen and rejected."""
    import torch

    with torch.no_grad():
        parts = [torch.stack(sums(trainee, part, adapter=adapter), 1) for part in passes(pairs)]
    return torch.cat(parts).numpy()


class PairReference:
    """The reference's sums of each training pair: NaN until the pair was first seen."""

    def __init__(self, count: int) -> None:
        self.values = np.full((count, 2), np.nan, np.float32)

    def of(self, trainee: Trainee, indices: NDArray[np.int64], pairs: Sequence[PairRow]) -> torch.Tensor:
        """Return the sums of these pairs, float32 [pairs, 2]."""
        import torch

        if np.isnan(self.values[indices]).any():
            with torch.no_grad():
                self.values[indices] = torch.stack(sums(trainee, pairs, adapter=False), 1).numpy()
        return torch.from_numpy(self.values[indices])


# --- the preference loss (DPO, Rafailov 2023) with a likelihood term on what was chosen -------------
#     margin = beta * [(log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected))]
#     loss = -(1 - smoothing) * log sigmoid(margin) - smoothing * log sigmoid(-margin) - nll * mean log p(chosen)
# p is the model with its adapter, r the reference: the model without. Log-probabilities are sums over an
# answer's tokens: a mean would pay for length. The first margin is 0, so the first loss without its last term
# is ln 2. The loss falls also where both answers become unlikely, the chosen one less so; the likelihood term
# is against that. Smoothing is the share of labels taken to be wrong (Chowdhury 2024, without its bias term).


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """What some pairs add to the loss of their batch. `loss` is differentiable, `margins` [pairs] are not scaled."""

    loss: Tensor
    preference: float  # summed over the pairs, without the likelihood term: ln 2 a pair before the first step
    nll: float  # of the chosen answers, summed over their tokens
    margins: Tensor


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
    nll: float = 0.0,
    pairs: int = 0,
    tokens: int = 1,
) -> PreferenceLoss:
    """Return the loss of pairs, given each answer's summed log-probabilities, float32 [pairs].

    `pairs`, `tokens`: those of the whole batch and of its chosen answers, where this is a part of it; 0: these.
    """
    from torch.nn.functional import logsigmoid

    margins = (chosen - reference_chosen) - (rejected - reference_rejected)
    scaled = beta * margins
    preference = -((1 - smoothing) * logsigmoid(scaled) + smoothing * logsigmoid(-scaled)).sum()
    likelihood = -chosen.sum()
    loss = preference / (pairs or len(chosen)) + nll * likelihood / tokens
    return PreferenceLoss(loss, float(preference.detach()), float(likelihood.detach()), margins.detach())


# --- a user's preferences: pairs of answers to one prompt, of which one is chosen -------------------
#     {"prompt": "When did it start?", "chosen": "2024-03-01", "rejected": "On March the first."}
#     {"messages": [{"role": "system", ...}, {"role": "user", ...}], "chosen": "...", "rejected": "..."}
#     {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [the same until the answer]}

_KEYS = ("prompt", "messages", "chosen", "rejected")
_EXAMPLE = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    line: int
    messages: tuple[Message, ...]
    chosen: str
    rejected: str

    @property
    def prompt(self) -> str:
        """The conversation before the answer as one text: equal texts are one prompt."""
        return "\0".join(f"{m.role}\1{m.content}" for m in self.messages)


def read_pairs(path: Path) -> DataLines[Pair]:
    """Read a file of pairs. Raises UsageError naming every bad line, with equal answers and repeated pairs too."""
    return read_lines(path, _pair, _EXAMPLE, same=lambda p: (p.prompt, p.chosen, p.rejected))


def contradictions(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Return the lines of pairs that choose what another rejects, for the same prompt."""
    seen: dict[tuple[str, str, str], int] = {}
    contradicting: list[tuple[int, int]] = []
    for pair in pairs:
        opposite = seen.get((pair.prompt, pair.rejected, pair.chosen))
        if opposite is not None:
            contradicting.append((opposite, pair.line))
        seen[pair.prompt, pair.chosen, pair.rejected] = pair.line
    return contradicting


def _pair(number: int, table: Mapping[str, Any]) -> Pair:
    check_keys(table, _KEYS)
    if isinstance(table.get("chosen"), list) or isinstance(table.get("rejected"), list):
        return _of_conversations(number, table)
    pair = Pair(number, conversation(table), text_of(table, "chosen"), text_of(table, "rejected"))
    return _checked(pair)


def _of_conversations(number: int, table: Mapping[str, Any]) -> Pair:
    """Read two whole conversations, as data sets of preferences are often published; `prompt` repeats what they say."""
    chosen = messages_of(table.get("chosen"), last="assistant")
    rejected = messages_of(table.get("rejected"), last="assistant")
    before = chosen[:-1]
    if before != rejected[:-1]:
        raise UsageError("chosen and rejected differ before their last message")
    if not before:
        before = conversation({k: v for k, v in table.items() if k in ("prompt", "messages")})
    if before[-1].role != "user":
        raise UsageError("the message before the answer must be the user's")
    return _checked(Pair(number, before, chosen[-1].content, rejected[-1].content))


def _checked(pair: Pair) -> Pair:
    if pair.chosen == pair.rejected:
        raise UsageError("chosen and rejected are the same")
    if pair.chosen.strip() == pair.rejected.strip():
        raise UsageError("chosen and rejected differ only in white space")
    return pair
