"""Our merging gives the ids of the `tokenizers` library, which builds the same vocabularies the slow way."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers

from freehold._native import Bpe, Strings
from freehold.base.errors import BadModelFile, UsageError
from freehold.base.stopping import Stopped, stops_when
from freehold.run.tokenizer import core
from freehold.run.tokenizer import vocab as pretokenizers
from freehold.run.tokenizer.core import byte_alphabet, library_encoder, marking_encoder, merging_encoder

LETTERS = "abcdeé€ "


def trained(
    rng: random.Random, symbols: Sequence[str], count: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Draw a vocabulary as training would leave it: each merge joins two tokens that are there already."""
    tokens, merges = list(symbols), []
    for _ in range(count):
        pair = (rng.choice(tokens), rng.choice(tokens))
        if sum(map(len, pair)) <= 7 and pair not in merges:
            merges.append(pair)
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
    return tokens, merges


def text(rng: random.Random, letters: str, size: int) -> str:
    return "".join(rng.choice(letters) for _ in range(size))


def every(tokens: Sequence[str]) -> np.ndarray:
    return np.ones(len(tokens), np.uint8)


def splits(tokens: Sequence[str], scores: np.ndarray) -> list[tuple[str, str]]:
    """List the merges a SentencePiece vocabulary implies, best first; of one token's, the longest left part."""
    known = set(tokens)
    return [
        (tokens[id][:cut], tokens[id][cut:])
        for id in np.argsort(-scores, kind="stable")
        for cut in range(len(tokens[id]) - 1, 0, -1)
        if {tokens[id][:cut], tokens[id][cut:]} <= known
    ]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_byte_level_merges_give_the_librarys_ids(seed: int, ignore_merges: bool) -> None:
    rng = random.Random(seed)
    alphabet = [
        c for c, b in byte_alphabet().items() if chr(b) != "e"
    ]  # one byte has no token: it is dropped
    tokens, merges = trained(rng, alphabet[60:100] + alphabet[-40:], 400)
    bpe = Bpe(Strings(tokens), every(tokens), byte_level=True, ignore_merges=ignore_merges)
    assert bpe.merge_by_lines(Strings([" ".join(m) for m in merges])) == -1
    spec = pretokenizers.lookup("qwen2")
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=ignore_merges)
    )
    inner.normalizer, inner.pre_tokenizer = spec.normalizer(), spec.pre_tokenizer()
    texts = [text(rng, "abcdefghij é€\n'1", n) for n in (0, 1, 7, 60, 400)]
    ours = merging_encoder(bpe, byte_alphabet(), spec.normalizer(), spec.pre_tokenizer())
    assert ours(texts) == library_encoder(inner)(texts)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_character_merges_give_the_librarys_ids(seed: int, fallback: bool, scored: bool) -> None:
    rng = random.Random(seed)
    tokens, merges = trained(rng, LETTERS, 150)
    tokens.insert(0, "<unk>")
    tokens += [f"<0x{b:02X}>" for b in range(256)] if fallback else []
    bpe = Bpe(Strings(tokens), every(tokens), byte_level=False, byte_fallback=fallback, unk=0)
    if scored:
        scores = np.array([rng.randrange(50) for _ in tokens], np.float32)
        ranks = np.empty(len(tokens), np.int32)
        ranks[np.argsort(-scores, kind="stable")] = np.arange(len(tokens))
        bpe.merge_by_rank(ranks)
        merges = splits(tokens, scores)
    else:
        merges = [m for m in merges if " " not in "".join(m)]  # lines are cut at the space
        assert bpe.merge_by_lines(Strings([" ".join(m) for m in merges])) == -1
    vocab = {t: i for i, t in enumerate(tokens)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback)
    )
    texts = [text(rng, LETTERS + "xyz漢", n) for n in (0, 1, 9, 70, 500)]
    assert merging_encoder(bpe, None, None, None)(texts) == library_encoder(inner)(texts)


LIVELY = [*"abZ'.,!19²½_/-", *"   \n\n\r\t\u00a0", *"don't I'LL'", *"漢字か한é€𝄞ßǅ؟", "\n  ", "، ", "ก็"]
LIVELY += ["e\u0301", "q\u0323\u0301", "q\u0301\u0323", "\u1112", "\u1161", "\u11ab", "\u200d", "👩\u200d👧"]


