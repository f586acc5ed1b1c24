"""Which tokens may come next in a transcript: marks of time in pairs and in order, and nothing that is not speech.

Ids derive from the vocabulary, since large-v3 has a language more than earlier models and the English ones have none.
A mask depends on the row of logits, unlike a format's: where marks of time together are likelier than the likeliest
word, only they may come. Log-probabilities are of what the mask left, as thresholds expect them.
Source: arXiv 2212.04356, section 2.3 and its appendix; openai/whisper 20250625 for what neither says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.engine.constrain.grammar import Mask
from freehold.run.engine.sampler import FORBIDDEN
from freehold.run.formats import Metadata
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]

STEP_S = 0.02  # of two marks of time that follow each other
FIRST_MARKS = 51  # marks that the first one is of: up to 1.00 s
NEVER = np.float32(FORBIDDEN)  # a logit of what may not come


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
        self._never = np.array(rules.tokens.suppressed, np.int64)
        self._ids: list[int] = []
        self._row: F32 | None = None  # logits, NEVER where the latest mask is
        self.sum_logprob = 0.0  # of all tokens so far, and of the one that ends the answer

    def mask_of(self, logits: F32 | np.int64) -> Mask:
        """Return which tokens may come, bool [V], by the row of logits they are chosen from."""
        assert isinstance(logits, np.ndarray), "rules that are never free get rows"
        tokens, row = self._rules.tokens, logits.copy()
        row[self._never] = NEVER
        if not self._ids:
            row[list(tokens.suppressed_first)] = NEVER
        if self._rules.marks:
            self._time(row)
            self._prefer_marks(row)
        else:
            row[tokens.first_mark :] = NEVER
        self._row = row
        return ~(row <= NEVER)  # NaN is left for the sampler to find

    def _time(self, row: F32) -> None:
        """Keep marks of time in pairs, in order, and first."""
        tokens, ids, first = self._rules.tokens, self._ids, self._rules.tokens.first_mark
        row[tokens.no_marks] = NEVER
        if not ids:
            row[:first] = row[first + FIRST_MARKS :] = NEVER
            return
        marked = ids[-1] >= first
        pair = marked and (len(ids) < 2 or ids[-2] >= first)
        if pair:
            row[first:] = NEVER  # text follows two marks
        elif marked:
            row[: tokens.end] = NEVER  # a second mark, or the end
        latest = next((id for id in reversed(ids) if id >= first), None)
        if latest is not None:  # a segment is never empty, and the next may begin where the last one ended
            row[first : latest + (0 if marked and not pair else 1)] = NEVER

    def _prefer_marks(self, row: F32) -> None:
        """Leave marks alone where all of them together are likelier than the likeliest word."""
        first = self._rules.tokens.first_mark
        if native.log_sum_exp(row[first:]) > row[:first].max():
            row[:first] = NEVER

    def advance(self, id: int) -> None:
        """Take the token that was chosen."""
        self.count(id)
        self._ids.append(id)

    def count(self, id: int) -> None:
        """Add a token's log-probability; the end of an answer is counted and not taken."""
        assert self._row is not None, "a token is chosen from a row"
        self.sum_logprob += float(self._row[id]) - native.log_sum_exp(self._row)

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


# --- ids by a model's vocabulary -----------------------------------------------------------------------

FIRST_LANGUAGE = "<|en|>"
CONTROL = ("<|startoftranscript|>", "<|startofprev|>", "<|startoflm|>", "<|transcribe|>", "<|translate|>")
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # by its newer name, and the one before
ENGLISH_END = (
    50_256  # where GPT-2's vocabulary ends, as English models have it; the others have one token more
)
# What is never said: brackets, quotes, arrows, notes. Alone or after a space, where either is one token; of notes the
# first of several. Source: openai/whisper 20250625.
SIGNS = [
    '"',
    "#",
    "(",
    ")",
    "*",
    "+",
    "/",
    ":",
    ";",
    "<",
    "=",
    ">",
    "@",
    "[",
    "\\",
    "]",
    "^",
    "_",
    "`",
    "{",
    "|",
    "}",
]
SIGNS += [
    "~",
    "「",
    "」",
    "『",
    "』",
    "<<",
    ">>",
    "<<<",
    ">>>",
    "--",
    "---",
    "-(",
    "-[",
    "('",
    '("',
    "((",
    "))",
]
SIGNS += ["(((", ")))", "[[", "]]", "{{", "}}", "♪♪", "♪♪♪"]
NOTES = ("♩", "♪", "♫", "♬", "♭", "♮", "♯")
HYPHENS = (" -", " '")  # as a word begins
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


def speech_tokens(tokenizer: Tokenizer, stated: Metadata, vocab: int) -> SpeechTokens:
    """Derive a model's ids from its vocabulary of `vocab` rows.

    `stated`: generation_config.json, or CTranslate2's config.json, which list what is never said; where none does, the
    vocabulary tells it. Raises UnsupportedModel for a vocabulary that is not Whisper's.
    """

    def id_of(*names: str) -> int:
        for name in names:
            if (id := tokenizer.token_id(name)) is not None:
                return id
        raise UnsupportedModel(
            f"the tokenizer has no token {names[0]}, which every Whisper has",
            "take the model's own tokenizer.json",
        )

    start, no_marks = id_of(CONTROL[0]), id_of("<|notimestamps|>")
    translate = id_of("<|translate|>")
    languages = {
        match[1]: id
        for id in range(start + 1, translate)
        if (match := _LANGUAGE.fullmatch(tokenizer.token_text(id)))
    }
    listed = _ids(stated, ("suppress_tokens", "suppress_ids"), vocab) or unspoken(tokenizer)
    control = (*(id_of(name) for name in CONTROL), id_of(*NO_SPEECH), *languages.values())
    end = id_of("<|endoftext|>")
    several = bool(languages) and end != ENGLISH_END
    begin = _ids(stated, ("begin_suppress_tokens", "suppress_ids_begin"), vocab)
    begin = begin or (*_first(tokenizer, (" ",)), end)
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


def unspoken(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens of signs that are not said, by id."""
    alone = [text for sign in (*SIGNS, *NOTES) for text in (sign, f" {sign}")]
    encoded = {text: tokenizer.encode(text, bos=False) for text in alone}
    one = {ids[0] for text, ids in encoded.items() if len(ids) == 1 or (ids and text.strip() in NOTES)}
    return tuple(sorted(one | set(_first(tokenizer, HYPHENS))))


def _first(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[int, ...]:
    return tuple(ids[0] for text in texts if (ids := tokenizer.encode(text, bos=False)))


def _ids(stated: Metadata, keys: Sequence[str], vocab: int) -> tuple[int, ...]:
    listed: Any = next((stated[key] for key in keys if stated.get(key) is not None), [])
    if not isinstance(listed, list) or len(listed) > vocab or any(type(id) is not int for id in listed):
        raise BadModelFile(f"{keys[0]} of {stated!r}: {keys[0]} is not a list of ids")
    return tuple(id for id in listed if 0 <= id < vocab)
