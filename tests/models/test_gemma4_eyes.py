"""Gemma 4's tower computes what transformers computed: sizes, pixels, features, chats, logits and what follows them.

Golden file: tests/vectors/make_gemma4_eyes.py. Features come from a folder of safetensors, in float32 and in BF16, and
from an mmproj. Rows of a picture see each other in the sliding layers of the text model.
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
from freehold import _native as native
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
from freehold.models.towers import gemma4
from freehold.pictures.opening import Resize, open_picture
from freehold.types import SamplingParams
from tests.models.golden import GOLDEN
from tests.models.test_tower_golden import NativeRun
from tests.vectors.gemma4_eyes import CHATS, NAME, SIZES, picture
from tests.vectors.weights import checksum

TINY = make.config(NAME)
FORMS = ("safetensors", "hub", "gguf")
BOUND = 1e-3  # of features and logits, in standard deviations of the golden ones
ROWS = 2e-6  # of values from -1 to 1: the same operations on float32, in another order
# Of a feature's cosine with the golden one, its matrices rounded to int8, and activations with them: the least of all
# rows, and of a picture's rows on average.
Q8_COSINE, Q8_AVERAGE = 0.997, 0.999
CLEAR = 0.1  # of two logits: the nearer is chosen whatever int8 rounds
MOST = 70  # rows of a picture, which a GGUF does not state
MARK = TINY.hf["image_token_id"]

F32 = np.ndarray


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Pillow.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def write(form: str, folder: Path) -> tuple[Path, Path]:
    """Write the model; return where its text half and its tower are."""
    if form != "gguf":
        dtype = "BF16" if form == "hub" else "F32"
        path = make.write_safetensors(TINY, folder / "model", dtype=dtype)
        return path, path
    return make.write_gguf(TINY, folder / "model.gguf"), make.write_mmproj(TINY, folder / "mmproj-model.gguf")


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
    """The model with its tower, and what is compared with it."""

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

    def picture(self, number: int) -> tuple[PicturePlan, list[np.ndarray]]:
        return self.tower.plan(*SIZES[number], TokenBudget(1, MOST)), [self.golden[f"pixels_{number}"]]

    @cached_property
    def features(self) -> list[F32]:
        return [self.tower.features([self.picture(i)])[0] for i in range(len(SIZES))]

    def chat(self, number: int) -> Chat:
        ids = self.golden[f"ids_{number}"]
        marked = ids == MARK
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


def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{NAME}.npz") as data:
        return dict(data)


@pytest.fixture(scope="module", params=FORMS)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    yield Seeing(*write(request.param, tmp_path_factory.mktemp("gemma4")), golden())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    """The model in one form, for what no form changes."""
    return Seeing(*write("safetensors", tmp_path_factory.mktemp("gemma4")), golden())


def error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / want.std())


# --- before the tower: sizes and pixels -------------------------------------------------------------------


def test_golden_file_was_made_from_these_weights_and_pictures():
    stored = golden()
    assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(TINY))
    assert json.loads(str(stored["config"])) == TINY.hf
    assert all(np.array_equal(stored[f"picture_{i}"], picture(i)) for i in range(len(SIZES)))


def test_sizes_become_what_transformers_makes_of_them(folder: Seeing):
    for most, width, height, wide, high in folder.golden["sizes"].tolist():
        plan = gemma4.plan(replace(folder.tower.cfg, most=most), width, height)
        assert plan.resizes == ((Resize(wide, high, "bicubic"),),), (most, width, height)
        assert plan.tokens * 9 == plan.patches == wide * high // 64 and plan.tokens <= most
        assert plan.advance == plan.tokens and plan.places is None and plan.layout == (plan.tokens,)


def test_a_file_becomes_the_pixels_of_transformers(folder: Seeing):
    """As the image processor's Pillow form has them, or within a step of torchvision's."""
    for i in range(len(SIZES)):
        plan, (want,) = folder.picture(i)
        _, (pixels,) = open_picture(png(picture(i)), lambda *_: plan.resizes)  # noqa: B023
        far = np.abs(pixels.astype(np.int16) - folder.golden[f"torchvision_{i}"]).max()
        assert np.array_equal(pixels, want) or far <= 1, i


def test_pixels_become_the_rows_of_transformers(seeing: Seeing):
    """Block by block of 3 x 3; a patch's columns are by colour, row and column."""
    tower, cfg = seeing.tower.tower, seeing.tower.cfg
    plan, (pixels,) = seeing.picture(1)
    rows = tower.rows(cfg, plan, [pixels])
    assert rows.groups == (plan.patches,) and rows.places is not None
    for at in (0, 1, 8, 9, plan.patches - 1):
        _, row, column = rows.places[at].tolist()
        patch = pixels[8 * row :, 8 * column :][:8, :8]
        want = (2 * (patch / 255 - 0.5)).transpose(2, 0, 1).reshape(-1)
        assert np.abs(rows.values[at] - want).max() <= ROWS, at
    assert np.array_equal(rows.places[::9, 1:] // 3 @ [plan.size[0] // 24, 1], np.arange(plan.tokens))


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
        assert cosines.min() >= Q8_COSINE and cosines.mean() >= Q8_AVERAGE, (i, cosines.min(), cosines.mean())


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


def test_rows_of_a_picture_are_read_ahead_in_sliding_layers_alone(folder: Seeing):
    """A row reads as far ahead as its picture goes; computed in order alone, it comes out otherwise."""
    chat = folder.chat(1)
    ((begin, end),) = chat.spans
    want = folder.golden["full_1"]
    alone = replace(chat, ends=np.arange(1, len(chat.ids) + 1, dtype=np.int32))
    logits = native_logits(folder.text, alone, [len(chat.ids)])
    apart = np.abs(logits - want).max(axis=1) / want.std()
    assert apart[:begin].max() <= BOUND and (apart[begin : end - 1] > 0.01).all()
    kinds = [layer.parts[0] for layer in folder.text.network.layers]
    assert [getattr(part, "both") for part in kinds] == [True, False, True, False]  # noqa: B009


def test_greedy_answers_have_the_tokens_of_transformers(seeing: Seeing):
    for number in range(len(CHATS)):
        chat, want = seeing.chat(number), seeing.golden[f"greedy_{number}"].tolist()
        first = len(chat.ids)
        run = NativeRun(seeing.text, first, first + len(want))
        logits = run.step(chat.ids, **chat.part(0, first))[-1]
        for t, token in enumerate(want):
            assert int(logits.argmax()) == token, (number, t)
            logits = run.step([token])[-1]


# --- in an engine, and a chat from the file of a picture on ------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_of_few_tokens_computes_a_picture_whole(folder: Seeing, number: int):
    chat, span, params = folder.chat(number), folder.tower.span_rows, SamplingParams(temperature=0.0)
    assert chat.features is not None
    ids = [
        PICTURE_IDS + row if row >= 0 else id for id, row in zip(chat.ids, chat.rows.tolist(), strict=True)
    ]
    pictures = PromptPictures(chat.features, chat.rows, MARK, spans=chat.spans)
    out = []
    for few in (512, 1, 3, span):
        engine = Engine(folder.text, context=256, max_num_batched_tokens=few, span_rows=span)
        tokens = engine.generate(ids, params, max_tokens=6, logprobs=1, pictures=pictures)
        out.append([(token.id, token.logprob) for token in tokens])
    assert all(each == out[0] for each in out)
    assert [id for id, _ in out[0]] == folder.golden[f"greedy_{number}"].tolist()[: len(out[0])]


def test_a_chat_is_written_and_answered_as_by_transformers(folder: Seeing):
    """Matrices of the tower are rounded to int8."""
    with freehold.load(folder.text_path, context=512, threads=1, kv_type="f32") as llm:
        assert llm.can_see and not [note for note in llm.notes if "chat template" in note]
        for number in range(len(CHATS)):
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


def config(settings: dict[str, Any] | None = None, **vision: Any) -> gemma4.Gemma4TowerSizes:
    read = {"text_config": {"hidden_size": 2816}, "vision_config": VISION | vision}
    pixels = {"do_normalize": False, "max_soft_tokens": 280, "patch_size": 16, "pooling_kernel_size": 3}
    return gemma4.config_from_hf(Fields(read), Fields(pixels | (settings or {})))


def test_both_formats_state_one_config():
    cfg = config()
    assert replace(gemma4.config_from_gguf(Fields(GGUF, "clip.")), standardised=True) == cfg
    assert (cfg.head, cfg.block, cfg.most, cfg.inner) == (72, 48, 280, 4320)
    assert gemma4.plan(cfg, 1920, 1080).tokens == 264
    assert gemma4.plan(cfg, 1920, 1080, TokenBudget(1, 70)).tokens <= 70


def test_rows_of_queries_are_laid_so_that_pairs_are_half_a_head_apart():
    assert gemma4.turned(2, 8).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"use_clipped_linears": True}, "use_clipped_linears"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"head_dim": 64}, "head_dim is 64"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"patch_size": 14}, "patch_size is 16"),
    ],
)
def test_another_tower_is_refused(vision: dict[str, Any], message: str):
    with pytest.raises(UnsupportedModel, match=message):
        config(**vision)


