"""A picture's size becomes the rows that transformers make of it, and pixels enter the tower in its order."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats import QuantType, open_model_file
from freehold.run.formats.fields import Fields, Metadata
from freehold.run.models.binding.bind import family_of, gguf_family
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.config.rope import RopeSpec, gguf_sections, hf_sections
from freehold.run.models.families import registered as families
from freehold.run.models.oracle.arithmetic import rotate
from freehold.run.models.parts import blocks
from freehold.run.models.tiny import make
from freehold.run.models.tower import (
    CLIP_DEVIATION,
    CLIP_MEAN,
    PixelForm,
    TokenBudget,
    Tower,
    in_blocks,
    raster_places,
)
from freehold.run.models.towers import (
    glm4v,
    of_model_type,
    of_projector,
    paddleocr,
    qwen2vl,
    qwen3vl,
    qwen25vl,
    registered,
)
from tests.vectors.weights import SEEING, VOCAB

F32 = np.float32
RNG = np.random.default_rng(7)


def sizes(**changed: Any) -> qwen3vl.QwenSizes:
    """Read the tower of a config that states nothing, as Qwen3-VL's class assumes it."""
    vision = {key: value for key, value in changed.items() if key not in ("model_type", "settings")}
    config = {"model_type": changed.get("model_type", "qwen3_vl"), "vision_config": vision}
    return qwen3vl.config_from_hf(Fields(config), Fields(changed.get("settings", {})))


SMALL = {"hidden_size": 32, "num_heads": 2, "patch_size": 4, "num_position_embeddings": 36, "depth": 3}
SMALL |= {"intermediate_size": 40, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 2]}
GGUF = {
    "clip.use_gelu": True,
    "clip.vision.block_count": 27,
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.projection_dim": 3584,
    "clip.vision.image_size": 768,
    "clip.vision.patch_size": 16,
    "clip.vision.spatial_merge_size": 2,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
    "clip.vision.is_deepstack_layers": [i in (8, 16, 24) for i in range(27)],
}


def from_gguf(**changed: Any) -> qwen3vl.QwenSizes:
    stated = GGUF | {f"clip.{key.replace('__', '.')}": value for key, value in changed.items()}
    return qwen3vl.config_from_gguf(Fields({k: v for k, v in stated.items() if v is not None}, "clip."))


# --- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "becomes"),
    [
        ((1920, 1080), (1920, 1088)),  # 2,040 tokens
        ((512, 512), (512, 512)),
        ((100, 60), (352, 224)),  # enlarged to the least area
        ((1, 1), (256, 256)),
        ((1500, 10), (3136, 32)),  # a side that rounds to nothing
        ((8000, 6000), (4704, 3520)),  # made smaller to the greatest
        ((5000, 25), (4992, 32)),  # as narrow as may be
        ((432, 336), (448, 320)),  # 13.5 and 10.5 blocks: half to even
        ((464, 368), (448, 384)),  # 14.5 and 11.5
    ],
)
def test_a_size_becomes_whole_blocks_within_the_limits(size: tuple[int, int], becomes: tuple[int, int]):
    plan = blocks.block_plan(sizes(), *size)
    assert plan.size == becomes
    assert plan.tokens == becomes[0] * becomes[1] // 1024 and plan.patches == 4 * plan.tokens
    assert plan.layout == (plan.tokens,) and plan.advance == max(becomes) // 32
    (resizes,) = plan.resizes
    assert [step.filter for step in resizes] == ["bicubic"]


