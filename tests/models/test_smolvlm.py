"""SmolVLM's tower: positions in buckets, tiles within a budget, and what files say of it.

What it computes is compared in test_eyes_golden.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.load import load_model
from freehold.run.models.tiny import make
from freehold.run.models.tower import TokenBudget
from freehold.run.models.towers import smolvlm
from tests.models.golden_towers import golden

TINY = make.config("smolvlm")


def test_positions_fall_into_the_buckets_of_transformers():
    for grid, side, *ids in golden("smolvlm")["buckets"].tolist():
        assert smolvlm.buckets(grid, side).tolist() == ids[:grid], (grid, side)


# --- what files say -----------------------------------------------------------------------------------------

VISION = {"hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 4304, "num_hidden_layers": 27}
SMOLVLM2 = {
    "vision_config": VISION | {"image_size": 384, "patch_size": 14},
    "text_config": {"hidden_size": 2048},
    "scale_factor": 3,
}
PIXELS = {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}


def config(**settings: Any) -> smolvlm.SmolTowerSizes:
    return smolvlm.config_from_hf(Fields(SMOLVLM2), Fields(PIXELS | settings))


def test_the_published_sizes_are_read():
    cfg = config()
    assert (cfg.grid, cfg.rows_of_tile, cfg.joined, cfg.head, cfg.inner) == (27, 81, 10368, 72, 4320)
    assert (cfg.side, cfg.tile, cfg.longest, cfg.pixels.filter) == (27, 384, 1536, "lanczos")
    plan = smolvlm.plan(cfg, 1920, 1080)
    assert plan.resizes[0][1] == freehold_resize(1536, 1152) and plan.tokens == 13 * 81
    assert plan.layout[:4] == ("<fake_token_around_image>", "<row_1_col_1>", 81, "<fake_token_around_image>")
    assert plan.layout[-5:] == (
        "\n\n",
        "<fake_token_around_image>",
        "<global-img>",
        81,
        "<fake_token_around_image>",
    )
    assert plan.layout.count("\n") == 2


def freehold_resize(width: int, height: int) -> Any:
    return smolvlm.Resize(width, height, "lanczos")


def test_a_picture_that_is_not_cut_is_squeezed_into_one_tile():
    plan = smolvlm.plan(config(do_image_splitting=False), 1920, 1080)
    assert plan.resizes == ((freehold_resize(1536, 864), freehold_resize(384, 384)),)
    assert plan.layout == ("<fake_token_around_image>", "<global-img>", 81, "<fake_token_around_image>")


@pytest.mark.parametrize(
    ("most", "tokens"), [(2000, 1053), (1053, 1053), (1052, 10 * 81 - 3 * 81), (500, 5 * 81), (404, 81)]
)
def test_a_budget_makes_fewer_tiles(most: int, tokens: int):
    plan = smolvlm.plan(config(), 1920, 1080, TokenBudget(1, min(most, 17 * 81)))
    assert plan.tokens == tokens


def test_a_budget_below_a_tile_is_refused():
    with pytest.raises(UsageError, match="80 tokens; this model makes 81"):
        smolvlm.plan(config(), 100, 100, TokenBudget(1, 80))
    with pytest.raises(UsageError, match="up to 1,377"):
        smolvlm.plan(config(), 100, 100, TokenBudget(1, 1378))


def test_another_mark_stands_alone():
    cfg = replace(config(), mark="<file_sep>")
    assert smolvlm.plan(cfg, 1920, 1080).layout == (13 * 81,)
    meta = Fields(TINY.mmproj | {"freehold.mark": "<file_sep>"}, "clip.")
    assert smolvlm.config_from_gguf(meta).mark == "<file_sep>"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"clip.use_gelu": False}, UnsupportedModel, "clip.use_gelu is not true"),
        (
            {"clip.vision.projector.scale_factor": 3},
            UnsupportedModel,
            "4 patches a side; expected a multiple of 3",
        ),
        ({"clip.vision.patch_size": 37}, UnsupportedModel, "0 patches a side"),
        (
            {"clip.vision.projector.scale_factor": None},
            BadModelFile,
            "clip.vision.projector.scale_factor is missing",
        ),
        ({"clip.vision.attention.head_count": 8}, UnsupportedModel, "8 heads over a width of 96"),
    ],
)
def test_a_gguf_of_another_tower_is_refused(change: dict[str, Any], error: type[Exception], message: str):
    meta = {key: value for key, value in (TINY.mmproj | change).items() if value is not None}
    with pytest.raises(error, match=message):
        smolvlm.config_from_gguf(Fields(meta, "clip."))


def test_idefics3_has_the_same_tower(tmp_path: Path):
    tiny = replace(
        TINY, hf=TINY.hf | {"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"]}
    )
    path = make.write_safetensors(tiny, tmp_path)
    with open_model_file(path) as opened:
        source = read_tower(opened)
    assert source is not None and source.tower is smolvlm.TOWER
    assert load_model(path, threads=1).architecture == "llama"
