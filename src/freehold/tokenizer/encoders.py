"""What turns a stretch of ordinary text into ids: the library alone, or the library's words and our merges.

Knows pipelines and vocabularies that are built; knows no file and no added token.
`tokenizers` takes a third of a second to build a vocabulary of 150,000 tokens. So for byte-pair vocabularies it only
normalises and cuts words, with a vocabulary of 256 bytes, and native.Bpe merges: the same ids, tested against it.
Path: Tokenizer.encode -> an Encode -> ids
"""

from __future__ import annotations

import os
from collections.abc import Callable

# The library's own thread pool would fight the engine's; it is read at the first batch.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from tokenizers import models
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from freehold._native import Bpe

Encode = Callable[[list[str]], list[list[int]]]


def library_encoder(inner: tokenizers.Tokenizer) -> Encode:
    """Let the library do all of it. Its batch call releases the GIL, its plain one does not."""

    def encode(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in inner.encode_batch_fast(texts, add_special_tokens=False)]

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
    splitter = tokenizers.Tokenizer(models.BPE(vocab=byte_tokens, merges=[], byte_fallback=alphabet is None))
    if normalizer is not None:
        splitter.normalizer = normalizer
    if cutter is not None:
        splitter.pre_tokenizer = cutter

    def encode(texts: list[str]) -> list[list[int]]:
        split = splitter.encode_batch(texts, add_special_tokens=False)
        return [bpe.encode(bytes(e.ids), e.word_ids) for e in split]

    return encode
