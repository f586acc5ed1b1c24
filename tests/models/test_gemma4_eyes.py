"""Gemma 4's towers compute what transformers computed: sizes, pixels, features, chats, logits and what follows them.

Golden files: tests/vectors/make_gemma4_eyes.py, of the tower of 26B and 31B, that of E2B and E4B, and what 12B has in
place of one. Features come from a folder of safetensors, in float32 and in BF16, and from an mmproj. Rows of a picture
see each other in the sliding layers of the text model, but for E2B and E4B.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import freehold
from freehold import Image, Message
from freehold import _native as native
from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.engine.sequence import PICTURE_IDS, PromptPictures
from freehold.run.formats import QuantType
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import family_of
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.session import Oracle
from freehold.run.models.oracle.tower import TowerOracle
from freehold.run.models.packing.packer import Rounding
from freehold.run.models.seeing import LoadedTower, load_tower
from freehold.run.models.tiny import make
from freehold.run.models.tower import PicturePlan, TokenBudget
from freehold.run.models.towers import gemma4, gemma4_unified
from freehold.run.pictures.opening import Resize, open_picture
from tests.models.golden_towers import (
    F32,
    Shown,
    check_greedy,
    cosines,
    error,
    golden,
    lay_out,
    native_logits,
    oracle_logits,
    pictures_of,
    png,
)
from tests.vectors.gemma4_eyes import (
    ALLOWED,
    BUDGETS,
    CHATS,
    COLUMNS,
    LARGE,
    NAMES,
    SIZES,
    SMALL,
    kept_features,
    kept_logits,
    picture,
)
from tests.vectors.weights import checksum

TINY = make.config("gemma4-eyes")
FORMS = ("safetensors", "hub", "gguf")
SEEN = [(name, form) for name in NAMES for form in FORMS]
BOTH = ("gemma4-eyes", "gemma4_unified")  # those whose text sees a picture both ways
BOUND = 1e-3  # of features and logits, in standard deviations of the golden ones
ROWS = 2e-6  # of values from -1 to 1: the same operations on float32, in another order
# Of a feature's cosine with the golden one, its matrices rounded to int8, and activations with them where a machine has
# no tiles: the least of all rows, and of a picture's rows on average.
Q8_COSINES = {
    "gemma4-eyes": (0.997, 0.999),
    "gemma4-clipped": (0.99, 0.997),
    "gemma4_unified": (0.9998, 0.9999),
}
CLEAR = 0.1  # of two logits: the nearer is chosen whatever int8 rounds
MARK = TINY.hf["image_token_id"]


def write(name: str, form: str, folder: Path) -> tuple[Path, Path]:
    """Write the model; return where its text half and its tower are."""
    tiny = make.config(name)
    if form != "gguf":
        dtype = "BF16" if form == "hub" else "F32"
        path = make.write_safetensors(tiny, folder / "model", dtype=dtype)
        return path, path
    return make.write_gguf(tiny, folder / "model.gguf"), make.write_mmproj(tiny, folder / "mmproj-model.gguf")


@dataclass(repr=False)
class Seeing:
    """The model with its tower, and what is compared with it."""

    name: str
    text_path: Path
    tower_path: Path
    golden: dict[str, np.ndarray]
    computed: dict[int, F32] = field(default_factory=dict)

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

    def picture(self, number: int) -> tuple[PicturePlan, list[np.ndarray]]:
        """Return what a picture becomes; a GGUF does not state how many rows that may be."""
        pixels = resized(number) if number < SMALL else picture(number)
        return self.tower.plan(*SIZES[number], TokenBudget(1, ALLOWED[number])), [pixels]

    def features(self, number: int) -> F32:
        if number not in self.computed:
            (self.computed[number],) = self.tower.features([self.picture(number)])
        return self.computed[number]

    def chat(self, number: int) -> Shown:
        shown = pictures_of(CHATS[number])
        plans, features = [self.picture(i)[0] for i in shown], [self.features(i) for i in shown]
        ids = self.golden[f"ids_{number}"].tolist()
        return lay_out(ids, MARK, plans, features, both=self.name in BOTH)

    def messages(self, number: int) -> list[Message]:
        return [
            Message(
                cast(Any, role),
                parts=tuple(p if isinstance(p, str) else Image.of(png(picture(p))) for p in parts),
            )
            for role, parts in CHATS[number]
        ]

    def off_features(self, number: int, features: F32) -> float:
        """Return how far features are from the golden ones."""
        return error(features[kept_features(number)], self.golden[f"features_{number}"])

    def off_logits(self, number: int, logits: F32) -> float:
        """Return how far a chat's logits are from the golden ones."""
        kept = kept_logits(self.golden[f"ids_{number}"], MARK)
        return error(logits[kept][:, ::COLUMNS], self.golden[f"full_{number}"])


