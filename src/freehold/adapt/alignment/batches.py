"""Pairs as token rows, their summed log-probabilities, and the reference's, each computed once.

The reference is the model without its adapter, by the same arithmetic as the one that learns: the engine's own
log-probabilities differ from it by some hundredths of a nat per token (its activations are 8 bits wide), so with them
the first margin would not be 0. They are taken in the step that first needs them, and kept.
Knows token rows and a trainee; knows no file and no step.
Path: align -> pair_rows, sums, PairReference -> Trainee.log_probs
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.alignment.pairs import Pair
from freehold.adapt.rows import AnswerRow, AnswerRows
from freehold.adapt.training.order import PASS_TOKENS, parts
from freehold.adapt.training.trainee import Trainee
from freehold.errors import FreeholdError, UsageError

if TYPE_CHECKING:
    import torch

F32 = NDArray[np.float32]
_SHOWN = 5


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
        more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        raise UsageError(
            f"{path}: {'; '.join(bad[:_SHOWN])}{more}", "shorten these pairs, or raise --max-length"
        )
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
