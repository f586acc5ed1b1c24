"""A model that sees computes what transformers computed: sizes, pixels, features, logits and answers.

Features and logits come from three forms: a folder of safetensors, a GGUF with its mmproj, and the NumPy oracle over
each. The text model's logits are those that our own features lead to.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from freehold import _native as native
from freehold.errors import UsageError
from freehold.formats import open_model_file
from freehold.models.binding.towers import read_tower
from freehold.models.load import LoadedModel, load_model
from freehold.models.oracle.session import Oracle, PictureRows
from freehold.models.oracle.tower import TowerOracle
from freehold.models.packing.packer import Rounding
from freehold.models.seeing import LoadedTower, load_tower
from freehold.models.tiny import make
from freehold.models.tower import PicturePlan
from freehold.pictures.opening import Resize, open_picture
from tests.models.golden import BOUND, GOLDEN
from tests.vectors.pictures import PROMPTS, SIZES, Prompt, picture, placeholder, prompt_ids
from tests.vectors.weights import SEEING, VOCAB, checksum

FEATURES = 1e-4  # in standard deviations of the golden ones
ROWS = 1e-6  # of pixel values from -1 to 1: the same operations on float32
# Of a feature's cosine with the golden one, its matrices rounded to int8: the least of all rows.
Q8_COSINE = 0.999
FORMS = ("safetensors", "gguf")
SEEN = [(name, form) for name in SEEING for form in FORMS]
MIXTURES = [name for name in SEEING if "num_experts" in SEEING[name].hf["text_config"]]

F32 = np.ndarray
Golden = dict[str, np.ndarray]


class Files(NamedTuple):
    """Where a model's text half and its tower lie."""

    text: Path
    tower: Path


def write(name: str, form: str, folder: Path) -> Files:
    tiny = SEEING[name]
    if form == "gguf":
        return Files(
            make.write_gguf(tiny, folder / "model.gguf"), make.write_mmproj(tiny, folder / "mmproj.gguf")
        )
    path = make.write_safetensors(tiny, folder / "model", dtype="BF16" if form == "published" else "F32")
    return Files(path, path)


@dataclass(repr=False)
class Seeing:
    """A model with its tower, and what is compared with it."""

    name: str
    form: str
    files: Files
    golden: Golden

    @cached_property
    def text(self) -> LoadedModel:
        return load_model(self.files.text, threads=1)

    @cached_property
    def tower(self) -> LoadedTower:
        return tower_of(self.files, self.text)

    @cached_property
    def oracle(self) -> TowerOracle:
        return TowerOracle(self.files.tower)

    def plan(self, number: int) -> PicturePlan:
        return self.tower.plan(*SIZES[number])

    def pixels(self, number: int) -> np.ndarray:
        return as_picture(self.golden[f"rows_{number}"], self.plan(number))

    @cached_property
    def features(self) -> list[F32]:
        return [self.tower.features([(self.plan(i), [self.pixels(i)])])[0] for i in range(len(SIZES))]


def tower_of(files: Files, text: LoadedModel, rounding: Rounding | None = None) -> LoadedTower:
    tower = load_tower(files.tower, text, rounding=rounding)
    assert tower is not None
    return tower


def golden(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


@pytest.fixture(scope="module", params=SEEN, ids=lambda it: "-".join(it))
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    name, form = request.param
    yield Seeing(name, form, write(name, form, tmp_path_factory.mktemp("seeing")), golden(name))


def as_picture(rows: np.ndarray, plan: PicturePlan) -> np.ndarray:
    """Turn golden rows, block by block of 2 x 2 patches, back into a picture: uint8 [height, width, 3]."""
    width, height = plan.size
    blocks = rows.reshape(height // 32, width // 32, 2, 2, 3, 16, 16)
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 1, 3, 6, 4)).reshape(height, width, 3)


def error(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / want.std())


# --- before the tower: sizes and pixels -------------------------------------------------------------------