def resized(number: int) -> np.ndarray:
    """Return a small picture after its resize, which is the same for all models."""
    return golden(NAMES[0])[f"pixels_{number}"]


def opened(name: str, form: str, folder: Path) -> Seeing:
    text, tower = write(name, form, folder)
    return Seeing(name, text, tower, golden=golden(name))


@pytest.fixture(scope="module", params=SEEN, ids=lambda it: "-".join(it))
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    name, form = request.param
    yield opened(name, form, tmp_path_factory.mktemp("gemma4"))


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    """A model in one form, for what no form changes."""
    return opened(request.param, "safetensors", tmp_path_factory.mktemp("gemma4"))


# --- before the tower: sizes and pixels -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_was_made_from_these_weights(name: str):
    stored, tiny = golden(name), make.config(name)
    assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(tiny))
    assert json.loads(str(stored["config"])) == tiny.hf


def test_sizes_become_what_transformers_makes_of_them():
    """All budgets, of the tower and of what 12B has in its place."""
    tower, unified = config(patch=8), unified_config(patch=8)
    for most, width, height, wide, high in golden(NAMES[0])["sizes"].tolist():
        budget = TokenBudget(1, most)
        plan = gemma4.plan(tower, width, height, budget)
        assert plan.resizes == ((Resize(wide, high, "bicubic"),),), (most, width, height)
        assert plan.tokens * 9 == plan.patches == wide * high // 64 and plan.tokens <= most
        assert plan.advance == plan.tokens and plan.places is None and plan.layout == (plan.tokens,)
        assert gemma4_unified.plan(unified, width, height, budget) == replace(plan, patches=plan.tokens)


def test_a_file_becomes_the_pixels_of_transformers():
    """As the image processor's Pillow form has them, or within a step of torchvision's."""
    for i in range(SMALL):
        plan, want = gemma4.plan(config(patch=8), *SIZES[i], TokenBudget(1, ALLOWED[i])), resized(i)
        _, (pixels,) = open_picture(png(picture(i)), lambda *_: plan.resizes)  # noqa: B023
        other = want.astype(np.int16) + golden(NAMES[0])[f"torchvision_{i}"]
        assert np.array_equal(pixels, want) or np.abs(pixels.astype(np.int16) - other).max() <= 1, i


