"""Pixtral's tower: rows block by block, turns by row and column, and what files say of it.

What it computes is compared in test_eyes_golden.py, of a Mistral 3, whose patches are joined, and of a Pixtral 12B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models import tower as models_tower
from freehold.run.models.binding.bind import family_of
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.load import load_model
from freehold.run.models.oracle.arithmetic import rotate
from freehold.run.models.seeing import load_tower
from freehold.run.models.tiny import make
from freehold.run.models.tower import TokenBudget
from freehold.run.models.towers import pixtral
from freehold.run.store.eyes import misfit
from tests.models.golden_towers import GGUF_FORMS, EyesOnDisk, write_mmproj

ROWS = 2e-6  # of values up to 2.7: the same operations on float32, in another order

RNG = np.random.default_rng(11)


@pytest.fixture(scope="module", params=["mistral3-eyes", "pixtral"])
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EyesOnDisk:
    return EyesOnDisk.written(request.param, "safetensors", tmp_path_factory.mktemp("pixtral"))


def test_pixels_become_the_rows_of_transformers(seeing: EyesOnDisk):
    """Block by block; a patch's columns are a convolution's: by colour, row and column."""
    tower, cfg = seeing.tower.tower, seeing.tower.cfg
    mean, deviation = (np.array(getattr(models_tower, f"CLIP_{name}")) for name in ("MEAN", "DEVIATION"))
    for i in seeing.numbers:
        plan, (pixels,) = seeing.picture(i)
        rows = tower.rows(cfg, plan, [pixels])
        assert rows.groups == (plan.patches,) and rows.places is not None
        for at in {0, 1, 2, plan.patches // 2, plan.patches - 1}:
            _, row, column = rows.places[at].tolist()
            patch = pixels[cfg.patch * row :, cfg.patch * column :][: cfg.patch, : cfg.patch]
            want = ((patch / 255 - mean) / deviation).transpose(2, 0, 1).reshape(-1)
            assert np.abs(rows.values[at] - want).max() <= ROWS, (i, at)
        assert len(np.unique(rows.places, axis=0)) == plan.patches
        blocks = rows.places[:: cfg.merge**2, 1:] // cfg.merge
        wide = plan.size[0] // cfg.block
        assert np.array_equal(blocks @ [wide, 1], np.arange(plan.tokens))


def test_heads_turn_by_the_row_with_even_and_by_the_column_with_odd_frequencies():
    """As a plain rope turns positions, of whose pairs the even ones are the row's."""
    cfg = replace(config(), hidden=64, heads=2)
    places = np.array([[0, 5, 3]])
    plain = pixtral.BASE ** -(np.arange(0, 32, 2) / 32)
    angles = np.concatenate([5 * plain[::2], 3 * plain[1::2]])
    x = RNG.standard_normal((1, 1, 32)).astype(np.float32)
    a, b = x[0, 0, :16], x[0, 0, 16:]
    want = [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
    assert np.allclose(rotate(x, places, pixtral.rope(cfg))[0, 0], np.concatenate(want), atol=1e-5)
    pairs = make.in_gguf_order(x.reshape(32, 1), 32).reshape(1, 1, 32)  # as a GGUF's rows give them
    turned = rotate(pairs, places, pixtral.rope(replace(cfg, adjacent=True)))
    assert np.allclose(turned[0, 0], np.stack(want, axis=1).reshape(-1), atol=1e-5)


def test_a_joined_row_has_a_columns_four_values_side_by_side():
    cfg = replace(config(), hidden=64, heads=2)
    plan = pixtral.plan(cfg, 56, 28)
    leaving = RNG.standard_normal((plan.patches, 64)).astype(np.float32)
    joined = pixtral.join(cfg, plan, leaving)
    assert joined.shape == (2, 256)
    for token in range(2):
        for c in range(64):
            assert np.array_equal(joined[token, 4 * c : 4 * c + 4], leaving[4 * token : 4 * token + 4, c])


# --- what files say -----------------------------------------------------------------------------------------

VISION = {"model_type": "pixtral", "hidden_act": "silu", "head_dim": 64, "rope_theta": 10000.0}
SMALL_3 = {  # as Mistral Small 3.1's config.json has it
    "model_type": "mistral3",
    "architectures": ["Mistral3ForConditionalGeneration"],
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "vision_feature_layer": -1,
    "text_config": {"model_type": "mistral", "hidden_size": 5120, "rms_norm_eps": 1e-5},
    "vision_config": VISION
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 1540,
        "patch_size": 14,
    },
}
PIXTRAL = {  # as Pixtral 12B's has it
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "text_config": {"model_type": "mistral", "hidden_size": 5120, "rms_norm_eps": 1e-5},
    "vision_config": VISION | {"image_size": 1024, "patch_size": 16},
}
GGUF = {
    "clip.use_silu": True,
    "clip.vision.projection_dim": 5120,
    "clip.vision.image_size": 1540,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 1024,
    "clip.vision.feed_forward_length": 4096,
    "clip.vision.block_count": 24,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-5,
    "clip.vision.spatial_merge_size": 2,
    "clip.vision.image_mean": list(models_tower.CLIP_MEAN),
    "clip.vision.image_std": list(models_tower.CLIP_DEVIATION),
}


