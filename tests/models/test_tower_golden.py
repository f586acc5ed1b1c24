"""A model that sees computes what transformers computed: sizes, pixels, features, logits and answers.

Features and logits come from three forms: a folder of safetensors, a GGUF with its mmproj, and the NumPy oracle over
each. The text model's logits are those that our own features lead to.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold import Image as Shot
from freehold import Message
from freehold.base.errors import UsageError
from freehold.run.engine.sequence import PICTURE_IDS
from freehold.run.formats import open_model_file
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.session import Oracle, PictureRows
from freehold.run.models.oracle.tower import TowerOracle
from freehold.run.models.packing.packer import Rounding
from freehold.run.models.seeing import LoadedTower, load_tower
from freehold.run.models.tiny import make
from freehold.run.models.tower import PicturePlan, in_blocks, raster_places
from freehold.run.pictures.opening import Resize, open_picture
from tests.models.golden import BOUND
from tests.models.golden_towers import (
    F32,
    Files,
    Golden,
    Shown,
    check_greedy,
    cosines,
    error,
    golden,
    lay_out,
    native_logits,
    oracle_logits,
    png,
)
from tests.vectors.pictures import (
    CRC32,
    PROMPTS,
    SIZES,
    PixelSettings,
    Prompt,
    picture,
    placeholder,
    prompt_ids,
)
from tests.vectors.weights import SEEING, VOCAB, checksum

FEATURES = 1e-4  # in standard deviations of the golden ones
ROWS = 2e-6  # of pixel values up to 2.7: the same operations on float32
# Of a feature's cosine with the golden one, its matrices rounded to int8: the least of all rows.
Q8_COSINE = 0.998
FORMS = ("safetensors", "gguf")
SEEN = [(name, form) for name in SEEING for form in FORMS]
FIRST = {tiny.mmproj["clip.projector_type"]: name for name, tiny in reversed(SEEING.items())}  # of each tower
MIXTURES = [
    name for name in SEEING if {"num_experts", "n_routed_experts"} & {*SEEING[name].hf["text_config"]}
]


def write(name: str, form: str, folder: Path) -> Files:
    tiny = SEEING[name]
    if form == "gguf":
        return Files(
            make.write_gguf(tiny, folder / "model.gguf"), make.write_mmproj(tiny, folder / "mmproj.gguf")
        )
    path = make.write_safetensors(tiny, folder / "model", dtype="BF16" if form == "published" else "F32")
    if form == "published" and tiny.hf["model_type"] in ("qwen2_vl", "qwen2_5_vl", "paddleocr_vl"):
        as_first_published(tiny, path)
    return Files(path, path)


OLDER = {"model.language_model.": "model.", "model.visual.": "visual.", "model.projector.": "mlp_AR."}


def as_first_published(tiny: make.TinyConfig, folder: Path) -> None:
    """Write the older names and the flat config.json of published files, whose rope is of the type "mrope"."""
    text, config = tiny.hf["text_config"], {k: v for k, v in tiny.hf.items() if k != "text_config"}
    rope = text["rope_parameters"]
    older = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config |= {k: v for k, v in text.items() if k not in ("model_type", "rope_parameters")}
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": older}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, value in make.hf_tensors(tiny).items():
        new = next((each for each in OLDER if name.startswith(each)), "")
        tensors[OLDER.get(new, "") + name.removeprefix(new)] = value
    if tiny.hf["model_type"] == "paddleocr_vl":  # which no forward pass reads
        tensors["visual.vision_model.head.probe"] = np.zeros((1, 1, 144), np.float32)
    (folder / "model.safetensors").write_bytes(make.safetensors_bytes(tensors, "BF16"))


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

    @property
    def block(self) -> int:
        return PixelSettings.of(SEEING[self.name]).block

    def pixels(self, number: int) -> np.ndarray:
        return as_picture(self.golden[f"rows_{number}"], self.plan(number))

    @cached_property
    def features(self) -> list[F32]:
        return [self.tower.features([(self.plan(i), [self.pixels(i)])])[0] for i in range(len(SIZES))]


def tower_of(files: Files, text: LoadedModel, rounding: Rounding | None = None) -> LoadedTower:
    tower = load_tower(files.tower, text, rounding=rounding)
    assert tower is not None
    return tower


@pytest.fixture(scope="module", params=SEEN, ids=lambda it: "-".join(it))
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    name, form = request.param
    yield Seeing(name, form, write(name, form, tmp_path_factory.mktemp("seeing")), golden(name))


def as_picture(rows: np.ndarray, plan: PicturePlan) -> np.ndarray:
    """Turn golden rows, block by block of 2 x 2 patches, back into a picture: uint8 [height, width, 3]."""
    width, height = plan.size
    patch = math.isqrt(rows.shape[1] // 3)
    blocks = rows.reshape(height // patch // 2, width // patch // 2, 2, 2, 3, patch, patch)
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 1, 3, 6, 4)).reshape(height, width, 3)


# --- before the tower: sizes and pixels -------------------------------------------------------------------


@pytest.mark.parametrize("name", SEEING)
def test_golden_file_was_made_from_these_weights(name: str):
    stored = golden(name)
    assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(SEEING[name]))
    assert json.loads(str(stored["config"])) == SEEING[name].hf


def test_pictures_are_those_that_golden_files_were_made_of():
    assert zlib.crc32(b"".join(picture(i).tobytes() for i in range(len(SIZES)))) == CRC32


def test_sizes_become_what_transformers_makes_of_them(seeing: Seeing):
    for width, height, wide, high in seeing.golden["sizes"].tolist():
        plan = seeing.tower.plan(width, height)
        assert plan.resizes == ((Resize(wide, high, "bicubic"),),), (width, height)
        assert plan.tokens * seeing.block**2 == plan.patches // 4 * seeing.block**2 == wide * high
        assert plan.layout == (plan.tokens,) and plan.advance == max(wide, high) // seeing.block


def test_a_picture_two_hundred_times_as_wide_as_high_is_the_last_that_is_taken(seeing: Seeing):
    assert seeing.tower.plan(200, 1).tokens
    with pytest.raises(UsageError, match=r"201 x 1 .* 200"):
        seeing.tower.plan(201, 1)


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("name", FIRST.values())  # the others have the same limits
def test_a_file_becomes_the_pixels_of_transformers(name: str, number: int, tmp_path: Path):
    stored = golden(name)
    files = write(name, "safetensors", tmp_path)
    with open_model_file(files.tower) as opened:
        source = read_tower(opened)
    assert source is not None
    tower, cfg = source.tower, source.cfg
    plan = tower.plan(cfg, *SIZES[number], None)
    _, (pixels,) = open_picture(png(picture(number)), lambda width, height: plan.resizes)
    torchvision = stored[f"rows_{number}"].astype(np.int16) + stored[f"torchvision_{number}"]
    near = np.abs(pixels - as_picture(torchvision, plan)).max() <= 1
    assert near or np.array_equal(pixels, as_picture(stored[f"rows_{number}"], plan))


def test_pixels_become_the_rows_of_transformers(seeing: Seeing):
    tower, cfg = seeing.tower.tower, seeing.tower.cfg
    for i in range(len(SIZES)):
        plan = seeing.plan(i)
        rows = tower.rows(cfg, plan, [seeing.pixels(i)])
        want = PixelSettings.of(SEEING[seeing.name]).values(seeing.golden[f"rows_{i}"])
        wide, high = (side // cfg.patch for side in plan.size)
        places = in_blocks(raster_places(high, wide).reshape(high, wide, 3), 2)  # of the golden rows
        assert rows.places is not None and rows.values.shape == want.shape
        mine, theirs = (np.argsort(each @ [0, wide, 1]) for each in (rows.places, places))
        assert np.array_equal(rows.places[mine], places[theirs])
        assert np.abs(rows.values[mine] - want[theirs]).max() <= ROWS
        assert rows.groups == (len(want),) and sum(rows.windows) in (0, len(want))


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
def test_a_published_folder_computes_the_golden_features_and_logits(name: str, tmp_path: Path):
    """Weights in BF16 are the same values."""
    files = write(name, "published", tmp_path)
    seeing = Seeing(name, "published", files, golden(name))
    for i, features in enumerate(seeing.features):
        assert error(features, seeing.golden[f"features_{i}"]) <= FEATURES
    laid_out = shown(seeing, PROMPTS[1])
    logits = native_logits(seeing.text, laid_out, [len(laid_out.ids)])
    assert error(logits, seeing.golden[f"full_{PROMPTS[1].name}"]) <= BOUND


def test_int8_panels_stay_near_the_golden_features(seeing: Seeing):
    tower = tower_of(seeing.files, seeing.text, "q8")
    assert {m.weight_type for m in tower.matrices.values()} & {"Q8_0"}
    for i in range(len(SIZES)):
        (features,) = tower.features([(seeing.plan(i), [seeing.pixels(i)])])
        want = seeing.golden[f"features_{i}"]
        for got, wanted in zip(columns(seeing, features), columns(seeing, want), strict=True):
            near = cosines(got, wanted)
            assert near.min() >= Q8_COSINE, (i, near.min())


def columns(seeing: Seeing, features: F32) -> list[F32]:
    """Divide features into what stands for words, and what is added after each of some layers."""
    return np.split(features, features.shape[1] // seeing.text.cfg.hidden, axis=1)


# --- the text model -----------------------------------------------------------------------------------------


def shown(seeing: Seeing, prompt: Prompt) -> Shown:
    plans, tiny = {i: seeing.plan(i) for i in prompt.pictures}, SEEING[seeing.name]
    ids = prompt_ids(tiny, prompt, {i: plan.tokens for i, plan in plans.items()}).tolist()
    features = [seeing.features[i] for i in prompt.pictures]
    return lay_out(ids, placeholder(tiny), [plans[i] for i in prompt.pictures], features, both=False)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_a_prompt_is_laid_out_as_in_transformers(seeing: Seeing, prompt: Prompt):
    laid_out = shown(seeing, prompt)
    assert laid_out.ids == seeing.golden[f"ids_{prompt.name}"].tolist()
    want = seeing.golden[f"places_{prompt.name}"]
    if not prompt.pictures:
        assert laid_out.places is None and (want == np.arange(len(want))[:, None]).all()
    else:
        assert np.array_equal(laid_out.places, want)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_native_plan_computes_the_golden_logits(seeing: Seeing, prompt: Prompt):
    laid_out, want = shown(seeing, prompt), seeing.golden[f"full_{prompt.name}"]
    assert want.shape == (len(laid_out.ids), VOCAB)
    whole = native_logits(seeing.text, laid_out, [len(laid_out.ids)])
    assert error(whole, want) <= BOUND
    assert np.array_equal(whole, native_logits(seeing.text, laid_out, laid_out.pieces))


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_oracle_computes_the_golden_logits(seeing: Seeing, prompt: Prompt):
    laid_out, want = shown(seeing, prompt), seeing.golden[f"full_{prompt.name}"]
    for chunks in ([len(laid_out.ids)], laid_out.pieces):
        assert error(oracle_logits(Oracle(seeing.files.text), laid_out, chunks), want) <= BOUND


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda it: it.name)
def test_greedy_answers_have_the_tokens_of_transformers(seeing: Seeing, prompt: Prompt):
    check_greedy(seeing.text, shown(seeing, prompt), seeing.golden[f"greedy_{prompt.name}"].tolist())


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


@pytest.mark.parametrize("name", FIRST.values())
def test_a_chat_has_its_pictures_between_the_marks_that_the_config_names(name: str, tmp_path: Path):
    """From files on, through template, tokenizer and engine: a picture between texts, and another in a later turn."""
    tiny = SEEING[name]
    files = write(name, "safetensors", tmp_path)
    start, end, *_ = range(VOCAB - len(make.MARKS), VOCAB)
    with freehold.load(files.text, context=512, threads=1) as llm:
        small, large = (Shot.of(png(picture(i))) for i in (2, 3))
        chat = [Message("user", parts=("a", small, "b")), Message("assistant", "c")]
        ids = llm.render([*chat, Message("user", parts=(large, "d"))])
        marked = [id if id < PICTURE_IDS else placeholder(tiny) for id in ids]
        runs = [(key, len([*each])) for key, each in itertools.groupby(marked)]
        around = [runs[i - 1 : i + 2] for i, (key, _) in enumerate(runs) if key == placeholder(tiny)]
        counts = [len(golden(name)[f"features_{i}"]) for i in (2, 3)]
        assert around == [[(start, 1), (placeholder(tiny), count), (end, 1)] for count in counts]
        assert llm.chat(chat[:1], temperature=0, max_tokens=4).usage.completion_tokens