def test_pixels_become_the_rows_of_transformers():
    """Block by block of 3 x 3; a patch's columns are by colour, row and column."""
    cfg, pixels = config(patch=8), resized(1)
    plan = gemma4.plan(cfg, *SIZES[1], TokenBudget(1, 70))
    rows = gemma4.rows(cfg, plan, [pixels])
    assert rows.groups == (plan.patches,) and rows.places is not None
    for at in (0, 1, 8, 9, plan.patches - 1):
        _, row, column = rows.places[at].tolist()
        patch = pixels[8 * row :, 8 * column :][:8, :8]
        want = (2 * (patch / 255 - 0.5)).transpose(2, 0, 1).reshape(-1)
        assert np.abs(rows.values[at] - want).max() <= ROWS, at
    assert np.array_equal(rows.places[::9, 1:] // 3 @ [plan.size[0] // 24, 1], np.arange(plan.tokens))


def test_blocks_of_pixels_are_rows_from_zero_to_one():
    cfg, pixels = unified_config(patch=8), resized(1)
    plan = gemma4_unified.plan(cfg, *SIZES[1], TokenBudget(1, 70))
    rows = gemma4_unified.rows(cfg, plan, [pixels])
    assert rows.values.shape == (plan.tokens, 3 * 24**2) and rows.places is None
    wide = plan.size[0] // 24
    for at in (0, 1, wide, plan.tokens - 1):
        block = pixels[24 * (at // wide) :, 24 * (at % wide) :][:24, :24]
        assert np.abs(rows.values[at] - (block / 255).transpose(2, 0, 1).reshape(-1)).max() <= ROWS, at


# --- the tower ----------------------------------------------------------------------------------------------


def test_native_plan_computes_the_golden_features(seeing: Seeing):
    for i in range(SMALL):
        assert seeing.off_features(i, seeing.features(i)) <= BOUND, i


def test_oracle_computes_the_golden_features(seeing: Seeing):
    oracle = TowerOracle(seeing.tower_path)
    for i in range(SMALL):
        assert seeing.off_features(i, oracle.features(*seeing.picture(i))) <= BOUND, i


def test_pictures_computed_together_have_the_bits_of_each_alone(seeing: Seeing):
    order = (3, 0, 2, 1, 0)
    together = seeing.tower.features([seeing.picture(i) for i in order])
    assert all(np.array_equal(a, seeing.features(i)) for a, i in zip(together, order, strict=True))


def test_int8_panels_stay_near_the_golden_features(seeing: Seeing):
    tower = seeing.tower_of("q8")
    assert "Q8_0" in {m.weight_type for m in tower.matrices.values()}
    for i in range(SMALL):
        (got,), want = tower.features([seeing.picture(i)]), seeing.golden[f"features_{i}"]
        near = cosines(got, want)
        least, average = Q8_COSINES[seeing.name]
        assert near.min() >= least and near.mean() >= average, (i, near.min(), near.mean())


# --- the text model -----------------------------------------------------------------------------------------


SHORT = [number for number in range(len(CHATS)) if number not in LARGE]


def test_native_plan_computes_the_golden_logits(seeing: Seeing):
    for number in SHORT:
        chat = seeing.chat(number)
        whole = native_logits(seeing.text, chat, [len(chat.ids)])
        assert seeing.off_logits(number, whole) <= BOUND, number
        assert np.array_equal(whole, native_logits(seeing.text, chat, chat.pieces))


def test_oracle_computes_the_golden_logits(seeing: Seeing):
    oracle = Oracle(seeing.text_path)
    for number in SHORT:
        chat = seeing.chat(number)
        for chunks in ([len(chat.ids)], chat.pieces):
            assert seeing.off_logits(number, oracle_logits(oracle, chat, chunks)) <= BOUND, number


@pytest.mark.heavy
def test_large_pictures_have_the_golden_features_and_logits(folder: Seeing):
    """Of 560 and 1,120 rows, far beyond the window of sliding layers; of the first the oracle too."""
    for i in range(SMALL, len(SIZES)):
        assert folder.off_features(i, folder.features(i)) <= BOUND, i
    for number in LARGE:
        chat = folder.chat(number)
        logits = native_logits(folder.text, chat, [len(chat.ids)])
        assert folder.off_logits(number, logits) <= BOUND, number
    chat = folder.chat(LARGE[0])
    assert (
        folder.off_logits(LARGE[0], oracle_logits(Oracle(folder.text_path), chat, [len(chat.ids)])) <= BOUND
    )


@pytest.mark.parametrize("name", BOTH)
def test_rows_of_a_picture_are_read_ahead_in_sliding_layers_alone(name: str, tmp_path: Path):
    """A row reads as far ahead as its picture goes; computed in order alone, it comes out otherwise."""
    folder = opened(name, "safetensors", tmp_path)
    chat = folder.chat(1)
    ((begin, end),) = chat.spans
    want = native_logits(folder.text, chat, [len(chat.ids)])
    alone = chat._replace(ends=None)
    logits = native_logits(folder.text, alone, [len(chat.ids)])
    apart = np.abs(logits - want).max(axis=1) / want.std()
    assert apart[:begin].max() <= BOUND and (apart[begin : end - 1] > 0.01).all()
    kinds = [layer.parts[0] for layer in folder.text.network.layers]
    assert [getattr(part, "both") for part in kinds] == [True, False, True, False]  # noqa: B009


def test_small_models_read_pictures_in_order(tmp_path: Path):
    text = load_model(make.write_gguf(make.config("gemma4-clipped"), tmp_path / "model.gguf"), threads=1)
    assert not text.family.both(text.cfg)
    assert not any(getattr(layer.parts[0], "both") for layer in text.network.layers)  # noqa: B009


def test_rows_of_pictures_have_the_padding_tokens_embedding_of_each_layer(tmp_path: Path):
    """The mark's own row of the table would give other logits."""
    seeing = opened("gemma4-clipped", "safetensors", tmp_path)
    chat = seeing.chat(1)
    ((begin, end),) = chat.spans
    want = native_logits(seeing.text, chat, [len(chat.ids)])
    for id, alike in ((MARK, False), (0, True)):
        config = make.config("gemma4-clipped").hf
        text = config["text_config"] | {"pad_token_id": id}
        path = make.write_safetensors(make.config("gemma4-clipped"), tmp_path / str(id))
        (path / "config.json").write_text(json.dumps(config | {"text_config": text}), encoding="utf-8")
        logits = native_logits(load_model(path, threads=1), chat, [len(chat.ids)])
        assert np.array_equal(logits[:begin], want[:begin])
        assert (np.abs(logits - want)[begin:end].max(axis=1) == 0).all() == alike


def test_greedy_answers_have_the_tokens_of_transformers(seeing: Seeing):
    for number in SHORT:
        check_greedy(seeing.text, seeing.chat(number), seeing.golden[f"greedy_{number}"].tolist())


# --- in an engine, and a chat from the file of a picture on ------------------------------------------------


def in_engine(folder: Seeing, number: int, few: int) -> list[tuple[int, float | None]]:
    """Answer a chat in steps of `few` tokens; return the answer's tokens and how likely each was."""
    chat, both = folder.chat(number), folder.name in BOTH
    assert chat.features is not None
    ids = [
        PICTURE_IDS + row if row >= 0 else id for id, row in zip(chat.ids, chat.rows.tolist(), strict=True)
    ]
    pictures = PromptPictures(chat.features, chat.rows, MARK, spans=chat.spans if both else ())
    span = folder.tower.span_rows(TokenBudget(1, ALLOWED[-1])) if both else 0
    engine = Engine(folder.text, context=1536, max_num_batched_tokens=few, span_rows=span, kv_type="f32")
    params = SamplingParams(temperature=0.0)
    tokens = engine.generate(ids, params, max_tokens=6, logprobs=1, pictures=pictures)
    return [(token.id, token.logprob) for token in tokens]


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_of_few_tokens_computes_a_picture_whole(folder: Seeing, number: int):
    out = [in_engine(folder, number, few) for few in (512, 1, 3, 1120)]
    assert all(each == out[0] for each in out)
    assert [id for id, _ in out[0]] == folder.golden[f"greedy_{number}"].tolist()[: len(out[0])]


@pytest.mark.heavy
@pytest.mark.parametrize("number", LARGE)
def test_a_picture_of_any_budget_is_computed_whole(folder: Seeing, number: int):
    """1,120 rows in one step, whatever a step's own tokens are."""
    out = [in_engine(folder, number, few) for few in (64, 2048)]
    assert out[0] == out[1]
    assert [id for id, _ in out[0]] == folder.golden[f"greedy_{number}"].tolist()[: len(out[0])]


def test_a_chat_is_written_and_answered_as_by_transformers(folder: Seeing):
    """Matrices of the tower are rounded to int8."""
    with freehold.load(folder.text_path, context=512, threads=1, kv_type="f32") as llm:
        assert llm.can_see and not [note for note in llm.notes if "chat template" in note]
        for number in SHORT:
            chat = folder.messages(number)
            assert list(llm.render(chat)) == folder.golden[f"ids_{number}"].tolist(), number
            clear = int(np.cumprod(folder.golden[f"margins_{number}"] > CLEAR).sum())
            want = folder.golden[f"greedy_{number}"][:clear].tolist()
            answer = llm.chat(chat, temperature=0, max_tokens=len(want) or 1)
            assert list(answer.token_ids)[: len(want)] == want[: len(answer.token_ids)], number
            assert len(answer.token_ids) >= len(want) or answer.finish_reason == "stop"


# --- what files say -----------------------------------------------------------------------------------------

VISION = {
    "attention_bias": False,
    "default_output_length": 280,
    "head_dim": 72,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "gemma4_vision",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 10240,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    "standardize": True,
    "use_clipped_linears": False,
}
GGUF = {
    "clip.vision.projection_dim": 2816,
    "clip.vision.image_size": 224,
    "clip.vision.patch_size": 16,
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.block_count": 27,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
}


UNIFIED = {"mm_embed_dim": 3840, "mm_posemb_size": 1120, "output_proj_dims": 3840, "pooling_kernel_size": 3}


def pixel_settings(patch: int, **settings: Any) -> Fields:
    pixels = {"do_normalize": False, "max_soft_tokens": 280, "patch_size": patch, "pooling_kernel_size": 3}
    return Fields(pixels | settings)


def config(settings: dict[str, Any] | None = None, patch: int = 16, **vision: Any) -> gemma4.Gemma4TowerSizes:
    read = {"text_config": {"hidden_size": 2816}, "vision_config": {**VISION, "patch_size": patch, **vision}}
    return gemma4.config_from_hf(Fields(read), pixel_settings(patch, **(settings or {})))


def unified_config(patch: int = 16, **vision: Any) -> gemma4_unified.UnifiedSizes:
    own = {**UNIFIED, "patch_size": patch, "model_patch_size": 3 * patch, **vision}
    read = {"text_config": {"hidden_size": 3840}, "vision_config": own}
    return gemma4_unified.config_from_hf(Fields(read), pixel_settings(patch))


def test_both_formats_state_one_config_of_the_12b():
    keys = {"block_count": 0, "feed_forward_length": 0, "attention.head_count": 0, "embedding_length": 3840}
    keys |= {"projection_dim": 3840, "patch_size": 16, "attention.layer_norm_epsilon": 1e-6}
    meta = {f"clip.vision.{key}": value for key, value in keys.items()}
    cfg = unified_config()
    assert gemma4_unified.config_from_gguf(Fields(meta, "clip.")) == cfg
    assert (cfg.block, cfg.values, cfg.table, cfg.most) == (48, 6912, 1120, 280)
    assert gemma4_unified.plan(cfg, 1920, 1080).tokens == 264


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"output_proj_dims": 2048}, "output_proj_dims is 2048"),
        ({"model_patch_size": 32}, "model_patch_size is 32"),
        ({"pooling_kernel_size": 2}, "pooling_kernel_size is 3"),
    ],
)
def test_another_form_of_the_12b_is_refused(vision: dict[str, Any], message: str):
    with pytest.raises(UnsupportedModel, match=message):
        unified_config(**vision)


