"""Which word is the model, what is the prompt, and what may come through stdin."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import BadPrompt, FreeholdError, ModelNotFound
from freehold.cli.chat.request import MAX_STDIN, decoded, joined, read_stdin, split_words
from freehold.run.store import Store

DEFAULT = "qwen2.5-coder:0.5b"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings(home=tmp_path, adopt=False, offline=True))


@pytest.mark.parametrize(
    "words, model, prompt",
    [
        ([], DEFAULT, ""),
        (["smollm2:135m"], "smollm2:135m", ""),
        (["smollm2:135m", "Say", "hi"], "smollm2:135m", "Say hi"),
        (["Why is the sky blue?"], DEFAULT, "Why is the sky blue?"),
        (["Why is the", "sky blue?"], DEFAULT, "Why is the sky blue?"),
        (["./model.gguf", "Hi"], "./model.gguf", "Hi"),
        (["org/repo:Q4_K_M", "Hi"], "org/repo:Q4_K_M", "Hi"),
        ([""], DEFAULT, ""),
    ],
)
def test_first_word_is_the_model_if_it_names_one(store, words, model, prompt):
    assert split_words(words, store, lambda: DEFAULT) == (model, prompt)


def test_bare_word_that_is_no_model_is_never_a_prompt(store):
    with pytest.raises(ModelNotFound, match="'smollm2:135n'") as e:
        split_words(["smollm2:135n"], store, lambda: DEFAULT)
    assert "did you mean" in e.value.hint and "smollm2:135m" in e.value.hint


def test_file_whose_name_looks_like_no_path_is_pointed_to(store, tmp_path, monkeypatch):
    (tmp_path / "model.bin").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as e:
        split_words(["model.bin", "Hi"], store, lambda: DEFAULT)
    assert e.value.hint == "for the file of that name, write ./model.bin"


@pytest.mark.parametrize("words", [["hello"], ["tell", "me", "a", "joke"], ["Warum?"]])
def test_words_that_look_like_no_name_ask_the_default_model(store, words: list[str], capsys):
    assert split_words(words, store, lambda: DEFAULT) == (DEFAULT, " ".join(words))
    assert f"{words[0]!r} is not a model: prompting {DEFAULT}" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["smolm2", "my-model", "model:7b", "gpt9"])
def test_word_that_looks_like_a_name_is_never_a_prompt(store, word: str):
    with pytest.raises(FreeholdError):
        split_words([word, "Hi"], store, lambda: DEFAULT)


@pytest.mark.parametrize(
    "raw, part",
    [(b"a\0b", "NUL byte at offset 1"), (b"ab\xff", "byte 0xff at offset 2"), (b"\x89PNG\r\n", "byte 0x89")],
)
def test_binary_stdin_is_refused_with_its_offset(raw, part):
    with pytest.raises(BadPrompt, match=part):
        read_stdin(io.BytesIO(raw))


def test_endless_stdin_is_cut_off():
    with pytest.raises(BadPrompt, match="more than 64 MiB"):
        read_stdin(io.BytesIO(b"a" * (MAX_STDIN + 1)))


def test_byte_order_mark_is_no_part_of_the_text():
    assert decoded(b"\xef\xbb\xbfhi", "stdin") == "hi"


def test_stdin_comes_before_the_prompt_with_a_blank_line_between():
    assert joined("def add(a, b):\n", "Finish this function") == "def add(a, b):\n\nFinish this function"
    assert joined("only\n", "") == "only"
    assert joined("", "only") == "only"


@pytest.mark.parametrize("context, prompt", [("", ""), (" \n", "\t"), ("", "a\0b"), ("", "a\udc80")])
def test_empty_or_broken_prompt_is_refused(context, prompt):
    with pytest.raises(BadPrompt):
        joined(context, prompt)
