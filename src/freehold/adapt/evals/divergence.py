"""How far one model's next-token distribution lies from another's on the same text, counted as the rows come.

For each token: KL(reference || other) in nat over the whole vocabulary, whether both have the same most probable
token, and the log-probability of the text's next token under both. A block is a window of text; the interval of a mean
is from blocks, whose tokens depend on each other. No logits are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from freehold import _native as native
from freehold.base.errors import NonFiniteLogits, UsageError
from freehold.run.engine import Engine, scoring
from freehold.run.formats import open_model_file
from freehold.run.local.opening import text_side
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.lora import Adapter
from freehold.run.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]
LEVEL = 0.95
UNTIL = 0.05  # the half-width, as a share of the mean, at which a measurement may stop by default
LEAST_BLOCKS = 8  # before which an interval is too uncertain itself to stop by
_PERCENTILES = (50, 90, 95, 99, 99.9)


@dataclass(frozen=True, slots=True)
class TextDivergence:
    """KL divergence in nats per token; `low` and `high` bound its mean with 95 %, by blocks of text."""

    tokens: int
    blocks: int
    mean: float
    low: float
    high: float
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float
    same_top: float  # share of tokens after which both models' most probable token is the same
    rms_delta_p: float  # root mean square change of the next token's probability
    perplexity_reference: float
    perplexity: float
    perplexity_ratio: float
    perplexity_ratio_error: float  # one standard error, by blocks
    stopped_early: bool = False  # the interval was narrow enough before the text ended

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


class DivergenceCounter:
    """Takes pairs of logit rows; gives a TextDivergence at any time after the first block."""

    def __init__(self) -> None:
        self._divergences: list[float] = []
        self._same: list[bool] = []
        self._references: list[float] = []  # log-probabilities of the text's tokens
        self._others: list[float] = []
        self._ends: list[int] = []  # of blocks, in tokens

    def add(self, reference: F32, other: F32, targets: npt.NDArray[np.integer]) -> None:
        """Count rows of logits, float32 [n, V] each, and the tokens that follow in the text, [n]."""
        for row, beside, target in zip(reference, other, targets, strict=True):
            self._add(row, beside, int(target))

    def _add(self, row: F32, beside: F32, target: int) -> None:
        """Count one row: sum p (log p - log q) with p = exp(row) / Z; a row at a time stays in the cache."""
        top, other_top = int(row.argmax()), int(beside.argmax())
        a, b = row - row[top], beside - beside[other_top]
        weights = np.exp(a)
        z, other_z = float(weights.sum()), float(np.exp(b).sum())
        mean_difference = float(np.dot(weights, a - b)) / z
        divergence = mean_difference - math.log(z) + math.log(other_z)
        if not math.isfinite(divergence):
            raise NonFiniteLogits(
                f"a model computed NaN or infinity for the token at position {len(self._same) + 1} of the text",
                "its weights are damaged: make or fetch it again",
            )
        self._divergences.append(max(divergence, 0.0))
        self._same.append(top == other_top)
        self._references.append(float(a[target]) - math.log(z))
        self._others.append(float(b[target]) - math.log(other_z))

    def close_block(self) -> None:
        """End a block of text; without rows since the last one it does nothing."""
        if self.tokens > (self._ends[-1] if self._ends else 0):
            self._ends.append(self.tokens)

    @property
    def tokens(self) -> int:
        """Rows counted up to now."""
        return len(self._same)

    @property
    def divergences(self) -> npt.NDArray[np.float64]:
        """Each row's KL divergence in nat, in order."""
        return np.array(self._divergences)

    def half_width(self) -> float:
        """Return half the width of the mean's 95 % interval; infinite before the second block."""
        return _half_width(self._block_means(self._divergences))

    def narrow(self, share: float) -> bool:
        """Tell whether the interval is narrower than `share` of the mean to each side, after enough blocks."""
        enough = len(self._ends) >= LEAST_BLOCKS
        return enough and self.half_width() <= share * float(np.mean(self._divergences))

    def result(self, *, stopped_early: bool = False) -> TextDivergence:
        """Return what was counted, of whole blocks and the rows after them."""
        assert self._same, "no rows were counted"
        divergences = np.array(self._divergences)
        logs, others = np.array(self._references), np.array(self._others)
        mean, half = float(divergences.mean()), self.half_width()
        ratio = math.exp(float((logs - others).mean()))
        spread = _standard_error(self._block_means(list(logs - others)))
        median, p90, p95, p99, p999 = (float(v) for v in np.percentile(divergences, _PERCENTILES))
        return TextDivergence(
            tokens=self.tokens,
            blocks=len(self._ends),
            mean=mean,
            low=max(mean - half, 0.0) if math.isfinite(half) else 0.0,
            high=mean + half if math.isfinite(half) else float(divergences.max()),
            median=median,
            p90=p90,
            p95=p95,
            p99=p99,
            p999=p999,
            max=float(divergences.max()),
            same_top=float(np.mean(self._same)),
            rms_delta_p=float(np.sqrt(np.mean((np.exp(others) - np.exp(logs)) ** 2))),
            perplexity_reference=math.exp(-float(logs.mean())),
            perplexity=math.exp(-float(others.mean())),
            perplexity_ratio=ratio,
            perplexity_ratio_error=ratio * spread if math.isfinite(spread) else ratio,
            stopped_early=stopped_early,
        )

    def _block_means(self, values: list[float]) -> npt.NDArray[np.float64]:
        parts = np.split(np.array(values), self._ends)
        return np.array([part.mean() for part in parts if part.size])


