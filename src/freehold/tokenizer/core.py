"""The tokenizer: text to token ids and back.

Knows a vocabulary and its added tokens; knows no file format, no chat template, no model.
The `tokenizers` library does the merging of ordinary text; the added tokens (control and user-defined) are
cut out here, because who may write them depends on where the text comes from: control tokens are recognised
in template text only, never in what a user wrote. Bytes, not strings, are what a token stands for.
Path: ChatTemplate.render -> Tokenizer.encode_rendered -> Engine -> Detokenizer
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from freehold.errors import BadModelFile, UsageError
from freehold.stopping import check_stopped
from freehold.tokenizer.encoders import Encode
from freehold.tokenizer.rendered import Rendered

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
    normalized: bool = (
        False  # matched in normalised text, where U+2581 stands for a space: the encoder does that
    )


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
        for start, end, token in self.found(text):
            if start < last or (token.single_word and _inside_word(text, start, end)):
                continue
            if token.lstrip:
                start = last + len(text[last:start].rstrip())
            if token.rstrip:
                end += len(text[end:]) - len(text[end:].lstrip())
            yield start, end, token.id
            last = end

    def found(self, text: str) -> Iterator[tuple[int, int, AddedToken]]:
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


def _inside_word(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return any(char.isalnum() or char == "_" for char in (before, after) if char)


class Tokenizer:
    """Turns text into token ids and back; immutable and safe from many threads.

    Build one with `tokenizer_from_gguf` or `tokenizer_from_dir`.
    """

    def __init__(self, encode: Encode, vocabulary: Vocabulary) -> None:
        _check_added(vocabulary.added)
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
    def vocab_size(self) -> int:
        """Number of ids the tokenizer knows; a model's matrices may be padded beyond it."""
        return len(self._bytes)

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence id, if the file names one."""
        return self._vocabulary.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer: end of text, of turn, of message."""
        return self._vocabulary.eos_ids

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence id the file itself names (templates write it), if any."""
        return self._vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
        """The id for what the vocabulary cannot spell, if the file names one."""
        return self._vocabulary.unk_id

    @property
    def pad_id(self) -> int | None:
        """The padding id, if the file names one."""
        return self._vocabulary.pad_id

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """Tokens that the model appends to a text."""
        return self._vocabulary.suffix_ids

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding takes away one leading space (SentencePiece puts it there when encoding)."""
        return self._vocabulary.strips_leading_space

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts of the tokens that only a template may write."""
        return frozenset(token.text for token in self._vocabulary.added if token.control)

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

    def _encode(self, text: str, guarded: str | None, bos: bool | None) -> list[int]:
        _refuse_surrogates(text)
        pieces = self._pieces(text, guarded)
        stretches = [piece for piece in pieces if isinstance(piece, str)]
        encoded = iter(self._encode_stretches(stretches))
        ids: list[int] = []
        for piece in pieces:
            ids += next(encoded) if isinstance(piece, str) else [piece]
        return self._framed(ids, bos, explicit=guarded is not None)

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
        for start, end, id in self._user_defined.cut(self._searched(text)):
            if start > last:
                pieces.append(text[last:start])
            pieces.append(id)
            last = end
        if last < len(text):
            pieces.append(text[last:])
        return pieces

    def _searched(self, text: str) -> str:
        """SentencePiece reads its space mark, typed as such, as a space; tokens of spaces match it too."""
        return text.replace(SPACE_MARK, " ") if self._vocabulary.marks_are_spaces else text

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


def _check_added(added: Iterable[AddedToken]) -> None:
    """Raise BadModelFile for a token so long that looking for it at each place of a text would take too long."""
    longest = max(added, key=lambda token: len(token.text), default=None)
    if longest is not None and len(longest.text) > MAX_ADDED_CHARS:
        raise BadModelFile(
            f"the added token {longest.text[:20]!r}... (id {longest.id}) has {len(longest.text):,} characters; "
            f"at most {MAX_ADDED_CHARS:,} are looked for"
        )


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
