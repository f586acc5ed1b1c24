"""Which tokens may come next in a transcript: marks of time in pairs and in order, and nothing that is not speech.

Ids derive from the vocabulary, since large-v3 has a language more than earlier models and the English ones have none.
A mask depends on the row of logits, unlike a format's: where marks of time together are likelier than the likeliest
word, only they may come. Log-probabilities are of what the mask left, as thresholds expect them.
Source: arXiv 2212.04356, section 2.3 and its appendix; openai/whisper 20250625 for what neither says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.engine.constrain.grammar import Mask
from freehold.run.formats import Metadata
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]

STEP_S = 0.02  # of two marks of time that follow each other
FIRST_MARKS = 51  # marks that the first one is of: up to 1.00 s


@dataclass(frozen=True, slots=True)
class SpeechTokens:
    """Ids that a speech model's vocabulary gives a meaning."""

    start: int
    end: int
    previous: int  # before the text that went before
    transcribe: int
    translate: int | None  # None: the model does not translate
    no_speech: int
    no_marks: int  # instead of marks of time
    first_mark: int  # 0.00 s
    languages: Mapping[str, int]  # by code; none of an English model
    suppressed: tuple[int, ...]  # in every place
    suppressed_first: tuple[int, ...]  # as an answer's first token

    def seconds(self, mark: int) -> float:
        """Return the time in its window that a mark stands for."""
        return (mark - self.first_mark) * STEP_S

    def mark(self, second: float) -> int:
        """Return the mark of time at a second of a window, or the nearest before it."""
        return self.first_mark + int(second / STEP_S + 1e-6)


@dataclass(frozen=True, slots=True)
class TranscriptRules:
    """The constraint of an answer that transcribes; `marks`: with marks of time."""

    tokens: SpeechTokens
    marks: bool = True

    def matcher(self, stop_ids: frozenset[int]) -> TranscriptMatcher:
        """Return the state before the first token."""
        return TranscriptMatcher(self)


class TranscriptMatcher:
    """How far one transcript has come. One thread at a time."""

    is_free = False
    token_s = untaken_s = 0.0  # of a parser, which this has none of

    def __init__(self, rules: TranscriptRules) -> None:
        self._rules = rules
        self._ids: list[int] = []
        self._row: NDArray[np.float64] | None = None  # log-probabilities of what the latest mask left
        self.sum_logprob = 0.0  # of all tokens so far, and of the one that ends the answer

    def mask_of(self, logits: F32 | np.int64) -> Mask:
        """Return which tokens may come, bool [V], by the row of logits they are chosen from."""
        assert isinstance(logits, np.ndarray), "rules that are never free get rows"
        tokens, ids = self._rules.tokens, self._ids
        allowed = np.ones(len(logits), np.bool_)
        allowed[list(tokens.suppressed)] = False
        if not ids:
            allowed[list(tokens.suppressed_first)] = False
        if self._rules.marks:
            self._time(allowed)
            self._prefer_marks(allowed, logits)
        else:
            allowed[tokens.first_mark :] = False
        row = np.where(allowed, logits.astype(np.float64), -np.inf)
        self._row = row - _log_sum(row)
        return allowed

    def _time(self, allowed: Mask) -> None:
        """Keep marks of time in pairs, in order, and first."""
        tokens, ids, first = self._rules.tokens, self._ids, self._rules.tokens.first_mark
        allowed[tokens.no_marks] = False
        if not ids:
            allowed[:first] = allowed[first + FIRST_MARKS :] = False
            return
        marked = ids[-1] >= first
        pair = marked and (len(ids) < 2 or ids[-2] >= first)
        if pair:
            allowed[first:] = False  # text follows two marks
        elif marked:
            allowed[: tokens.end] = False  # a second mark, or the end
        latest = next((id for id in reversed(ids) if id >= first), None)
        if latest is not None:  # a segment is never empty, and the next may begin where the last one ended
            allowed[first : latest + (0 if marked and not pair else 1)] = False

    def _prefer_marks(self, allowed: Mask, logits: F32) -> None:
        first = self._rules.tokens.first_mark
        row = np.where(allowed, logits.astype(np.float64), -np.inf)
        if _log_sum(row[first:]) > row[:first].max():
            allowed[:first] = False

    def advance(self, id: int) -> None:
        """Take the token that was chosen."""
        self.count(id)
        self._ids.append(id)

    def count(self, id: int) -> None:
        """Add a token's log-probability; the end of an answer is counted and not taken."""
        assert self._row is not None, "a token is chosen from a row"
        self.sum_logprob += float(self._row[id])

    def forced(self) -> list[int]:
        """Return the tokens that must come: none is known."""
        return []

    def count_valid(self, ids: Sequence[int]) -> int:
        """Return how many drafted tokens may come: drafts are not checked."""
        return 0

    def take_seconds(self) -> float:
        """Return what a parser spent: nothing."""
        return 0.0


