"""What a tower takes, from its file's headers alone: the figures of `fit` and `show` are those of the loaded tower."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.layers import PICTURES_AT_ONCE, TowerNeed
from freehold.base.serving import FEATURE_BYTES
from freehold.run.formats import open_model_file
from freehold.run.models.load import load_model
from freehold.run.models.seeing import load_tower
from freehold.run.models.sight import SCREEN, tower_need
from freehold.run.models.tiny import make
from tests.vectors.weights import SEEING


@pytest.mark.parametrize("name", SEEING)
def test_headers_say_what_a_loaded_tower_takes(name: str, tmp_path: Path):
    folder = make.write_safetensors(SEEING[name], tmp_path / name)
    need = tower_need(folder)
    tower = load_tower(folder, load_model(folder))
    assert need is not None and tower is not None
    assert need.name == tower.tower.name and need.kept == FEATURE_BYTES
    # Panels are filled up to whole rows and columns, which weighs in tiny matrices.
    assert 0.9 * need.weights <= tower.nbytes <= 1.6 * need.weights + 20_000
    plan = tower.plan(*SCREEN)
    assert need.screen is not None
    assert (need.screen.tokens, need.screen.patches) == (plan.tokens, plan.patches)
    assert 0 < need.least <= need.screen.tokens and need.least <= need.most
    assert need.feature == 4 * tower.feature_width and need.working >= tower.working_bytes(plan.patches)
    assert need.at_once == need.working + PICTURES_AT_ONCE * plan.tokens * need.feature


def test_an_mmproj_is_counted_as_the_folder_of_the_same_model(tmp_path: Path):
    tiny = make.config("qwen3_vl")
    ours = tower_need(make.write_mmproj(tiny, tmp_path / "mmproj-F16.gguf"))
    theirs = tower_need(make.write_safetensors(tiny, tmp_path / "folder"))
    assert ours is not None and theirs is not None
    assert (ours.weights, ours.layers, ours.patch_weights) == (
        theirs.weights,
        theirs.layers,
        theirs.patch_weights,
    )
    assert ours.patch_weights > 0 and ours.token_weights > 0


def test_a_file_of_text_has_none(tmp_path: Path):
    assert tower_need(make.write_gguf(make.config("qwen3"), tmp_path / "m.gguf")) is None
    with open_model_file(make.write_safetensors(make.config("qwen3"), tmp_path / "m")) as opened:
        assert tower_need(Path(opened.path)) is None


def test_of_published_sizes_only_the_weights_are_known():
    need = TowerNeed(weights=1000, kept=10)
    assert (need.resident, need.at_once) == (1010, 0)
