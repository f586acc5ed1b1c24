"""A Whisper computes what transformers computed: its encoder as a tower, its decoder behind rows of sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freehold.run.engine import Engine
from freehold.run.formats import open_model_file
from freehold.run.local.speech_model import Heard, SpeechModel, SpeechTokens
from freehold.run.local.words import Aligner, aligned, medians, warped
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.tower import TowerOracle
from freehold.run.models.seeing import LoadedTower, load_tower
from tests.models.golden import GOLDEN
from tests.vectors.whisper import ROWS, windows, write_whisper

NO_PAUSE: Any = lambda: None  # noqa: E731
# No id means an end, so answers are as long as they may be.
TOKENS = SpeechTokens(1, 250, 3, 4, None, 5, 6, 256, {}, (), ())
BUDGETS = (None, 17, ROWS, ROWS + 1, 64, 97)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "whisper.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    with closing(open_model_file(folder)) as opened:
        return load_model(opened, threads=1, tokens=256, rounding=None)


def tower_of(folder: Path, model: LoadedModel, rounding: Any = None) -> LoadedTower:
    tower = load_tower(folder, model, rounding=rounding)
    assert tower is not None
    return tower


def features_of(tower: LoadedTower, frames: np.ndarray) -> np.ndarray:
    pictures: Any = [(tower.plan(1, 1), (frames,))]
    return tower.features(pictures, NO_PAUSE)[0]


@pytest.fixture
def speech(folder: Path, model: LoadedModel, request: pytest.FixtureRequest) -> Iterator[SpeechModel]:
    budget = getattr(request, "param", None)
    limits = {} if budget is None else {"max_num_batched_tokens": budget}
    with Engine(model, speculate=False, kv_type="f32", **limits) as engine:
        yield SpeechModel(tower_of(folder, model), engine, TOKENS)


def heard(speech: SpeechModel) -> list[Heard]:
    return speech.encode(list(windows()), NO_PAUSE)


def test_features_are_the_golden_ones(golden, folder: Path, model: LoadedModel):
    oracle, tower, rounded = TowerOracle(folder), tower_of(folder, model), tower_of(folder, model, "q8")
    for frames, expected in zip(golden["windows"], golden["features"], strict=True):
        for got in (features_of(tower, frames), oracle.features(tower.plan(1, 1), (frames,))):
            assert np.abs(got - expected).max() < 1e-5 * expected.std()
        got = features_of(rounded, frames)
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((got * expected).sum(axis=1) / lengths).min() > 0.999


def test_the_first_token_s_probabilities_are_the_golden_ones(golden, speech: SpeechModel):
    for each, row in zip(heard(speech), golden["first"].astype(np.float64), strict=True):
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert np.abs(np.log(speech.starts(each)) - expected).max() < 1e-4


@pytest.mark.parametrize("speech", BUDGETS, indirect=True)
def test_answers_are_the_golden_ones_whatever_a_step_holds_and_beside_others(golden, speech: SpeechModel):
    """Steps cut rows of sound and never join text to them: at 64 a chunk once held both."""
    sounds = heard(speech)
    alone = [speech.decode([each], [[1]], marks=False, max_tokens=12)[0] for each in sounds]
    assert [list(each.tokens) for each in alone] == golden["greedy"][:, 1:].tolist()
    together = speech.decode(sounds * 4, [[1]] * 8, marks=False, max_tokens=12)
    assert [(d.tokens, d.sum_logprob) for d in together] == [(d.tokens, d.sum_logprob) for d in alone] * 4


def test_a_window_s_rows_are_computed_once_for_all_its_prompts(speech: SpeechModel):
    (first, _) = heard(speech)
    speech.decode([first], [[1]], marks=False, max_tokens=2)
    before = speech._engine.stats().prompt_tokens - speech._engine.stats().cached_tokens
    for prompt in ([1, 7], [1, 8, 9], [1]):
        speech.decode([first], [prompt], marks=False, max_tokens=2, temperature=0.5, seed=3)
    after = speech._engine.stats().prompt_tokens - speech._engine.stats().cached_tokens
    assert after - before < ROWS, "the pages of sound are shared"


def test_a_window_that_was_heard_is_not_encoded_again(speech: SpeechModel):
    assert heard(speech)[0] is heard(speech)[0]


def test_alignment_sees_what_the_heads_saw(golden, model: LoadedModel):
    heads = [(0, 1), (1, 0)]
    aligner = Aligner(model, heads)
    for i, prompt in enumerate(golden["prompts"].tolist()):
        weights = aligner.weights(golden["features"][i], prompt, ROWS)
        expected = np.stack([golden["cross"][layer, i, head] for layer, head in heads])
        assert np.abs(weights - expected).max() < 1e-3


def test_the_cheapest_path_is_found():
    cost = np.full((3, 9), 1.0)
    for token, frames in enumerate(((0, 1, 2), (3, 4), (5, 6, 7, 8))):
        cost[token, list(frames)] = -1
    rows, columns = warped(cost)
    assert rows.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2] and columns.tolist() == list(range(9))
    assert aligned(-np.stack([cost, cost]).astype(np.float32))[1][-1] == 8
    assert medians(np.array([[0, 9, 0, 0, 0, 0, 0, 0]], np.float32)).max() == 0
