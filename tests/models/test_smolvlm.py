"""SmolVLM's tower computes what transformers computed: tiles, positions, features, prompts and what follows them.

Golden files: tests/vectors/make_smolvlm.py. Features come from a folder of safetensors, from an mmproj, and from one
whose MLP's names are swapped, as the first converters wrote them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import freehold
from freehold import Image, Message
from freehold.engine.pictures import PICTURE_IDS
from freehold.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.formats import open_model_file
from freehold.formats.fields import Fields
from freehold.models.binding.towers import read_tower
from freehold.models.load import LoadedModel, load_model
from freehold.models.oracle.tower import TowerOracle
from freehold.models.packing.packer import Rounding
from freehold.models.seeing import LoadedTower, load_tower
from freehold.models.tiny import make
from freehold.models.tower import TokenBudget
from freehold.models.towers import smolvlm
from freehold.pictures.opening import open_picture
from tests.models.golden import GOLDEN
from tests.models.test_tower_golden import NativeRun
from tests.vectors.weights import checksum

TINY = make.config("smolvlm")
FORMS = ("safetensors", "gguf", "swapped")
BOUND = 1e-3  # of features and logits, in standard deviations of the golden ones
Q8_COSINE = 0.999  # of a feature with the golden one, matrices rounded to int8
CLEAR = 0.1  # of two logits: the nearer is chosen whatever the cache rounds


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Pillow.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write(form: str, folder: Path) -> tuple[Path, Path]:
    """Write the model; return where its text half and its tower are."""
    if form == "safetensors":
        path = make.write_safetensors(TINY, folder / "model")
        return path, path
    keys = dict(TINY.mmproj)
    tensors = make.mmproj_tensors(TINY)
    if form == "swapped":
        tensors = {swapped(name): value for name, value in tensors.items()}
    stored = {name: (make.QuantType.F32, value.shape, value.tobytes()) for name, value in tensors.items()}
    tower = folder / "mmproj-model.gguf"
    tower.write_bytes(make.gguf_bytes(keys | {"general.name": "tiny"}, stored))
    return make.write_gguf(TINY, folder / "model.gguf"), tower


def swapped(name: str) -> str:
    if "ffn_up" in name:
        return name.replace("ffn_up", "ffn_down")
    return name.replace("ffn_down", "ffn_up")


@dataclass
class Seeing:
    text_path: Path
    tower_path: Path
    golden: dict[str, np.ndarray]

    @cached_property
    def text(self) -> LoadedModel:
        return load_model(self.text_path, threads=1)

    @cached_property
    def tower(self) -> LoadedTower:
        return self.tower_of(None)

    def tower_of(self, rounding: Rounding | None) -> LoadedTower:
        tower = load_tower(self.tower_path, self.text, rounding=rounding)
        assert tower is not None
        return tower

    @property
    def pictures(self) -> list[bytes]:
        return [png(self.golden[f"picture_{i}"]) for i in range(self.count)]

    @property
    def count(self) -> int:
        return sum(name.startswith("picture_") for name in self.golden)

    def opened(self, number: int) -> tuple[Any, list[np.ndarray]]:
        height, width = self.golden[f"picture_{number}"].shape[:2]
        plan = self.tower.plan(width, height)
        _, pixels = open_picture(self.pictures[number], lambda *_: plan.resizes)
        return plan, pixels

    @cached_property
    def features(self) -> list[np.ndarray]:
        return [self.tower.features([self.opened(i)])[0] for i in range(self.count)]


@pytest.fixture(scope="module", params=FORMS)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    with np.load(GOLDEN / "smolvlm.npz") as data:
        yield Seeing(*write(request.param, tmp_path_factory.mktemp("smolvlm")), dict(data))


def error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / want.std())


# --- before the tower ---------------------------------------------------------------------------------------


def test_golden_file_was_made_from_these_weights():
    with np.load(GOLDEN / "smolvlm.npz") as stored:
        assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(TINY))
        assert json.loads(str(stored["config"])) == TINY.hf


def test_sizes_become_what_transformers_makes_of_them(seeing: Seeing):
    for width, height, wide, high, *tiles in seeing.golden["sizes"].tolist():
        plan = seeing.tower.plan(width, height)
        first, whole = plan.resizes[0]
        assert (first.width, first.height, whole.width, whole.height) == (wide, high, *tiles), (width, height)
        count = tiles[0] * tiles[1] // 36**2
        assert plan.patches == 16 * (count + (count > 1)) and plan.tokens == plan.patches // 4
        assert plan.advance == plan.tokens and plan.places is None
        assert len(plan.resizes) == 1 + (count > 1)


def test_positions_fall_into_the_buckets_of_transformers():
    with np.load(GOLDEN / "smolvlm.npz") as stored:
        for grid, side, *ids in stored["buckets"].tolist():
            assert smolvlm.buckets(grid, side).tolist() == ids[:grid], (grid, side)


def test_a_file_becomes_the_tiles_of_transformers(seeing: Seeing):
    cfg = seeing.tower.cfg
    for i in range(seeing.count):
        _, pixels = seeing.opened(i)
        tiles = [tile for each in pixels for tile in smolvlm._tiles(cfg, each)]
        assert np.array_equal(np.stack(tiles), seeing.golden[f"tiles_{i}"]), i


# --- the tower ----------------------------------------------------------------------------------------------


def test_native_plan_computes_the_golden_features(seeing: Seeing):
    for i, features in enumerate(seeing.features):
        assert error(features, seeing.golden[f"features_{i}"]) <= BOUND


def test_oracle_computes_the_golden_features(seeing: Seeing):
    oracle = TowerOracle(seeing.tower_path)
    for i in range(seeing.count):
        assert error(oracle.features(*seeing.opened(i)), seeing.golden[f"features_{i}"]) <= BOUND


def test_pictures_computed_together_have_the_bits_of_each_alone(seeing: Seeing):
    order = (1, 0, 2, 1)
    together = seeing.tower.features([seeing.opened(i) for i in order])
    assert all(np.array_equal(a, seeing.features[i]) for a, i in zip(together, order, strict=True))


def test_int8_panels_stay_near_the_golden_features(seeing: Seeing):
    tower = seeing.tower_of("q8")
    for i in range(seeing.count):
        (got,), want = tower.features([seeing.opened(i)]), seeing.golden[f"features_{i}"]
        cosines = (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
        assert cosines.min() >= Q8_COSINE, (i, cosines.min())


# --- a prompt -----------------------------------------------------------------------------------------------


def test_a_prompt_has_the_ids_and_the_logits_of_transformers(seeing: Seeing):
    for i in range(seeing.count):
        ids, want = seeing.golden[f"ids_{i}"], seeing.golden[f"full_{i}"]
        marked = ids == TINY.hf["image_token_id"]
        rows = np.where(marked, np.cumsum(marked) - 1, -1).astype(np.int32)
        pictures = {"features": seeing.features[i], "feature_rows": rows}
        run = NativeRun(seeing.text, len(ids), len(ids))
        assert error(run.step(ids.tolist(), **pictures), want) <= BOUND


def test_a_chat_is_written_and_answered_as_by_transformers(seeing: Seeing):
    with freehold.load(seeing.text_path, context=512, threads=1, kv_type="f32") as llm:
        assert llm.can_see
        for i, data in enumerate(seeing.pictures):
            chat = [Message("user", parts=(Image.of(data), "hi"))]
            ids = [TINY.hf["image_token_id"] if id >= PICTURE_IDS else id for id in llm.render(chat)]
            assert ids == seeing.golden[f"ids_{i}"].tolist()
            clear = np.cumprod(seeing.golden[f"margins_{i}"] > CLEAR).sum()
            want = seeing.golden[f"greedy_{i}"][:clear].tolist()
            answer = llm.chat(chat, temperature=0, max_tokens=len(want) or 1)
            assert list(answer.token_ids) == want[: len(answer.token_ids)]
            assert len(answer.token_ids) == len(want) or answer.finish_reason == "stop"


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
