"""Sounds in `run`, `show`, `list` and `fit`: --sound, /sound; refused where the model does not hear."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.base.types import Audio, Image, Message
from freehold.cli.chat.chat import ModelFacts
from freehold.cli.chat.pictures import UNSAVED
from freehold.run.models.tiny import make
from tests.cli.test_run import freehold, scripted  # noqa: F401
from tests.cli.test_run_chat import Desk
from tests.vectors.ears import recording

HEARING = ModelFacts("Q4_K_M", 8192, can_see=True, can_listen=True)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FREEHOLD_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "a question.wav"
    path.write_bytes(recording(0))
    return path


def test_sounds_come_after_pictures_and_before_the_prompt(freehold, scripted, wav, tmp_path):  # noqa: F811
    png = tmp_path / "a.png"
    png.write_bytes(PNG)
    model = scripted("A word.", can_see=True, can_listen=True)
    status, out, err = freehold(
        "run", "smollm2:135m", "--sound", str(wav), "--image", str(png), "What", "is said?"
    )
    assert (status, out, err) == (0, "A word.\n", "")
    parts = (Image.of(PNG), Audio.open(wav), "What is said?")
    assert model.calls[0].messages == (Message("user", "What is said?", parts=parts),)


def test_model_that_does_not_hear_refuses_and_names_the_way(freehold, scripted, wav):  # noqa: F811
    model = scripted("ok", can_see=True)
    status, out, err = freehold("run", "smollm2:135m", "--sound", str(wav), "What?")
    assert (status, out) == (2, "") and model.calls == []
    assert "cannot process audio" in err and "freehold transcribe" in err


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (None, "cannot be read"),
        (b"", "has 0 bytes"),
        (bytes((10 << 20) + 1), "has more than 10,485,760 bytes"),
    ],
)
def test_wrong_file_is_named_before_a_model_is_loaded(freehold, tmp_path, data, part):  # noqa: F811
    path = tmp_path / "x.wav"
    if data is not None:
        path.write_bytes(data)
    status, out, err = freehold("run", "smollm2:135m", "--sound", str(path), "What?")
    assert (status, out) == (2, "") and f"{path} {part}" in err and err.count("error:") == 1


def test_raw_text_takes_no_sound(freehold, wav):  # noqa: F811
    status, _, err = freehold("run", "smollm2:135m", "--raw", "--sound", str(wav), "What?")
    assert status == 2 and "--sound is for chats" in err


def test_a_sound_is_attached_in_a_chat_which_says_that_it_is_not_saved(home, wav):
    desk = Desk(home, "A", "B", facts=HEARING).type(f"/sound {wav}", "What?")
    assert "audio of 10.0 kB, attached to the next message" in desk.said and UNSAVED in desk.said
    assert desk.model.calls[0].messages[0].parts == (Audio.open(wav), "What?")
    deaf = Desk(home, "A").type(f"/sound {wav}", "/sound", "hi")
    assert "fake cannot process audio" in deaf.said and "/sound PATH" in deaf.said
    assert deaf.model.calls[0].messages == (Message("user", "hi"),)


def test_show_list_and_fit_say_that_a_model_hears(freehold, tmp_path):  # noqa: F811
    tiny = make.config("gemma4-ears")
    mmproj = make.write_mmproj(tiny, tmp_path / "mmproj-F16.gguf")
    model = make.write_gguf(tiny, tmp_path / "m.gguf")
    folder = make.write_safetensors(tiny, tmp_path / "folder")
    for path in (model, folder):
        out = freehold("show", str(path))[1]
        assert "audio         yes, encoder " in out and "at most 30 s per recording, 750 tokens" in out
        card = json.loads(freehold("show", str(path), "--json")[1])["model"]
        assert (card["hears"], card["deaf"], card["sound_tokens"]) == (True, "", 750)
        fit = freehold("fit", str(path))[1]
        assert "audio: " in fit and "at most 30 s per recording, 750 tokens" in fit and "pictures: " in fit
        freehold("pull", str(path))
    listed = json.loads(freehold("list", "--json")[1])["models"]
    assert listed and all(row["hears"] and row["sees"] for row in listed)
    assert "pictures and audio" in freehold("list")[1]
    mmproj.unlink()
    deaf = make.write_safetensors(make.config("gemma4-clipped"), tmp_path / "deaf")
    assert "audio   " not in freehold("show", str(deaf))[1]


def test_a_model_may_hear_and_not_see(freehold, tmp_path):  # noqa: F811
    tiny = make.config("voxtral")
    make.write_mmproj(tiny, tmp_path / "mmproj-voxtral.gguf")
    model = make.write_gguf(tiny, tmp_path / "voxtral.gguf")
    card = json.loads(freehold("show", str(model), "--json")[1])["model"]
    assert (card["hears"], card["sees"], card["blind"]) == (True, False, "")
    assert "audio: " in (out := freehold("fit", str(model))[1]) and "pictures: " not in out
    freehold("pull", str(model))
    (row,) = json.loads(freehold("list", "--json")[1])["models"]
    assert (row["sees"], row["hears"]) == (False, True)


def test_a_tower_of_sounds_that_is_not_built_is_named(freehold, tmp_path):  # noqa: F811
    folder = make.write_safetensors(make.config("qwen3_vl"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"audio_config": {"d_model": 64}}))
    out = freehold("show", str(folder))[1]
    assert "audio         no: the audio encoder of qwen3_vl is not supported yet" in out
