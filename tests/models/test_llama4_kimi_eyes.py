"""The towers of Llama 4 and of Kimi: sizes of published files, limits and budgets, and what files say of them.

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
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import family_of
from freehold.run.models.family import Cut
from freehold.run.models.load import load_model
from freehold.run.models.oracle.arithmetic import rotate
from freehold.run.models.seeing import load_tower
from freehold.run.models.tiny import make
from freehold.run.models.tower import CLIP_MEAN, HALF, TokenBudget
from freehold.run.models.towers import kimivl, llama4
from freehold.run.pictures.opening import Resize
from tests.models.golden_towers import golden

SCOUT = {  # as Llama 4 Scout's config.json has it
    "architectures": ["Llama4ForConditionalGeneration"],
    "boi_token_index": 200080,
    "eoi_token_index": 200081,
    "image_token_index": 200092,
    "model_type": "llama4",
    "text_config": {"model_type": "llama4_text", "hidden_size": 5120},
    "vision_config": {
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 1408,
        "image_size": 336,
        "initializer_range": 0.02,
        "intermediate_size": 5632,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 34,
        "patch_size": 14,
        "pixel_shuffle_ratio": 0.5,
        "projector_dropout": 0.0,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "rope_theta": 10000,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "vision_output_dim": 4096,
    },
}
SCOUT_PIXELS = {  # as its preprocessor_config.json has it
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Llama4ImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "max_patches": 16,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "resize_to_max_canvas": False,
    "size": {"height": 336, "width": 336},
}
SCOUT_GGUF = {  # as llama.cpp's converter writes it; the projector's width is that of its matrix
    "clip.use_gelu": True,
    "clip.vision.projection_dim": 5120,
    "clip.vision.image_size": 336,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 1408,
    "clip.vision.feed_forward_length": 5632,
    "clip.vision.block_count": 34,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-5,
    "clip.vision.projector.scale_factor": 2,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
    "clip.projector.width": 4096,
}
K25 = {  # as Kimi K2.5's config.json has it
    "architectures": ["KimiK25ForConditionalGeneration"],
    "media_placeholder_token_id": 163605,
    "model_type": "kimi_k25",
    "text_config": {"model_type": "kimi_k2", "hidden_size": 7168},
    "vision_config": {
        "init_pos_emb_height": 64,
        "init_pos_emb_time": 4,
        "init_pos_emb_width": 64,
        "merge_kernel_size": [2, 2],
        "merge_type": "sd2_tpool",
        "mm_hidden_size": 1152,
        "mm_projector_type": "patchmerger",
        "patch_size": 14,
        "pos_emb_type": "divided_fixed",
        "projector_hidden_act": "gelu",
        "projector_ln_eps": 1e-05,
        "vt_hidden_size": 1152,
        "vt_intermediate_size": 4304,
        "vt_num_attention_heads": 16,
        "vt_num_hidden_layers": 27,
    },
}
K25_PIXELS = {
    "media_proc_cfg": {
        "fixed_output_tokens": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "in_patch_limit": 16384,
        "in_patch_limit_each_frame": 4096,
        "merge_kernel_size": 2,
        "patch_limit_on_one_side": 512,
        "patch_size": 14,
    }
}
KIMI_VL = {  # as Kimi-VL A3B's config.json has it
    "architectures": ["KimiVLForConditionalGeneration"],
    "media_placeholder_token_id": 163605,
    "model_type": "kimi_vl",
    "text_config": {"model_type": "deepseek_v3", "hidden_size": 2048},
    "vision_config": {
        "hidden_size": 1152,
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
        "intermediate_size": 4304,
        "merge_kernel_size": [2, 2],
        "model_type": "moonvit",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
KIMI_VL_PIXELS = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "in_token_limit": 4096,
    "merge_kernel_size": [2, 2],
    "num_pooled_tokens": 1024,
    "pad_input": True,
    "patch_size": 14,
}
MOON_GGUF = {
    "clip.projector_type": "kimik25",
    "clip.use_gelu": True,
    "clip.vision.projection_dim": 7168,
    "clip.vision.image_size": 896,
    "clip.vision.image_min_pixels": 8 * 196,
    "clip.vision.image_max_pixels": 16384 * 196,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.block_count": 27,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-5,
    "clip.vision.projector.scale_factor": 2,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
}


def scout(changes: dict[str, Any] | None = None, **pixels: Any) -> llama4.Llama4TowerSizes:
    config = {**SCOUT, "vision_config": SCOUT["vision_config"] | (changes or {})}
    return llama4.config_from_hf(Fields(config), Fields(SCOUT_PIXELS | pixels))


def k25(changes: dict[str, Any] | None = None, **pixels: Any) -> kimivl.MoonSizes:
    config = {**K25, "vision_config": K25["vision_config"] | (changes or {})}
    stated = {"media_proc_cfg": K25_PIXELS["media_proc_cfg"] | pixels}
    return kimivl.config_from_hf(Fields(config), Fields(stated))


def kimi_vl(**pixels: Any) -> kimivl.MoonSizes:
    return kimivl.config_from_hf(Fields(KIMI_VL), Fields(KIMI_VL_PIXELS | pixels))


# --- what files say -----------------------------------------------------------------------------------------


def test_both_formats_of_llama_4_say_the_same_tower():
    cfg = scout()
    assert llama4.config_from_gguf(Fields(SCOUT_GGUF, "clip.")) == cfg
    assert (cfg.head, cfg.grid, cfg.rows, cfg.tokens, cfg.joined) == (88, 24, 577, 144, 5632)
    family, fields, wrapped = family_of(SCOUT)
    assert wrapped and family.towers == ("llama4",) and not family.both(None)
    assert fields.integer("hidden_size", 1, 1 << 20) == cfg.out


def test_both_formats_of_kimi_say_the_same_towers():
    assert kimivl.config_from_gguf(Fields(MOON_GGUF, "clip.")) == k25()
    older = {key: value for key, value in MOON_GGUF.items() if "pixels" not in key}
    older |= {"clip.projector_type": "kimivl", "clip.vision.projection_dim": 2048}
    assert kimivl.config_from_gguf(Fields(older, "clip.")) == kimi_vl()
    assert (k25().head, k25().side, k25().joined, k25().inner) == (72, 64, 4608, 4320)
    for config in (K25, KIMI_VL):
        family, _, wrapped = family_of(config)
        assert wrapped and family.gguf_architecture == "deepseek2" and family.towers == ("kimivl",)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (lambda: scout({"hidden_act": "silu"}), UnsupportedModel, "hidden_act is 'silu'"),
        (lambda: scout({"multi_modal_projector_bias": True}), UnsupportedModel, "multi_modal_projector_bias"),
        (lambda: scout({"vision_output_dim": 7680}), BadModelFile, "vision_output_dim 7,680"),
        (lambda: scout({"num_channels": 4}), UnsupportedModel, "num_channels is 4"),
        (lambda: scout({"pixel_shuffle_ratio": 0.4}), UnsupportedModel, "pixel_shuffle_ratio is 0.4"),
        (lambda: scout({"image_size": 448}), UnsupportedModel, "size.height is 336"),
        (lambda: scout({"patch_size": 16}), UnsupportedModel, "21 patches a side"),
        (lambda: scout(resample=0), UnsupportedModel, "resample is 0"),
        (lambda: scout(do_resize=False), UnsupportedModel, "do_resize is false"),
        (lambda: k25({"mm_projector_type": "mlp"}), UnsupportedModel, "mm_projector_type is 'mlp'"),
        (lambda: k25({"pos_emb_type": "learned"}), UnsupportedModel, "pos_emb_type is 'learned'"),
        (lambda: k25({"init_pos_emb_width": 32}), UnsupportedModel, "64 x 32 learned positions"),
        (lambda: k25({"merge_kernel_size": [2, 3]}), UnsupportedModel, "merge_kernel_size"),
        (lambda: k25(fixed_output_tokens=256), UnsupportedModel, "fixed_output_tokens"),
        (lambda: k25(patch_size=16), BadModelFile, "patch_size is 16 for pixels, and 14"),
        (lambda: kimi_vl(pad_input=False), UnsupportedModel, "pad_input is false"),
        (lambda: kimi_vl(merge_kernel_size=[1, 1]), BadModelFile, "merge_kernel_size is 1 for pixels"),
    ],
)
def test_what_does_not_fit_is_named(config: Callable[[], Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        config()


@pytest.mark.parametrize(
    ("tower", "stated", "key", "value", "message"),
    [
        (llama4, SCOUT_GGUF, "clip.use_gelu", False, "clip.use_gelu is not true"),
        (llama4, SCOUT_GGUF, "clip.vision.image_size", 340, "24.2857 patches a side"),
        (llama4, SCOUT_GGUF, "clip.projector.width", None, "clip.projector.width is missing"),
        (llama4, SCOUT_GGUF, "clip.vision.attention.head_count", 12, "12 heads"),
        (kimivl, MOON_GGUF, "clip.use_silu", True, "only encoders with GELU"),
        (kimivl, MOON_GGUF, "clip.vision.image_size", 900, "not a multiple of the patches' 14"),
        (kimivl, MOON_GGUF, "clip.vision.patch_size", None, "clip.vision.patch_size is missing"),
    ],
)
def test_a_gguf_of_another_tower_is_refused(
    tower: Any, stated: dict[str, Any], key: str, value: Any, message: str
):
    meta = {name: each for name, each in (stated | {key: value}).items() if each is not None}
    with pytest.raises((BadModelFile, UnsupportedModel), match=message):
        tower.config_from_gguf(Fields(meta, "clip."))


def test_a_tower_beside_another_text_model_is_refused(tmp_path: Path):
    text = load_model(make.write_gguf(make.config("llama"), tmp_path / "model.gguf"), threads=1)
    tower = make.write_mmproj(make.config("kimi_vl"), tmp_path / "mmproj.gguf")
    with pytest.raises(
        UnsupportedModel, match=r"does not support the vision encoder \w+ \(kimivl, kimik25\)"
    ):
        load_tower(tower, text)


def test_older_names_become_those_of_transformers():
    blocks = "vision_tower.encoder.blocks.11."
    assert kimivl.hf_name(f"{blocks}norm0.bias") == "vision_tower.layers.11.norm1.bias"
    assert kimivl.hf_name(f"{blocks}norm1.bias") == "vision_tower.layers.11.norm2.bias"
    assert kimivl.hf_name("model.vision_tower.layers.11.norm1.bias") == "vision_tower.layers.11.norm1.bias"
    assert kimivl.hf_name("multi_modal_projector.pre_norm.weight") == "mm_projector.pre_norm.weight"
    assert kimivl.hf_name("vision_tower.patch_embed.pos_emb.time_weight") == ""  # of videos
    assert kimivl.hf_name("model.language_model.norm.weight") == ""


def test_pixels_of_kimi_vl_are_clips_where_no_file_says():
    assert kimi_vl(image_mean=None, image_std=None).pixels.mean == CLIP_MEAN
    assert k25(image_mean=None, image_std=None).pixels.mean == HALF


# --- sizes --------------------------------------------------------------------------------------------------


def test_pictures_get_the_tiles_of_transformers_at_published_sizes():
    cfg = scout()
    for width, height, tokens, wide, high in golden("llama4-eyes")["published"].tolist():
        plan = llama4.plan(cfg, width, height)
        assert (plan.tokens, plan.size) == (tokens, (wide, high)), (width, height)


def test_a_screen_has_marks_between_its_tiles():
    plan = llama4.plan(scout(), 1920, 1080)
    assert plan.resizes == ((Resize(1680, 945, "bilinear"),), (Resize(336, 336, "bilinear"),))
    assert plan.tokens == 16 * 144 and plan.patches == 16 * 577
    row = (144, llama4.BESIDE) * 4
    assert plan.layout == (llama4.BEFORE, *(*row, 144, llama4.BELOW) * 3, llama4.MARK, 144, llama4.AFTER)
    one = llama4.plan(scout(), 300, 200)
    assert one.layout == (llama4.BEFORE, llama4.MARK, 144, llama4.AFTER) and one.size == (336, 224)


def test_a_canvas_may_have_a_column_that_only_black_fills():
    """Where a side's last pixels are rounded away, the grid is still that of the exact quotient."""
    cfg, whole = scout(), np.full((336, 336, 3), 255, np.uint8)
    plan = llama4.plan(cfg, 344, 2744)
    assert plan.size == (336, 2688) and plan.tokens == 17 * 144
    rows = llama4.rows(cfg, plan, [np.full((2688, 336, 3), 255, np.uint8), whole])
    shown = [bool((tile[:-1] == 1).all()) for tile in rows.values.reshape(17, 577, -1)]
    assert shown == [True, False] * 8 + [True] and rows.groups == (577,) * 17
    assert not rows.values.reshape(17, 577, -1)[:, -1].any()  # the class row's