def test_sizes_are_those_of_the_published_rule():
    """Python's own rounding and order of division, over many sizes."""

    def rule(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
        high, wide = round(height / factor) * factor, round(width / factor) * factor
        if high * wide > most:
            beta = math.sqrt((height * width) / most)
            high = max(factor, math.floor(height / beta / factor) * factor)
            wide = max(factor, math.floor(width / beta / factor) * factor)
        elif high * wide < least:
            beta = math.sqrt(least / (height * width))
            high, wide = (math.ceil(side * beta / factor) * factor for side in (height, width))
        return wide, high

    for width, height in RNG.integers(1, 5000, (2000, 2)).tolist():
        assert blocks.fitted(width, height, 32, 65_536, 1 << 20) == rule(height, width, 32, 65_536, 1 << 20)


def test_a_budget_of_tokens_takes_the_place_of_the_limits():
    cfg = sizes()
    assert blocks.block_plan(cfg, 1920, 1080, TokenBudget(16, 256)).tokens <= 256
    assert blocks.block_plan(cfg, 32, 32, TokenBudget(4, 256)).tokens == 4
    for budget in (TokenBudget(0, 4), TokenBudget(9, 4), TokenBudget(1, 16_385)):
        with pytest.raises(UsageError, match=r"expected two counts up to 16,384"):
            blocks.block_plan(cfg, 100, 100, budget)


def test_a_picture_too_long_for_its_height_is_refused_with_the_limit():
    assert blocks.block_plan(sizes(), 2000, 10).tokens
    with pytest.raises(UsageError, match=r"2001 x 10 pixels; one side may be 200 times"):
        blocks.block_plan(sizes(), 2001, 10)
    with pytest.raises(UsageError, match=r"0 x 10"):
        blocks.block_plan(sizes(), 0, 10)


def test_rows_lie_at_their_row_and_column_of_the_grid():
    plan = blocks.block_plan(sizes(), 320, 256)  # 10 x 8 tokens
    assert plan.places is not None and plan.places.dtype == np.int32
    assert plan.places.tolist() == [[0, row, column] for row in range(8) for column in range(10)]
    assert plan.advance == 10


def test_plans_of_one_size_are_equal_and_hash_alike():
    one, other = (blocks.block_plan(sizes(), 512, height) for height in (512, 513))
    assert one == other and hash(one) == hash(other)
    assert one != blocks.block_plan(sizes(), 1000, 100)


# --- pixels -------------------------------------------------------------------------------------------------


def test_patches_are_read_block_by_block_and_colour_by_colour():
    cfg = sizes(**SMALL, settings={"min_pixels": 64, "max_pixels": 4096})
    plan = blocks.block_plan(cfg, 24, 16)
    assert plan.size == (24, 16) and (plan.tokens, plan.patches) == (6, 24)
    picture = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    rows = blocks.block_rows(cfg, plan, [picture])
    assert rows.groups == (24,) and rows.values.dtype == F32 and rows.places is not None
    at = 0
    for block_row in range(2):
        for block_column in range(3):
            for row in (2 * block_row, 2 * block_row + 1):
                for column in (2 * block_column, 2 * block_column + 1):
                    patch = picture[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].astype(F32)
                    want = ((patch - 127.5) / 127.5).transpose(2, 0, 1).reshape(-1)
                    assert np.array_equal(rows.values[at], want)
                    assert rows.places[at].tolist() == [0, row, column]
                    at += 1
    assert at == plan.patches


def test_patches_have_the_weights_of_a_video_of_two_equal_frames():
    """One product with the halves added is the convolution over both frames."""
    cfg = sizes(**SMALL)
    weight = RNG.standard_normal((32, 3, 2, 4, 4)).astype(F32)
    specs = qwen3vl.QwenEnds(cfg).tensors()["patches"]
    (hf,), (gguf,) = specs.hf, specs.gguf
    assert not isinstance(hf, str) and not isinstance(gguf, str) and hf.take and gguf.take
    patch = RNG.standard_normal((3, 4, 4)).astype(F32)
    want = np.einsum("nctyx,cyx->n", weight, patch)
    assert np.allclose(hf.take(weight) @ patch.reshape(-1), want, atol=1e-4)
    frames = np.concatenate([weight[:, :, 0], weight[:, :, 1]])
    assert frames.shape == gguf.shape and np.array_equal(gguf.take(frames), hf.take(weight))


def test_pixels_are_scaled_by_the_mean_and_deviation_of_each_colour():
    form = PixelForm((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    values = form.values(np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8))
    assert np.allclose(values, [[[1, 3, 1], [-1, -1, 0]]]) and values.dtype == F32


def test_positions_are_stretched_with_their_corners_where_they_were():
    cfg = replace(sizes(**SMALL), least=64, most=4096)
    plan = blocks.block_plan(cfg, 40, 16)  # 10 x 4 patches of a grid of 6 x 6
    table = RNG.standard_normal((6, 6, 32)).astype(F32)
    got = qwen3vl.positions(cfg, plan, {"positions": table.reshape(-1)})
    rows, columns = np.linspace(0, 5, 4), np.linspace(0, 5, 10)
    by_row = np.stack(
        [[np.interp(rows, range(6), table[:, c, n]) for n in range(32)] for c in range(6)]
    )  # [columns, width, rows]
    want = np.stack(
        [[np.interp(columns, range(6), by_row[:, n, r]) for n in range(32)] for r in range(4)]
    ).transpose(0, 2, 1)
    assert np.allclose(got, in_blocks(want, 2), atol=1e-5) and got.dtype == F32
    assert np.array_equal(got[0], table[0, 0]) and np.array_equal(got[-1], table[5, 5])


def test_a_grid_of_the_tables_own_size_has_its_positions_as_they_are():
    cfg = replace(sizes(**SMALL), least=64, most=4096)
    plan = blocks.block_plan(cfg, 24, 24)
    table = RNG.standard_normal((6, 6, 32)).astype(F32)
    got = qwen3vl.positions(cfg, plan, {"positions": table.reshape(-1)})
    assert np.array_equal(got, in_blocks(table, 2))


def test_blocks_are_joined_of_the_stream_and_of_each_copy():
    cfg = sizes(**SMALL)
    plan = replace(blocks.block_plan(replace(cfg, least=64, most=4096), 16, 8), places=None)
    leaving = RNG.standard_normal((plan.patches, 3 * 32)).astype(F32)
    joined = qwen3vl.join(cfg, plan, leaving)
    assert joined.shape == (2, 3 * 4 * 32)
    for token in range(2):
        for copy in range(3):
            part = leaving[4 * token : 4 * token + 4, 32 * copy : 32 * copy + 32]
            assert np.array_equal(joined[token, 128 * copy : 128 * copy + 128], part.reshape(-1))


# --- ropes --------------------------------------------------------------------------------------------------


def test_half_of_a_towers_head_turns_by_the_row_and_half_by_the_column():
    table = blocks.axial_rope(sizes())
    assert table.axes is not None and table.axes.tolist() == [1] * 18 + [2] * 18 and not table.adjacent
    assert np.allclose(table.inv_freq, np.tile([10_000 ** (-i / 18) for i in range(18)], 2), rtol=1e-6)


@pytest.mark.parametrize(("sections", "pairs"), [((24, 20, 20), 64), ((11, 11, 10), 32), ((2, 1, 1), 4)])
def test_interleaved_sections_take_turns_until_each_has_its_pairs(sections: tuple[int, int, int], pairs: int):
    axes = (
        RopeSpec(base=1e4, width=2 * pairs, adjacent=False, sections=sections, interleaved=True).table().axes
    )
    want = [i % 3 if i % 3 and i < 3 * sections[i % 3] else 0 for i in range(pairs)]
    assert axes is not None and axes.dtype == np.uint8 and axes.tolist() == want
    assert np.bincount(axes, minlength=3).tolist() == list(sections)


def test_sections_in_blocks_lie_one_after_another():
    axes = RopeSpec(base=1e4, width=8, adjacent=False, sections=(2, 1, 1)).table().axes
    assert axes is not None and axes.tolist() == [0, 0, 1, 2]


def test_places_that_are_all_the_position_turn_as_a_plain_rope_does():
    plain = RopeSpec(base=1e4, width=16, adjacent=False)
    table = replace(plain, sections=(3, 3, 2), interleaved=True).table()
    heads, at = RNG.standard_normal((5, 2, 16)).astype(F32), np.arange(5)
    same = np.repeat(at[:, None], 3, axis=1)
    assert np.array_equal(rotate(heads, same, table), rotate(heads, at, plain.table()))
    moved = same.copy()
    moved[:, 2] += 7  # the column alone: its two pairs differ, and no other
    differs = (rotate(heads, moved, table) != rotate(heads, at, plain.table())).any(axis=(0, 1))
    assert np.flatnonzero(differs).tolist() == [2, 5, 10, 13]


def test_sections_are_read_from_both_formats_and_must_cover_what_turns():
    rope = RopeSpec(base=1e4, width=16, adjacent=False)

    def hf(stated: object) -> RopeSpec:
        config = Fields({"rope_scaling": {"mrope_section": stated}})
        return hf_sections(config, rope, (9, 9, 9), interleaved=True)

    assert hf([3, 3, 2]).sections == (3, 3, 2) and hf(None).sections == (9, 9, 9)
    gguf = Fields({"x.rope.dimension_sections": np.array([3, 3, 2, 0], np.int32)}, "x.")
    assert gguf_sections(gguf, rope, (9, 9, 9), interleaved=False).sections == (3, 3, 2)
    for wrong, kind in (
        ([3, 3, 3], BadModelFile),
        ("8", BadModelFile),
        ([4, 4], UnsupportedModel),
        ([2, 2, 2, 2], UnsupportedModel),
    ):
        with pytest.raises(kind, match="mrope_section is "):
            hf(wrong)


# --- what files say --------------------------------------------------------------------------------------------


def test_both_formats_say_the_same_tower():
    assert from_gguf() == sizes()
    assert from_gguf(vision__is_deepstack_layers=[False] * 27) == sizes(model_type="qwen3_5")
    assert sizes(model_type="qwen3_5_moe", deepstack_visual_indexes=[8]).deepstack == ()
    assert sizes().feature_width == 4 * 3584 and sizes(model_type="qwen3_5").feature_width == 3584
    assert sizes().inner == 4320 and sizes().head == 72


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, (65_536, 16_777_216)),
        ({"size": {"shortest_edge": 4096, "longest_edge": 8192}}, (4096, 8192)),
        ({"size": {"min_pixels": 4096, "max_pixels": 8192}}, (4096, 8192)),
        (
            {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 4096, "max_pixels": 8192},
            (4096, 8192),
        ),
    ],
)
def test_limits_are_areas_wherever_files_state_them(settings: dict[str, Any], limits: tuple[int, int]):
    cfg = sizes(settings=settings)
    assert (cfg.least, cfg.most) == limits