def _standard_error(means: npt.NDArray[np.float64]) -> float:
    return float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.inf


def _half_width(means: npt.NDArray[np.float64]) -> float:
    """Student's quantile, by its expansion in 1/degrees (Abramowitz and Stegun 26.7.5), times the standard error."""
    free = len(means) - 1
    if free < 1:
        return math.inf
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return quantile * _standard_error(means)


# --- a text of our own that nothing is calibrated or trained on -------------------------------------
# Stories, manuals, letters, code, tables, four languages.
# Kinds take turns, so that a measurement that stops early has seen all of them. The text never changes:
# figures that name its digest can be compared.

SHA256 = "09dd2e2a9c92a979a34bb096ab2feec20122d5440abb6e2b81e94d7689b8790a"


def held_out_text() -> str:
    """Return the text, about 12,000 tokens."""
    return (files("freehold.adapt.evals") / "held_out.txt").read_text(encoding="utf-8")


# --- two models beside each other on the same text --------------------------------------------------
# Through our engine: rows of logits, paired token by token.
# Both models share one pool of threads and compute one after the other, some rows at a time, so that memory
# holds few rows of logits.

WINDOW = 512  # tokens of a block of text, BOS too
ROWS = 64  # logit rows at a time: 39 MB of a vocabulary of 152,000

OnBlock = Callable[[int, int, DivergenceCounter], None]  # blocks done, blocks in all, the counts


@dataclass(frozen=True, slots=True)
class LogitSource:
    """A model that gives rows of logits. Its cache keeps float32: it adds no rounding of its own."""

    engine: Engine
    adapter: Adapter | None = None  # that its rows are computed with

    @classmethod
    @contextmanager
    def open(
        cls,
        model: Path | LoadedModel,
        threads: native.Threads,
        packed: Callable[[LoadedModel], Adapter] | None = None,
    ) -> Iterator[LogitSource]:
        """Load a model file, or take a loaded model, with room for one window. Raises CapacityExceeded.

        `packed`: gives the adapter that its rows are computed with.
        """
        loaded = model if isinstance(model, LoadedModel) else load_model(model, threads=threads)
        if loaded.family.encoder:
            raise UsageError(f"{loaded.name} makes embeddings and has no next-token distribution")
        engine = Engine(loaded, context=WINDOW, max_num_batched_tokens=ROWS, kv_type="f32", speculate=False)
        try:
            yield cls(engine, packed(loaded) if packed else None)
        finally:
            engine.close()

    def rows(self, ids: Sequence[int]) -> Iterator[F32]:
        """Yield the logits after each of `ids`, in pieces float32 [rows, V]."""
        yield from scoring.logit_chunks(self.engine, ids, adapter=self.adapter)

    def plain(self) -> LogitSource:
        """Return the model without its adapter, in the same engine."""
        return replace(self, adapter=None)


