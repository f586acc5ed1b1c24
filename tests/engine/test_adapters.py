"""Adapters in the engine: several and none in one batch, each as it is alone, and caches that never mix them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import NonFiniteLogits
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine, Generation, scoring
from freehold.run.models.load import LoadedModel
from freehold.run.models.lora import Adapter
from tests.engine.test_bits import pumped

PROMPT = [5 + (7 * i) % 200 for i in range(70)]
GREEDY = SamplingParams(temperature=0.0)
Both = tuple[Adapter, Adapter]


def answer(engine: Engine, adapter: Adapter | None, prompt: list[int] = PROMPT) -> Generation:
    return engine.generate(prompt, GREEDY, max_tokens=20, adapter=adapter)


def ids(answer: Generation) -> list[int]:
    return [out.id for out in answer]


def test_two_adapters_and_the_base_in_one_batch_give_the_tokens_each_gives_alone(
    model: LoadedModel, adapters: Both
):
    asked = [None, adapters[0], adapters[1], None, adapters[0]]
    alone = [ids(answer(Engine(model, context=128), adapter)) for adapter in asked]
    assert len({tuple(a) for a in alone}) == 3  # each says something of its own
    engine = Engine(model, context=128, blocks=40)
    together = pumped(engine, [answer(engine, adapter) for adapter in asked])
    assert [[out.id for out in got] for got in together] == alone


def test_rows_without_an_adapter_keep_the_bits_they_have_without_one_in_the_step(
    model: LoadedModel, adapters: Both
):
    params = SamplingParams(seed=1)
    plain = list(Engine(model, context=128).generate(PROMPT, params, max_tokens=20, logprobs=3))
    engine = Engine(model, context=128, blocks=40)
    beside = [answer(engine, adapter) for adapter in adapters]
    base = engine.generate(PROMPT, params, max_tokens=20, logprobs=3)
    assert pumped(engine, [*beside, base])[2] == plain


def test_answers_to_one_prompt_share_it_with_their_adapter(model: LoadedModel, adapters: Both):
    engine = Engine(model, context=128, blocks=40)
    params = SamplingParams(seed=7)
    both = engine.generate_many(PROMPT, 2, params, max_tokens=10, adapter=adapters[0])
    got = pumped(engine, both)
    for i, outs in enumerate(got):
        lone = Engine(model, context=128).generate(
            PROMPT, SamplingParams(seed=7 + i), max_tokens=10, adapter=adapters[0]
        )
        assert [out.id for out in outs] == ids(lone)


def test_nan_that_an_adapter_makes_is_the_adapters_and_the_base_answers_on(
    model: LoadedModel, adapters: Both
):
    high = np.full((16, model.cfg.hidden), 3e38, np.float32)
    weight = model.weights.layers[0]["q"]
    a, b = (
        native.Matrix.pack(values.view(np.uint8).reshape(-1), "F32", *values.shape, model.threads)
        for values in (high, np.full((weight.rows, 16), 3e38, np.float32))
    )
    made = native.Adapter()
    made.add(weight, a, b, 1.0)
    wild = replace(adapters[0], name="wild", digest="ff", native=made)
    engine = Engine(model, context=128, blocks=40)
    with pytest.raises(NonFiniteLogits, match="the adapter 'wild'") as error:
        ids(answer(engine, wild))
    assert "its weights are damaged" not in error.value.hint
    assert ids(answer(engine, None)) == ids(answer(Engine(model, context=128), None))


def test_a_cached_prefix_is_found_by_its_own_adapter_alone(model: LoadedModel, adapters: Both):
    engine = Engine(model, context=128, blocks=40)
    for adapter in (None, *adapters):
        first, again = answer(engine, adapter), answer(engine, adapter)
        assert ids(first) == ids(again)
        assert first.usage.cached_tokens == 0 < again.usage.cached_tokens


def test_a_tenants_name_cannot_reach_another_adapters_cache(model: LoadedModel, adapters: Both):
    engine = Engine(model, context=128, blocks=40)
    list(engine.generate(PROMPT, GREEDY, max_tokens=1, adapter=adapters[0], tenant="a"))
    for tenant in (f"{adapters[0].digest}|a", f"|{adapters[0].digest}|a"):
        other = engine.generate(PROMPT, GREEDY, max_tokens=1, tenant=tenant)
        assert list(other) and other.usage.cached_tokens == 0


def test_prefixes_on_disk_are_their_adapters_own(model: LoadedModel, adapters: Both, tmp_path: Path):
    model = replace(model, digest="d1")
    prompt = PROMPT * 5
    with Engine(model, context=512, disk=tmp_path) as engine:
        made = ids(answer(engine, adapters[0], prompt))
    with Engine(model, context=512, disk=tmp_path) as engine:
        assert ids(answer(engine, adapters[1], prompt)) != made
        assert ids(answer(engine, None, prompt)) != made
        assert engine.stats().disk_tokens == 0
        again = answer(engine, adapters[0], prompt)
        assert ids(again) == made and engine.stats().disk_tokens > 0


def test_a_draft_model_guesses_without_the_adapter_and_changes_nothing(model: LoadedModel, adapters: Both):
    alone = ids(answer(Engine(model, context=128, speculate=False), adapters[1]))
    assert ids(answer(Engine(model, context=128, draft=model), adapters[1])) == alone


def test_logits_with_an_adapter_do_not_depend_on_chunks_or_threads(model: LoadedModel, adapters: Both):
    whole = scoring.logits(Engine(model, context=128), PROMPT, adapter=adapters[1])
    for rows, threads in ((1, 2), (7, 1), (33, 2)):
        pieces = Engine(model, context=128, max_num_batched_tokens=rows, threads=threads)
        assert np.array_equal(scoring.logits(pieces, PROMPT, adapter=adapters[1]), whole)
    assert not np.array_equal(scoring.logits(Engine(model, context=128), PROMPT), whole)


def test_an_answer_goes_on_with_its_adapter_where_an_engine_died(model: LoadedModel, adapters: Both):
    params = SamplingParams(seed=3)
    whole = ids(Engine(model, context=128).generate(PROMPT, params, max_tokens=12, adapter=adapters[0]))
    for made in (1, 6, 11):
        rest = Engine(model, context=128).generate(
            PROMPT, params, max_tokens=12, resume=whole[:made], adapter=adapters[0]
        )
        assert ids(rest) == whole[made:]
