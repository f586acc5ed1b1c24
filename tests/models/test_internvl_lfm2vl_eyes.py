"""The towers of InternVL and LFM2-VL: sizes of published files, budgets, layouts, and what files say of them.

What they compute is compared in test_eyes_golden.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import family_of
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.load import load_model
from freehold.run.models.parts.vision import nearest_grid
from freehold.run.models.seeing import LoadedTower, load_tower
from freehold.run.models.tiny import make
from freehold.run.models.tower import CLIP_MEAN, TokenBudget
from freehold.run.models.towers import internvl, lfm2vl
from freehold.run.pictures.opening import Resize
from tests.models.golden_towers import error, golden, write_mmproj
from tests.vectors.eyes import EYES

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
INTERN = {  # as InternVL3.5 8B's config.json has it
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 0.5,
    "image_seq_length": 256,
    "image_token_id": 151671,
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "text_config": {"model_type": "qwen3", "hidden_size": 4096},
    "vision_config": {
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": [448, 448],
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": [14, 14],
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
INTERN_PIXELS = {
    "crop_to_patches": False,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "size": {"height": 448, "width": 448},
} | IMAGENET
INTERN_GGUF = {  # as llama.cpp's converter writes it
    "clip.use_gelu": True,
    "clip.vision.projection_dim": 4096,
    "clip.vision.image_size": 448,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 1024,
    "clip.vision.feed_forward_length": 4096,
    "clip.vision.block_count": 24,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.projector.scale_factor": 2,
    "clip.vision.preproc_max_tiles": 12,
    "clip.vision.preproc_min_tiles": 1,
    "clip.vision.image_mean": IMAGENET["image_mean"],
    "clip.vision.image_std": IMAGENET["image_std"],
}
LARGEST = {  # of InternVL3.5 38B
    "attention_bias": False,
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_hidden_layers": 45,
    "use_qk_norm": True,
}
LIQUID = {  # as LFM2-VL 1.6B's config.json has it
    "architectures": ["Lfm2VlForConditionalGeneration"],
    "downsample_factor": 2,
    "image_token_id": 396,
    "model_type": "lfm2_vl",
    "projector_bias": True,
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 2560,
    "projector_use_layernorm": True,
    "text_config": {"model_type": "lfm2", "hidden_size": 2048},
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip2_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 26,
        "num_patches": 256,
        "patch_size": 16,
        "vision_use_head": False,
    },
}
LIQUID_PIXELS = {
    "do_image_splitting": True,
    "downsample_factor": 2,
    "encoder_patch_size": 16,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_tokens": 256,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 2,
    "resample": 2,
    "tile_size": 512,
    "use_thumbnail": True,
}
LIQUID_GGUF = {  # as llama.cpp's converter writes it; the width between the matrices is counted
    "clip.use_gelu": True,
    "clip.vision.projection_dim": 2048,
    "clip.vision.image_size": 256,
    "clip.vision.patch_size": 16,
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.block_count": 26,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.projector.scale_factor": 2,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
    "clip.projector.width": 2560,
}


def intern(changes: dict[str, Any] | None = None, **others: Any) -> internvl.InternTowerSizes:
    """Read InternVL's files with changes: of `vision_config`, of config.json where it has the key, else of pixels."""
    stated = {key: value for key, value in others.items() if key in INTERN}
    pixels = INTERN_PIXELS | {key: value for key, value in others.items() if key not in INTERN}
    config = {**INTERN, **stated, "vision_config": INTERN["vision_config"] | (changes or {})}
    return internvl.config_from_hf(Fields(config), Fields(pixels))


def liquid(changes: dict[str, Any] | None = None, **others: Any) -> lfm2vl.LfmTowerSizes:
    """Read LFM2-VL's files with changes: of `vision_config`, of pixels where they have the key, else of config.json."""
    pixels = LIQUID_PIXELS | {key: value for key, value in others.items() if key in LIQUID_PIXELS}
    stated = {key: value for key, value in others.items() if key not in LIQUID_PIXELS}
    config = {**LIQUID, **stated, "vision_config": LIQUID["vision_config"] | (changes or {})}
    return lfm2vl.config_from_hf(Fields(config), Fields(pixels))


# --- what files say -----------------------------------------------------------------------------------------


def test_both_formats_of_internvl_say_the_same_tower():
    cfg = intern()
    assert internvl.config_from_gguf(Fields(INTERN_GGUF, "clip.")) == cfg
    assert (cfg.head, cfg.grid, cfg.rows, cfg.tokens, cfg.joined) == (64, 32, 1025, 256, 4096)
    assert (cfg.rms, cfg.biases, cfg.normed) == (False, True, False)