def test_resize_to_max_canvas_enlarges():
    plain, filling = (scout(resize_to_max_canvas=flag) for flag in (False, True))
    assert llama4.plan(plain, 100, 100).tokens == 144
    plan = llama4.plan(filling, 100, 100)
    assert plan.size == (1344, 1344) and plan.tokens == 17 * 144


def test_bytes_are_rounded_to_bfloat16_at_every_step():
    """1/255 is 0.00390625 * 257/256, so the nearest bfloat16 of 1 becomes -0.9921875: not -0.99215686."""
    values = llama4.byte_values(scout().pixels)
    assert values[0, 0] == -1 and values[255, 0] == 1 and values[1, 0] == np.float32(-0.9921875)
    bits = values.view(np.uint32)
    assert not (bits & 0xFFFF).any() and values.shape == (256, 3)


@pytest.mark.parametrize(("most", "tokens"), [(2448, 16 * 144), (1000, 5 * 144), (431, 144), (144, 144)])
def test_a_budget_makes_fewer_tiles(most: int, tokens: int):
    assert llama4.plan(scout(), 1920, 1080, TokenBudget(1, most)).tokens == tokens


def test_a_budget_that_no_tile_fits_or_no_model_reaches_is_refused():
    with pytest.raises(UsageError, match="143 tokens; this model makes 144"):
        llama4.plan(scout(), 10, 10, TokenBudget(1, 143))
    with pytest.raises(UsageError, match="up to 2,448"):
        llama4.plan(scout(), 10, 10, TokenBudget(1, 2449))
    with pytest.raises(UsageError, match="up to 4,096"):
        kimivl.plan(k25(), 10, 10, TokenBudget(1, 4097))