@dataclass(frozen=True, slots=True)
class FirstRow:
    """The constraint of one token that is not wanted: its matcher keeps the row it would be chosen from."""

    def matcher(self, stop_ids: frozenset[int]) -> RowKeeper:
        """Return what keeps the row."""
        return RowKeeper()


class RowKeeper:
    """Keeps the first row of logits that a token is chosen from."""

    is_free = False
    token_s = untaken_s = 0.0

    def __init__(self) -> None:
        self.row: F32 | None = None

    def mask_of(self, logits: F32 | np.int64) -> None:
        """Keep the row; every token may come."""
        assert isinstance(logits, np.ndarray), "rules that are never free get rows"
        self.row = logits.copy()

    def advance(self, id: int) -> None:
        """Take a token."""

    def forced(self) -> list[int]:
        """Return the tokens that must come: none is known."""
        return []

    def count_valid(self, ids: Sequence[int]) -> int:
        """Return how many drafted tokens may come: drafts are not checked."""
        return 0

    def take_seconds(self) -> float:
        """Return what a parser spent: nothing."""
        return 0.0


def _log_sum(row: NDArray[np.float64]) -> float:
    most = float(row.max())
    return most if math.isinf(most) else most + math.log(float(np.exp(row - most).sum()))


# --- ids by a model's vocabulary -----------------------------------------------------------------------

FIRST_LANGUAGE = "<|en|>"
CONTROL = ("<|startoftranscript|>", "<|startofprev|>", "<|startoflm|>", "<|transcribe|>", "<|translate|>")
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # by its newer name, and the one before
SPACE = 220  # of GPT-2's vocabulary, which all have
MULTILINGUAL = 51_865  # ids that a vocabulary with languages has, at least
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


def speech_tokens(tokenizer: Tokenizer, stated: Metadata, vocab: int) -> SpeechTokens:
    """Derive a model's ids from its vocabulary of `vocab` rows.

    `stated`: generation_config.json, or CTranslate2's config.json, which list what is never said. Raises
    UnsupportedModel for a vocabulary that is not Whisper's.
    """

    def id_of(*names: str) -> int:
        for name in names:
            if (id := tokenizer.token_id(name)) is not None:
                return id
        raise UnsupportedModel(
            f"the tokenizer has no token {names[0]}, which every Whisper has",
            "take the model's own tokenizer.json",
        )

    several = vocab >= MULTILINGUAL
    start, no_marks = id_of(CONTROL[0]), id_of("<|notimestamps|>")
    translate = id_of("<|translate|>")
    languages = {
        match[1]: id
        for id in range(start + 1, translate)
        if (match := _LANGUAGE.fullmatch(tokenizer.token_text(id)))
    }
    listed = _ids(stated, ("suppress_tokens", "suppress_ids"), vocab)
    control = (*(id_of(name) for name in CONTROL), id_of(*NO_SPEECH), *languages.values())
    end = id_of("<|endoftext|>")
    begin = _ids(stated, ("begin_suppress_tokens", "suppress_ids_begin"), vocab) or (SPACE, end)
    return SpeechTokens(
        start=start,
        end=end,
        previous=id_of("<|startofprev|>"),
        transcribe=id_of("<|transcribe|>"),
        translate=translate if several else None,
        no_speech=id_of(*NO_SPEECH),
        no_marks=no_marks,
        first_mark=no_marks + 1,
        languages=languages if several else {},
        suppressed=tuple(sorted({*listed, *control})),
        suppressed_first=begin,
    )


def _ids(stated: Metadata, keys: Sequence[str], vocab: int) -> tuple[int, ...]:
    listed: Any = next((stated[key] for key in keys if stated.get(key) is not None), [])
    if not isinstance(listed, list) or len(listed) > vocab or any(type(id) is not int for id in listed):
        raise BadModelFile(f"{keys[0]} of {stated!r}: {keys[0]} is not a list of ids")
    return tuple(id for id in listed if 0 <= id < vocab)
