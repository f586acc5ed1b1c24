"""Gemma 3's tower: one square of each picture, whose rows see each other in the text model, and what files say of it.

What it computes is compared in test_eyes_golden.py. A step cuts no picture in two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import freehold
from freehold import Image, Message
from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.engine.sequence import PICTURE_IDS, PromptPictures
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import family_of
from freehold.run.models.tiny import make
from freehold.run.models.tower import TokenBudget
from freehold.run.models.towers import gemma3
from freehold.run.pictures.opening import Resize
from tests.models.golden_towers import EyesOnDisk, Shown, native_logits

ROWS = 2e-6  # of values from -1 to 1: the same operations on float32, in another order


@pytest.fixture(scope="module", params=["gemma3-eyes", "gemma3-eyes-wide"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EyesOnDisk:
    return EyesOnDisk.written(request.param, "safetensors", tmp_path_factory.mktemp("gemma3"))


def test_a_picture_of_any_size_becomes_one_square(folder: EyesOnDisk):
    tokens = make.config(folder.name).hf["mm_tokens_per_image"]
    for size in ((1, 1), (64, 64), (1, 32_768), (97, 160)):
        plan = folder.tower.plan(*size)
        assert plan.resizes == ((Resize(64, 64, "bilinear"),),)
        assert (plan.patches, plan.tokens, plan.layout) == (64, tokens, (tokens,))
        assert plan.advance == tokens == folder.tower.span_rows() and plan.places is None


def test_pixels_become_the_rows_of_transformers(folder: EyesOnDisk):
    """Row by row; a patch's columns are a convolution's: by colour, row and column."""
    tower, cfg = folder.tower.tower, folder.tower.cfg
    plan, (pixels,) = folder.picture(0)
    rows = tower.rows(cfg, plan, [pixels])
    assert rows.groups == (64,) and rows.places is None
    for at in range(64):
        patch = pixels[at // 8 * 8 :, at % 8 * 8 :][:8, :8]
        want = ((patch / 255 - 0.5) / 0.5).transpose(2, 0, 1).reshape(-1)
        assert np.abs(rows.values[at] - want).max() <= ROWS, at


def test_every_row_of_a_picture_reads_its_last_one(folder: EyesOnDisk):
    """And no word before it does."""
    chat = folder.shown(1)
    ((begin, end),) = chat.spans
    assert chat.features is not None
    whole = native_logits(folder.text, chat, [len(chat.ids)])
    features = chat.features.copy()
    features[-1] += 1
    other = native_logits(folder.text, chat._replace(features=features), [len(chat.ids)])
    apart = np.abs(other - whole).max(axis=1)
    assert not apart[:begin].any() and (apart[begin:end] > 0.01).all()
    alone = chat._replace(ends=None)
    apart = np.abs(native_logits(folder.text, alone, [len(chat.ids)]) - whole).max(axis=1)
    assert not apart[:begin].any() and (apart[begin : end - 1] > 0.01).all()


# --- in an engine: no step cuts a picture ------------------------------------------------------------------


def shown_in(engine_ids: range, chat: Shown, mark: int) -> tuple[list[int], PromptPictures]:
    """Return a chat with an engine's ids in place of its pictures' rows."""
    assert chat.features is not None
    ids = [engine_ids[row] if row >= 0 else id for id, row in zip(chat.ids, chat.rows, strict=True)]
    return ids, PromptPictures(chat.features, chat.rows, mark, spans=chat.spans)


def answers(
    engine: Engine, ids: list[int], pictures: PromptPictures, count: int = 6
) -> tuple[list[tuple[int, float | None]], int]:
    """Return tokens with their logarithms, and how many tokens of the prompt were cached."""
    params = SamplingParams(temperature=0.0)
    generation = engine.generate(ids, params, max_tokens=count, logprobs=1, pictures=pictures)
    out = [(token.id, token.logprob) for token in generation]
    return out, generation.usage.cached_tokens


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_step_of_few_tokens_computes_a_picture_whole(folder: EyesOnDisk, number: int):
    chat, span = folder.shown(number), folder.tower.span_rows()
    ids, pictures = shown_in(range(PICTURE_IDS, PICTURE_IDS + 100), chat, folder.mark)
    want, _ = answers(Engine(folder.text, context=160, span_rows=span), ids, pictures)
    tokens = folder.golden[f"greedy_{number}"].tolist()
    assert [id for id, _ in want] == tokens[: len(want)]
    for few in (1, 3, 7, span, span + 1):
        engine = Engine(folder.text, context=160, max_num_batched_tokens=few, span_rows=span)
        assert answers(engine, ids, pictures) == (want, 0), few


@pytest.mark.parametrize("few", [2, 40])
def test_prompts_that_share_steps_are_what_each_is_alone(folder: EyesOnDisk, few: int):
    span, next_id, prompts = folder.tower.span_rows(), PICTURE_IDS, []
    for number in (1, 3, 4):
        ids, pictures = shown_in(range(next_id, next_id + 100), folder.shown(number), folder.mark)
        prompts.append((ids, pictures))
        next_id += len(pictures.features)
    want = [answers(Engine(folder.text, context=160, span_rows=span), *prompt)[0] for prompt in prompts]
    engine = Engine(folder.text, context=160, blocks=40, max_num_batched_tokens=few, span_rows=span)
    params = SamplingParams(temperature=0.0)
    running = [engine.generate(ids, params, max_tokens=6, logprobs=1, pictures=p) for ids, p in prompts]
    together = [[(token.id, token.logprob) for token in tokens] for tokens in zip(*running, strict=True)]
    assert list(map(list, zip(*together, strict=True))) == want


def test_a_step_that_begins_within_a_cached_picture_has_the_bits_of_the_whole(folder: EyesOnDisk):
    """A prompt that ends with a picture: a second one computes its last row alone, beside cached ones."""
    chat, span = folder.shown(1), folder.tower.span_rows()
    ((_, end),) = chat.spans
    cut = chat._replace(ids=chat.ids[:end], rows=chat.rows[:end])
    ids, pictures = shown_in(range(PICTURE_IDS, PICTURE_IDS + 100), cut, folder.mark)
    engine = Engine(folder.text, context=160, span_rows=span)
    first, cached = answers(engine, ids, pictures)
    assert cached == 0
    again, cached = answers(engine, ids, pictures)
    assert cached == end - 1 and again == first


def test_a_picture_of_more_rows_than_the_engine_has_room_for_is_refused(folder: EyesOnDisk):
    ids, pictures = shown_in(range(PICTURE_IDS, PICTURE_IDS + 100), folder.shown(1), folder.mark)
    engine = Engine(folder.text, context=160, span_rows=folder.tower.span_rows() - 1)
    with pytest.raises(UsageError, match="tokens that attend to each other"):
        answers(engine, ids, pictures)


# --- a chat, from the file of a picture on -----------------------------------------------------------------


def test_a_second_turn_computes_its_words_alone(folder: EyesOnDisk):
    with freehold.load(folder.files.text, context=512, threads=1) as llm:
        chat = folder.messages(1)
        first = llm.chat(chat, temperature=0, max_tokens=4)
        chat += [Message("assistant", first.text), Message("user", "more")]
        second = llm.chat(chat, temperature=0, max_tokens=4)
        spans = folder.shown(1).spans
        assert second.usage.cached_tokens >= spans[-1][1]


def test_what_a_user_writes_is_no_picture(folder: EyesOnDisk):
    with freehold.load(folder.files.text, context=512, threads=1) as llm:
        chat = [Message("user", parts=(Image.of(folder.file(0)), "<start_of_image> <image_soft_token>"))]
        ids = list(llm.render(chat))
        assert ids.count(folder.mark) == folder.tower.span_rows() and ids.count(folder.mark - 1) == 1


# --- what files say -----------------------------------------------------------------------------------------

GEMMA_4B = {  # as gemma-3-4b-it's config.json has it
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
PIXELS = {  # as its preprocessor_config.json has it
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 896, "width": 896},
}
GGUF = {  # as llama.cpp's converter writes it
    "clip.use_gelu": True,
    "clip.vision.projection_dim": 2560,
    "clip.vision.image_size": 896,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.block_count": 27,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
}


def config(**pixels: Any) -> gemma3.GemmaTowerSizes:
    return gemma3.config_from_hf(Fields(GEMMA_4B), Fields(PIXELS | pixels))


def changed(section: str, **fields: Any) -> Fields:
    inner = {section: {**GEMMA_4B[section], **fields}} if section else fields
    return Fields({**GEMMA_4B, **inner})


def test_published_files_state_one_config():
    cfg = config()
    assert gemma3.config_from_gguf(Fields(GGUF, "clip.")) == cfg
    assert (cfg.head, cfg.grid, cfg.pool, cfg.rows, cfg.out) == (72, 64, 4, 256, 2560)
    assert cfg.pixels.filter == "bilinear" and cfg.inner == 4320
    assert gemma3.plan(cfg, 1920, 1080).resizes == ((Resize(896, 896, "bilinear"),),)
    family, fields, wrapped = family_of(GEMMA_4B)
    assert wrapped and family.towers == ("gemma3",) and family.both(None)
    assert family.feature_width(family.config_from_hf(fields)) == 2560


def test_a_budget_that_256_rows_do_not_fit_is_refused():
    cfg = config()
    assert gemma3.plan(cfg, 10, 10, TokenBudget(64, 256)).tokens == 256
    with pytest.raises(UsageError, match="256"):
        gemma3.plan(cfg, 10, 10, TokenBudget(1, 300))
    with pytest.raises(UsageError, match="0 to 128"):
        gemma3.plan(cfg, 10, 10, TokenBudget(0, 128))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_pan_and_scan": True}, "do_pan_and_scan"),
        ({"size": {"height": 448, "width": 896}}, "size.height is 448"),
        ({"do_normalize": False}, "do_normalize is false"),
    ],
)
def test_pixels_of_another_form_are_named(settings: dict[str, Any], message: str):
    with pytest.raises(UnsupportedModel, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (changed("", mm_tokens_per_image=250), UnsupportedModel, "mm_tokens_per_image is 250"),
        (changed("", mm_tokens_per_image=4225), BadModelFile, "mm_tokens_per_image"),
        (changed("vision_config", image_size=900), UnsupportedModel, "900 pixels"),
        (changed("vision_config", hidden_act="quick_gelu"), UnsupportedModel, "hidden_act"),
        (changed("vision_config", num_attention_heads=128), UnsupportedModel, "128 heads"),
    ],
)
def test_a_config_of_another_tower_is_refused(fields: Fields, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        gemma3.config_from_hf(fields, Fields({}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"clip.use_gelu": False}, UnsupportedModel, "clip.use_gelu is not true"),
        ({"clip.use_silu": True}, UnsupportedModel, "only encoders with GELU"),
        ({"clip.vision.image_size": None}, BadModelFile, "clip.vision.image_size is missing"),
        ({"clip.vision.projector.scale_factor": 5}, UnsupportedModel, "64 patches a side"),
    ],
)
def test_a_gguf_of_another_tower_is_refused(change: dict[str, Any], error: type[Exception], message: str):
    meta = {key: value for key, value in (GGUF | change).items() if value is not None}
    with pytest.raises(error, match=message):
        gemma3.config_from_gguf(Fields(meta, "clip."))