def test_a_side_of_more_patches_than_the_limit_is_shrunk():
    tiny = make.config("kimi_k25")
    cfg = kimivl.config_from_hf(Fields(tiny.hf), Fields(tiny.preprocessor))
    for width, height, tokens, wide, high in golden("kimi_k25")["narrow"].tolist():
        plan = kimivl.plan(replace(cfg, across=14), width, height)
        assert (plan.tokens, plan.size) == (tokens, (wide, high)), (width, height)


def test_a_screen_becomes_as_many_tokens_as_the_published_rule_says():
    plan = kimivl.plan(k25(), 1920, 1080)
    assert plan.size == (1920, 1080) and plan.tokens == 69 * 39
    assert kimivl.plan(kimi_vl(), 1920, 1080).size == (1196, 672)
    assert kimivl.plan(k25(), 32_768, 3).size == (7168, 1)


def test_kimi_vl_refuses_a_side_that_its_positions_do_not_reach():
    assert kimivl.plan(kimi_vl(), 510 * 14, 20).tokens == 255
    with pytest.raises(UsageError, match=r"7141 x 20 pixels, 512 patches .* fewer than 512"):
        kimivl.plan(kimi_vl(), 7141, 20)


@pytest.mark.parametrize("most", [4096, 2691, 2690, 1000, 37, 1])
@pytest.mark.parametrize("size", [(1920, 1080), (29, 29), (5000, 30), (1, 1)])
def test_a_budget_makes_a_picture_of_kimi_smaller_and_never_larger(size: tuple[int, int], most: int):
    plain, plan = kimivl.plan(k25(), *size), kimivl.plan(k25(), *size, TokenBudget(1, most))
    assert plan.tokens <= most and (plan.size == plain.size) == (plain.tokens <= most)