@pytest.mark.parametrize(
    ("changed", "kind", "named"),
    [
        ({"hidden_act": "silu"}, UnsupportedModel, "hidden_act is 'silu'"),
        ({"in_channels": 4}, UnsupportedModel, "in_channels is 4"),
        ({"num_position_embeddings": 2303}, BadModelFile, "num_position_embeddings is 2303"),
        ({"hidden_size": 1000}, UnsupportedModel, "16 heads over a width of 1000"),
        ({"hidden_size": 64, "num_heads": 8}, UnsupportedModel, "8 heads over a width of 64"),
        ({"hidden_size": 36, "num_heads": 2}, UnsupportedModel, "heads are 18 wide|width is 36"),
        ({"deepstack_visual_indexes": [27]}, BadModelFile, "expected rising numbers of 27 layers"),
        ({"deepstack_visual_indexes": [8, 4]}, BadModelFile, "expected rising numbers"),
        ({"deepstack_visual_indexes": "8"}, BadModelFile, "deepstack_visual_indexes is 8"),
        ({"rope_parameters": {"rope_type": "yarn"}}, UnsupportedModel, "rope_type is 'yarn'"),
        ({"settings": {"patch_size": 14}}, BadModelFile, "patch_size is 14 for pixels, and 16"),
        ({"settings": {"do_resize": False}}, UnsupportedModel, "do_resize is false"),
        ({"settings": {"rescale_factor": 0.5}}, UnsupportedModel, "rescale_factor is not 1/255"),
        ({"settings": {"resample": 0}}, UnsupportedModel, "resample is 0"),
        ({"settings": {"image_mean": [0.5]}}, BadModelFile, "image_mean is"),
        ({"settings": {"image_std": [0.5, 0.0, 1]}}, BadModelFile, "image_std is"),
        ({"settings": {"min_pixels": 9, "max_pixels": 8}}, BadModelFile, "9 pixels at least and 8 at most"),
    ],
)
def test_a_config_that_does_not_fit_is_named(changed: dict[str, Any], kind: type[Exception], named: str):
    with pytest.raises(kind, match=named):
        sizes(**changed)