def byte_pairs(seed: int) -> Bpe:
    """A vocabulary of all bytes and of some merges of what lively texts hold."""
    rng = random.Random(seed)
    spelled = {b: c for c, b in byte_alphabet().items()}
    common = [spelled[b] for b in "ab 1\n'é漢".encode()]
    tokens = [spelled[b] for b in range(256)]
    merges = [pair for pair in dict.fromkeys((rng.choice(common), rng.choice(common)) for _ in range(30))]
    tokens += dict.fromkeys("".join(m) for m in merges)
    bpe = Bpe(Strings(tokens), every(tokens), byte_level=True)
    assert bpe.merge_by_lines(Strings([" ".join(m) for m in merges])) == -1
    return bpe


@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted(set(pretokenizers.KNOWN) - {"gemma4"}))
def test_windows_give_the_ids_of_the_whole_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, rng = pretokenizers.lookup(name), random.Random(name)
    ours = merging_encoder(byte_pairs(1), byte_alphabet(), spec.normalizer(), spec.pre_tokenizer())
    texts = ["".join(rng.choices(LIVELY, k=rng.randrange(1, 300))) for _ in range(20)]
    texts += [
        "a" * 200,
        " " * 200,
        "1" * 200,
        "e\u0301" * 100,
        "\u0301" * 100,
        "\n" * 100 + "x",
        "don't" * 40,
    ]
    whole = ours(texts)
    for window in (7, 16, 50):
        monkeypatch.setattr(core, "WINDOW", window)
        assert [ours([text])[0] for text in texts] == whole


def test_marks_for_spaces_are_what_the_library_writes() -> None:
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokens = ["<unk>", "▁", "a", "▁a", "aa", *(f"<0x{b:02X}>" for b in range(256))]
    bpe = Bpe(Strings(tokens), every(tokens), byte_level=False, byte_fallback=True, unk=0)
    bpe.merge_by_rank(np.arange(len(tokens), dtype=np.int32))
    texts = ["", "a", " a", "a  aa ", "漢\na", "▁a"]
    for prefix in (True, False):
        library = merging_encoder(bpe, None, normalizers.Sequence(steps[not prefix :]), None)
        assert marking_encoder(bpe, "▁", prefix=prefix)(texts) == library(texts)


def test_long_text_stops_between_windows() -> None:
    spec = pretokenizers.lookup("qwen2")
    ours = merging_encoder(byte_pairs(1), byte_alphabet(), spec.normalizer(), spec.pre_tokenizer())
    looks = iter([False, False, True])
    with stops_when(lambda: next(looks)), pytest.raises(Stopped):
        ours(["some words " * 10_000])
    assert next(looks, "over") == "over"


def test_of_equal_tokens_the_first_that_text_may_become_stands() -> None:
    tokens = Strings(["a", "b", "ab", "ab", "c"])
    bpe = Bpe(tokens, np.array([1, 1, 0, 1, 0], np.uint8), byte_level=True)
    assert bpe.merge_by_lines(Strings(["a b"])) == -1
    assert (bpe.find("ab"), bpe.find("c"), bpe.find("d")) == (3, -1, -1)
    assert bpe.encode(b"abab", [0, 0, 0, 1]) == [3, 0, 1]  # the second pair lies in two words


@pytest.mark.parametrize("line", ["ab", "a ", " b", "a x", "b a", ""])
def test_a_merge_of_what_is_no_token_is_named(line: str) -> None:
    bpe = Bpe(Strings(["a", "b", "ab"]), every("abc"), byte_level=True)
    assert bpe.merge_by_lines(Strings(["a b", line])) == 1


@pytest.mark.parametrize("raw", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_strings_refuse_what_is_no_utf8(raw: bytes) -> None:
    data = np.frombuffer(len(raw).to_bytes(8, "little") + raw, np.uint8)
    with pytest.raises(BadModelFile, match="string 0 is not UTF-8"):
        Strings.read(data, 0, 1)


def test_strings_refuse_lengths_beyond_the_file() -> None:
    data = np.frombuffer((2**64 - 1).to_bytes(8, "little") + b"abcdefgh", np.uint8)
    for at, count in ((0, 1), (0, 3), (0, 2**62), (17, 0), (16, 1)):
        with pytest.raises(BadModelFile):
            Strings.read(data, at, count)


def test_strings_come_back_as_they_were() -> None:
    texts = ["", "a", "é€漢𝄞", "b\0c"]
    strings = Strings(texts)
    assert list(strings) == texts
    assert (len(strings), strings[-1], strings[2]) == (4, texts[-1], texts[2])
    with pytest.raises(IndexError):
        strings[4]


def test_words_must_number_every_byte() -> None:
    with pytest.raises(UsageError, match="one word number"):
        Bpe(Strings(["a"]), every("a"), byte_level=True).encode(b"aa", [0])