# --- turns --------------------------------------------------------------------------------------------------


def test_pairs_of_kimi_turn_by_column_and_row_in_turns():
    """As a complex number for each pair, column and row side by side; the three orders of rows are one head."""
    cfg = replace(k25(), hidden=48, heads=2)
    x = np.random.default_rng(3).standard_normal((1, 2, 24)).astype(np.float32)  # pairs side by side
    angles = 10_000.0 ** -(np.arange(0, 24, 4) / 24)
    turns = np.exp(1j * np.stack([5 * angles, 3 * angles], axis=1).reshape(-1))
    want = (x[..., ::2] + 1j * x[..., 1::2]) * turns
    order = kimivl.halves_of_pairs(2, 24)
    halves = x.reshape(-1)[order].reshape(1, 2, 24)
    turned = rotate(halves, np.array([[0, 3, 5]]), kimivl.rope(cfg))
    assert np.allclose(turned[..., :12] + 1j * turned[..., 12:], want, atol=1e-5)
    apart = x.reshape(2, 6, 2, 2).swapaxes(1, 2).reshape(-1)  # all columns' pairs before the rows'
    assert np.array_equal(apart[kimivl.halves_of_axes(2, 24)], halves.reshape(-1))


def test_rows_of_v_are_read_as_they_lie():
    for cfg, tensor in ((k25(), "attn_qkv.weight"), (kimi_vl(), "attn_v.weight")):
        (cut,) = kimivl.layer(cfg, 0)[0].tensors()["v"].gguf
        assert isinstance(cut, Cut) and cut.name == tensor and cut.rows is not None
        first = 2 * cfg.hidden if cfg.fused else 0
        assert np.array_equal(cut.rows, np.arange(first, first + cfg.hidden))


def test_the_class_row_of_llama_4_does_not_turn():
    cfg = replace(scout(), tile=28, hidden=32, heads=2)
    rows = llama4.rows(cfg, llama4.plan(cfg, 28, 28), [np.zeros((28, 28, 3), np.uint8)])
    assert rows.places is not None and rows.places.tolist() == [
        [0, 1, 1],
        [0, 1, 2],
        [0, 2, 1],
        [0, 2, 2],
        [0, 0, 0],
    ]
    table = llama4.rope(cfg)
    assert table.adjacent and table.axes is not None and table.axes.tolist() == [2, 2, 2, 2, 1, 1, 1, 1]