@pytest.mark.parametrize(
    ("changed", "kind", "named"),
    [
        ({"use_gelu": False}, UnsupportedModel, "clip.use_gelu is not true"),
        ({"use_silu": True}, UnsupportedModel, "only encoders with GELU"),
        ({"vision__block_count": None}, BadModelFile, "clip.vision.block_count is missing"),
        ({"vision__is_deepstack_layers": [True]}, BadModelFile, "clip.vision.is_deepstack_layers is"),
    ],
)
def test_keys_of_a_gguf_that_do_not_fit_are_named(changed: dict[str, Any], kind: type[Exception], named: str):
    with pytest.raises(kind, match=named):
        from_gguf(**changed)


@pytest.mark.parametrize("tower", registered(), ids=lambda t: t.name)
def test_a_tower_is_known_by_all_its_names_and_by_families_that_read_it(tower: Tower):
    assert all(of_projector(name) is tower for name in tower.projectors)
    assert all(of_model_type(name, tower.hears) is tower for name in tower.model_types)
    assert any(tower.name in family.towers for family in families())


def test_families_name_towers_that_exist():
    known = {tower.name for tower in registered()}
    assert {name for family in families() for name in family.towers} <= known


@pytest.mark.parametrize("tower", [t for t in registered() if t.projectors], ids=lambda t: t.name)
def test_the_design_page_lists_a_tower_of_pictures_with_its_names(tower: Tower):
    name = "ears.md" if tower.hears else "eyes.md"
    page = (Path(__file__).parents[2] / "docs" / "design" / name).read_text(encoding="utf-8")
    names = (", ".join(f"`{name}`" for name in each) for each in (tower.projectors, tower.model_types))
    assert f"| `{tower.name}` | {' | '.join(names)} |" in page
    assert of_projector("ldp") is None and of_model_type("mllama") is None