@pytest.mark.parametrize("name", SEEING)
def test_golden_file_was_made_from_these_weights_and_pictures(name: str):
    stored = golden(name)
    assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(SEEING[name]))
    assert json.loads(str(stored["config"])) == SEEING[name].hf
    assert all(np.array_equal(stored[f"picture_{i}"], picture(i)) for i in range(len(SIZES)))


def test_sizes_become_what_transformers_makes_of_them(seeing: Seeing):
    for width, height, wide, high in seeing.golden["sizes"].tolist():
        plan = seeing.tower.plan(width, height)
        assert plan.resizes == ((Resize(wide, high, "bicubic"),),), (width, height)
        assert plan.tokens * 4 == plan.patches == wide * high // 256
        assert plan.layout == (plan.tokens,) and plan.advance == max(wide, high) // 32


def test_a_picture_two_hundred_times_as_wide_as_high_is_the_last_that_is_taken(seeing: Seeing):
    assert seeing.tower.plan(200, 1).tokens
    with pytest.raises(UsageError, match=r"201 x 1 .* 200"):
        seeing.tower.plan(201, 1)


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("name", list(SEEING)[:1])  # the others have the same limits
def test_a_file_becomes_the_pixels_of_transformers(name: str, number: int, tmp_path: Path):
    stored = golden(name)
    data = io.BytesIO()
    Image.fromarray(picture(number)).save(data, "PNG")
    files = write(name, "safetensors", tmp_path)
    with open_model_file(files.tower) as opened:
        source = read_tower(opened)
    assert source is not None
    tower, cfg = source.tower, source.cfg
    plan = tower.plan(cfg, *SIZES[number], None)
    _, (pixels,) = open_picture(data.getvalue(), lambda width, height: plan.resizes)
    assert np.array_equal(pixels, as_picture(stored[f"rows_{number}"], plan))
    torchvision = stored[f"rows_{number}"].astype(np.int16) + stored[f"torchvision_{number}"]
    assert np.abs(pixels - as_picture(torchvision, plan)).max() <= 1


def test_pixels_become_the_rows_of_transformers(seeing: Seeing):
    tower, cfg = seeing.tower.tower, seeing.tower.cfg
    for i in range(len(SIZES)):
        rows = tower.rows(cfg, seeing.plan(i), [seeing.pixels(i)])
        want = (seeing.golden[f"rows_{i}"].astype(np.float64) / 255 - 0.5) / 0.5
        assert rows.values.shape == want.shape and np.abs(rows.values - want).max() <= ROWS
        assert rows.groups == (len(want),)


# --- the tower ----------------------------------------------------------------------------------------------


def test_native_plan_computes_the_golden_features(seeing: Seeing):
    for i, features in enumerate(seeing.features):
        assert error(features, seeing.golden[f"features_{i}"]) <= FEATURES


def test_oracle_computes_the_golden_features(seeing: Seeing):
    for i in range(len(SIZES)):
        features = seeing.oracle.features(seeing.plan(i), [seeing.pixels(i)])
        assert error(features, seeing.golden[f"features_{i}"]) <= FEATURES


def test_pictures_computed_together_have_the_bits_of_each_alone(seeing: Seeing):
    pictures = [(seeing.plan(i), [seeing.pixels(i)]) for i in (2, 0, 3, 1, 0)]
    together = seeing.tower.features(pictures)
    assert all(np.array_equal(a, seeing.features[i]) for a, i in zip(together, (2, 0, 3, 1, 0), strict=True))


@pytest.mark.parametrize("name", SEEING)
def test_a_published_folder_computes_the_golden_features(name: str, tmp_path: Path):
    """Weights in BF16 are the same values."""
    files = write(name, "published", tmp_path)
    seeing = Seeing(name, "published", files, golden(name))
    for i, features in enumerate(seeing.features):
        assert error(features, seeing.golden[f"features_{i}"]) <= FEATURES


