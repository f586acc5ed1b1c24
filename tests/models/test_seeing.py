"""A tower that is loaded: what it is joined with, what it computes together, and where a run may pause."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile, CapacityExceeded, NonFiniteLogits, UnsupportedModel
from freehold.run.formats import QuantType, open_model_file
from freehold.run.models import load, seeing
from freehold.run.models.binding.towers import pixel_settings, read_tower
from freehold.run.models.families import qwen3vl
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.tower import TowerOracle
from freehold.run.models.seeing import LoadedTower, Picture, batches, load_tower
from freehold.run.models.tiny import make

RNG = np.random.default_rng(3)
NAME = "qwen3_vl"  # whose MLP is filled up, and which has three mergers beside the main one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.write_safetensors(make.config(NAME), tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def text(folder: Path) -> LoadedModel:
    return load_model(folder, threads=2)


@pytest.fixture(scope="module")
def tower(folder: Path, text: LoadedModel) -> LoadedTower:
    return loaded(folder, text, rounding=None)


def loaded(source: Path, text: LoadedModel, **options: Any) -> LoadedTower:
    tower = load_tower(source, text, **options)
    assert tower is not None
    return tower


def picture(tower: LoadedTower, width: int, height: int) -> Picture:
    plan = tower.plan(width, height)
    wide, high = plan.size
    return plan, [RNG.integers(0, 256, (high, wide, 3), dtype=np.uint8)]


def mmproj(folder: Path, name: str = NAME, **keys: Any) -> Path:
    tiny = make.config(name)
    changed = {key.replace("__", "."): value for key, value in keys.items()}
    return make.write_mmproj(replace(tiny, mmproj=tiny.mmproj | changed), folder / "mmproj.gguf")


# --- what it computes -----------------------------------------------------------------------------------------


def test_native_plans_compute_what_the_oracle_does(folder: Path, tower: LoadedTower):
    oracle = TowerOracle(folder)
    for size in ((128, 96), (64, 64), (200, 40)):
        plan, pixels = picture(tower, *size)
        (got,) = tower.features([(plan, pixels)])
        want = oracle.features(plan, pixels)
        assert got.shape == want.shape == (plan.tokens, tower.feature_width)
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_features_have_the_same_bits_whatever_is_computed_beside_them(tower: LoadedTower, monkeypatch: Any):
    pictures = [picture(tower, *size) for size in ((128, 96), (64, 64), (64, 192), (64, 64))]
    alone = [tower.features([each])[0].tobytes() for each in pictures]
    assert [each.tobytes() for each in tower.features(pictures)] == alone
    assert [each.tobytes() for each in tower.features(pictures[::-1])] == alone[::-1]
    monkeypatch.setattr(seeing, "BATCH_ROWS", 40)
    assert [each.tobytes() for each in tower.features(pictures)] == alone


def test_features_have_the_same_bits_however_sections_are_cut(
    folder: Path, text: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    """With int8 matrices, whose attention may round too: whole sections, cuts of the least size, and in a batch."""
    tower = loaded(folder, text)
    pictures = [picture(tower, *size) for size in ((128, 96), (200, 300))]
    whole = [each.tobytes() for each in tower.features(pictures)]
    monkeypatch.setattr(seeing, "_FIRST", 8)
    pauses: list[float] = []
    for hold in (1e-9, 1e9):
        monkeypatch.setattr(seeing, "HOLD", hold)
        assert [tower.features([each])[0].tobytes() for each in pictures] == whole
        features = tower.features(pictures, lambda: pauses.append(seeing.HOLD))
        assert [each.tobytes() for each in features] == whole
    assert pauses.count(1e-9) > 1.5 * pauses.count(1e9)
    one = loaded(folder, load_model(folder, threads=1))
    assert [each.tobytes() for each in one.features(pictures)] == whole


def test_one_thread_gives_the_bits_of_two(folder: Path, tower: LoadedTower):
    other = loaded(folder, load_model(folder, threads=1), rounding=None)
    one = picture(tower, 128, 96)
    assert other.features([one])[0].tobytes() == tower.features([one])[0].tobytes()


def test_a_gguf_computes_what_the_folder_does(
    folder: Path, text: LoadedModel, tower: LoadedTower, tmp_path: Path
):
    other = loaded(mmproj(tmp_path), text, rounding=None)
    one = picture(tower, 100, 70)
    assert np.allclose(other.features([one])[0], tower.features([one])[0], atol=1e-5)
    assert other.feature_width == tower.feature_width and other.mark == "<|image_pad|>"


def test_a_quantised_gguf_runs_in_int8(text: LoadedModel, tower: LoadedTower, tmp_path: Path):
    """Matrices whose rows divide into blocks of 32 are Q8_0, as converters write them; others stay floats."""

    def encode(name: str, values: np.ndarray) -> tuple[QuantType, bytes]:
        if values.ndim == 2 and values.shape[1] % 32 == 0 and "position" not in name:
            return QuantType.Q8_0, native.quantize_rows(values, "Q8_0", text.threads).tobytes()
        return QuantType.F32, values.tobytes()

    path = make.write_mmproj(make.config(NAME), tmp_path / "mmproj.gguf", encode=encode)
    other = loaded(path, text)
    one = picture(tower, 100, 70)
    got, want = other.features([one])[0], tower.features([one])[0]
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999


def test_rounding_takes_a_quarter_of_the_bytes(folder: Path, text: LoadedModel, tower: LoadedTower):
    assert loaded(folder, text).nbytes < 0.6 * tower.nbytes


def test_two_towers_have_one_digest_if_they_compute_the_same(
    folder: Path, text: LoadedModel, tower: LoadedTower
):
    assert loaded(folder, text, rounding=None).digest == tower.digest
    assert loaded(folder, text).digest != tower.digest
    assert loaded(folder, text, rounding=None, digest="x").digest != tower.digest


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe", "qwen3_5-eyes", "qwen3_5_moe-eyes"])
def test_text_has_the_bits_of_a_model_that_knows_nothing_of_pictures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without pictures a rope's sections all turn by the position, and no layer adds anything."""
    path = make.write_safetensors(make.config(name), tmp_path / "model")
    ids = RNG.integers(5, 250, 40).tolist()
    got = text_logits(load_model(path, threads=2), ids)
    monkeypatch.setattr(load, "native_rope", lambda t: native.Rope(t.inv_freq, t.factor, t.adjacent))
    monkeypatch.setattr(qwen3vl, "_deepstack", lambda cfg, i: ())
    assert text_logits(load_model(path, threads=2), ids).tobytes() == got.tobytes()