def test_the_largest_tower_of_internvl_is_known_by_its_sizes():
    sizes = {"embedding_length": 3200, "feed_forward_length": 12800, "block_count": 45}
    sizes |= {"attention.head_count": 25}
    meta = INTERN_GGUF | {f"clip.vision.{key}": value for key, value in sizes.items()}
    cfg = internvl.config_from_gguf(Fields(meta, "clip."))
    assert cfg == intern(LARGEST) and (cfg.rms, cfg.biases, cfg.normed) == (True, False, True)


def test_both_formats_of_lfm2_vl_say_the_same_tower():
    cfg = liquid()
    meta = Fields(LIQUID_GGUF, "clip.")
    assert replace(lfm2vl.config_from_gguf(meta), normed=True) == cfg  # a GGUF's tensors tell
    assert (cfg.head, cfg.side, cfg.joined, cfg.between, cfg.inner) == (72, 16, 4608, 2560, 4320)


def test_colours_are_those_of_the_processors_classes_where_no_file_says():
    assert intern(image_mean=None).pixels.mean == CLIP_MEAN
    assert liquid(image_mean=None).pixels.mean == tuple(IMAGENET["image_mean"])
    assert (
        liquid(resample=None).pixels.filter == "bilinear" and intern(resample=None).pixels.filter == "bicubic"
    )


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_moe", "gpt_oss"])
def test_text_halves_of_internvl_are_found(kind: str):
    family, _, wrapped = family_of({**INTERN, "text_config": {"model_type": kind}})
    assert wrapped and "internvl" in family.towers


@pytest.mark.parametrize("kind", ["lfm2", "lfm2_moe"])
def test_text_halves_of_lfm2_vl_are_found(kind: str):
    family, _, wrapped = family_of({**LIQUID, "text_config": {"model_type": kind}})
    assert wrapped and family.towers == ("lfm2vl",)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (lambda: intern({"hidden_act": "silu"}), UnsupportedModel, "hidden_act is 'silu'"),
        (lambda: intern({"norm_type": "none"}), UnsupportedModel, "norm_type is 'none'"),
        (lambda: intern({"use_mask_token": True}), UnsupportedModel, "use_mask_token"),
        (lambda: intern({"use_mean_pooling": False}), UnsupportedModel, "a norm after the last layer"),
        (lambda: intern({"num_channels": 4}), UnsupportedModel, "num_channels is 4"),
        (lambda: intern({"patch_size": [16, 16]}, size=None), None, ""),
        (lambda: intern({"image_size": 434}), UnsupportedModel, "size.height is 448"),
        (lambda: intern({"image_size": 434}, size=None), UnsupportedModel, "31 patches a side"),
        (lambda: intern(vision_feature_layer=-2), UnsupportedModel, "vision_feature_layer"),
        (lambda: intern(vision_feature_select_strategy="full"), UnsupportedModel, "'full'"),
        (lambda: intern(projector_hidden_act="relu"), UnsupportedModel, "projector_hidden_act is 'relu'"),
        (lambda: intern(downsample_ratio=0.4), UnsupportedModel, "downsample_ratio is 0.4"),
        (lambda: intern(min_patches=13), BadModelFile, "13 tiles at least and 12 at most"),
        (lambda: intern(max_patches=65), BadModelFile, "max_patches"),
        (lambda: liquid({"hidden_act": "gelu"}), UnsupportedModel, "hidden_act is 'gelu'"),
        (lambda: liquid({"num_patches": 250}), BadModelFile, "num_patches is 250"),
        (lambda: liquid({"patch_size": 14}), BadModelFile, "encoder_patch_size is 16 for pixels, and 14"),
        (lambda: liquid(vision_feature_layer=-2), UnsupportedModel, "vision_feature_layer"),
        (lambda: liquid(projector_hidden_act="relu"), UnsupportedModel, "projector_hidden_act is 'relu'"),
        (lambda: liquid(tile_size=500), UnsupportedModel, "500 pixels a side; expected a multiple of 32"),
        (lambda: liquid(min_tiles=11), BadModelFile, "11 tiles at least and 10 at most"),
        (lambda: liquid(min_tiles=1), UnsupportedModel, "min_tiles is 1"),
        (lambda: liquid(min_image_tokens=300), BadModelFile, "300 tokens at least and 256 at most"),
    ],
)
def test_what_does_not_fit_is_named(config: Callable[[], Any], error: type[Exception] | None, message: str):
    if error is None:
        assert config().grid == 28
        return
    with pytest.raises(error, match=message):
        config()