def test_int8_panels_stay_near_the_golden_features(seeing: Seeing):
    tower = tower_of(seeing.files, seeing.text, "q8")
    assert {m.weight_type for m in tower.matrices.values()} & {"Q8_0"}
    for i in range(len(SIZES)):
        (features,) = tower.features([(seeing.plan(i), [seeing.pixels(i)])])
        want = seeing.golden[f"features_{i}"]
        for got, wanted in zip(columns(seeing, features), columns(seeing, want), strict=True):
            products = (got.astype(np.float64) * wanted).sum(axis=1)
            cosines = products / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
            assert cosines.min() >= Q8_COSINE, (i, cosines.min())


def columns(seeing: Seeing, features: F32) -> list[F32]:
    """Divide features into what stands for words, and what is added after each of some layers."""
    return np.split(features, features.shape[1] // seeing.text.cfg.hidden, axis=1)


# --- the text model -----------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A prompt with its pictures' rows, as a step takes them; `after`: the place of the token that follows."""

    ids: list[int]
    rows: np.ndarray
    places: np.ndarray
    features: F32 | None
    after: int

    def longer(self, tokens: Sequence[int]) -> Shown:
        """Return the prompt with an answer's tokens after it."""
        places = np.arange(self.after, self.after + len(tokens), dtype=np.int32)
        return Shown(
            [*self.ids, *tokens],
            np.concatenate([self.rows, np.full(len(tokens), -1, np.int32)]),
            np.concatenate([self.places, np.repeat(places[:, None], 3, axis=1)]),
            self.features,
            self.after + len(tokens),
        )

    def part(self, first: int, end: int) -> dict[str, Any]:
        """Return what a step of these rows has of pictures."""
        if self.features is None:
            return {}
        return {
            "features": self.features,
            "feature_rows": self.rows[first:end],
            "places": self.places[first:end],
        }


def shown(seeing: Seeing, prompt: Prompt) -> Shown:
    plans = {i: seeing.plan(i) for i in prompt.pictures}
    ids = prompt_ids(SEEING[seeing.name], prompt, {i: plan.tokens for i, plan in plans.items()})
    marked = ids == placeholder(SEEING[seeing.name])
    rows = np.where(marked, np.cumsum(marked) - 1, -1).astype(np.int32)
    places, turn = np.zeros((len(ids), 3), np.int32), 0
    waiting, t = iter(prompt.pictures), 0
    while t < len(ids):
        if not marked[t]:
            places[t], t, turn = turn, t + 1, turn + 1
            continue
        plan = plans[next(waiting)]
        assert plan.places is not None
        places[t : t + plan.tokens] = plan.places + turn
        t, turn = t + plan.tokens, turn + plan.advance
    features = [seeing.features[i] for i in prompt.pictures]
    return Shown(ids.tolist(), rows, places, np.concatenate(features) if features else None, turn)


def pieces(prompt: Shown) -> list[int]:
    """Divide a prompt into a prefill, which ends inside a picture if there is one, and single steps."""
    first = int(np.argmax(prompt.rows >= 0)) + 2 if prompt.features is not None else len(prompt.ids) // 2
    return [first, *[1] * (len(prompt.ids) - first)]


class NativeRun:
    """A sequence that grows in a plan."""

    def __init__(self, model: LoadedModel, most: int, context: int) -> None:
        blocks = -(-context // native.BLOCK_TOKENS)
        self._recurrent = any(spec.conv or spec.state for spec in model.layers)
        cache = model.new_cache(blocks, "f32", slots=1 if self._recurrent else 0)
        self._plan = model.build(cache, most)
        self._table = np.arange(blocks, dtype=np.int32)[None]
        self._length = 0

    def step(self, ids: Sequence[int], **pictures: Any) -> F32:
        first, count = self._length, len(ids)
        rows = np.arange(count, dtype=np.int32)
        options = dict(pictures)
        if self._recurrent:
            state = [0, first, first + count, 0 if first else -1, 0]
            options["pieces"] = np.array([state], np.int32)
        self._length += count
        tokens, seqs = np.array(ids, np.int32), np.zeros(count, np.int32)
        return self._plan.run(tokens, rows + first, seqs, self._table, rows, **options)[0]


def native_logits(model: LoadedModel, prompt: Shown, chunks: Sequence[int]) -> F32:
    run, out, first = NativeRun(model, max(chunks), len(prompt.ids)), [], 0
    for count in chunks:
        out.append(run.step(prompt.ids[first : first + count], **prompt.part(first, first + count)))
        first += count
    return np.concatenate(out)


def oracle_logits(path: Path, prompt: Shown, chunks: Sequence[int]) -> F32:
    session, out, first = Oracle(path).session(len(prompt.ids)), [], 0
    for count in chunks:
        pictures = PictureRows(**prompt.part(first, first + count))
        out.append(session.step(prompt.ids[first : first + count], pictures))
        first += count
    return np.concatenate(out)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_a_prompt_is_laid_out_as_in_transformers(seeing: Seeing, prompt: Prompt):
    laid_out = shown(seeing, prompt)
    assert laid_out.ids == seeing.golden[f"ids_{prompt.name}"].tolist()
    assert np.array_equal(laid_out.places, seeing.golden[f"places_{prompt.name}"])


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_native_plan_computes_the_golden_logits(seeing: Seeing, prompt: Prompt):
    laid_out, want = shown(seeing, prompt), seeing.golden[f"full_{prompt.name}"]
    assert want.shape == (len(laid_out.ids), VOCAB)
    whole = native_logits(seeing.text, laid_out, [len(laid_out.ids)])
    assert error(whole, want) <= BOUND
    assert np.array_equal(whole, native_logits(seeing.text, laid_out, pieces(laid_out)))


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_oracle_computes_the_golden_logits(seeing: Seeing, prompt: Prompt):
    laid_out, want = shown(seeing, prompt), seeing.golden[f"full_{prompt.name}"]
    for chunks in ([len(laid_out.ids)], pieces(laid_out)):
        assert error(oracle_logits(seeing.files.text, laid_out, chunks), want) <= BOUND


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_greedy_answers_have_the_tokens_of_transformers(seeing: Seeing, prompt: Prompt):
    laid_out, want = shown(seeing, prompt), seeing.golden[f"greedy_{prompt.name}"].tolist()
    first = len(laid_out.ids)
    run = NativeRun(seeing.text, first, first + len(want))
    logits = run.step(laid_out.ids, **laid_out.part(0, first))[-1]
    for t, token in enumerate(want):
        assert int(logits.argmax()) == token, t
        laid_out = laid_out.longer([token])
        logits = run.step([token], **laid_out.part(first + t, first + t + 1))[-1]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("form", FORMS)
def test_oracle_chooses_the_experts_that_transformers_chose(
    name: str, form: str, prompt: Prompt, tmp_path: Path
):
    seeing = Seeing(name, form, write(name, form, tmp_path), golden(name))
    laid_out = shown(seeing, prompt)
    session = Oracle(seeing.files.text).session()
    session.step(laid_out.ids, PictureRows(**laid_out.part(0, len(laid_out.ids))))
    chosen = [np.sort(routes.ids) for routes in session.routes]
    assert np.array_equal(chosen, seeing.golden[f"experts_{prompt.name}"])


@pytest.mark.parametrize("name", SEEING)
def test_another_picture_of_the_same_size_changes_what_follows_it_alone(name: str, tmp_path: Path):
    seeing = Seeing(name, "safetensors", write(name, "safetensors", tmp_path), golden(name))
    laid_out = shown(seeing, PROMPTS[1])
    plan = seeing.plan(PROMPTS[1].pictures[0])
    (features,) = seeing.tower.features([(plan, [255 - seeing.pixels(PROMPTS[1].pictures[0])])])
    other = laid_out._replace(features=features)
    chunks = [len(laid_out.ids)]
    a, b = (native_logits(seeing.text, each, chunks) for each in (laid_out, other))
    first = int(np.argmax(laid_out.rows >= 0))
    assert np.array_equal(a[:first], b[:first])
    assert (np.abs(a[first:] - b[first:]).max(axis=1) > 0.01).all()