@pytest.mark.parametrize("name", SEEING)
def test_every_declared_weight_has_a_name_in_both_formats_and_a_key_of_its_own(name: str):
    tiny = SEEING[name]
    tower = of_model_type(tiny.hf["model_type"])
    assert tower is not None
    specs = list(tower.declared(tower.config_from_hf(Fields(tiny.hf), Fields(tiny.preprocessor))))
    assert all(spec.hf and spec.gguf for *_, spec in specs)
    assert len({(prefix, key) for prefix, _, key, _ in specs}) == len(specs)


# --- Qwen2.5-VL and GLM-4V ---------------------------------------------------------------------------------------

QWEN25 = {  # as Qwen2.5-VL 3B's config.json has it
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_chans": 3,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
CLIP_PIXELS = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_DEVIATION)}
QWEN25_GGUF = {
    "clip.use_silu": True,
    "clip.vision.block_count": 32,
    "clip.vision.embedding_length": 1280,
    "clip.vision.feed_forward_length": 3420,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.projection_dim": 2048,
    "clip.vision.image_size": 560,
    "clip.vision.patch_size": 14,
    "clip.vision.n_wa_pattern": 8,
} | {f"clip.vision.{key}": value for key, value in CLIP_PIXELS.items()}
GLM_GGUF = {
    "clip.use_silu": True,
    "clip.vision.block_count": 24,
    "clip.vision.embedding_length": 1536,
    "clip.vision.feed_forward_length": 13696,
    "clip.vision.attention.head_count": 12,
    "clip.vision.attention.layer_norm_epsilon": 1e-5,
    "clip.vision.projection_dim": 4096,
    "clip.vision.image_size": 336,
    "clip.vision.patch_size": 14,
}


def of_qwen25(settings: dict[str, Any] | None = None, **changed: Any) -> qwen25vl.WindowedSizes:
    limits = {"min_pixels": 3136, "max_pixels": 12845056}  # as the published file states them
    config = {"model_type": "qwen2_5_vl", "vision_config": QWEN25 | changed}
    return qwen25vl.config_from_hf(Fields(config), Fields(limits if settings is None else settings))


def of_glm(**changed: Any) -> glm4v.Glm4vSizes:
    limits = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}
    return glm4v.config_from_hf(Fields({"model_type": "glm4v", "vision_config": changed}), Fields(limits))


def test_both_formats_say_the_same_tower_of_windows():
    stated = qwen25vl.config_from_gguf(Fields(QWEN25_GGUF, "clip."))
    assert stated == of_qwen25() and (stated.head, stated.inner, stated.side) == (80, 3424, 4)
    assert qwen25vl.windowed(stated) == {*range(32)} - {7, 15, 23, 31}
    assert of_qwen25(settings={}).most == 1_003_520  # what its class assumes


