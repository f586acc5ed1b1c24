"""Encoders of ordinary text: the library alone, or the library's pre-tokenizer and our merges.

Knows pipelines and vocabularies that are built; knows no file and no added token.
`tokenizers` takes a third of a second to build a vocabulary of 150,000 tokens. So for byte-pair vocabularies it only
normalises and cuts words, with a vocabulary of 256 bytes, and native.Bpe merges: the same ids, tested against it.
It keeps some 230 bytes for each byte of a text that it cuts, so a long text is cut in windows.
"""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# The library's own thread pool would fight the engine's; it is read at the first batch.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from tokenizers import models
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from freehold._native import Bpe
from freehold.base.stopping import check_stopped

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
