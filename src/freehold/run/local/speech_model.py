"""A speech model in this process: windows of sound become features, and features with a prompt become tokens.

Knows a tower, an engine whose sequences begin with rows of sound, and the rules of a transcript; knows no recording, no
chunk and no text. Windows of several recordings share the engine's steps as chats do. Cross keys and values of a window
are computed once: they are the prefix of every sequence that hears it.

The engine makes no token of a sequence whose last one was not taken. So texts that are written together are taken from
together (`SpeechModel.ended`), and the cache has room for all of them (`speech_engine`).

The rules say which tokens may come next: marks of time in pairs and in order, and nothing that is not speech. Ids
derive from the vocabulary, since large-v3 has a language more than earlier models and the English ones have none. A
mask depends on the row of logits, unlike a format's: where marks of time together are likelier than the likeliest word,
only they may come. Log-probabilities are of what the mask left, as thresholds expect them.
Source: arXiv 2212.04356, section 2.3 and its appendix; openai/whisper 20250625 for what neither says.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.machine import available_bytes
from freehold.base.types import KvType, SamplingParams
from freehold.run.engine.cache.blocks import blocks_for
from freehold.run.engine.cache.capacity import MEMORY_SHARE, bytes_per_block
from freehold.run.engine.constrain.grammar import Mask
from freehold.run.engine.engine import Engine
from freehold.run.engine.sampler import FORBIDDEN
from freehold.run.engine.sequence import Generation, PictureIds, PromptPictures
from freehold.run.engine.sequence import Sequence as EngineSequence
from freehold.run.formats import Metadata
from freehold.run.models.load import LoadedModel
from freehold.run.models.seeing import LoadedTower
from freehold.run.tokenizer import Tokenizer

F32 = NDArray[np.float32]

# --- rules of a transcript -------------------------------------------------------------------------

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
            "use the model's own tokenizer.json",
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


# --- the model -------------------------------------------------------------------------------------

HEARD = 64  # windows whose features are kept: 3 MB each of the base model
BATCH = 4  # windows that the encoder takes at once
MAX_TOKENS = 224  # of a text
TOGETHER = 8  # windows whose texts are written at once, where the cache has room for them


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A window as the decoder hears it."""

    digest: bytes  # of its frames and the encoder
    features: F32 = field(repr=False)  # [rows, width]


@dataclass(frozen=True, slots=True)
class Decoded:
    """An answer of the decoder to one window. `tokens` are without the one that ends it."""

    tokens: tuple[int, ...]
    sum_logprob: float  # of tokens and end, of what the rules left
    no_speech_prob: float
    temperature: float
    ended: bool  # by itself, and not by the limit of tokens

    @property
    def mean_logprob(self) -> float:
        """Log-probability of a token, as thresholds count it."""
        return self.sum_logprob / (len(self.tokens) + 1)


class WriteOptions(TypedDict, total=False):
    """What may be said of a text beside its window and its prompt."""

    marks: bool  # with marks of time
    temperature: float
    seed: int
    max_tokens: int


class WindowText:
    """The text of one window on its way, and how likely the window has no speech. Closed, it stops within a step."""

    def __init__(
        self, heard: Heard, text: Generation, first: Generation, tokens: SpeechTokens, temperature: float
    ) -> None:
        """`first`: the one token after the start alone, which is as likely no speech as the window has none."""
        self.heard, self.temperature = heard, temperature
        self._text, self._first, self._tokens = text, first, tokens
        self._ids: list[int] = []
        text.start()
        first.start()

    @property
    def sequence(self) -> EngineSequence:
        """What a step must compute next, of the two."""
        return self._first.sequence if self._text.sequence.done else self._text.sequence

    def take(self) -> bool:
        """Take the tokens that were made; tell whether there were any, or none will come. Raises their error."""
        fresh = [out.id for out in self._text.take()]
        self._ids += fresh
        self._first.take()
        return bool(fresh) or self.done

    @property
    def done(self) -> bool:
        """Whether it was written to its end."""
        return self._text.done and self._first.done

    def decoded(self) -> Decoded:
        """Return what was written, once it is done."""
        assert self.done, "its tokens were taken"
        ended = self._text.finish_reason == "stop"
        matcher = self._text.sequence.matcher
        assert isinstance(matcher, TranscriptMatcher), "a transcript's"
        if ended:
            matcher.count(self._tokens.end)
        ids = tuple(self._ids[:-1] if ended else self._ids)
        no_speech = float(probabilities(self._first)[self._tokens.no_speech])
        return Decoded(ids, matcher.sum_logprob, no_speech, self.temperature, ended)

    def close(self) -> None:
        """Stop; safe to call twice, and when it is done."""
        self._text.close()
        self._first.close()


