"""Rows of pictures in an engine: numbers that tell pictures apart, features in place of embeddings, shared prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import CapacityExceeded, UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.engine import sequence as module
from freehold.run.engine.sequence import PICTURE_IDS, PictureIds, PromptPictures
from freehold.run.models.load import LoadedModel

GREEDY = SamplingParams(temperature=0.0)
ROWS = 40


def picture(seed: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, width)).astype(np.float32)


def prompt(
    ids: PictureIds, seed: int, width: int, before: int = 4, after: int = 6
) -> tuple[list[int], PromptPictures]:
    """A few tokens, a picture, a few tokens."""
    rows = [*[-1] * before, *range(ROWS), *[-1] * after]
    tokens = [*range(5, 5 + before), *ids.of(bytes([seed]), ROWS), *range(50, 50 + after)]
    return tokens, PromptPictures(picture(seed, width), np.array(rows, np.int32), placeholder=7)


def test_equal_pictures_have_equal_numbers_and_no_two_share_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "REMEMBERED", 2)
    ids = PictureIds()
    first, second = ids.of(b"a", 3), ids.of(b"b", 2)
    assert first == range(PICTURE_IDS, PICTURE_IDS + 3) and second == range(first.stop, first.stop + 2)
    assert ids.of(b"a", 3) == first
    ids.of(b"c", 1)  # the longest unused, b, is forgotten
    assert ids.of(b"a", 3) == first and ids.of(b"b", 2).start > second.stop


def test_numbers_that_are_used_up_are_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LAST_ID", PICTURE_IDS + 4)
    ids = PictureIds()
    ids.of(b"a", 4)
    with pytest.raises(CapacityExceeded, match="4 rows of pictures"):
        ids.of(b"b", 1)


def test_features_that_are_an_embedding_answer_as_its_token(model: LoadedModel):
    """The seam is right if rows of the embedding table, shown as a picture, give what their tokens give."""
    from freehold.run.models.oracle.session import DenseMatrix, Oracle

    oracle = Oracle(model.path)
    table = oracle._weights.ends["embed"]
    assert isinstance(table, DenseMatrix)
    words = [20, 21, 22, 23]
    plain = list(Engine(model, context=96).generate([5, 6, *words, 9], GREEDY, max_tokens=12, logprobs=3))
    shown = PromptPictures(
        np.ascontiguousarray(table.take(np.array(words))),
        np.array([-1, -1, 0, 1, 2, 3, -1], np.int32),
        placeholder=7,
    )
    tokens = [5, 6, *PictureIds().of(b"x", 4), 9]
    answer = Engine(model, context=96).generate(tokens, GREEDY, max_tokens=12, logprobs=3, pictures=shown)
    assert [out.id for out in answer] == [out.id for out in plain]


def test_a_second_turn_finds_the_picture_of_the_first_and_another_picture_does_not(model: LoadedModel):
    engine, ids, width = Engine(model, context=160), PictureIds(), model.cfg.hidden
    tokens, shown = prompt(ids, 1, width)
    first = engine.generate(tokens, GREEDY, max_tokens=8, pictures=shown)
    answer = [out.id for out in first]
    later = [*tokens, *answer, 60, 61]
    rows = np.concatenate([shown.rows, np.full(len(answer) + 2, -1, np.int32)])
    second = engine.generate(later, GREEDY, max_tokens=4, pictures=PromptPictures(shown.features, rows, 7))
    list(second)
    assert second.usage.cached_tokens >= len(tokens) + len(answer) - 1
    other, other_shown = prompt(ids, 2, width)
    third = engine.generate(other, GREEDY, max_tokens=4, pictures=other_shown)
    list(third)
    assert third.usage.cached_tokens == 4  # the words before it


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_blocks_on_the_disk_are_told_apart_by_their_pictures(data: st.DataObject):
    """Whatever ids they have: equal keys mean equal words and rows of pictures with equal digests, and the reverse."""
    piece = st.one_of(
        st.integers(5, 6), st.tuples(st.sampled_from([b"A" * 32, b"B" * 32]), st.integers(1, 3))
    )
    spelled: dict[bytes, list[object]] = {}
    for base in (0, 1000):
        pieces = data.draw(st.lists(piece, max_size=4))
        ids, rows, meaning = list[int](), list[int](), list[object]()
        digests = tuple(each for each in pieces if isinstance(each, tuple))
        for each in pieces:
            if isinstance(each, tuple):
                for row in range(each[1]):
                    ids.append(PICTURE_IDS + base + len(ids))
                    rows.append(sum(r >= 0 for r in rows))
                    meaning.append((each[0], row))
            else:
                ids.append(each)
                rows.append(-1)
                meaning.append(each)
        shown = PromptPictures(np.zeros((9, 1), np.float32), np.array(rows, np.int32), 7, digests=digests)
        first, count = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 6))
        key = shown.key(ids, first, count)
        assert spelled.setdefault(key, meaning[first : first + count]) == meaning[first : first + count]
        assert [k for k, m in spelled.items() if m == meaning[first : first + count]] == [key]


def test_penalties_and_the_lookup_leave_pictures_alone(model: LoadedModel):
    tokens, shown = prompt(PictureIds(), 1, model.cfg.hidden)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.5)
    answer = list(Engine(model, context=160).generate(tokens, params, max_tokens=30, pictures=shown))
    assert len(answer) == 30 and all(out.id < model.tokens for out in answer)


def test_an_id_of_a_picture_without_one_is_refused(model: LoadedModel):
    with pytest.raises(UsageError, match="is not a token"):
        Engine(model, context=96).generate([5, PICTURE_IDS], GREEDY)


def test_features_of_another_width_end_the_request_alone(model: LoadedModel):
    tokens, shown = prompt(PictureIds(), 1, model.cfg.hidden - 16)
    engine = Engine(model, context=160)
    with pytest.raises(Exception, match="wide"):
        list(engine.generate(tokens, GREEDY, max_tokens=4, pictures=shown))
    assert len(list(engine.generate([5, 6, 7], GREEDY, max_tokens=4))) == 4