def config(base: dict[str, Any] = SMALL_3, **settings: Any) -> pixtral.PixtralSizes:
    return pixtral.config_from_hf(Fields(base), Fields({"size": {"longest_edge": 1540}} | settings))


def changed(base: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a config with one key changed."""
    if len(path) == 1:
        return base | {path[0]: value}
    return base | {path[0]: changed(base[path[0]], path[1:], value)}


def test_both_formats_say_the_same_tower():
    stated = replace(pixtral.config_from_gguf(Fields(GGUF, "clip.")), biases="none", adjacent=False)
    assert stated == config()
    assert (stated.head, stated.block, stated.joined, stated.feature_width) == (64, 28, 4096, 5120)


def test_pixtral_takes_each_patch_as_it_is():
    cfg = pixtral.config_from_hf(Fields(PIXTRAL), Fields({}))
    assert (cfg.block, cfg.merges, cfg.biases, cfg.longest) == (16, False, "all", 1024)
    assert (cfg.layers, cfg.hidden, cfg.heads, cfg.intermediate) == (24, 1024, 16, 4096)  # its class's
    assert cfg.pixels.mean == models_tower.CLIP_MEAN and cfg.pixels.deviation == models_tower.CLIP_DEVIATION
    meta = {key: value for key, value in GGUF.items() if "merge" not in key}
    assert not pixtral.config_from_gguf(Fields(meta, "clip.")).merges


@pytest.mark.parametrize(
    ("size", "longest"),
    [({"longest_edge": 1024}, 1024), ({"height": 896, "width": 896}, 896), ({}, 1540), (None, 1540)],
)
def test_a_longer_side_is_stated_in_several_ways(size: Any, longest: int):
    assert config(size=size).longest == longest


def test_a_screen_becomes_as_many_tokens_as_in_transformers():
    plan = pixtral.plan(config(), 1920, 1080)
    assert plan.size == (1540, 868) and plan.tokens == 55 * 31
    assert plan.tokens + sum(isinstance(item, str) for item in plan.layout) == 1736
    assert plan.layout[:3] == (55, "[IMG_BREAK]", 55) and plan.layout[-2:] == (55, "[IMG_END]")
    assert sum(item for item in plan.layout if isinstance(item, int)) == plan.tokens


def test_sizes_are_those_of_the_published_rule():
    """Python's own rounding and order of division, over many sizes."""

    def rule(height: int, width: int, longest: int, block: int) -> tuple[int, int]:
        ratio = max(height / longest, width / longest)
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        return ((width - 1) // block + 1) * block, ((height - 1) // block + 1) * block

    for width, height in RNG.integers(1, 5000, (2000, 2)).tolist():
        if max(width, height) <= 1540 * min(width, height):
            assert pixtral.plan(config(), width, height).size == rule(height, width, 1540, 28)


def test_a_line_that_would_lose_all_its_pixels_is_refused():
    assert pixtral.plan(config(), 1540, 1).tokens == 55 and pixtral.plan(config(), 2, 3080).tokens == 55
    with pytest.raises(UsageError, match=r"1541 x 1 pixels; one side may be 1540 times"):
        pixtral.plan(config(), 1541, 1)


@pytest.mark.parametrize(
    ("size", "most", "tokens"),
    [
        ((1920, 1080), 1705, 1705),
        ((1920, 1080), 1704, 54 * 31),
        ((1920, 1080), 256, 21 * 12),
        ((300, 200), 3025, 11 * 8),
        ((300, 200), 20, 5 * 4),
        ((1540, 1), 1, 1),
    ],
)
def test_a_budget_makes_a_picture_smaller_and_never_larger(size: tuple[int, int], most: int, tokens: int):
    assert pixtral.plan(config(), *size, TokenBudget(1, most)).tokens == tokens
    assert pixtral.plan(config(), *size, TokenBudget(most, most)).tokens == tokens


def test_a_budget_beyond_the_models_limit_is_refused():
    with pytest.raises(UsageError, match="up to 3,025"):
        pixtral.plan(config(), 100, 100, TokenBudget(1, 3026))


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        (
            "vision_config.model_type",
            "clip_vision_model",
            UnsupportedModel,
            "model_type is 'clip_vision_model'",
        ),
        ("vision_config.hidden_act", "gelu", UnsupportedModel, "hidden_act is 'gelu'"),
        ("vision_config.num_channels", 4, UnsupportedModel, "num_channels is 4"),
        ("vision_config.num_attention_heads", 3, UnsupportedModel, "3 heads over a width of 1024"),
        ("vision_config.intermediate_size", 4100, UnsupportedModel, "encoder's MLP width is 4100"),
        ("vision_config.rope_parameters", {"rope_type": "yarn"}, UnsupportedModel, "rope_type is 'yarn'"),
        ("projector_hidden_act", "relu", UnsupportedModel, "projector_hidden_act is 'relu'"),
        ("vision_feature_layer", -2, UnsupportedModel, "vision_feature_layer is -2"),
        ("spatial_merge_size", 0, BadModelFile, "spatial_merge_size is 0"),
        ("text_config.hidden_size", None, BadModelFile, "hidden_size is missing"),
    ],
)
def test_a_config_that_does_not_fit_is_named(path: str, value: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        config(changed(SMALL_3, path.split("."), value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_feature_layer", None, "vision_feature_layer is -2"),
        ("vision_feature_select_strategy", "default", "vision_feature_select_strategy is 'default'"),
    ],
)
def test_a_llava_of_another_tower_is_named(key: str, value: Any, message: str):
    with pytest.raises(UnsupportedModel, match=message):
        config(PIXTRAL | {key: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 100, "width": 200}}, "200 x 100 pixels; only squares"),
        ({"do_center_crop": True}, "a cut of pictures is not supported"),
        ({"do_normalize": False}, "do_normalize is false"),
    ],
)
def test_pixels_of_another_form_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(UnsupportedModel, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"clip.use_silu": False}, UnsupportedModel, "clip.use_silu is not true"),
        ({"clip.use_gelu": True}, UnsupportedModel, "only encoders with SiLU"),
        ({"clip.vision.image_size": None}, BadModelFile, "clip.vision.image_size is missing"),
        ({"clip.vision.attention.head_count": 512}, UnsupportedModel, "512 heads over a width of 1024"),
    ],
)
def test_a_gguf_of_another_tower_is_refused(change: dict[str, Any], error: type[Exception], message: str):
    meta = {key: value for key, value in (GGUF | change).items() if value is not None}
    with pytest.raises(error, match=message):
        pixtral.config_from_gguf(Fields(meta, "clip."))