def test_pixels_of_another_form_are_named():
    with pytest.raises(UnsupportedModel, match="do_normalize is true"):
        config({"do_normalize": True, "image_mean": [0.5, 0.5, 0.5]})


def test_a_picture_without_pixels_and_a_budget_beyond_the_model_are_refused():
    with pytest.raises(UsageError, match="0 x 4"):
        gemma4.plan(config(), 0, 4)
    with pytest.raises(UsageError, match="280"):
        gemma4.plan(config(), 4, 4, TokenBudget(1, 300))


def test_a_file_with_half_of_what_standardises_is_damaged(tmp_path: Path):
    tensors = make.mmproj_tensors(TINY)
    del tensors["v.std_bias"]
    stored = {name: (QuantType.F32, value.shape, value.tobytes()) for name, value in tensors.items()}
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(make.gguf_bytes(TINY.mmproj, stored))
    with pytest.raises(BadModelFile, match=r"v\.std_bias"):
        TowerOracle(path)


def test_a_model_whose_tower_is_refused_reads_text(tmp_path: Path):
    """E2B and E4B clip what enters and leaves a matrix."""
    path = make.write_safetensors(TINY, tmp_path)
    clipped = TINY.hf | {"vision_config": TINY.hf["vision_config"] | {"use_clipped_linears": True}}
    (path / "config.json").write_text(json.dumps(clipped), encoding="utf-8")
    with freehold.load(path, context=64, threads=1) as llm:
        assert not llm.can_see
        assert any("reads text only" in note and "use_clipped_linears" in note for note in llm.notes)


