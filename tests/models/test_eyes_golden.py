"""Towers compute what transformers computed of whole pictures and chats, from files on and in each form of these.

A row of EYES (tests/vectors/eyes.py) and its golden file (make_eyes.py) bring a tower here. What a family has alone,
and what its files say, is in its own test; towers that read blocks are in test_tower_golden.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold.run.engine.sequence import PICTURE_IDS
from freehold.run.local import opening
from freehold.run.models.oracle.session import Oracle
from freehold.run.models.seeing import load_tower
from freehold.run.models.tiny import make
from tests.models.golden_towers import (
    EyesOnDisk,
    check_greedy,
    cosines,
    error,
    golden,
    native_logits,
    oracle_logits,
    pictures_of,
    seen,
)
from tests.vectors.eyes import COLUMNS, EYES
from tests.vectors.weights import VOCAB, checksum

BOUND = 1e-3  # of logits, in standard deviations of the golden ones


@pytest.fixture(scope="module", params=seen(tuple(EYES)))
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EyesOnDisk:
    name, form = request.param
    return EyesOnDisk.written(name, form, tmp_path_factory.mktemp("seeing"))


# --- before the tower ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EYES)
def test_golden_file_was_made_from_these_weights_and_pictures(name: str):
    stored, tiny = golden(name), make.config(name)
    assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(tiny))
    assert json.loads(str(stored["config"])) == tiny.hf
    assert int(stored["pictures_crc32"]) == EYES[name].pictures_crc32()


def test_sizes_become_what_transformers_makes_of_them(seeing: EyesOnDisk):
    for width, height, tokens, *sides in seeing.golden["sizes"].tolist():
        plan = seeing.tower.plan(width, height)
        resizes = [side for each in plan.resizes[0] for side in (each.width, each.height)]
        assert (plan.tokens, resizes) == (tokens, sides), (width, height)
        assert sum(item for item in plan.layout if isinstance(item, int)) == tokens
        assert plan.places is not None or plan.advance == tokens


@pytest.mark.parametrize("name", EYES)
def test_a_file_becomes_the_pixels_of_transformers(name: str, tmp_path: Path):
    """As the image processor's Pillow form has them, or within a step of torchvision's: they shrink one side first."""
    seeing = EyesOnDisk.written(name, "safetensors", tmp_path)
    for i in seeing.numbers:
        _, wanted = seeing.picture(i)
        for k, (pixels, want) in enumerate(zip(seeing.opened(i), wanted, strict=True)):
            other = want.astype(np.int16) + seeing.golden.get(f"torchvision_{i}_{k}", 1000)
            far = np.abs(pixels.astype(np.int16) - other).max()
            assert np.array_equal(pixels, want) or far <= 1, (i, k)


# --- the tower ----------------------------------------------------------------------------------------------


def test_native_plan_computes_the_golden_features(seeing: EyesOnDisk):
    for i, features in enumerate(seeing.features):
        assert error(features, seeing.golden[f"features_{i}"]) <= EYES[seeing.name].features, i


def test_oracle_computes_the_golden_features(seeing: EyesOnDisk):
    for i in seeing.numbers:
        features = seeing.oracle.features(*seeing.picture(i))
        assert error(features, seeing.golden[f"features_{i}"]) <= EYES[seeing.name].features, i


def test_pictures_computed_together_have_the_bits_of_each_alone(seeing: EyesOnDisk):
    order = (3, 0, 2, 1, 0)
    together = seeing.tower.features([seeing.picture(i) for i in order])
    assert all(np.array_equal(a, seeing.features[i]) for a, i in zip(together, order, strict=True))


def test_int8_panels_stay_near_the_golden_features(seeing: EyesOnDisk):
    tower = seeing.tower_of("q8")
    assert "Q8_0" in {m.weight_type for m in tower.matrices.values()}
    for i in seeing.numbers:
        (features,) = tower.features([seeing.picture(i)])
        near = cosines(features, seeing.golden[f"features_{i}"])
        assert near.min() >= EYES[seeing.name].cosine, (i, near.min())


# --- the text model -----------------------------------------------------------------------------------------


def test_native_plan_computes_the_golden_logits(seeing: EyesOnDisk):
    for number in range(len(seeing.chats)):
        chat = seeing.shown(number)
        whole = native_logits(seeing.text, chat, [len(chat.ids)])
        assert error(whole[:, ::COLUMNS], seeing.golden[f"full_{number}"]) <= BOUND, number
        assert np.array_equal(whole, native_logits(seeing.text, chat, chat.pieces))


def test_oracle_computes_the_golden_logits(seeing: EyesOnDisk):
    oracle = Oracle(seeing.files.text)
    for number in range(len(seeing.chats)):
        chat = seeing.shown(number)
        for chunks in ([len(chat.ids)], chat.pieces):
            logits = oracle_logits(oracle, chat, chunks)[:, ::COLUMNS]
            assert error(logits, seeing.golden[f"full_{number}"]) <= BOUND, number


def test_greedy_answers_have_the_tokens_of_transformers(seeing: EyesOnDisk):
    for number in range(len(seeing.chats)):
        check_greedy(seeing.text, seeing.shown(number), seeing.greedy(number))


def test_a_chat_is_written_and_answered_as_by_transformers(
    seeing: EyesOnDisk, monkeypatch: pytest.MonkeyPatch
):
    """From the file of a picture on, through the engine, with the tower's matrices as they are."""
    monkeypatch.setattr(opening, "load_tower", partial(load_tower, rounding=None))
    with freehold.load(seeing.files.text, context=512, threads=1, kv_type="f32") as llm:
        assert llm.can_see and not [note for note in llm.notes if "chat template" in note]
        for number, chat in enumerate(seeing.chats):
            messages = seeing.messages(number)
            assert written(seeing, llm.render(messages)) == written(
                seeing, seeing.golden[f"ids_{number}"].tolist()
            )
            if not all(as_golden(seeing, i) for i in pictures_of(chat)):
                continue
            want = seeing.greedy(number)
            answer = llm.chat(messages, temperature=0, max_tokens=len(want) or 1)
            got = list(answer.token_ids)
            assert got[: len(want)] == want[: len(got)], number
            assert len(got) >= len(want) or answer.finish_reason == "stop"


def written(seeing: EyesOnDisk, ids: Sequence[int]) -> list[int]:
    """Return ids with one for every row of a picture, and for what stands for a picture in a template."""
    tiny = make.config(seeing.name)
    marks = {VOCAB - len(tiny.marks) + i for i, mark in enumerate(tiny.marks) if mark == seeing.tower.mark}
    return [seeing.mark if id in marks or id >= PICTURE_IDS else id for id in ids]


def as_golden(seeing: EyesOnDisk, number: int) -> bool:
    """Whether a file becomes the golden pixels: Pillow's versions differ in which side comes first."""
    _, want = seeing.picture(number)
    return all(np.array_equal(a, b) for a, b in zip(seeing.opened(number), want, strict=True))
