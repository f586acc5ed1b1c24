"""Speech models in the store: from the hub, from other programs' folders, and where a model that answers is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import UnsupportedModel, UsageError
from freehold.choose.advisor.file_anatomy import from_file
from freehold.cli import main
from freehold.run.formats import open_model_file
from freehold.run.local.runnable import check_runs
from freehold.run.models.sight import tower_need
from freehold.run.models.tiny import make, speech
from freehold.run.store import Store
from freehold.run.store.eyes import hears
from freehold.run.store.naming import speech_model
from freehold.run.store.quants import safetensors_files
from tests.formats.ggml_writer import write_ggml
from tests.formats.test_ggml import TENSORS, TINY, WORDS
from tests.store.standin import Standin


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_whisper_of_the_hub_comes_with_what_hearing_needs(standin: Standin, store: Store, tmp_path: Path):
    standin.files = files_of(speech.write_safetensors(TINY, tmp_path / "whisper"))
    standin.files |= {"model.fp32-00001-of-00001.safetensors": b"twice", "pytorch_model.bin": b"pickle"}
    standin.licence = "mit"
    ref = store.pull("org/whisper-small")
    assert (ref.kind, ref.licence, ref.path.is_dir()) == ("safetensors", "MIT", True)
    assert {p.name for p in ref.files} == files_of(tmp_path / "whisper").keys()
    assert hears(ref) and speech_model(store, "org/whisper-small").path == ref.path
    assert open_model_file(ref.path).tensors.keys() == TENSORS.keys()


def test_a_whisper_of_ctranslate2_comes_from_the_hub_too(standin: Standin, store: Store, tmp_path: Path):
    standin.files = files_of(speech.write_ctranslate2(TINY, tmp_path / "whisper"))
    standin.files |= {"README.md": b"read me"}
    ref = store.pull("org/faster-whisper-small")
    assert (ref.kind, hears(ref)) == ("ctranslate2", True)
    assert {p.name for p in ref.files} == standin.files.keys() - {"README.md"}
    assert [m.kind for m in store.list()] == ["ctranslate2"]
    with pytest.raises(UsageError, match="speech model, whose weights are rounded"):
        store.pull("org/faster-whisper-small", rounding="q4")
    store.remove("org/faster-whisper-small")
    assert not store.list()


def test_what_faster_whisper_fetched_is_used_where_it_is(settings: Settings, tmp_path: Path):
    cache = tmp_path / "hub"
    snapshot = cache / "models--Systran--faster-whisper-tiny" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    speech.write_ctranslate2(TINY, snapshot)
    other = cache / "models--org--translator" / "snapshots" / ("b" * 40)
    other.mkdir(parents=True)
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        (other / name).write_bytes(b"{}" * 40)
    store = Store(replace(settings, foreign_roots=(("hub-cache", cache),)))
    assert [(m.name, m.kind, m.owner) for m in store.list()] == [
        ("Systran/faster-whisper-tiny", "ctranslate2", "hub-cache")
    ]
    assert store.resolve("Systran/faster-whisper-tiny").path == snapshot


def test_files_and_folders_of_the_users_own_are_known_for_what_they_are(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_ggml(tmp_path / "ggml-tiny.bin", TINY.hf, TENSORS, WORDS)
    speech.write_ctranslate2(TINY, tmp_path / "whisper-tiny")
    for name, kind in (("ggml-tiny.bin", "ggml"), ("whisper-tiny", "ctranslate2")):
        ref = speech_model(store, name)
        assert (ref.kind, ref.owner) == (kind, "user")
        assert store.pull(f"./{name}").path == ref.path


def test_a_second_copy_in_another_type_is_left_out_and_shards_are_not():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    copies = ["model.fp32-00001-of-00002.safetensors", "model.fp32-00002-of-00002.safetensors"]
    assert safetensors_files(["model.safetensors", *copies], "r") == ("model.safetensors",)
    assert safetensors_files([*shards, *copies], "r") == tuple(shards)


@pytest.mark.parametrize("verb", [["run", "--local"], ["embed"], ["bench"]])
def test_where_a_model_answers_a_speech_model_is_refused_by_name(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.stdin", None)
    folder = speech.write_safetensors(make.config("whisper"), tmp_path / "whisper")
    assert main.run([*verb, str(folder), *(["hi"] if verb != ["bench"] else [])]) != 0
    said = capsys.readouterr().err
    assert "whisper is a speech model" in said and "freehold transcribe FILE --model whisper" in said


def test_a_model_for_the_other_is_refused_before_it_is_fetched():
    with pytest.raises(UnsupportedModel, match="whisper:small is a speech model"):
        check_runs("whisper:small", speech=False)
    with pytest.raises(UnsupportedModel, match="does not write down recordings"):
        check_runs("qwen2.5-coder:0.5b", speech=True)
    check_runs("whisper:small", speech=True)
    check_runs("whisper:small")


def test_sizes_of_a_whisper_are_its_decoders_and_its_encoder_is_a_tower(tmp_path: Path):
    folder = speech.write_ctranslate2(TINY, tmp_path / "whisper")
    sizes = from_file(folder, "q8")
    decoder = {name: values for name, values in TENSORS.items() if name.startswith("model.decoder.")}
    assert sizes.weights == sum(values.size for values in decoder.values())
    assert (sizes.context, sizes.depth) == (1500 + 448, TINY.hf["decoder_layers"])
    tower = tower_need(folder)
    assert tower and tower.name == "whisper" and tower.screen is None and tower.weights > 0