def test_the_12b_has_the_names_that_transformers_gives_too(tmp_path: Path):
    seeing = opened("gemma4_unified", "safetensors", tmp_path)
    tensors = {}
    for name, values in make.hf_tensors(make.config("gemma4_unified")).items():
        name = name.replace("embed_vision.", "embed_vision.multimodal_embedder.")
        tensors[name.replace("vision_embedder.", "embed_vision.")] = values
    path = make.write_safetensors(make.config("gemma4_unified"), tmp_path / "new")
    (path / "model.safetensors").write_bytes(make.safetensors_bytes(tensors))
    tower = load_tower(path, load_model(path, threads=1), rounding=None)
    assert tower is not None
    assert np.array_equal(tower.features([seeing.picture(0)])[0], seeing.features(0))


def test_both_formats_state_one_config():
    cfg = config()
    of_gguf = gemma4.config_from_gguf(Fields(GGUF, "clip."))
    assert (of_gguf.standardised, of_gguf.clipped) == (None, None)  # its tensors say
    assert replace(of_gguf, standardised=True, clipped=False) == cfg
    assert (cfg.head, cfg.block, cfg.most, cfg.inner) == (72, 48, 280, 4320)
    assert gemma4.plan(cfg, 1920, 1080).tokens == 264
    assert gemma4.plan(cfg, 1920, 1080, TokenBudget(1, 70)).tokens <= 70