def text_logits(model: LoadedModel, ids: list[int]) -> np.ndarray:
    recurrent = any(spec.recurrent for spec in model.layers)
    cache = model.new_cache(2, "f32", slots=int(recurrent))
    rows = np.arange(len(ids), dtype=np.int32)
    pieces = np.array([[0, 0, len(ids), -1, 0]], np.int32) if recurrent else None
    step = np.array(ids, np.int32), rows, np.zeros(len(ids), np.int32), np.array([[0, 1]], np.int32), rows
    return model.build(cache, len(ids)).run(*step, pieces=pieces)[0]


# --- batches, buffers and pauses --------------------------------------------------------------------------------


def test_pictures_are_batched_in_order_up_to_a_number_of_rows(tower: LoadedTower, monkeypatch: Any):
    monkeypatch.setattr(seeing, "BATCH_ROWS", 50)
    pictures = [picture(tower, *size) for size in ((64, 64), (64, 64), (128, 128), (64, 64))]
    assert [plan.patches for plan, _ in pictures] == [16, 16, 64, 16]
    assert list(batches(pictures)) == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert list(batches([])) == [] and tower.features([]) == []


def test_a_run_pauses_before_and_after_attention_and_after_every_mlp(tower: LoadedTower):
    pauses: list[None] = []
    tower.features([picture(tower, 64, 64)], lambda: pauses.append(None))
    layers, mergers = 3 * tower.cfg.layers + 1, 2 * (1 + len(tower.cfg.deepstack))
    assert len(pauses) == layers + mergers


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_run_that_is_ended_in_a_pause_leaves_the_next_one_whole(tower: LoadedTower, at: int):
    one, other = picture(tower, 64, 64), picture(tower, 128, 64)
    want = tower.features([one])[0].tobytes()
    left = iter(range(at))

    def end() -> None:
        if next(left, None) is None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tower.features([other], end)
    assert tower.features([one])[0].tobytes() == want


def test_buffers_of_a_large_picture_are_let_go(tower: LoadedTower, monkeypatch: Any):
    tower.features([picture(tower, 64, 64)])
    assert tower.buffer_bytes == tower.working_bytes(256)
    monkeypatch.setattr(seeing, "KEPT_ROWS", 20)
    tower.features([picture(tower, 128, 128)])
    assert tower.buffer_bytes == 0


def test_a_picture_that_memory_does_not_hold_is_refused_with_the_bytes(
    folder: Path, text: LoadedModel, monkeypatch: Any
):
    other = loaded(folder, text)
    monkeypatch.setattr(seeing, "available_bytes", lambda: 1000)
    with pytest.raises(CapacityExceeded, match=r"16 patches needs .* 1\.0 kB are free"):
        other.features([picture(other, 64, 64)])
    with pytest.raises(CapacityExceeded, match=r"for its weights; 1\.0 kB are free"):
        load_tower(folder, text)


