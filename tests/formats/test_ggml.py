"""whisper.cpp's file of a Whisper is read in place, under the names of safetensors; a damaged one is refused."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, FreeholdError, UnsupportedModel
from freehold.run.formats import QuantType, check_model_file, dequantize, open_model_file
from freehold.run.formats.ggml import (
    END,
    LANGUAGES,
    GgmlWhisperFile,
    control_tokens,
    is_ggml_whisper,
    open_ggml,
)
from freehold.run.models.tiny import make, speech
from freehold.run.tokenizer import tokenizer_from_dir, tokenizer_from_words
from freehold.run.tokenizer.core import byte_alphabet
from tests.formats.ggml_writer import few_bits, ggml_bytes, write_ggml

TINY = make.config("whisper")
TENSORS = speech.speech_tensors(TINY)
SPELLED = make.vocabulary()[len(make.SPECIAL) :]
WORDS = [bytes(byte_alphabet()[letter] for letter in word) for word in SPELLED]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_ggml(tmp_path / "ggml-tiny.bin", TINY.hf, TENSORS, WORDS)


def test_tensors_have_the_names_and_values_of_safetensors(path: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text("{ not of this file")
    opened = open_model_file(path)
    assert isinstance(opened, GgmlWhisperFile)
    assert opened.tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert np.array_equal(opened.tensors[name].numpy(), values), name
    stated = {key: opened.config[key] for key in opened.config if key != "architectures"}
    assert stated == {key: TINY.hf[key] for key in stated}
    check_model_file(path)


@pytest.mark.parametrize("type", [QuantType.Q8_0, QuantType.Q5_0])
def test_a_quantised_file_has_the_values_of_its_blocks(tmp_path: Path, type: QuantType):
    opened = open_ggml(write_ggml(tmp_path / "few.bin", TINY.hf, TENSORS, WORDS, type))
    few = [name for name, tensor in opened.tensors.items() if tensor.type is type]
    assert len(few) == sum(each.ndim == 2 for each in TENSORS.values()) - 2, (
        "all matrices but two of positions"
    )
    for name, values in TENSORS.items():
        expected = values
        if name in few:
            blocks = np.frombuffer(few_bits(values, type), np.uint8).reshape(len(values), -1)
            expected = dequantize(blocks, type, values.shape[1])
        assert np.array_equal(opened.tensors[name].numpy(), expected), name


def test_tokens_that_are_not_text_follow_from_the_size_of_the_vocabulary(path: Path, tmp_path: Path):
    opened = open_ggml(path)
    own = tokenizer_from_words(opened.words, opened.control)
    folder = speech.write_safetensors(TINY, tmp_path / "whisper")
    published = tokenizer_from_dir(folder)
    assert own.vocab_size == published.vocab_size and own.first_difference(published) is None
    text = "in the cafe\u0301 \u4eac \u266a then"
    assert own.encode(text) == published.encode(text, bos=False)
    assert own.decode(own.encode(text)) == text


@pytest.mark.parametrize(
    ("words", "vocab", "languages"), [(50_256, 51_864, 99), (50_257, 51_865, 99), (50_257, 51_866, 100)]
)
def test_published_vocabularies_have_their_tokens_where_they_belong(words: int, vocab: int, languages: int):
    control = control_tokens(Path("x"), words, vocab, 1500)
    ids = {text: words + i for i, text in enumerate(control)}
    assert ids[END] == words and ids["<|en|>"] == words + 2
    assert ids["<|notimestamps|>"] + 1 + 1501 == vocab
    assert sum(text[2:-2] in LANGUAGES for text in control) == languages


def test_a_list_that_ends_with_the_end_itself_is_read_without_it(tmp_path: Path):
    path = write_ggml(tmp_path / "a.bin", TINY.hf, TENSORS, [*WORDS, END.encode()])
    assert open_ggml(path).words == WORDS


def test_a_vocabulary_that_leaves_no_languages_is_refused(tmp_path: Path):
    path = write_ggml(tmp_path / "a.bin", TINY.hf, TENSORS, [*WORDS, *WORDS])
    with pytest.raises(BadModelFile, match="languages"):
        open_ggml(path)


def test_a_tensor_of_no_whisper_is_named(tmp_path: Path):
    strange = {**TENSORS, "model.encoder.alibi.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(UnsupportedModel, match=r"encoder\.alibi"):
        open_ggml(write_ggml(tmp_path / "a.bin", TINY.hf, strange, WORDS))


def test_other_files_from_before_gguf_are_no_whisper():
    assert not is_ggml_whisper(struct.pack("<14i", 0x67676D6C, 32_000, 4096, 256, 32, 32, 128, *range(7)))
    assert not is_ggml_whisper(b"lmgg") and not is_ggml_whisper(bytes(64))


def test_a_damaged_file_is_refused_and_never_crashes(tmp_path: Path):
    whole, draw, path = ggml_bytes(TINY.hf, TENSORS, WORDS), np.random.default_rng(7), tmp_path / "a.bin"
    for cut in [0, 3, 40, 57, *draw.integers(60, len(whole), 30).tolist(), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(FreeholdError):
            open_ggml(path).check_whole()
    for _ in range(60):
        changed = bytearray(whole)
        changed[int(draw.integers(0, 70_000))] = int(draw.integers(0, 256))
        path.write_bytes(changed)
        with contextlib.suppress(FreeholdError):
            open_ggml(path)