def test_rows_of_queries_are_laid_so_that_pairs_are_half_a_head_apart():
    assert gemma4.turned(2, 8).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"head_dim": 64}, "head_dim is 64"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"pooling_kernel_size": 2}, "pooling_kernel_size is 3"),
    ],
)
def test_another_tower_is_refused(vision: dict[str, Any], message: str):
    with pytest.raises(UnsupportedModel, match=message):
        config(**vision)


def test_pixels_of_another_form_are_named():
    with pytest.raises(UnsupportedModel, match="do_normalize is true"):
        config({"do_normalize": True, "image_mean": [0.5, 0.5, 0.5]})


def test_a_budget_is_one_of_those_that_the_models_were_trained_with():
    """A picture fills the largest that a request allows."""
    cfg = config()
    for allowed, used in ((70, 70), (139, 70), (256, 140), (300, 280), (1119, 560), (1120, 1120)):
        assert gemma4.most_rows(280, TokenBudget(1, allowed)) == used
        assert gemma4.plan(cfg, 4000, 3000, TokenBudget(1, allowed)) == gemma4.plan(
            replace(cfg, most=used), 4000, 3000
        )
    for tower, own in ((gemma4.TOWER, cfg), (gemma4_unified.TOWER, unified_config())):
        assert [tower.span_rows(own, TokenBudget(1, rows)) for rows in BUDGETS] == list(BUDGETS)
        assert tower.span_rows(own, None) == 280
    with pytest.raises(UnsupportedModel, match="max_soft_tokens is 100"):
        config({"max_soft_tokens": 100})


