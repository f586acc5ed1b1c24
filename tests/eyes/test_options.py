"""When a tower is loaded, which file it is, and how many tokens pictures become: in Python, `run` and config.toml."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Drawing

import freehold
from freehold import Image, Message
from freehold.base.config import load_settings
from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.base.serving import Job
from freehold.base.types import image_budget
from freehold.run.models import seeing
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import EngineModels
from tests.cli.test_run import freehold as freehold_command  # noqa: F401

TINY = make.config("qwen3_vl")


def picture(width: int = 128, height: int = 96) -> Image:
    file = io.BytesIO()
    Drawing.new("RGB", (width, height), "red").save(file, "PNG")
    return Image.of(file.getvalue())


def chat(**size: int) -> list[Message]:
    return [Message("user", parts=(picture(**size), "what?"))]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF of text, with the tower in another folder."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    make.write_mmproj(TINY, tmp_path / "elsewhere/mmproj-F32.gguf")
    return make.write_gguf(TINY, tmp_path / "tiny.gguf")


@pytest.fixture
def tower(model: Path) -> str:
    return str(model.parent / "elsewhere/mmproj-F32.gguf")


def test_lazy_eyes_are_loaded_with_the_first_picture_and_answer_as_eager_ones(
    model: Path, tower: str, monkeypatch
):
    packed: list[Path] = []
    real = seeing._packed
    monkeypatch.setattr(seeing, "_packed", lambda source, *rest: packed.append(source) or real(source, *rest))
    with freehold.load(model, eyes=tower, threads=1) as eager:
        assert len(packed) == 1  # a file that is named is loaded at once
        answer = eager.chat(chat(), max_tokens=4, temperature=0)
    (model.parent / "mmproj-F32.gguf").write_bytes(Path(tower).read_bytes())
    with freehold.load(model, threads=1) as lazy:
        assert lazy.can_see and len(packed) == 1
        assert lazy.count_tokens(chat()) == answer.usage.prompt_tokens and len(packed) == 1
        assert lazy.info.memory_bytes > lazy.info.cache_bytes + (256 << 20)  # its place is counted already
        assert lazy.chat(chat(), max_tokens=4, temperature=0).token_ids == answer.token_ids
        assert len(packed) == 2
    with freehold.load(model, threads=1, eyes="eager"):
        assert len(packed) == 3


def test_a_tower_that_was_replaced_before_its_first_picture_is_refused(model: Path, tower: str):
    beside = model.parent / "mmproj-F32.gguf"
    beside.write_bytes(Path(tower).read_bytes())
    with freehold.load(model, threads=1) as lazy:
        beside.write_bytes(Path(tower).read_bytes() + b"\0")
        with pytest.raises(BadModelFile, match="not the file it was"):
            lazy.chat(chat(), max_tokens=1)


def test_eyes_that_are_off_leave_a_model_of_text(model: Path, tower: str):
    (model.parent / "mmproj-F32.gguf").write_bytes(Path(tower).read_bytes())
    with freehold.load(model, eyes="off", threads=1) as blind:
        assert not blind.can_see
        with pytest.raises(UsageError, match="reads text only"):
            blind.chat(chat())


def test_a_file_that_is_no_tower_of_the_model_is_refused_by_name(model: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="there is no such file") as e:
        freehold.load(model, eyes=str(tmp_path / "none.gguf"))
    assert "lazy, eager, off" in e.value.hint
    with pytest.raises(UnsupportedModel, match="no vision encoder"):
        freehold.load(model, eyes=str(model))
    other = make.write_mmproj(make.config("gemma3-eyes"), tmp_path / "mmproj-other.gguf")
    with pytest.raises(UnsupportedModel, match="does not support the vision encoder"):
        freehold.load(model, eyes=str(other))


def test_a_server_s_file_is_for_the_models_that_it_fits(model: Path, tower: str, tmp_path: Path, caplog):
    llama = make.config("llama")
    wide = replace(
        llama,
        hf=llama.hf | {"hidden_size": 128, "head_dim": 32},
        gguf=llama.gguf | {"llama.embedding_length": 128, "llama.attention.key_length": 32},
    )
    other = make.write_gguf(wide, tmp_path / "other.gguf")
    models = EngineModels(Store(load_settings()), EngineOptions(eyes=tower))
    refs = [ModelRef(p.stem, p, "gguf", "", 1, "user", "", "", (p,)) for p in (model, other)]
    assert models._eyes(refs[0])[1] == "lazy" and models._eyes(refs[0])[0].eyes == Path(tower)
    ref, eyes = models._eyes(refs[1])
    assert (ref.eyes, eyes) == (None, "lazy") and "keeps its own eyes" in caplog.text


def test_a_budget_bounds_every_picture_within_the_tower_s_limit(model: Path, tower: str):
    with freehold.load(model, eyes=tower, threads=1) as free:
        most = free.render(chat(width=256, height=256)).count(254)
        assert most == 16
    with freehold.load(model, eyes=tower, image_tokens=(1, 4), threads=1) as bound:
        assert bound.render(chat(width=256, height=256)).count(254) <= 4
        high = Image("image/png", picture(256, 256).data, detail="high")
        assert bound.render([Message("user", parts=(high, "x"))]).count(254) <= 4
    with pytest.raises(UsageError, match="1 to 17 tokens; expected two counts up to 16"):
        freehold.load(model, eyes=tower, image_tokens=(1, 17))


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "a:b", "0:4", "9:4", "1:99999999", "-1:4", "1:2:3"])
def test_a_budget_that_is_none_is_refused(text: str):
    with pytest.raises(UsageError, match="image_tokens is"):
        image_budget(text)


def test_config_toml_has_both(model: Path, tower: str, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'eyes = "{tower}"\nimage_tokens = "1:4"\n')
    settings = load_settings()
    assert (settings.eyes, settings.image_tokens) == (tower, "1:4")
    with freehold.load(model, threads=1) as bound:
        assert bound.can_see and bound.render(chat(width=256, height=256)).count(254) <= 4
    (home / "config.toml").write_text('image_tokens = "many"\n')
    with pytest.raises(UsageError, match="expected MIN:MAX"):
        load_settings()


def test_run_and_serve_take_both(freehold_command, model: Path, tower: str, tmp_path: Path):  # noqa: F811
    path = tmp_path / "red.png"
    path.write_bytes(picture(256, 256).decoded())
    run = ("run", str(model), "--local", "--image", str(path), "--max-tokens", "2", "--temperature", "0")
    status, _, err = freehold_command(*run, "--eyes", tower, "--image-tokens", "1:4", "what?")
    assert status == 0 and "its 256 x 256 pixels are seen as 64 x 64, 4 tokens" in err
    status, _, err = freehold_command(*run, "--eyes", "off", "what?")
    assert status != 0 and "cannot read pictures" in err
    for command in (run[:2], ("serve", str(model))):
        status, _, err = freehold_command(*command, "--eyes", str(tmp_path / "none.gguf"))
        assert status == 2 and "there is no such file" in err
        status, _, err = freehold_command(
            *command, "--image-tokens", "4:1", *(["x"] if "run" in command else [])
        )
        assert status == 2 and "smaller count first" in err


def test_pictures_that_are_seen_smaller_are_told_of_up_to_four(model: Path, tower: str):
    with freehold.load(model, eyes=tower, context=512, threads=1) as llm:
        notes = llm._prompter.prompt(
            Job(messages=tuple(chat(width=600, height=400 + i)[0] for i in range(6)))
        ).warnings
    assert len(notes) == 5 and notes[-1] == "so are 2 more pictures"
    assert notes[1].startswith("messages[1].parts[0]: its 600 x 401 pixels are seen as ")