def test_a_merger_without_its_matrix_or_with_one_bias_is_damaged(tmp_path: Path):
    tiny = make.config("pixtral")
    for change, keys, message in (
        ({}, {"clip.vision.spatial_merge_size": 2}, "mm.input_norm.weight is missing"),
        ({"mm.2.bias": None}, {}, "mm.2.bias is missing; the file has mm.1.bias"),
        ({"mm.2.weight": None}, {}, "mm.2.weight is missing"),
    ):
        tensors = {k: v for k, v in (make.mmproj_tensors(tiny) | change).items() if v is not None}
        path = write_mmproj(tiny.mmproj | keys, tensors, tmp_path / "mmproj.gguf")
        with open_model_file(path) as opened, pytest.raises(BadModelFile, match=message):
            read_tower(opened)


@pytest.mark.parametrize("kind", ["mistral", "ministral3", "mistral4"])
def test_text_models_of_all_kinds_read_the_tower(kind: str, tmp_path: Path):
    """Mistral Small 3.1, Ministral 3 and Mistral Small 4 are of one class, whatever their text half."""
    seeing, text = make.config("mistral3-eyes"), dict(make.config(kind).hf)
    tiny = replace(seeing, hf=seeing.hf | {"text_config": text}, gguf=make.config(kind).gguf)
    path = make.write_safetensors(tiny, tmp_path / "model")
    family, _, wrapped = family_of(tiny.hf)
    assert wrapped and family.gguf_architecture == make.config(kind).architecture
    model = load_model(path, threads=1)
    tower = load_tower(path, model)
    assert tower is not None and tower.feature_width == 64
    text_file = make.write_gguf(tiny, tmp_path / "model.gguf")
    stored = GGUF_FORMS["mistral"](dict(tiny.mmproj), make.mmproj_tensors(tiny))
    beside = write_mmproj(*stored, tmp_path / "mmproj-model.gguf")
    assert misfit(text_file, beside) == ""
    assert load_tower(beside, load_model(text_file, threads=1)) is not None
