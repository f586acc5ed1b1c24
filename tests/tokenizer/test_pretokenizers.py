"""How named pre-tokenizers cut nasty strings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.base.errors import UnsupportedModel
from freehold.run.tokenizer import vocab
from tests.tokenizer import toys
from tests.vectors.make_words import digest

VECTORS = Path(__file__).parent.parent / "vectors" / "tokens"

_BYTES = {symbol: byte for byte, symbol in enumerate(toys.byte_symbols())}


def words(name, text):
    pieces = vocab.lookup(name).pre_tokenizer().pre_tokenize_str(text)
    return [bytes(_BYTES[char] for char in piece).decode() for piece, _ in pieces]


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("gpt-2", "it's  1234 x\n\n y", ["it", "'s", " ", " 1234", " x", "\n\n", " y"]),
        ("smollm", "it's 1234", ["it", "'s", " ", "1", "2", "3", "4"]),
        ("llama-bpe", "IT'S 12345\r\n\r\n x", ["IT", "'S", " ", "123", "45", "\r\n\r\n", " x"]),
        ("qwen2", "IT'S 12345", ["IT", "'S", " ", "1", "2", "3", "4", "5"]),
        ("qwen2", "a\u0301b", ["a", "\u0301b"]),
        ("qwen35", "a\u0301b", ["a\u0301b"]),
        ("qwen2", "   x\t\ty", ["  ", " x", "\t", "\ty"]),
        ("tekken", "HelloWorld ABCdef 12", ["Hello", "World", " ABCdef", " ", "1", "2"]),
        ("tekken", "a//\nb", ["a", "//\n", "b"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("deepseek-v3", "abc中文かな1234!x", ["abc", "中文かな", "123", "4", "!x"]),
        ("deepseek-coder", "a1 b\n\nc", ["a", "1", " b", "\n", "\n", "c"]),
        ("kimi-k2", "abc中文def", ["abc", "中文", "def"]),
        ("seed-coder", "x!!\ny", ["x", "!!", "\n", "y"]),
        ("bailingmoe", "x!!\n\ny", ["x", "!!\n\n", "y"]),
    ],
)
def test_text_is_cut_into_the_models_words(name, text, expected):
    assert words(name, text) == expected


@pytest.mark.parametrize("name", [name for name in vocab.KNOWN if name != "gemma4"])
@pytest.mark.parametrize(
    "text", ["", " ", "\r\n\r", "👩‍👩‍👧 é\u0301 שָׁלוֹם ١٢٣ ½ ＡＢ", "\x00\ufeff\u2028", "'" * 30, "a" * 3000]
)
def test_no_pattern_loses_a_character(name, text):
    assert "".join(words(name, text)) == text


def test_unknown_name_is_refused():
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.ggml\.pre"):
        vocab.lookup("")


@pytest.mark.parametrize("name, expected", json.loads((VECTORS / "words.json").read_text()).items())
def test_nasty_strings_are_cut_as_the_models_own_files_cut_them(name, expected):
    spec = vocab.lookup(name)
    normalizer, cutter = spec.normalizer(), spec.pre_tokenizer()

    def cut(text: str) -> list[str]:
        plain = normalizer.normalize_str(text) if normalizer is not None else text
        return [word for word, _ in cutter.pre_tokenize_str(plain)]

    assert digest(cut) == expected