def tokenizer_of(path: Path) -> Tokenizer:
    """Return a model file's tokenizer."""
    with open_model_file(path) as opened:
        return text_side(opened, path)[0]


def windows(tokenizer: Tokenizer, text: str, limit: int = 0) -> list[list[int]]:
    """Cut a text's tokens into windows, each with the model's own beginning; `limit`: most tokens, 0 for all.

    A last window of less than half the size is left out, unless it is the only one. Raises UsageError for no text.
    """
    ids = tokenizer.encode(text, special=False, bos=False)
    ids = ids[:limit] if limit else ids
    bos = tokenizer.encode("", special=False)
    step = WINDOW - len(bos)
    cut = [bos + ids[i : i + step] for i in range(0, len(ids), step)]
    cut = [each for i, each in enumerate(cut) if i == 0 or len(each) >= WINDOW // 2]
    if not cut or len(cut[0]) < 2:
        raise UsageError("the text has fewer than two tokens", "give a longer one")
    return cut


def diverge(
    reference: LogitSource,
    other: LogitSource,
    blocks: Sequence[Sequence[int]],
    *,
    until: float = 0.0,
    on_block: OnBlock | None = None,
) -> TextDivergence:
    """Compare two models on blocks of token ids.

    `until`: stop once the mean's interval is at most this share of the mean to each side; 0: read all blocks.
    """
    counter = DivergenceCounter()
    for done, ids in enumerate(blocks, 1):
        for rows, beside, targets in _paired(reference, other, ids):
            counter.add(rows, beside, targets)
        counter.close_block()
        if on_block is not None:
            on_block(done, len(blocks), counter)
        if until and done < len(blocks) and counter.narrow(until):
            return counter.result(stopped_early=True)
    return counter.result()


def _paired(
    reference: LogitSource, other: LogitSource, ids: Sequence[int]
) -> Iterator[tuple[F32, F32, npt.NDArray[np.int64]]]:
    """Yield pieces of both models' rows that stand for the same tokens, and the tokens that follow."""
    targets = np.array(ids[1:], np.int64)
    beside = other.rows(ids)
    held: F32 | None = None
    at = 0
    for rows in reference.rows(ids):
        while len(rows) and at < len(targets):
            held = next(beside) if held is None or not len(held) else held
            count = min(len(rows), len(held), len(targets) - at)
            yield rows[:count], held[:count], targets[at : at + count]
            rows, held, at = rows[count:], held[count:], at + count
    for _ in beside:  # the row after the last token, so that the engine is done with the text
        pass


AnsweredIds = tuple[Sequence[int], int]  # the ids of a prompt and its answer, and where that begins


def diverge_answers(
    reference: LogitSource, other: LogitSource, rows: Sequence[AnsweredIds]
) -> TextDivergence | None:
    """Compare two models at the tokens of answers, of which each is a block; None without any.

    A row beyond WINDOW tokens must not be among them.
    """
    counter = DivergenceCounter()
    for ids, first in rows:
        logits, beside = _answer_rows(reference, ids, first), _answer_rows(other, ids, first)
        counter.add(logits, beside, np.array(ids[first:], np.int64))
        counter.close_block()
    return counter.result() if counter.tokens else None


def _answer_rows(source: LogitSource, ids: Sequence[int], first: int) -> F32:
    """Return the rows of logits that the tokens from `first` on are drawn from: one model after the other, whole."""
    kept: list[F32] = []
    at = 1  # the place of the token that a row is for
    for rows in source.rows(ids[:-1]):
        kept.append(rows[max(first - at, 0) :].copy())
        at += len(rows)
    return np.concatenate(kept)