def test_windows_at_the_edges_are_smaller_and_rows_lie_window_by_window():
    order, counts = qwen25vl.windows_of(5, 6, 4)
    assert counts == (16, 8, 4, 2)
    grid = np.arange(30).reshape(5, 6)
    windows = (grid[:4, :4], grid[:4, 4:], grid[4:, :4], grid[4:, 4:])
    assert order.tolist() == np.concatenate([each.reshape(-1) for each in windows]).tolist()
    assert qwen25vl.windows_of(4, 8, 4)[1] == (16, 16)  # none is empty where a side fits


def test_a_picture_of_windows_comes_back_row_by_row():
    cfg = of_qwen25()
    plan = blocks.block_plan(cfg, 168, 140)  # 6 x 5 tokens
    picture = RNG.integers(0, 256, (140, 168, 3), dtype=np.uint8)
    rows = qwen25vl.rows(cfg, plan, [picture])
    assert rows.groups == (120,) and rows.windows == (64, 32, 16, 8) and rows.places is not None
    marks = np.repeat(rows.places[:, 1:] @ [12, 1], cfg.hidden).reshape(120, -1).astype(F32)
    joined = qwen25vl.join(cfg, plan, marks).reshape(30, 4, cfg.hidden)[..., 0]
    patches = np.arange(120).reshape(5, 2, 6, 2).swapaxes(1, 2)
    assert np.array_equal(joined, patches.reshape(30, 4))


@pytest.mark.parametrize(
    ("changed", "kind", "named"),
    [
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act is 'gelu'"),
        (
            {"fullatt_block_indexes": [32]},
            BadModelFile,
            r"fullatt_block_indexes is \[32\]; expected numbers of 32",
        ),
        ({"fullatt_block_indexes": 7}, BadModelFile, "fullatt_block_indexes is 7; expected a list"),
        ({"window_size": 20}, UnsupportedModel, "windows are 20 pixels wide; expected 28"),
        ({"in_channels": 4}, UnsupportedModel, "in_channels is 4"),
        ({"settings": {"merge_size": 4}}, BadModelFile, "merge_size is 4 for pixels, and 2"),
    ],
)
def test_a_config_of_windows_that_does_not_fit_is_named(
    changed: dict[str, Any], kind: type[Exception], named: str
):
    with pytest.raises(kind, match=named):
        of_qwen25(**changed)


def test_both_formats_say_the_same_tower_of_glm():
    stated = glm4v.config_from_gguf(Fields(GLM_GGUF, "clip."))
    assert stated == of_glm(intermediate_size=13696)
    assert (stated.head, stated.side, stated.intermediate, stated.last) == (128, 24, 4096, 13696)
    with pytest.raises(UnsupportedModel, match="attention_bias is True"):
        of_glm(attention_bias=True)
    with pytest.raises(BadModelFile, match="encoder's MLP"):
        of_glm(out_hidden_size=4100)


@pytest.mark.parametrize(
    ("size", "becomes"),
    [
        ((1920, 1080), (1932, 1092)),  # 2,691 tokens
        ((60, 60), (84, 84)),  # two frames of 84 x 84 exceed the least area
        ((4000, 3000), (2520, 1876)),  # half of the greatest area
        ((10, 100), (28, 280)),  # enlarged to a block first
        ((1, 1), (84, 84)),
    ],
)
def test_a_size_becomes_blocks_within_half_of_glms_limits(size: tuple[int, int], becomes: tuple[int, int]):
    assert glm4v.plan(of_glm(), *size).size == becomes
    with pytest.raises(UsageError, match=r"201 x 1 pixels; one side may be 200"):
        glm4v.plan(of_glm(), 201, 1)


def test_glms_positions_are_those_of_the_table_on_a_grid_of_its_size():
    table = RNG.standard_normal((24, 24, 4)).astype(F32)
    assert np.allclose(blocks.stretched(table, 24, blocks.cubic), table, atol=1e-6)
    wider = blocks.stretched(table, 48, blocks.cubic)
    assert np.allclose(wider.mean(axis=0), table.mean(axis=0), atol=0.1) and wider.shape == (48, 24, 4)