class SpeechModel:
    """A tower that hears and the engine behind it; safe from many threads."""

    def __init__(self, tower: LoadedTower, engine: Engine, tokens: SpeechTokens) -> None:
        self.tokens, self._tower, self._engine = tokens, tower, engine
        self.bands: int = tower.cfg.bands
        self.rows: int = tower.cfg.positions
        self.together = max(1, min(TOGETHER, engine.free_blocks // blocks_for(engine.context)))
        self._ids = PictureIds()
        self._heard: OrderedDict[bytes, Heard] = OrderedDict()
        self._lock = Lock()

    @property
    def digest(self) -> str:
        """What tells apart models that hear differently: their files, and how they are rounded."""
        return self._tower.digest

    @property
    def tower_bytes(self) -> int:
        """Bytes of the encoder's packed weights."""
        return self._tower.nbytes

    def encode(self, windows: Sequence[F32], pause: Callable[[], None]) -> list[Heard]:
        """Compute features of windows, float32 [bands, 2 * rows] each, or find them among the latest.

        `pause` is called between sections of the work; what it raises ends it.
        """
        digests = [hashlib.sha256(self._tower.digest.encode() + w.tobytes()).digest() for w in windows]
        known = {digest: heard for digest in digests if (heard := self._known(digest)) is not None}
        missing = {d: w for d, w in zip(digests, windows, strict=True) if d not in known}
        plan = self._tower.plan(1, 1)
        for first in range(0, len(missing), BATCH):
            some = list(missing)[first : first + BATCH]
            windows_left: Any = [
                (plan, (missing[digest],)) for digest in some
            ]  # arrays of floats, not of bytes
            features = self._tower.features(windows_left, pause)
            for digest, rows in zip(some, features, strict=True):
                known[digest] = self._keep(Heard(digest, rows))
        return [known[digest] for digest in digests]

    def _known(self, digest: bytes) -> Heard | None:
        with self._lock:
            heard = self._heard.get(digest)
            if heard is not None:
                self._heard.move_to_end(digest)
            return heard

    def _keep(self, heard: Heard) -> Heard:
        with self._lock:
            self._heard[heard.digest] = heard
            while len(self._heard) > HEARD:
                self._heard.popitem(last=False)
        return heard

    def starts(self, heard: Heard) -> F32:
        """Return the probabilities of every token after the start alone, float32 [V]: of no speech, of languages."""
        first = self._start(heard)
        next(first)
        return probabilities(first)

    def language(self, heard: Heard) -> Mapping[str, float]:
        """Return the probability of each language that the model knows; none of an English model."""
        languages = self.tokens.languages
        if not languages:
            return {}
        row = self.starts(heard)
        total = sum(float(row[id]) for id in languages.values())
        return {code: float(row[id]) / total for code, id in languages.items()}

    def write(
        self,
        heard: Heard,
        prompt: Sequence[int],
        *,
        marks: bool = True,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = MAX_TOKENS,
    ) -> WindowText:
        """Begin to continue the prompt of a window: greedily at temperature 0, else drawn with a seed."""
        text = self._engine.generate(
            self._prompt(heard, prompt),
            SamplingParams(temperature=temperature, seed=seed),
            max_tokens=max_tokens,
            stop_ids=(self.tokens.end,),
            constraint=TranscriptRules(self.tokens, marks),
            pictures=self._sound(heard, prompt),
        )
        return WindowText(heard, text, self._start(heard), self.tokens, temperature)

    def ended(
        self, texts: Sequence[WindowText], pause: Callable[[], None] = lambda: None
    ) -> list[WindowText]:
        """Continue texts together until some are done; return those. `pause` is called after each step."""
        while not (done := [each for each in texts if each.done]):
            self._engine.advance(texts[0].sequence, lambda: any([each.take() for each in texts]))
            pause()
        return done

    def decode(
        self, heard: Sequence[Heard], prompts: Sequence[Sequence[int]], **options: Unpack[WriteOptions]
    ) -> list[Decoded]:
        """Continue the prompt of each window, all together; options as of `write`."""
        texts = [self.write(each, prompt, **options) for each, prompt in zip(heard, prompts, strict=True)]
        left = texts
        while left:
            done = self.ended(left)
            left = [each for each in left if each not in done]
        return [each.decoded() for each in texts]

    def _start(self, heard: Heard) -> Generation:
        prompt = [self.tokens.start]
        return self._engine.generate(
            self._prompt(heard, prompt),
            max_tokens=1,
            constraint=FirstRow(),
            pictures=self._sound(heard, prompt),
        )

    def _prompt(self, heard: Heard, prompt: Sequence[int]) -> list[int]:
        return [*self._ids.of(heard.digest, self.rows), *prompt]

    def _sound(self, heard: Heard, prompt: Sequence[int]) -> PromptPictures:
        rows = np.concatenate([np.arange(self.rows), np.full(len(prompt), -1)]).astype(np.int32)
        return PromptPictures(
            heard.features, rows, self.tokens.end, apart=self.rows, digests=((heard.digest, self.rows),)
        )


def probabilities(first: Generation) -> F32:
    """Return those of every token that a FirstRow's answer was chosen from, float32 [V]."""
    keeper = first.sequence.matcher
    assert isinstance(keeper, RowKeeper) and keeper.row is not None, "a token was chosen"
    weights = np.exp(keeper.row - keeper.row.max(), dtype=np.float64)
    return np.asarray(weights / weights.sum(), np.float32)


def speech_engine(model: LoadedModel, kv_type: KvType) -> Engine:
    """Return an engine whose cache holds TOGETHER windows with their texts, or as many as memory has room for.

    Raises CapacityExceeded where it has room for none.
    """
    window = blocks_for(model.context)
    room = int(available_bytes() * MEMORY_SHARE) // (window * bytes_per_block(model, kv_type))
    return Engine(model, speculate=False, kv_type=kv_type, blocks=window * max(1, min(TOGETHER, room)))