@pytest.mark.parametrize(
    ("tower", "stated", "key", "value", "message"),
    [
        (internvl, INTERN_GGUF, "clip.use_gelu", False, "clip.use_gelu is not true"),
        (internvl, INTERN_GGUF, "clip.vision.image_size", 450, "32.1429 patches a side"),
        (internvl, INTERN_GGUF, "clip.vision.patch_size", None, "clip.vision.patch_size is missing"),
        (lfm2vl, LIQUID_GGUF, "clip.use_silu", True, "only encoders with GELU"),
        (lfm2vl, LIQUID_GGUF, "clip.projector.width", None, "clip.projector.width is missing"),
        (lfm2vl, LIQUID_GGUF, "clip.vision.attention.head_count", 7, "7 heads"),
    ],
)
def test_a_gguf_of_another_tower_is_refused(
    tower: Any, stated: dict[str, Any], key: str, value: Any, message: str
):
    meta = {name: each for name, each in (stated | {key: value}).items() if each is not None}
    with pytest.raises((BadModelFile, UnsupportedModel), match=message):
        tower.config_from_gguf(Fields(meta, "clip."))


# --- weights that files hold in several ways ------------------------------------------------------------------


def loaded(name: str, tensors: dict[str, np.ndarray], folder: Path) -> LoadedTower:
    """Load a tower of these tensors beside its text half."""
    tiny = make.config(name)
    text = load_model(make.write_gguf(tiny, folder / "model.gguf"), threads=1)
    tower = load_tower(write_mmproj(dict(tiny.mmproj), tensors, folder / "mmproj.gguf"), text, rounding=None)
    assert tower is not None
    return tower


def features(tower: LoadedTower, name: str, number: int) -> np.ndarray:
    plan = tower.plan(*EYES[name].sizes[number])
    pixels = [golden(name)[f"pixels_{number}_{k}"] for k in range(len(plan.resizes))]
    return tower.features([(plan, pixels)])[0]


def test_rows_of_one_dimension_are_read_as_those_of_three(tmp_path: Path):
    tensors = make.mmproj_tensors(make.config("internvl"))
    assert tensors["v.class_embd"].shape == (1, 1, 64) and tensors["v.position_embd.weight"].ndim == 3
    tensors |= {name: tensors[name].squeeze() for name in ("v.class_embd", "v.position_embd.weight")}
    got = features(loaded("internvl", tensors, tmp_path), "internvl", 1)
    assert error(got, golden("internvl")["features_1"]) <= 1e-4


def test_factors_of_columns_are_multiplied_into_what_is_added(tmp_path: Path):
    tiny = make.config("internvl")
    stored = make.mmproj_tensors(tiny)
    with open_model_file(make.write_mmproj(tiny, tmp_path / "mmproj.gguf")) as opened:
        source = read_tower(opened)
        assert source is not None
        for i, bound in enumerate(source.layers):
            for key, matrix, factor in (("o", "attn_out", "ls1"), ("down", "ffn_down", "ls2")):
                by = stored[f"v.blk.{i}.{factor}.weight"]
                weight = bound[key].tensor.numpy()[:, : stored[f"v.blk.{i}.{matrix}.weight"].shape[1]]
                assert np.array_equal(weight, stored[f"v.blk.{i}.{matrix}.weight"] * by[:, None])
                bias = bound[f"{key}_bias"].tensor.numpy()
                assert np.array_equal(bias, stored[f"v.blk.{i}.{matrix}.bias"] * by)


def test_a_tower_without_factors_is_refused(tmp_path: Path):
    tensors = make.mmproj_tensors(make.config("internvl"))
    del tensors["v.blk.1.ls2.weight"]
    with pytest.raises(BadModelFile, match=r"tensor v\.blk\.1\.ls2\.weight is missing"):
        loaded("internvl", tensors, tmp_path)


def test_a_merger_of_lfm2_vl_has_a_norm_if_its_file_has_one(tmp_path: Path):
    tensors = make.mmproj_tensors(make.config("lfm2_vl"))
    del tensors["mm.input_norm.bias"]
    with pytest.raises(BadModelFile, match=r"mm\.input_norm\.bias is missing; the file has"):
        loaded("lfm2_vl", tensors, tmp_path)
    del tensors["mm.input_norm.weight"]
    bare = features(loaded("lfm2_vl", tensors, tmp_path), "lfm2_vl", 0)
    tiny = make.config("lfm2_vl")
    unnormed = replace(tiny, hf=tiny.hf | {"projector_use_layernorm": False})
    folder = make.write_safetensors(unnormed, tmp_path / "bare")
    tower = load_tower(folder, load_model(folder, threads=1), rounding=None)
    assert tower is not None and np.array_equal(features(tower, "lfm2_vl", 0), bare)
    assert error(bare, golden("lfm2_vl")["features_0"]) > 0.1


def test_a_head_over_patches_is_not_read():
    assert lfm2vl.hf_name("vision_tower.vision_model.head.probe") == ""
    assert lfm2vl.hf_name("model.vision_tower.post_layernorm.bias") == "vision_tower.post_layernorm.bias"
    assert lfm2vl.hf_name("model.language_model.layers.0.mlp.weight") == ""