@pytest.mark.parametrize(
    ("wrapper", "kind", "family"),
    [
        ("Glm4vForConditionalGeneration", "glm4v_text", "glm4"),
        ("Glm46VForConditionalGeneration", "glm4v_text", "glm4"),
        ("Glm4vMoeForConditionalGeneration", "glm4v_moe_text", "glm4moe"),
        ("Glm46VForConditionalGeneration", "glm4v_moe_text", "glm4moe"),
    ],
)
def test_glms_wrappers_are_of_the_family_of_their_text_half(wrapper: str, kind: str, family: str):
    text = SEEING["glm4v" if family == "glm4" else "glm4v_moe"].hf["text_config"] | {"model_type": kind}
    matched, fields, wrapped = family_of({"architectures": [wrapper], "text_config": text})
    cfg = matched.config_from_hf(fields)
    assert matched.gguf_architecture == family and wrapped and matched.towers == ("glm4v",)
    assert cfg.rope.sections == (2, 3, 3) and cfg.rope.width == 16
    assert cfg.rope.adjacent == (family == "glm4")


def test_a_gguf_of_glm_whose_rope_has_sections_lays_pairs_in_halves_and_takes_no_adapter_there():
    for tiny, adjacent in ((make.config("glm4"), True), (SEEING["glm4v"], False)):
        family, keys = gguf_family(tiny.gguf)
        cfg = family.config_from_gguf(keys, VOCAB)
        specs = family.layers(cfg)[0].tensors()
        assert cfg.rope.adjacent == adjacent == specs["q"].adaptable == specs["k"].adaptable
        assert specs["v"].adaptable and specs["o"].adaptable
        assert bool(cfg.rope.sections) is not adjacent


def of_paddle(settings: dict[str, Any] | None = None, **changed: Any) -> paddleocr.PaddleSizes:
    config = {"model_type": "paddleocr_vl", "hidden_size": 1024, "vision_config": changed}
    return paddleocr.config_from_hf(Fields(config), Fields(settings or {}))


def test_both_formats_say_the_same_tower_of_paddleocr():
    limits = {"image_min_pixels": 147_384, "image_max_pixels": 2_822_400}
    stated = {
        "clip.use_gelu": True,
        "clip.vision.block_count": 27,
        "clip.vision.embedding_length": 1152,
        "clip.vision.feed_forward_length": 4304,
        "clip.vision.attention.head_count": 16,
        "clip.vision.projection_dim": 1024,
        "clip.vision.image_size": 1680,  # the root of the greatest area
        "clip.vision.patch_size": 14,
    } | {f"clip.vision.{key}": value for key, value in limits.items()}
    cfg = paddleocr.config_from_gguf(Fields(stated, "clip."))
    assert cfg == of_paddle({"min_pixels": 147_384, "max_pixels": 2_822_400}, temporal_patch_size=2)
    assert (cfg.head, cfg.side, cfg.frames) == (72, 27, 1)
    with pytest.raises(UnsupportedModel, match="hidden_act is 'silu'"):
        of_paddle(hidden_act="silu")


@pytest.mark.parametrize(
    ("size", "becomes"),
    [
        ((10, 100), (140, 1232)),
        ((100, 5), (1736, 112)),
        ((1920, 1080), (1932, 1092)),
        ((4000, 3000), (1764, 1316)),
    ],
)
def test_a_thin_picture_is_enlarged_to_a_block_with_its_other_side(
    size: tuple[int, int], becomes: tuple[int, int]
):
    assert paddleocr.plan(of_paddle(), *size).size == becomes


QWEN2 = {
    "model_type": "qwen2_vl",
    "depth": 32,
    "embed_dim": 1280,
    "hidden_act": "quick_gelu",
    "hidden_size": 1536,
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}


def of_qwen2(**changed: Any) -> qwen2vl.FirstBlockSizes:
    config = {"model_type": "qwen2_vl", "vision_config": QWEN2 | changed}
    stated = {
        "min_pixels": 3136,
        "max_pixels": 12_845_056,
        "image_mean": [*CLIP_MEAN],
        "image_std": [*CLIP_DEVIATION],
    }
    return qwen2vl.config_from_hf(Fields(config), Fields(stated))