def test_a_picture_without_pixels_and_a_budget_beyond_the_model_are_refused():
    with pytest.raises(UsageError, match="0 x 4"):
        gemma4.plan(config(), 0, 4)
    with pytest.raises(UsageError, match="1,120"):
        gemma4.plan(config(), 4, 4, TokenBudget(1, 1121))
    with pytest.raises(UsageError, match="up to 70 of one at least"):
        gemma4.plan(config(), 4, 4, TokenBudget(1, 69))


def test_a_file_with_half_of_what_standardises_is_damaged(tmp_path: Path):
    with pytest.raises(BadModelFile, match=r"v\.std_bias"):
        TowerOracle(mmproj(TINY, tmp_path / "mmproj.gguf", v__std_bias=None))


def test_a_model_whose_tower_is_refused_reads_text(tmp_path: Path):
    path = make.write_safetensors(TINY, tmp_path)
    biased = TINY.hf | {"vision_config": TINY.hf["vision_config"] | {"attention_bias": True}}
    (path / "config.json").write_text(json.dumps(biased), encoding="utf-8")
    with freehold.load(path, context=64, threads=1) as llm:
        assert not llm.can_see
        assert any("cannot read pictures" in note and "attention_bias" in note for note in llm.notes)


def mmproj(tiny: make.TinyConfig, path: Path, **changed: np.ndarray | None) -> Path:
    """Write a tower with some tensors changed, or without them."""
    tensors = make.mmproj_tensors(tiny) | {key.replace("__", "."): value for key, value in changed.items()}
    stored = {
        name: (QuantType.F32, value.shape, value.tobytes())
        for name, value in tensors.items()
        if value is not None
    }
    path.write_bytes(make.gguf_bytes(tiny.mmproj, stored))
    return path


