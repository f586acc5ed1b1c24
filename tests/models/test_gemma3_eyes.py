"""Gemma 3's tower computes what transformers computed: pixels, features, chats, logits and what follows them.

Golden files: tests/vectors/make_gemma3_eyes.py, of a tower that pools 4 x 4 patches and of one with heads of 72 columns
that pools 2 x 2. Features come from a folder of safetensors, as transformers 5 writes it and as the Hub has it, and
from an mmproj, as converters write it and as the first ones did. Rows of a picture see each other in the text model, so
a step cuts none in two.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image as Pillow

import freehold
from freehold import Image, Message
from freehold.engine import Engine
from freehold.engine.pictures import PICTURE_IDS, PromptPictures
from freehold.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.formats import QuantType
from freehold.formats.fields import Fields
from freehold.models.binding.bind import family_of
from freehold.models.load import LoadedModel, load_model
from freehold.models.oracle.session import Oracle, PictureRows
from freehold.models.oracle.tower import TowerOracle
from freehold.models.packing.packer import Rounding
from freehold.models.seeing import LoadedTower, load_tower
from freehold.models.tiny import make
from freehold.models.tower import PicturePlan, TokenBudget
from freehold.models.towers import gemma3
from freehold.pictures.opening import Resize, open_picture
from freehold.types import SamplingParams
from tests.models.golden import GOLDEN
from tests.models.test_tower_golden import NativeRun
from tests.vectors.gemma3_eyes import CHATS, NAMES, SIZES, gguf_keys, lines_join, picture
from tests.vectors.weights import checksum

FORMS = ("safetensors", "hub", "gguf", "swapped")
SEEN = [(name, form) for name in NAMES for form in FORMS]
BOUND = 1e-3  # of features and logits, in standard deviations of the golden ones
ROWS = 2e-6  # of values from -1 to 1: the same operations on float32, in another order
Q8_COSINE = 0.999  # of a feature with the golden one, matrices rounded to int8: the least of all rows
CLEAR = 0.1  # of two logits: the nearer is chosen whatever int8 rounds

F32 = np.ndarray


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Pillow.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write(name: str, form: str, folder: Path) -> tuple[Path, Path]:
    """Write the model; return where its text half and its tower are."""
    tiny = make.config(name)
    if form in ("safetensors", "hub"):
        path = make.write_safetensors(tiny, folder / "model")
        if form == "hub":
            tensors = {hub_name(key): value for key, value in make.hf_tensors(tiny).items()}
            (path / "model.safetensors").write_bytes(make.safetensors_bytes(tensors, "BF16"))
        lines_join(path)
        return path, path
    tensors = make.mmproj_tensors(tiny)
    if form == "swapped":
        tensors = {swapped(key): value for key, value in tensors.items()}
    text = make.write_gguf(tiny, folder / "model.gguf", keys=gguf_keys(tiny))
    return text, write_mmproj(tiny.mmproj, tensors, folder / "mmproj-model.gguf")


def hub_name(name: str) -> str:
    """Return what published files call a tensor."""
    inner = name.removeprefix("model.")
    if inner.startswith("vision_tower."):
        return inner.replace("vision_tower.", "vision_tower.vision_model.")
    return inner.replace("language_model.", "language_model.model.")


def swapped(name: str) -> str:
    if "ffn_up" in name:
        return name.replace("ffn_up", "ffn_down")
    return name.replace("ffn_down", "ffn_up")


def write_mmproj(keys: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> Path:
    stored = {name: (QuantType.F32, value.shape, value.tobytes()) for name, value in tensors.items()}
    path.write_bytes(make.gguf_bytes(keys | {"general.name": "tiny"}, stored))
    return path


@dataclass(frozen=True)
class Chat:
    """A chat's ids and what a step has of its pictures."""

    ids: list[int]
    features: F32 | None
    rows: np.ndarray  # of features, -1 for a word
    ends: np.ndarray

    def part(self, first: int, end: int) -> dict[str, Any]:
        if self.features is None:
            return {}
        return {
            "features": self.features,
            "feature_rows": self.rows[first:end],
            "ends": self.ends[first:end],
        }

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where pictures are."""
        shown = np.concatenate([[False], self.rows >= 0, [False]])
        edges = np.flatnonzero(shown[1:] != shown[:-1]).reshape(-1, 2)
        return tuple((int(first), int(end)) for first, end in edges)


@dataclass(repr=False)
class Seeing:
    """A model with its tower, and what is compared with it."""

    name: str
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
    def mark(self) -> int:
        return make.config(self.name).hf["image_token_index"]

    def picture(self, number: int) -> tuple[PicturePlan, list[np.ndarray]]:
        return self.tower.plan(*SIZES[number]), [self.golden[f"pixels_{number}"]]

    @cached_property
    def features(self) -> list[F32]:
        return [self.tower.features([self.picture(i)])[0] for i in range(len(SIZES))]

    def chat(self, number: int) -> Chat:
        ids = self.golden[f"ids_{number}"]
        marked = ids == self.mark
        rows = np.where(marked, np.cumsum(marked) - 1, -1).astype(np.int32)
        ends = np.arange(1, len(ids) + 1, dtype=np.int32)
        for t in np.flatnonzero(marked)[::-1]:
            ends[t] = max(ends[t], ends[t + 1] if marked[t + 1] else 0)
        shown = [part for _, parts in CHATS[number] for part in parts if isinstance(part, int)]
        features = np.concatenate([self.features[i] for i in shown]) if shown else None
        return Chat(ids.tolist(), features, rows, ends)

    def messages(self, number: int) -> list[Message]:
        return [
            Message(
                cast(Any, role),
                parts=tuple(p if isinstance(p, str) else Image.of(png(picture(p))) for p in parts),
            )
            for role, parts in CHATS[number]
        ]


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


@pytest.fixture(scope="module", params=SEEN, ids=lambda it: "-".join(it))
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    name, form = request.param
    yield Seeing(name, *write(name, form, tmp_path_factory.mktemp("gemma3")), golden(name))


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    """A model in one form, for what no form changes."""
    path = tmp_path_factory.mktemp("gemma3")
    yield Seeing(request.param, *write(request.param, "safetensors", path), golden(request.param))


def error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / want.std())


# --- before the tower: sizes and pixels -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_was_made_from_these_weights_and_pictures(name: str):
    stored, tiny = golden(name), make.config(name)
    assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(tiny))
    assert json.loads(str(stored["config"])) == tiny.hf
    assert all(np.array_equal(stored[f"picture_{i}"], picture(i)) for i in range(len(SIZES)))


def test_a_picture_of_any_size_becomes_one_square(seeing: Seeing):
    tokens = make.config(seeing.name).hf["mm_tokens_per_image"]
    for size in ((1, 1), (64, 64), (1, 32_768), (97, 160)):
        plan = seeing.tower.plan(*size)
        assert plan.resizes == ((Resize(64, 64, "bilinear"),),)
        assert (plan.patches, plan.tokens, plan.layout) == (64, tokens, (tokens,))
        assert plan.advance == tokens == seeing.tower.span_rows and plan.places is None


def test_a_file_becomes_the_pixels_of_transformers(folder: Seeing):
    """As the image processor's Pillow form has them, a step from torchvision's at most."""
    for i in range(len(SIZES)):
        plan, (want,) = folder.picture(i)
        _, (pixels,) = open_picture(png(picture(i)), lambda *_: plan.resizes)  # noqa: B023
        assert np.array_equal(pixels, want), i
        far = pixels.astype(np.int16) - want - folder.golden[f"torchvision_{i}"]
        assert np.abs(far).max() <= 1


def test_pixels_become_the_rows_of_transformers(seeing: Seeing):
    """Row by row; a patch's columns are a convolution's: by colour, row and column."""
    tower, cfg = seeing.tower.tower, seeing.tower.cfg
    plan, (pixels,) = seeing.picture(0)
    rows = tower.rows(cfg, plan, [pixels])
    assert rows.groups == (64,) and rows.places is None
    for at in range(64):
        patch = pixels[at // 8 * 8 :, at % 8 * 8 :][:8, :8]
        want = ((patch / 255 - 0.5) / 0.5).transpose(2, 0, 1).reshape(-1)
        assert np.abs(rows.values[at] - want).max() <= ROWS, at


# --- the tower ----------------------------------------------------------------------------------------------


def test_native_plan_computes_the_golden_features(seeing: Seeing):
    for i, features in enumerate(seeing.features):
        assert error(features, seeing.golden[f"features_{i}"]) <= BOUND


def test_oracle_computes_the_golden_features(seeing: Seeing):
    oracle = TowerOracle(seeing.tower_path)
    for i in range(len(SIZES)):
        assert error(oracle.features(*seeing.picture(i)), seeing.golden[f"features_{i}"]) <= BOUND


def test_pictures_computed_together_have_the_bits_of_each_alone(seeing: Seeing):
    order = (3, 0, 2, 1, 0)
    together = seeing.tower.features([seeing.picture(i) for i in order])
    assert all(np.array_equal(a, seeing.features[i]) for a, i in zip(together, order, strict=True))


def test_int8_panels_stay_near_the_golden_features(seeing: Seeing):
    tower = seeing.tower_of("q8")
    assert "Q8_0" in {m.weight_type for m in tower.matrices.values()}
    for i in range(len(SIZES)):
        (got,), want = tower.features([seeing.picture(i)]), seeing.golden[f"features_{i}"]
        cosines = (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
        assert cosines.min() >= Q8_COSINE, (i, cosines.min())


# --- the text model -----------------------------------------------------------------------------------------


def pieces(chat: Chat) -> list[int]:
    """Divide a chat into a prefill to the end of its last picture, and single steps."""
    first = chat.spans[-1][1] if chat.spans else len(chat.ids) // 2
    return [first, *[1] * (len(chat.ids) - first)]


def native_logits(model: LoadedModel, chat: Chat, chunks: Sequence[int]) -> F32:
    run, out, first = NativeRun(model, max(chunks), len(chat.ids)), [], 0
    for count in chunks:
        out.append(run.step(chat.ids[first : first + count], **chat.part(first, first + count)))
        first += count
    return np.concatenate(out)


def oracle_logits(oracle: Oracle, chat: Chat, chunks: Sequence[int]) -> F32:
    session, out, first = oracle.session(len(chat.ids)), [], 0
    for count in chunks:
        pictures = PictureRows(**chat.part(first, first + count))
        out.append(session.step(chat.ids[first : first + count], pictures))
        first += count
    return np.concatenate(out)


def test_native_plan_computes_the_golden_logits(seeing: Seeing):
    for number in range(len(CHATS)):
        chat, want = seeing.chat(number), seeing.golden[f"full_{number}"]
        whole = native_logits(seeing.text, chat, [len(chat.ids)])
        assert error(whole, want) <= BOUND, number
        assert np.array_equal(whole, native_logits(seeing.text, chat, pieces(chat)))


def test_oracle_computes_the_golden_logits(seeing: Seeing):
    oracle = Oracle(seeing.text_path)
    for number in range(len(CHATS)):
        chat, want = seeing.chat(number), seeing.golden[f"full_{number}"]
        for chunks in ([len(chat.ids)], pieces(chat)):
            assert error(oracle_logits(oracle, chat, chunks), want) <= BOUND, number


def test_greedy_answers_have_the_tokens_of_transformers(seeing: Seeing):
    for number in range(len(CHATS)):
        chat, want = seeing.chat(number), seeing.golden[f"greedy_{number}"].tolist()
        first = len(chat.ids)
        run = NativeRun(seeing.text, first, first + len(want))
        logits = run.step(chat.ids, **chat.part(0, first))[-1]
        for t, token in enumerate(want):
            assert int(logits.argmax()) == token, (number, t)
            logits = run.step([token])[-1]


def test_every_row_of_a_picture_reads_its_last_one(folder: Seeing):
    """And no word before it does."""
    chat = folder.chat(1)
    ((begin, end),) = chat.spans
    assert chat.features is not None
    whole = native_logits(folder.text, chat, [len(chat.ids)])
    features = chat.features.copy()
    features[-1] += 1
    other = native_logits(folder.text, replace(chat, features=features), [len(chat.ids)])
    apart = np.abs(other - whole).max(axis=1)
    assert not apart[:begin].any() and (apart[begin:end] > 0.01).all()
    alone = replace(chat, ends=np.arange(1, len(chat.ids) + 1, dtype=np.int32))
    apart = np.abs(native_logits(folder.text, alone, [len(chat.ids)]) - whole).max(axis=1)
    assert not apart[:begin].any() and (apart[begin : end - 1] > 0.01).all()


# --- in an engine: no step cuts a picture ------------------------------------------------------------------


def shown_in(engine_ids: range, chat: Chat, mark: int) -> tuple[list[int], PromptPictures]:
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
def test_a_step_of_few_tokens_computes_a_picture_whole(folder: Seeing, number: int):
    chat, span = folder.chat(number), folder.tower.span_rows
    ids, pictures = shown_in(range(PICTURE_IDS, PICTURE_IDS + 100), chat, folder.mark)
    want, _ = answers(Engine(folder.text, context=160, span_rows=span), ids, pictures)
    tokens = folder.golden[f"greedy_{number}"].tolist()
    assert [id for id, _ in want] == tokens[: len(want)]
    for few in (1, 3, 7, span, span + 1):
        engine = Engine(folder.text, context=160, max_num_batched_tokens=few, span_rows=span)
        assert answers(engine, ids, pictures) == (want, 0), few


@pytest.mark.parametrize("few", [2, 40])
def test_prompts_that_share_steps_are_what_each_is_alone(folder: Seeing, few: int):
    span, next_id, prompts = folder.tower.span_rows, PICTURE_IDS, []
    for number in (1, 3, 4):
        ids, pictures = shown_in(range(next_id, next_id + 100), folder.chat(number), folder.mark)
        prompts.append((ids, pictures))
        next_id += len(pictures.features)
    want = [answers(Engine(folder.text, context=160, span_rows=span), *prompt)[0] for prompt in prompts]
    engine = Engine(folder.text, context=160, blocks=40, max_num_batched_tokens=few, span_rows=span)
    params = SamplingParams(temperature=0.0)
    running = [engine.generate(ids, params, max_tokens=6, logprobs=1, pictures=p) for ids, p in prompts]
    together = [[(token.id, token.logprob) for token in tokens] for tokens in zip(*running, strict=True)]
    assert list(map(list, zip(*together, strict=True))) == want


def test_a_step_that_begins_within_a_cached_picture_has_the_bits_of_the_whole(folder: Seeing):
    """A prompt that ends with a picture: a second one computes its last row alone, beside cached ones."""
    chat, span = folder.chat(1), folder.tower.span_rows
    ((_, end),) = chat.spans
    cut = Chat(chat.ids[:end], chat.features, chat.rows[:end], chat.ends[:end])
    ids, pictures = shown_in(range(PICTURE_IDS, PICTURE_IDS + 100), cut, folder.mark)
    engine = Engine(folder.text, context=160, span_rows=span)
    first, cached = answers(engine, ids, pictures)
    assert cached == 0
    again, cached = answers(engine, ids, pictures)
    assert cached == end - 1 and again == first


def test_a_picture_of_more_rows_than_the_engine_has_room_for_is_refused(folder: Seeing):
    ids, pictures = shown_in(range(PICTURE_IDS, PICTURE_IDS + 100), folder.chat(1), folder.mark)
    engine = Engine(folder.text, context=160, span_rows=folder.tower.span_rows - 1)
    with pytest.raises(UsageError, match="rows that see each other"):
        answers(engine, ids, pictures)


# --- a chat, from the file of a picture on -----------------------------------------------------------------


def test_a_chat_is_written_and_answered_as_by_transformers(seeing: Seeing):
    """The lines that the processor sets around a picture join those beside them; matrices are rounded to int8."""
    with freehold.load(seeing.text_path, context=512, threads=1, kv_type="f32") as llm:
        assert llm.can_see and not [note for note in llm.notes if "chat template" in note]
        for number in range(len(CHATS)):
            chat = seeing.messages(number)
            assert list(llm.render(chat)) == seeing.golden[f"ids_{number}"].tolist(), number
            clear = int(np.cumprod(seeing.golden[f"margins_{number}"] > CLEAR).sum())
            want = seeing.golden[f"greedy_{number}"][:clear].tolist()
            answer = llm.chat(chat, temperature=0, max_tokens=len(want) or 1)
            assert list(answer.token_ids)[: len(want)] == want[: len(answer.token_ids)], number
            assert len(answer.token_ids) >= len(want) or answer.finish_reason == "stop"


def test_a_second_turn_computes_its_words_alone(folder: Seeing):
    with freehold.load(folder.text_path, context=512, threads=1) as llm:
        chat = folder.messages(1)
        first = llm.chat(chat, temperature=0, max_tokens=4)
        chat += [Message("assistant", first.text), Message("user", "more")]
        second = llm.chat(chat, temperature=0, max_tokens=4)
        spans = folder.chat(1).spans
        assert second.usage.cached_tokens >= spans[-1][1]


def test_what_a_user_writes_is_no_picture(folder: Seeing):
    with freehold.load(folder.text_path, context=512, threads=1) as llm:
        chat = [Message("user", parts=(Image.of(png(picture(0))), "<start_of_image> <image_soft_token>"))]
        ids = list(llm.render(chat))
        assert ids.count(folder.mark) == folder.tower.span_rows and ids.count(folder.mark - 1) == 1


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
    assert wrapped and family.towers == ("gemma3",) and family.both
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
        ({"clip.use_silu": True}, UnsupportedModel, "only towers with GELU"),
        ({"clip.vision.image_size": None}, BadModelFile, "clip.vision.image_size is missing"),
        ({"clip.vision.projector.scale_factor": 5}, UnsupportedModel, "64 patches a side"),
    ],
)
def test_a_gguf_of_another_tower_is_refused(change: dict[str, Any], error: type[Exception], message: str):
    meta = {key: value for key, value in (GGUF | change).items() if value is not None}
    with pytest.raises(error, match=message):
        gemma3.config_from_gguf(Fields(meta, "clip."))