def test_damaged_weights_are_named(folder: Path, text: LoadedModel):
    other = loaded(folder, text, rounding=None)
    other._weights.ends["merger_down_bias"][0] = np.nan
    with pytest.raises(NonFiniteLogits, match="computed NaN or infinity"):
        other.features([picture(other, 64, 64)])


# --- what it is joined with -------------------------------------------------------------------------------------


def test_models_of_text_alone_have_no_tower(folder: Path, text: LoadedModel, tmp_path: Path):
    plain = make.write_safetensors(make.config("qwen3"), tmp_path / "plain")
    assert load_tower(plain, load_model(plain, threads=1)) is None
    path = make.write_gguf(make.config(NAME), tmp_path / "text.gguf")
    assert load_tower(path, load_model(path, threads=1)) is None
    tiny = make.config(NAME)
    bare = make.write_safetensors(tiny, tmp_path / "bare")  # text's weights alone, under the wrapper's config
    names = {name: values for name, values in make.hf_tensors(tiny).items() if "visual" not in name}
    (bare / "model.safetensors").write_bytes(make.safetensors_bytes(names, "F32"))
    assert load_tower(bare, text) is None


def test_older_names_are_read_too(folder: Path, text: LoadedModel, tower: LoadedTower, tmp_path: Path):
    tiny = make.config(NAME)
    older = make.write_safetensors(tiny, tmp_path / "older")
    names = {
        name.replace("model.visual.", "visual."): values for name, values in make.hf_tensors(tiny).items()
    }
    (older / "model.safetensors").write_bytes(make.safetensors_bytes(names, "F32"))
    one = picture(tower, 64, 64)
    assert (
        loaded(older, text, rounding=None).features([one])[0].tobytes() == tower.features([one])[0].tobytes()
    )


def test_a_tower_of_another_model_is_refused_by_name(text: LoadedModel, tmp_path: Path):
    with pytest.raises(UnsupportedModel, match=r"'ldp', which is not supported yet"):
        load_tower(mmproj(tmp_path, clip__projector_type="ldp"), text)
    plain = make.write_safetensors(make.config("qwen3"), tmp_path / "plain")
    with pytest.raises(
        UnsupportedModel, match=r"does not support the vision encoder mmproj \(qwen3vl_merger\)"
    ):
        load_tower(mmproj(tmp_path), replace(load_model(plain, threads=1), gguf=True))
    with pytest.raises(BadModelFile, match=r"has features of width 64; .* expects 256"):
        load_tower(mmproj(tmp_path, "qwen3_5-eyes"), text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("v.blk.1.attn_qkv.weight"), "v.blk.1.attn_qkv.weight is missing"),
        (lambda t: t.pop("v.patch_embd.weight.1"), "v.patch_embd.weight.1 is missing"),
        (lambda t: t.update({"v.pre_ln.weight": np.ones(4, np.float32)}), "v.pre_ln.weight"),
        (lambda t: t.update({"mm.2.weight": np.ones((4, 4), np.float32)}), r"mm.2.weight has shape \[4, 4\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[Any], None], named: str, text: LoadedModel, tmp_path: Path
):
    tiny = make.config(NAME)
    tensors = make.mmproj_tensors(tiny)
    change(tensors)
    path = tmp_path / "mmproj.gguf"
    stored = {name: (QuantType.F32, values.shape, values.tobytes()) for name, values in tensors.items()}
    path.write_bytes(make.gguf_bytes(tiny.mmproj, stored))
    with pytest.raises(BadModelFile, match=named):
        load_tower(path, text)


def test_what_a_folder_says_of_pixels_is_read_from_the_newer_file_first(folder: Path, tmp_path: Path):
    assert pixel_settings(tmp_path).values == {}
    older = {"size": {"shortest_edge": 4096, "longest_edge": 8192}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    assert pixel_settings(tmp_path).section("size") is not None
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert pixel_settings(tmp_path).section("size") is not None
    newer = {"image_processor": {"min_pixels": 1024}}
    (tmp_path / "processor_config.json").write_text(json.dumps(newer))
    assert pixel_settings(tmp_path).get("min_pixels") == 1024


def test_no_weight_is_read_to_know_a_towers_sizes(folder: Path):
    with open_model_file(folder) as opened:
        source = read_tower(opened)
    assert source is not None and source.cfg.feature_width == 4 * source.cfg.out
