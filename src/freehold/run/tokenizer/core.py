"""The tokenizer: text to token ids and back, whole or as a stream.

Knows a vocabulary and its added tokens; knows no file format, no chat template, no model.
The added tokens (control and user-defined) are cut out here, because who may write them depends on where the text comes
from: control tokens are recognised in template text only, never in what a user wrote. So are the marks around a gap
that a model fills in (`fill_tokens`), as families spell them. Bytes, not strings, are what a token stands for.

Ordinary text is merged by the `tokenizers` library alone, or by its pre-tokenizer and our merges. The library takes a
third of a second to build a vocabulary of 150,000 tokens. So for byte-pair vocabularies it only normalises and cuts
words, with a vocabulary of 256 bytes, and native.Bpe merges: the same ids, tested against it. It keeps some 230 bytes
for each byte of a text that it cuts, so a long text is cut in windows.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Any

# The library's own thread pool would fight the engine's; it is read at the first batch.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from tokenizers import models
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from freehold._native import Bpe
from freehold.base.errors import BadModelFile, UsageError
from freehold.base.stopping import check_stopped

# --- encoders of ordinary text ---------------------------------------------------------------------

Encode = Callable[[list[str]], list[list[int]]]
WINDOW = 1 << 15  # characters: 30 ms of work and 8 MB
# Words at a window's end that what follows may still change: a regular expression looks one character ahead of a
# word and backs off within one, so two are in doubt; the others are for pipelines of several expressions.
IN_DOUBT = 4


def library_encoder(inner: tokenizers.Tokenizer) -> Encode:
    """Let the library do all of it. Its batch call releases the GIL, its plain one does not."""

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for batch in _batches(texts):
            check_stopped()
            ids += [e.ids for e in inner.encode_batch_fast(batch, add_special_tokens=False)]
        return ids

    return encode


def merging_encoder(
    bpe: Bpe, alphabet: dict[str, int] | None, normalizer: Normalizer | None, cutter: PreTokenizer | None
) -> Encode:
    """Let the library cut words into bytes, and `bpe` merge them.

    `alphabet`: the stand-ins that `cutter` spells bytes with; None when words stay characters.
    """
    # Without merges every symbol is its own token, so the ids are the word's bytes. A character without a token
    # of its own falls back to the tokens of its bytes, which here are all there are.
    byte_tokens = alphabet or {f"<0x{b:02X}>": b for b in range(256)}
    model = models.BPE(vocab=byte_tokens, merges=[], byte_fallback=alphabet is None)
    splitter = _pipeline(model, normalizer, cutter)

    def merged(texts: list[str]) -> list[list[int]]:
        split = splitter.encode_batch(texts, add_special_tokens=False)
        return [bpe.encode(bytes(e.ids), e.word_ids) for e in split]

    windows = _Windows(splitter, bpe, normalizer, cutter) if cutter is not None else None

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for batch in _batches(texts):
            check_stopped()
            if windows is not None and len(batch[0]) > WINDOW:
                ids.append(windows.encode(batch[0]))
            else:
                ids += merged(batch)
        return ids

    return encode


def _pipeline(
    model: models.Model, normalizer: Normalizer | None, cutter: PreTokenizer | None
) -> tokenizers.Tokenizer:
    pipeline = tokenizers.Tokenizer(model)
    if normalizer is not None:
        pipeline.normalizer = normalizer
    if cutter is not None:
        pipeline.pre_tokenizer = cutter
    return pipeline


def marking_encoder(bpe: Bpe, mark: str, *, prefix: bool) -> Encode:
    """Let `bpe` merge whole stretches, with `mark` for a space, and one before them if `prefix`."""

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        for text in texts:
            check_stopped()
            marked = (mark if prefix and text else "") + text.replace(" ", mark)
            data = marked.encode()
            ids.append(bpe.encode(data, [0] * len(data)))
        return ids

    return encode


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Deal texts out into lists of at most WINDOW characters; a longer one has a list of its own."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > WINDOW:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


class _Windows:
    """Encodes a long text window by window, each from the first word in doubt of the one before it.

    A word is found from its beginning on, and merges stay within it, so the ids are those of the whole text.
    """

    def __init__(
        self, splitter: tokenizers.Tokenizer, bpe: Bpe, normalizer: Normalizer | None, cutter: PreTokenizer
    ) -> None:
        self._splitter, self._bpe, self._normalizer = splitter, bpe, normalizer
        # To it a word is one token, however long: what a word that fills a window is measured with.
        self._measure = _pipeline(models.WordLevel({"?": 0}, unk_token="?"), normalizer, cutter)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the whole text."""
        ids: list[int] = []
        at = 0
        while at < len(text):
            check_stopped()
            window = text[at : at + WINDOW]
            split = self._split(window)
            words = split.word_ids
            if at + WINDOW >= len(text):
                return ids + self._bpe.encode(bytes(split.ids), words)
            cut, end = _certain(split, words, window)
            if cut:
                ids += self._bpe.encode(bytes(split.ids[:cut]), words[:cut])
                at += end
            else:
                end = self._end_of_word(text, at)
                ids += self._one_word(text[at:end])
                at = end
        return ids

    def _split(self, text: str) -> tokenizers.Encoding:
        return _one(self._splitter, text)

    def _end_of_word(self, text: str, at: int) -> int:
        """Return where the word at `at`, longer than a window, ends; a later end where no window may begin at it."""
        size = 4 * WINDOW
        while at + size < len(text):
            check_stopped()
            measured = _one(self._measure, text[at : at + size])
            for word in range(1, len(measured.ids) + 1 - IN_DOUBT):
                end = _begin(measured, word)
                if end and not unicodedata.combining(text[at + end]):
                    return at + end
            size *= 4
        return len(text)

    def _one_word(self, text: str) -> list[int]:
        """Encode what is likely one word. Its bytes need no library where the library takes it for one, too."""
        if len(_one(self._measure, text).ids) == 1:
            word = self._normalizer.normalize_str(text) if self._normalizer is not None else text
            data = word.encode()
            return self._bpe.encode(data, [0] * len(data))
        split = self._split(text)
        return self._bpe.encode(bytes(split.ids), split.word_ids)


