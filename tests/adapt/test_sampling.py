"""Sampling for training: ids in, ids and log-probabilities out, with an adapter that lies in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from freehold.adapt.sampling import GREEDY, SamplingModel, open_sampling
from freehold.base.config import Settings
from freehold.base.types import Message
from freehold.run.models.tiny import make
from freehold.run.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamplingModel]:
    folder = tmp_path_factory.mktemp("tiny")
    path = make.write_gguf(make.config("qwen2"), folder / "tiny.gguf")
    ref = Store(Settings(home=folder / "home")).resolve(str(path))
    with open_sampling(ref, context=128, kv_type="f32", threads=1) as opened:
        yield opened


def prompts(model: SamplingModel, *texts: str) -> list[list[int]]:
    return [model.render((Message("user", text),)) for text in texts]


def test_an_answer_does_not_depend_on_its_company(model: SamplingModel):
    asked = prompts(model, "one", "two", "three")
    together = model.sample(asked, 2, seeds=[5, 8, 5], max_tokens=12)
    alone = model.sample(asked[1:2], 2, seeds=[8], max_tokens=12)
    assert [a.ids for a in together[1]] == [a.ids for a in alone[0]]
    assert together[0][0].ids != together[0][1].ids


def test_log_probabilities_are_those_of_the_logits_it_drew_from(model: SamplingModel):
    [ids] = prompts(model, "one")
    [[answer]] = model.sample([ids], seeds=[3], max_tokens=12)
    rows = model.answer_logits(ids, answer.ids).astype(np.float64)
    logs = (
        rows
        - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True))
        - rows.max(1, keepdims=True)
    )
    expected = logs[np.arange(len(answer.ids)), list(answer.ids)]
    assert rows.shape[0] == len(answer.ids)
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)


def test_answers_end_with_the_end_of_the_turn_or_at_the_limit(model: SamplingModel):
    found = [
        a for each in model.sample(prompts(model, *"abcdefgh"), 4, seeds=range(8), max_tokens=9) for a in each
    ]
    for answer in found:
        ended = answer.ids[-1] in model.tokenizer.eos_ids
        assert (answer.finish_reason == "stop") == ended
        assert ended or len(answer.ids) == 9


def test_an_adapter_from_memory_changes_answers_and_none_is_the_model_itself(model: SamplingModel):
    draw = np.random.default_rng(0)
    [ids] = prompts(model, "one")
    plain = model.sample([ids], seeds=[0], max_tokens=8, sampling=GREEDY)
    columns = model.answer_logits(ids, [1]).shape  # so that the model is warm
    assert columns[0] == 1
    matrix = model._generating().model.weights.layers[0]["q"]
    pair = (
        draw.normal(size=(4, matrix.cols)).astype(np.float32),
        draw.normal(size=(matrix.rows, 4)).astype(np.float32),
    )
    adapter = model.packed({"blk.0.attn_q.weight": pair}, 4.0)
    changed = model.answer_logits(ids, [1], adapter)
    assert np.abs(changed - model.answer_logits(ids, [1])).max() > 1e-2
    zero = model.packed({"blk.0.attn_q.weight": (pair[0], np.zeros_like(pair[1]))}, 4.0)
    assert (
        model.sample([ids], seeds=[0], max_tokens=8, sampling=GREEDY, adapter=zero)[0][0].ids
        == plain[0][0].ids
    )