def test_bounds_of_a_matrix_that_hold_nothing_are_damage(tmp_path: Path):
    tiny, text = (
        make.config("gemma4-clipped"),
        load_model(make.write_gguf(make.config("gemma4-clipped"), tmp_path / "model.gguf"), threads=1),
    )
    low = {"v__blk__1__attn_out__input_min": np.array([2.0], np.float32)}
    tower = load_tower(mmproj(tiny, tmp_path / "mmproj.gguf", **low), text)
    assert tower is not None
    with pytest.raises(BadModelFile, match=r"the bounds 2\.0 and"):
        tower.features([(tower.plan(24, 24), [picture(0)])])
    some = {"v__blk__1__attn_out__input_min": None}
    with pytest.raises(BadModelFile, match=r"v\.blk\.1\.attn_out\.input_min is missing"):
        load_tower(mmproj(tiny, tmp_path / "mmproj.gguf", **some), text)


def test_a_matrix_of_a_gguf_without_bounds_is_not_clipped(tmp_path: Path):
    """Open bounds are none: converters write infinities, or leave a matrix's four numbers out."""
    tiny = make.config("gemma4-clipped")
    text = load_model(make.write_gguf(tiny, tmp_path / "model.gguf"), threads=1)
    names = [name for name in make.mmproj_tensors(tiny) if name.endswith(("put_min", "put_max"))]
    assert len(names) == 3 * 7 * 4
    without = {name.replace(".", "__"): None for name in names}
    open_ = {
        name.replace(".", "__"): np.array([-np.inf if name.endswith("min") else np.inf], np.float32)
        for name in names
    }
    out = []
    for i, changed in enumerate((without, open_, {})):
        tower = load_tower(mmproj(tiny, tmp_path / f"mmproj-{i}.gguf", **changed), text, rounding=None)
        assert tower is not None
        out += tower.features([(tower.plan(*SIZES[1], TokenBudget(1, 70)), [resized(1)])])
    assert error(out[1], out[0]) <= 1e-5 and error(out[2], out[0]) > 0.1


def test_a_quantised_file_runs_in_int8(folder: Seeing, tmp_path: Path):
    """Rows of queries and keys are laid anew whatever their type."""

    def encode(name: str, values: np.ndarray) -> tuple[QuantType, bytes]:
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            return QuantType.Q8_0, native.quantize_rows(values, "Q8_0", folder.text.threads).tobytes()
        return QuantType.F32, values.tobytes()

    path = make.write_mmproj(make.config(folder.name), tmp_path / "mmproj.gguf", encode=encode)
    other = load_tower(path, folder.text)
    assert other is not None
    (got,), want = other.features([folder.picture(0)]), folder.features(0)
    near = cosines(got, want)
    assert near.min() >= Q8_COSINES[folder.name][0]


def test_text_reads_pictures_both_ways_only_where_its_config_says_so():
    for value, both in (("vision", True), (None, False)):
        text = TINY.hf["text_config"] | {"use_bidirectional_attention": value}
        family, fields, wrapped = family_of(TINY.hf | {"text_config": text})
        assert wrapped and {"gemma4", "gemma4_unified"} <= {*family.towers}
        assert family.both(family.config_from_hf(fields)) is both
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention"):
        text = TINY.hf["text_config"] | {"use_bidirectional_attention": "all"}
        family, fields, _ = family_of(TINY.hf | {"text_config": text})
        family.config_from_hf(fields)


def test_the_12b_states_less_than_its_class_means():
    """No embeddings of layers, a window of 1,024, and pictures seen both ways unless null is stated."""
    tiny = make.config("gemma4_unified").hf
    own = {key: value for key, value in tiny["text_config"].items() if key != "sliding_window"}
    for stated, both in (({}, True), ({"use_bidirectional_attention": None}, False)):
        text = {key: value for key, value in own.items() if key != "use_bidirectional_attention"} | stated
        family, fields, _ = family_of(tiny | {"text_config": text})
        cfg = family.config_from_hf(fields)
        assert (cfg.inputs, cfg.both, cfg.windows) == (0, both, (1024, 0, 1024, 0))
