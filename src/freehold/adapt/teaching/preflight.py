"""What is checked before hours are spent: what the loss counts, how long samples are, whether one batch can be learnt.

Knows rows and one model; trains nothing that is kept: the pairs are put back as they were.
Path: finetune -> mask_note; cli/finetune -> shown, LengthHistogram, rehearsal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from freehold.adapt.receipt import cpu_seconds
from freehold.adapt.rows import AnswerRow
from freehold.adapt.teaching.course import TeachingCourse
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee
from freehold.platforms import peak_bytes
from freehold.tokenizer import Tokenizer

SHOWN = 3  # samples whose mask is shown
OVERFIT_STEPS, OVERFIT_LR = 12, 1e-3  # a model that can learn has one batch nearly by heart after these
LEARNT = 0.5  # of the first loss that may be left then
_HEAD, _TAIL = 60, 30  # characters of a text's beginning and end in a line


@dataclass(frozen=True, slots=True)
class MaskPiece:
    """Neighbouring tokens as text, and whether the loss counts them."""

    text: str
    counts: bool


def shown(tokenizer: Tokenizer, row: AnswerRow) -> list[MaskPiece]:
    """Return a row as the loss sees it: its prompt, then its answer with the token that ends the turn."""
    texts = (tokenizer.decode(ids, special=True) for ids in (row.ids[: row.prompt], row.answer))
    return [MaskPiece(text, counts) for text, counts in zip(texts, (False, True), strict=True)]


def mask_note(number: int, pieces: Sequence[MaskPiece]) -> str:
    """Return a mask as one line: the end of what the loss leaves out, and what it counts, without its middle."""
    before, answer = (piece.text for piece in pieces)
    if len(answer) > _HEAD + _TAIL:
        answer = f"{answer[:_HEAD]} ... {answer[-_TAIL:]}"
    return f"sample {number}: after {before[-_TAIL:]!r} the loss counts {answer!r}"


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Tokens of rows: bounds, and how many rows end at or below each."""

    least: int
    median: int
    most: int
    bounds: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[AnswerRow]) -> LengthHistogram:
        """Count rows by powers of two."""
        lengths = np.array([len(row.ids) for row in rows])
        edges = 2 ** np.arange(4, int(np.ceil(np.log2(max(lengths.max(), 17)))) + 1)
        counts = np.histogram(lengths, np.concatenate([[0], edges + 1]))[0]
        plain = tuple(int(e) for e in edges), tuple(int(c) for c in counts)
        return cls(int(lengths.min()), int(np.median(lengths)), int(lengths.max()), *plain)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a few steps on one batch showed. `worst`: the loss of a model that knows nothing, ln(vocabulary)."""

    first_loss: float
    last_loss: float
    worst: float
    step_cpu_seconds: float
    peak_bytes: int

    @property
    def sane(self) -> bool:
        """Whether the first loss is one of a model that reads its own template, and one batch can be learnt."""
        return self.first_loss < self.worst and self.last_loss < LEARNT * self.first_loss

    def as_json(self) -> dict[str, Any]:
        """Return its part of the output."""
        return {**asdict(self), "sane": self.sane}


def rehearsal(trainee: Trainee, course: TeachingCourse) -> Rehearsal:
    """Overfit the first batch, then put the pairs back."""
    batch = [course.rows[i] for i in course.order.of(0)]
    before, losses = trainee.arrays(), []
    optimizer = Optimizer(trainee.parameters(), OVERFIT_LR)
    started = cpu_seconds()
    for _ in range(OVERFIT_STEPS):
        losses.append(course.learn(batch)["loss"])
        optimizer.step()
    spent = (cpu_seconds() - started) / OVERFIT_STEPS
    trainee.restore(before)
    worst = float(np.log(trainee.tokenizer.vocab_size))
    return Rehearsal(losses[0], losses[-1], worst, spent, peak_bytes())