def test_qwen2_vls_sizes_are_read_from_both_formats():
    """A converter writes the text model's width in place of the MLP's, and no activation."""
    limits = {"image_min_pixels": 3136, "image_max_pixels": 12_845_056}
    stated = {
        "clip.projector_type": "qwen2vl_merger",
        "clip.vision.block_count": 32,
        "clip.vision.embedding_length": 1280,
        "clip.vision.feed_forward_length": 1536,
        "clip.vision.attention.head_count": 16,
        "clip.vision.projection_dim": 1536,
        "clip.vision.patch_size": 14,
    } | {f"clip.vision.{key}": value for key, value in limits.items()}
    cfg = qwen2vl.config_from_gguf(Fields(stated, "clip."))
    assert cfg == of_qwen2() and (cfg.intermediate, cfg.out, cfg.head) == (5120, 1536, 80)
    for act in ("gelu", "silu"):
        with pytest.raises(
            UnsupportedModel, match=f"use_{act} is true; this encoder supports only the quick GELU"
        ):
            qwen2vl.config_from_gguf(Fields({**stated, f"clip.use_{act}": True}, "clip."))
    with pytest.raises(UnsupportedModel, match="hidden_act is 'silu'"):
        of_qwen2(hidden_act="silu")


def test_an_older_qwen2_vl_file_calls_up_down(tmp_path: Path):
    """Files of the first converter call the MLP's first matrix ffn_down."""
    tiny = make.config("qwen2_vl")
    tensors = make.mmproj_tensors(tiny)
    swapped = {_swapped(name): value for name, value in tensors.items()}
    towers = []
    for number, each in enumerate((tensors, swapped)):
        path = tmp_path / f"mmproj-{number}.gguf"
        stored = {name: (QuantType.F32, value.shape, value.tobytes()) for name, value in each.items()}
        path.write_bytes(make.gguf_bytes(tiny.mmproj, stored))
        with open_model_file(path) as opened:
            source = read_tower(opened)
        assert source is not None
        towers.append({key: bound.tensor.shape for key, bound in source.layers[0].items()})
    assert towers[0] == towers[1]


def _swapped(name: str) -> str:
    if "ffn_up" in name:
        return name.replace("ffn_up", "ffn_down")
    return name.replace("ffn_down", "ffn_up")


# --- the text halves ---------------------------------------------------------------------------------------------

TEXT = {
    "model_type": "qwen3_vl_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "vocab_size": 256,
    "rope_theta": 5e6,
    "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False}


def wrapper(mixed: bool = False, **vision: Any) -> Metadata:
    kind = "Qwen3VLMoe" if mixed else "Qwen3VL"
    text = TEXT | ({"model_type": "qwen3_vl_moe_text"} | EXPERTS if mixed else {})
    return Metadata(
        {
            "architectures": [f"{kind}ForConditionalGeneration"],
            "text_config": text,
            "vision_config": vision,
        },
        "config.json",
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_a_text_half_adds_what_the_towers_layers_saw_after_its_first_layers(mixed: bool):
    family, config, wrapped = family_of(wrapper(mixed, deepstack_visual_indexes=[1, 2]))
    cfg = family.config_from_hf(config)
    assert wrapped and family.gguf_architecture == ("qwen3vlmoe" if mixed else "qwen3vl")
    assert cfg.rope.sections == (6, 5, 5) and cfg.rope.interleaved and cfg.rope.base == 5e6
    added = [[type(part).__name__ for part in layer.parts].count("DeepStack") for layer in family.layers(cfg)]
    assert added == [1, 1, 0, 0] and family.feature_width(cfg) == 3 * 64
    assert not mixed or cfg.mixture.routing.renormalise


def test_a_wrapper_that_does_not_state_its_towers_layers_has_three():
    family, config, _ = family_of(wrapper())
    assert family.config_from_hf(config).deepstack == 3


def test_a_gguf_says_how_many_layers_add_features():
    keys = {
        "general.architecture": "qwen3vl",
        "qwen3vl.block_count": 4,
        "qwen3vl.embedding_length": 64,
        "qwen3vl.feed_forward_length": 96,
        "qwen3vl.context_length": 512,
        "qwen3vl.attention.head_count": 4,
        "qwen3vl.attention.head_count_kv": 2,
        "qwen3vl.attention.key_length": 32,
        "qwen3vl.attention.value_length": 32,
        "qwen3vl.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3vl.rope.dimension_sections": [6, 5, 5, 0],
        "qwen3vl.n_deepstack_layers": 3,
    }
    family, fields = gguf_family(keys)
    cfg = family.config_from_gguf(fields, 256)
    assert cfg.deepstack == 3 and cfg.rope.sections == (6, 5, 5) and family.feature_width(cfg) == 256


def test_places_of_a_grid_are_in_raster_order():
    assert raster_places(2, 2).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