# --- sizes --------------------------------------------------------------------------------------------------


def test_pictures_get_the_tiles_of_transformers_at_published_sizes():
    for name, tower, cfg in (("internvl", internvl, intern()), ("lfm2_vl", lfm2vl, liquid())):
        for width, height, tokens, wide, high in golden(name)["published"].tolist():
            plan = tower.plan(cfg, width, height)
            assert (plan.tokens, plan.size) == (tokens, (wide, high)), (name, width, height)


def test_of_equally_near_grids_the_larger_wins_while_it_is_filled_by_half():
    assert nearest_grid(448, 448, 448, 1, 12) == (1, 1)
    assert nearest_grid(634, 634, 448, 1, 12) == (2, 2)  # 401,956 pixels, 401,408 are half of four tiles
    assert nearest_grid(633, 633, 448, 1, 12) == (1, 1)
    assert nearest_grid(5000, 10, 448, 1, 12) == (12, 1) and nearest_grid(10, 5000, 448, 2, 4) == (1, 4)


def test_a_screen_becomes_tiles_of_internvl_and_the_whole_without_marks_between():
    plan = internvl.plan(intern(), 1920, 1080)
    assert plan.resizes == ((Resize(1792, 896, "bicubic"),), (Resize(448, 448, "bicubic"),))
    assert plan.tokens == 9 * 256 and plan.patches == 9 * 1025
    assert plan.layout == ("<img>", 9 * 256, "</img>")
    one = internvl.plan(intern(max_patches=1), 1920, 1080)
    assert one.resizes == ((Resize(448, 448, "bicubic"),),) and one.layout == ("<img>", 256, "</img>")


def test_a_screen_becomes_tiles_of_lfm2_vl_with_marks():
    plan = lfm2vl.plan(liquid(), 1000, 1500)
    assert plan.resizes == ((Resize(1024, 1536, "bilinear"),), (Resize(416, 608, "bilinear"),))
    tiles = [(f"<|img_row_{r}_col_{c}|>", 256) for r in (1, 2, 3) for c in (1, 2)]
    ends = ("<|img_thumbnail|>", 13 * 19, "<|image_end|>")
    assert plan.layout == ("<|image_start|>", *(item for tile in tiles for item in tile), *ends)
    assert plan.tokens == 6 * 256 + 13 * 19 and plan.patches == 4 * plan.tokens
    bare = lfm2vl.plan(liquid(use_thumbnail=False), 1000, 1500)
    assert bare.layout == (*plan.layout[:-3], "<|image_end|>") and len(bare.resizes) == 1
    whole = lfm2vl.plan(liquid(do_image_splitting=False), 1000, 1500)
    assert whole.layout == ("<|image_start|>", 13 * 19, "<|image_end|>")


@pytest.mark.parametrize(("most", "tokens"), [(3328, 2304), (2303, 768), (767, 256), (256, 256)])
def test_a_budget_makes_fewer_tiles_of_internvl(most: int, tokens: int):
    assert internvl.plan(intern(), 1920, 1080, TokenBudget(1, most)).tokens == tokens


@pytest.mark.parametrize(("most", "tokens"), [(2816, 2300), (1500, 764), (763, 252), (100, 91)])
def test_a_budget_makes_fewer_tiles_of_lfm2_vl_then_a_smaller_whole(most: int, tokens: int):
    assert lfm2vl.plan(liquid(), 1920, 1080, TokenBudget(1, most)).tokens == tokens


def test_a_budget_that_no_tile_fits_or_no_model_reaches_is_refused():
    with pytest.raises(UsageError, match="255 tokens; this model makes 256"):
        internvl.plan(intern(), 10, 10, TokenBudget(1, 255))
    with pytest.raises(UsageError, match="up to 3,328"):
        internvl.plan(intern(), 10, 10, TokenBudget(1, 3329))
    with pytest.raises(UsageError, match="up to 2,816"):
        lfm2vl.plan(liquid(), 10, 10, TokenBudget(1, 2817))
    with pytest.raises(UsageError, match="up to 256"):
        lfm2vl.plan(liquid(do_image_splitting=False), 10, 10, TokenBudget(1, 257))


def test_a_grid_of_positions_is_stretched_between_its_places():
    """As bilinear interpolation where it grows, and as a mean over what each new place covers where it shrinks."""
    table = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    assert np.array_equal(lfm2vl.stretched(table, 4, 4), table)
    assert np.allclose(lfm2vl.shares(4, 8)[:3, :2], [[1, 0], [0.75, 0.25], [0.25, 0.75]])
    assert np.allclose(lfm2vl.shares(4, 2), np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7)
    assert np.allclose(lfm2vl.shares(5, 3).sum(axis=1), 1)