def test_a_quantised_file_runs_in_int8(folder: Seeing, tmp_path: Path):
    """Rows of queries and keys are laid anew whatever their type."""

    def encode(name: str, values: np.ndarray) -> tuple[QuantType, bytes]:
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            return QuantType.Q8_0, native.quantize_rows(values, "Q8_0", folder.text.threads).tobytes()
        return QuantType.F32, values.tobytes()

    path = make.write_mmproj(TINY, tmp_path / "mmproj.gguf", encode=encode)
    other = load_tower(path, folder.text)
    assert other is not None
    (got,), want = other.features([folder.picture(0)]), folder.features[0]
    cosines = (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosines.min() >= Q8_COSINE


def test_text_reads_pictures_both_ways_only_where_its_config_says_so():
    for value, both in (("vision", True), (None, False)):
        text = TINY.hf["text_config"] | {"use_bidirectional_attention": value}
        family, fields, wrapped = family_of(TINY.hf | {"text_config": text})
        assert wrapped and family.towers == ("gemma4",)
        assert family.config_from_hf(fields).both is both
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention"):
        text = TINY.hf["text_config"] | {"use_bidirectional_attention": "all"}
        family, fields, _ = family_of(TINY.hf | {"text_config": text})
        family.config_from_hf(fields)
