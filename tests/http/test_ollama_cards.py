"""What a model can do, read from its file: what clients choose by, and what they must not be offered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from freehold.run.formats import open_model_file
from freehold.run.models.tiny import make
from freehold.run.store import Listed
from freehold.serve.http.ollama import models
from freehold.serve.http.ollama.models import Card, read_card
from tests.local.test_constraints import TEMPLATE
from tests.vectors.encoders import write_encoder
from tests.vectors.files import write_gguf
from tests.vectors.whisper import write_whisper

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def card(path: Path) -> Card:
    with open_model_file(path) as file:
        return read_card(file, path, path.parent)


def test_an_encoder_makes_embeddings_and_nothing_else(tmp_path: Path):
    found = card(write_encoder("bert", tmp_path / "bert"))
    assert found.capabilities == ("embedding",) and not found.sampling
    assert found.architecture == "bert" and found.embedding > 0 and found.context > 0


def test_a_speech_model_transcribes_and_does_not_chat(tmp_path: Path):
    assert card(write_whisper(tmp_path / "whisper")).capabilities == ("transcription",)


@pytest.mark.parametrize("template, more", [(PLAIN, ()), (TEMPLATE, ("tools", "thinking"))])
def test_a_template_tells_of_tools_and_thinking_by_what_it_renders(
    tmp_path: Path, template: str, more: tuple[str, ...]
):
    keys = {"tokenizer.chat_template": template}
    found = card(write_gguf("qwen2", tmp_path / "tiny.gguf", dtype="Q8_0", keys=keys))
    assert found.capabilities == ("completion", *more)
    assert found.sampling["temperature"] and found.format == "gguf"


def test_a_card_without_time_for_its_template_is_not_kept(tmp_path: Path):
    keys = {"tokenizer.chat_template": TEMPLATE}
    path = write_gguf("qwen2", tmp_path / "tiny.gguf", dtype="Q8_0", keys=keys)
    size = path.stat().st_size
    listed = Listed("tiny", "ready", "you", "file", size, size, 0, "", path, "", "", "", "")
    known = models.Cards()
    assert known.of(listed, tmp_path, until=0.0).capabilities == ("completion",)
    assert known.of(listed, tmp_path).capabilities == ("completion", "tools", "thinking")
    assert models.Cards().of(listed, tmp_path, until=0.0).capabilities == ("completion", "tools", "thinking")


def test_a_model_with_its_tower_has_vision_and_one_without_it_has_not(tmp_path: Path):
    tiny = make.config("qwen3_vl")
    text = make.write_gguf(tiny, tmp_path / "tiny.gguf")
    tower = make.write_mmproj(tiny, tmp_path / "mmproj-tiny.gguf")
    folder = make.write_safetensors(tiny, tmp_path / "folder")
    listed = Listed("tiny", "ready", "freehold", "gguf", 1, 1, 0, "", text, "", "", "", "")
    known = models.Cards()
    assert "vision" not in known.of(listed, tmp_path).capabilities
    seeing = replace(listed, eyes=tower, eyes_bytes=tower.stat().st_size)
    assert "vision" in known.of(seeing, tmp_path).capabilities
    assert "vision" in known.of(replace(listed, path=folder, kind="safetensors"), tmp_path).capabilities


def test_an_engine_knows_best_what_its_model_can_do():
    assert models._with_sight(("completion", "vision"), None) == ["completion", "vision"]
    assert models._with_sight(("completion", "vision"), ()) == ["completion"]
    assert models._with_sight(("completion",), ["vision"]) == ["completion", "vision"]
    assert models._with_sight(("completion", "vision"), ["audio"]) == ["completion", "audio"]
