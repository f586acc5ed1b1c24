"""The house's promise in one test: whatever happens around an answer, its logits are the same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.types import KvType, SamplingParams
from freehold.run.engine import Engine, Generation, TokenOut, scoring
from freehold.run.engine import engine as stepping
from freehold.run.engine.cache.capacity import KV_TYPES
from freehold.run.engine.schedule import scheduler, shares
from freehold.run.engine.schedule import scheduler as preemption_module
from freehold.run.engine.sequence import PictureIds, PromptPictures
from freehold.run.engine.speculate import head, speculation
from freehold.run.models.load import LoadedModel
from freehold.run.models.lora import Adapter
from tests.engine.formats import FORMATS, TOKENIZER, constraint
from tests.engine.pumping import pumped
from tests.engine.test_speculation import eager

ADAPTERS = {
    "model": "adapters",
    "sliding": "sliding_adapters",
    "experts": "experts_adapters",
    "hybrid": "no_adapters",
    "mamba": "no_adapters",
    "mamba_experts": "no_adapters",
    "selective": "no_adapters",
    "side_by_side": "no_adapters",
    "delta": "no_adapters",
    "kda": "no_adapters",
    "latent": "no_adapters",
    "sharing": "no_adapters",
    "streams": "no_adapters",
    "parallel": "no_adapters",
    "head": "no_adapters",
}
F16_ONLY = {"kda", "latent"}  # latents have no codes
CONTEXT = 96
SPAN_ROWS = 13  # of the largest picture
# A pool too small for all, so that sequences are preempted; one whose window layers have few window blocks.
BLOCKS = [3, 12]

SLOW_GRAMMARS = [
    (shares, "DEAR_S"),
    (shares, "GRAMMAR_S"),
    (scheduler, "GRAMMAR_S"),
    (stepping, "GRAMMAR_S"),
    (speculation, "DEAR_S"),
]

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_p=st.sampled_from([0.8, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 5),
)


@dataclass
class Ask:
    """One request, and the options of Engine.generate_many."""

    prompt: list[int]
    n: int
    options: dict[str, Any]
    sharing: dict[str, Any]  # what decides whose turn it is, and no token


NUMBERS = PictureIds()


@st.composite
def shown(
    draw: st.DrawFn, text: list[int], width: int, both: bool
) -> tuple[list[int], PromptPictures | None]:
    """Draw a prompt with up to two pictures among its tokens, of three that there are; None without.

    With places, a picture takes three numbers of the text's count, as a model with three positions has it.
    """
    has_places = draw(st.booleans())
    before = sorted(draw(st.lists(st.integers(0, len(text)), max_size=2)))
    ids: list[int] = []
    rows: list[int] = []
    places: list[tuple[int, int, int]] = []
    features: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    turn = 0
    for i in range(len(text) + 1):
        for _ in range(before.count(i)):
            number = draw(st.integers(0, 2))
            count, first = 5 + 4 * number, sum(map(len, features))
            spans.append((len(ids), len(ids) + count))
            ids += NUMBERS.of(bytes([number, width % 251, has_places]), count)
            rows += range(first, first + count)
            places += [(turn, turn + r // 3, turn + r % 3) for r in range(count)]
            features.append(np.random.default_rng(number).normal(size=(count, width)).astype(np.float32))
            turn += 3
        for token in text[i : i + 1]:
            ids.append(token)
            rows.append(-1)
            places.append((turn, turn, turn))
            turn += 1
    if not features:
        return ids, None
    grid = np.array(places, np.int32) if has_places else None
    shown = np.array(rows, np.int32)
    return ids, PromptPictures(np.concatenate(features), shown, 7, grid, turn, tuple(spans) if both else ())


@st.composite
def batches(draw: st.DrawFn, adapters: tuple[Adapter, ...], width: int, both: bool) -> list[Ask]:
    """Draw prompts that begin alike, so that one may take over what another left in the cache."""
    shared = draw(st.lists(st.integers(5, 12), max_size=50))
    asks = []
    for _ in range(draw(st.integers(1, 4))):
        begin = shared[: draw(st.integers(0, len(shared)))]
        own = draw(st.lists(st.integers(5, 12), min_size=1, max_size=12))
        options = {
            "sampling": draw(PARAMS),
            "max_tokens": draw(st.integers(1, 30)),
            "stop_ids": draw(st.sets(st.integers(5, 250), max_size=20)),
            "logprobs": draw(st.sampled_from([None, 2])),
            "adapter": draw(st.sampled_from([None, *adapters])),
        }
        if (format := draw(st.sampled_from([None, *FORMATS]))) is not None:
            options |= {"constraint": constraint(format), "stop_ids": TOKENIZER.eos_ids}
        sharing = {
            "priority": draw(st.sampled_from(["interactive", "batch"])),
            "tenant": draw(st.sampled_from(["", "a"])),
        }
        prompt, options["pictures"] = draw(shown([*begin, *own], width, both))
        asks.append(Ask(prompt, draw(st.sampled_from([1, 1, 3])), options, sharing))
    return asks


def lonely(model: LoadedModel, ask: Ask, kv_type: KvType = "f16") -> list[list[TokenOut]]:
    """Answer it alone, each answer in an engine of its own."""
    answers = []
    for i in range(ask.n):
        params = replace(ask.options["sampling"], seed=ask.options["sampling"].seed + i)
        engine = Engine(model, context=CONTEXT, kv_type=kv_type, speculate=False, span_rows=SPAN_ROWS)
        answers.append(list(engine.generate(ask.prompt, **{**ask.options, "sampling": params})))
    return answers


def interleaved(running: list[Generation], data: st.DataObject) -> list[list[TokenOut]]:
    """Let readers take tokens in a drawn order; the batch is of those that wait for one."""
    left = list(range(len(running)))
    got: list[list[TokenOut]] = [[] for _ in running]
    while left:
        i = data.draw(st.sampled_from(left))
        out = next(running[i], None)
        if out is None:
            left.remove(i)
        else:
            got[i].append(out)
    return got


@pytest.mark.parametrize("name", ADAPTERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), kv_type=st.sampled_from(KV_TYPES))
def test_batches_chunks_threads_preemption_hits_forks_deaths_drafts_formats_adapters_and_pictures_change_no_bit(
    name: str, request: pytest.FixtureRequest, data: st.DataObject, kv_type: KvType
):
    model: LoadedModel = request.getfixturevalue(name)
    kv_type = "f16" if name in F16_ONLY else kv_type
    width, both = model.cfg.hidden, model.family.both(model.cfg)
    asks = data.draw(batches(request.getfixturevalue(ADAPTERS[name]), width, both))
    alone = [answer for ask in asks for answer in lonely(model, ask, kv_type)]
    blocks = data.draw(st.sampled_from(BLOCKS))
    died = [data.draw(st.integers(0, len(answer))) for answer in alone]  # tokens an engine before had made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preemption_module, "STALL_S", 0.0)
        if data.draw(st.booleans()):  # every grammar is slow: one a step, whose rows are computed again
            for module, limit in SLOW_GRAMMARS:
                patch.setattr(module, limit, 0.0)
        eager(patch, data.draw(st.integers(1, 9)))
        if data.draw(st.booleans()):  # a head drafts whatever it costs, among a part of the ids
            patch.setattr(speculation.Speculation, "_price", lambda *_: 0.0)
            patch.setattr(head, "LEAST_IDS", 1)
            patch.setattr(head, "MOST_WAITING", data.draw(st.sampled_from([8, 1024])))
        shared = Engine(
            model,
            context=CONTEXT,
            blocks=blocks,
            kv_type=kv_type,
            max_num_batched_tokens=data.draw(st.sampled_from([3, 16, 64])),
            threads=data.draw(st.sampled_from([1, 2])),
            draft=data.draw(st.sampled_from([None, model])),
            span_rows=SPAN_ROWS,
        )
        running: list[Generation] = []
        for ask in asks:
            logs = [
                [out.id for out in alone[i][: died[i]]] for i in range(len(running), len(running) + ask.n)
            ]
            running += shared.generate_many(ask.prompt, ask.n, **ask.options, **ask.sharing, resume=logs)
        served = data.draw(st.booleans())
        got = pumped(shared, running) if served else interleaved(running, data)
        assert got == [answer[k:] for answer, k in zip(alone, died, strict=True)]
        assert [a.finish_reason for a in running] == [answer[-1].finish_reason for answer in alone]
        assert (shared.free_blocks, shared.stats().blocks_live) == (blocks, 0)
        if asks[0].options["pictures"] is not None:
            return
        whole = asks[0].prompt + [out.id for out in alone[0]]
        fresh = Engine(model, context=CONTEXT, kv_type=kv_type, speculate=False)
        adapter = asks[0].options["adapter"]
        assert np.array_equal(
            scoring.logits(shared, whole, adapter=adapter), scoring.logits(fresh, whole, adapter=adapter)
        )


@pytest.mark.parametrize("blocks", [40, 8])
def test_sixteen_greedy_streams_are_what_each_is_alone(model: LoadedModel, blocks: int):
    prompts = [[5 + (7 * i + j * j) % 200 for j in range(30 + i)] for i in range(16)]
    greedy = SamplingParams(temperature=0.0)
    fresh = Engine(model, context=128)
    alone = [list(fresh.generate(prompt, greedy, max_tokens=40)) for prompt in prompts]
    engine = Engine(model, context=128, blocks=blocks)  # 3 blocks each
    assert pumped(engine, [engine.generate(prompt, greedy, max_tokens=40) for prompt in prompts]) == alone
    assert engine.stats().blocks_live == 0 and (blocks == 40 or engine.stats().preemptions > 0)


def test_answer_goes_on_from_any_token_at_which_its_engine_died(model: LoadedModel):
    params = SamplingParams(seed=3, repetition_penalty=1.2)
    prompt = list(range(5, 40))
    whole = list(Engine(model, context=CONTEXT).generate(prompt, params, max_tokens=30, logprobs=1))
    for made in range(len(whole) + 1):
        log = [out.id for out in whole[:made]]
        engine = Engine(model, context=CONTEXT)
        rest = engine.generate(prompt, params, max_tokens=30, logprobs=1, resume=log)
        assert list(rest) == whole[made:] and rest.usage.completion_tokens == 30