def _one(pipeline: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    texts: Any = [text]  # the library's annotation requires a list of its inputs
    (encoding,) = pipeline.encode_batch(texts, add_special_tokens=False)
    return encoding


def _begin(encoding: tokenizers.Encoding, token: int) -> int:
    """Return where a token begins in its text; 0 where it stands for none of it."""
    span = encoding.token_to_chars(token)
    return span[0] if span else 0


def _certain(split: tokenizers.Encoding, words: Sequence[Any], window: str) -> tuple[int, int]:
    """Return how many tokens belong to words that nothing after the window changes, and where their text ends.

    The next window begins with no combining mark: a normaliser might have joined it to the text before.
    """
    last = words[-1] if words else 0
    for word in range(last + 1 - IN_DOUBT, 0, -1):
        cut = bisect_left(words, word)
        start = _begin(split, cut)
        if start and not unicodedata.combining(window[start]):
            return cut, start
    return 0, 0


# --- the tokenizer ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a chat template produced: a text, and a twin in which only the template can have written a control token.

    `text` is what the model reads, byte for byte what `transformers` renders. `guarded` has the same
    length; where messages or tools spelled a control token, one of its characters is replaced there, so a
    control token found in `guarded` is the template's own. The two are equal for ordinary messages.
    """

    text: str
    guarded: str
    in_thinking: bool = False  # the prompt ends inside an opened thinking block

    def __str__(self) -> str:
        return self.text


SPACE_MARK = "\u2581"
LOOKS = 4096  # places where an added token could begin, a few milliseconds of work
MAX_ADDED_CHARS = 1024  # of an added token; the longest in use has some 130, all of them spaces
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class TokenKind(IntEnum):
    """What a token is, by GGUF's `tokenizer.ggml.token_type` numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text before any splitting; `text` is as it is in raw text."""

    id: int
    text: str
    control: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    # Matched in normalised text, where U+2581 stands for a space: the encoder does that.
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a loader (vocab.py) hands over: one entry per id, and the few facts beside them."""

    texts: Sequence[str]
    kinds: Sequence[int]
    byte_level: bool  # GPT-2's byte alphabet; otherwise plain text with U+2581 for a space
    added: tuple[AddedToken, ...]
    prefix_ids: tuple[int, ...]  # put before a text when `bos` is wanted by default
    suffix_ids: tuple[int, ...]
    bos_id: int | None
    eos_id: int | None
    eos_ids: frozenset[int]
    marks_are_spaces: bool  # added tokens are spelled with spaces and match U+2581 as well
    strips_leading_space: bool  # encoding puts a space before the text, so decoding takes it away
    pad_id: int | None = None
    unk_id: int | None = None
    word_pieces: bool = False  # a text that begins with ## continues the word before it, others begin one


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Map GPT-2's printable stand-ins to bytes: printable Latin-1 is itself, the rest follows from U+0100."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in itself}
    rest = (b for b in range(256) if chr(b) not in table)
    return table | {chr(0x100 + n): b for n, b in enumerate(rest)}


class Cutter:
    """Finds added tokens in a text: leftmost first, longest at a place.

    Lengths by first character, and a dictionary: one pattern of Gemma's 6,414 tokens takes 0.16 s to compile.
    """

    def __init__(self, added: Iterable[AddedToken]) -> None:
        self._by_text = {token.text: token for token in added if token.text}
        lengths: dict[str, set[int]] = {}
        for text in self._by_text:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        self._first = re.compile("|".join(map(re.escape, lengths))) if lengths else None

    def id_of(self, text: str) -> int | None:
        """Return the id of the token spelled `text`."""
        token = self._by_text.get(text)
        return None if token is None else token.id

    def cut(self, text: str) -> Iterable[tuple[int, int, int]]:
        """Yield (start, end, id); start and end include whitespace that the token swallows."""
        last = 0
        for start, end, token in self.matches(text):
            around = text[max(start - 1, 0) : start] + text[end : end + 1]
            if start < last or (token.single_word and any(c.isalnum() or c == "_" for c in around)):
                continue
            if token.lstrip:
                start = last + len(text[last:start].rstrip())
            if token.rstrip:
                end += len(text[end:]) - len(text[end:].lstrip())
            yield start, end, token.id
            last = end

    def matches(self, text: str) -> Iterator[tuple[int, int, AddedToken]]:
        """Yield (start, end, token) in the text's order, none over another."""
        at = self._first.search(text) if self._first else None
        looks = 0
        while at is not None and self._first is not None:
            looks += 1
            if looks % LOOKS == 0:
                check_stopped()
            start = end = at.start()
            for size in self._lengths[text[start]]:
                token = self._by_text.get(text[start : start + size])
                if token is not None:
                    end = start + len(token.text)  # less than size where the text ends
                    yield start, end, token
                    break
            at = self._first.search(text, max(end, start + 1))


class Tokenizer:
    """Turns text into token ids and back; immutable and safe from many threads.

    Build one with `tokenizer_from_gguf` or `tokenizer_from_dir`.
    """

    def __init__(self, encode: Encode, vocabulary: Vocabulary) -> None:
        # Each is looked for at each place of a text.
        longest = max(vocabulary.added, key=lambda token: len(token.text), default=None)
        if longest is not None and len(longest.text) > MAX_ADDED_CHARS:
            raise BadModelFile(
                f"the added token {longest.text[:20]!r}... (id {longest.id}) has {len(longest.text):,} characters; "
                f"the limit is {MAX_ADDED_CHARS:,}"
            )
        self.vocab_size = len(vocabulary.texts)  # ids it knows; a model's matrices may be padded beyond it
        self.bos_id = vocabulary.bos_id  # beginning of sequence, if the file names one, as the three below
        self.eos_id = vocabulary.eos_id  # end of sequence: templates write it
        self.pad_id = vocabulary.pad_id
        self.unk_id = vocabulary.unk_id  # for what the vocabulary cannot spell
        self.eos_ids = vocabulary.eos_ids  # all that end an answer: end of text, of turn, of message
        self.suffix_ids = vocabulary.suffix_ids  # what the model appends to a text
        # Whether decoding takes away one leading space (SentencePiece puts it there when encoding).
        self.strips_leading_space = vocabulary.strips_leading_space
        self._encode_stretches = encode
        self._vocabulary = vocabulary
        self._kinds = vocabulary.kinds
        self._bytes: list[bytes | None] = [None] * len(vocabulary.texts)
        self._control = Cutter(token for token in vocabulary.added if token.control)
        plain = [token for token in vocabulary.added if not token.control]
        self._user_defined = Cutter(token for token in plain if not token.normalized)
        self._normalized = Cutter(token for token in plain if token.normalized)
        self._longest: int | None = None
        self._added_ids = frozenset(token.id for token in vocabulary.added)

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts of the tokens that only a template may write."""
        return frozenset(token.text for token in self._vocabulary.added if token.control)

    def guarding(self, texts: Iterable[str]) -> Tokenizer:
        """Return a tokenizer for which `texts`, where they are tokens, are control tokens: no message writes them."""
        ids = {text: self.token_id(text) for text in texts if text not in self.control_tokens}
        own = {text: id for text, id in ids.items() if id is not None}
        if not own:
            return self
        kinds = list(self._vocabulary.kinds)
        for id in own.values():
            kinds[id] = TokenKind.CONTROL
        others = (token for token in self._vocabulary.added if token.text not in own)
        added = (*others, *(AddedToken(id, text, control=True) for text, id in own.items()))
        return Tokenizer(self._encode_stretches, replace(self._vocabulary, kinds=kinds, added=added))

    def longest(self) -> int:
        """Return how many characters the longest token has. The first call looks at all of them: 30 ms."""
        if self._longest is None:
            self._longest = max(map(len, self._vocabulary.texts), default=1)
        return self._longest

    def first_difference(self, other: Tokenizer) -> int | None:
        """Return the first id that stands for another token in `other`, or None if all are the same."""
        ours, theirs = self._vocabulary.texts, other._vocabulary.texts
        pairs = enumerate(zip(ours, theirs, strict=False))
        shorter = None if len(ours) == len(theirs) else min(len(ours), len(theirs))
        return next((id for id, (a, b) in pairs if a != b), shorter)

    def vocabulary_digest(self) -> str:
        """Return the SHA-256 of all tokens' texts in order, in hexadecimal: equal ones have the same ids."""
        digest = hashlib.sha256()
        for text in self._vocabulary.texts:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(4, "little") + raw)
        return digest.hexdigest()

    def token_id(self, text: str) -> int | None:
        """Return the first id of the token spelled exactly `text` in the vocabulary, or None.

        Searches it: a dictionary of all tokens would cost each start 50 to 90 ms, for two lookups.
        """
        try:
            return self._vocabulary.texts.index(text)
        except ValueError:
            return None

    def added_id(self, text: str) -> int | None:
        """Return the id of the added token spelled exactly `text`, or None."""
        for cutter in (self._control, self._user_defined, self._normalized):
            if (id := cutter.id_of(text)) is not None:
                return id
        return None

    def token_text(self, id: int) -> str:
        """Return the vocabulary's own spelling of `id`."""
        return self._vocabulary.texts[self._checked(id)]

    def token_kind(self, id: int) -> TokenKind:
        """Return what `id` is: normal, control, byte, ..."""
        return TokenKind(self._kinds[self._checked(id)])

    def encode(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        """Turn `text` into ids.

        `special` False: the text is a user's, control tokens written in it are ordinary characters.
        `special` True: it is template text, control tokens become their ids.
        `bos` None follows the model's own habit; with `special`, a text that already starts with the
        beginning-of-sequence token gets no second one. Raise UsageError for lone surrogates.
        """
        return self._encode(text, text if special else None, bos)

    def encode_rendered(self, rendered: Rendered, *, bos: bool | None = None) -> list[int]:
        """Turn a rendered chat into ids: control tokens only where the template wrote them."""
        return self._encode(rendered.text, rendered.guarded, bos)

    def encode_marked(self, rendered: Rendered, mark: int) -> tuple[list[int], list[int]]:
        """Turn a rendered chat into ids, and say where among them the template wrote the control token `mark`.

        An equal id at another place is a word: a vocabulary may spell a control token by its merges too.
        """
        ids, places = self._joined(rendered.text, rendered.guarded, mark)
        framed = self._framed(ids, None, explicit=True)
        before = len(framed) - len(ids)  # of a template's text nothing comes after the ids
        return framed, [before + place for place in places]

    def _encode(self, text: str, guarded: str | None, bos: bool | None) -> list[int]:
        ids, _ = self._joined(text, guarded)
        return self._framed(ids, bos, explicit=guarded is not None)

    def _joined(self, text: str, guarded: str | None, mark: int = -1) -> tuple[list[int], list[int]]:
        """Return a text's ids, and at which of them `mark` was cut out of it as an added token."""
        _refuse_surrogates(text)
        pieces = self._pieces(text, guarded)
        stretches = [piece for piece in pieces if isinstance(piece, str)]
        encoded = iter(self._encode_stretches(stretches))
        ids: list[int] = []
        places: list[int] = []
        for piece in pieces:
            if piece == mark:
                places.append(len(ids))
            ids += next(encoded) if isinstance(piece, str) else [piece]
        return ids, places

    def _framed(self, ids: list[int], bos: bool | None, *, explicit: bool) -> list[int]:
        prefix = list(self._vocabulary.prefix_ids) if bos is None else []
        if bos and self.bos_id is not None:
            prefix = list(self._vocabulary.prefix_ids) or [self.bos_id]
        if explicit and ids[: len(prefix)] == prefix:
            prefix = []
        suffix = list(self._vocabulary.suffix_ids) if bos is None and not explicit else []
        return prefix + ids + suffix

    def _pieces(self, text: str, guarded: str | None) -> list[str | int]:
        pieces: list[str | int] = []
        last = 0
        for start, end, id in self._control.cut(guarded) if guarded is not None else ():
            pieces += self._user_pieces(text[last:start])
            pieces.append(id)
            last = end
        return pieces + self._user_pieces(text[last:])

    def _user_pieces(self, text: str) -> list[str | int]:
        pieces: list[str | int] = []
        last = 0
        # SentencePiece reads its space mark, typed as such, as a space; tokens of spaces match it too.
        searched = text.replace(SPACE_MARK, " ") if self._vocabulary.marks_are_spaces else text
        for start, end, id in self._user_defined.cut(searched):
            if start > last:
                pieces.append(text[last:start])
            pieces.append(id)
            last = end
        if last < len(text):
            pieces.append(text[last:])
        return pieces

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """Return the bytes `id` stands for; control tokens stand for none unless `special`."""
        if not special and self._kinds[self._checked(id)] in _SILENT:
            return b""
        raw = self._bytes[self._checked(id)]
        if raw is None:
            raw = self._bytes[id] = self._spell(id)
        return raw

    def _spell(self, id: int) -> bytes:
        text = self._vocabulary.texts[id]
        if self._vocabulary.byte_level:
            alphabet = byte_alphabet()
            if id not in self._added_ids and all(char in alphabet for char in text):
                return bytes(alphabet[char] for char in text)
            return text.encode("utf-8", "replace")
        if self._kinds[id] == TokenKind.BYTE and (match := _BYTE_TOKEN.match(text)):
            return bytes([int(match.group(1), 16)])
        if self._vocabulary.word_pieces and id not in self._added_ids:
            text = text[2:] if text.startswith("##") else " " + text
        return text.replace(SPACE_MARK, " ").encode("utf-8", "replace")

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Turn `ids` into text; bytes that are no UTF-8 become U+FFFD; `special` spells control tokens."""
        raw = b"".join(self.token_bytes(id, special=special) for id in ids)
        text = raw.decode("utf-8", "replace")
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def _checked(self, id: int) -> int:
        if not 0 <= id < len(self._bytes):
            raise UsageError(f"token id {id} is outside the vocabulary of {len(self._bytes)}")
        return id


_SILENT = frozenset((TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.UNUSED))


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UsageError(
            f"text holds half a surrogate pair (U+{code:04X} at character {error.start}), no character",
            hint="decode the text as UTF-8 with errors='replace' first",
        ) from None


def check_ids(name: str, ids: Iterable[int], size: int) -> None:
    """Raise BadModelFile if one of `ids` (metadata `name`) lies outside a vocabulary of `size`."""
    for id in ids:
        if not 0 <= id < size:
            raise BadModelFile(f"{name} is {id}, outside the vocabulary of {size}")


# --- a stream of token ids to text, whole characters only -------------------------------------------


class Detokenizer:
    """Decode ids one by one; the pieces joined equal `Tokenizer.decode` of all ids.

    A character whose bytes are spread over tokens is buffered until it is whole; bytes that can no longer
    become one turn into U+FFFD. `at_start` False: the text continues an earlier one, so a SentencePiece
    leading space is kept. `shown`: control tokens that are spelled though `special` is False. One instance
    per stream, one thread at a time.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special: bool = False,
        at_start: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._special, self._shown = special, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = at_start and tokenizer.strips_leading_space

    def push(self, id: int) -> str:
        """Add one id and return the text that became certain (often empty)."""
        special = self._special or id in self._shown
        return self._trimmed(self._decoder.decode(self._tokenizer.token_bytes(id, special=special)))

    def finish(self) -> str:
        """End the stream and return what was buffered, U+FFFD for half a character."""
        return self._trimmed(self._decoder.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text


# --- marks around a gap to be filled in ------------------------------------------------------------

# Prefix, suffix, middle, in the order all of these were trained with (arXiv 2207.14255's PSM).
SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    # DeepSeek coder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)
# Before a repository's name and before each file, of the models that were trained on several files (arXiv 2409.12186).
FILE_SPELLINGS = (
    ("<|repo_name|>", "<|file_sep|>"),  # Qwen coder
    ("<reponame>", "<file_sep>"),  # StarCoder 2
    ("<|reponame|>", "<|file_sep|>"),  # Granite
)
# What such a model writes when the gap is filled, beside its own end of text.
_ENDS = ("<|fim_pad|>", "<fim_pad>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<file_sep>")


@dataclass(frozen=True, slots=True)
class FillTokens:
    """Ids around a gap, and those that end its filling."""

    prefix: int
    suffix: int
    middle: int
    ends: frozenset[int]
    files: tuple[int, int] | None = None  # before the repository's name, and before each file


def fill_tokens(tokenizer: Tokenizer) -> FillTokens | None:
    """Return the tokens that mark a gap, or None where the model has none."""
    for spelled in SPELLINGS:
        prefix, suffix, middle = map(tokenizer.added_id, spelled)
        if prefix is not None and suffix is not None and middle is not None:
            ends = (tokenizer.added_id(text) for text in _ENDS)
            ids = {id for id in ends if id is not None}
            return FillTokens(
                prefix, suffix, middle, frozenset(ids | {prefix, suffix, middle}), _files(tokenizer)
            )
    return None


def _files(tokenizer: Tokenizer) -> tuple[int, int] | None:
    for spelled in FILE_SPELLINGS:
        repository, file = map(tokenizer.added_id, spelled)
        if repository is not None and file is not None:
            return repository, file
    return None
