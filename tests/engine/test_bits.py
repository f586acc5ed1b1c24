"""The house's promise in one test: whatever happens around an answer, its logits are the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.engine import Engine, TokenOut
from freehold.engine import scheduler as scheduler_module
from freehold.engine.capacity import KV_TYPES, KvType
from freehold.models.loader import LoadedModel
from freehold.types import SamplingParams
from tests.engine.test_speculation import eager

CONTEXT, BLOCKS = 96, 3  # a pool too small for all, so that sequences are preempted

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
    """One request, and the options of Engine.generate."""

    prompt: list[int]
    options: dict[str, Any]


@st.composite
def batches(draw: st.DrawFn) -> list[Ask]:
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
        }
        asks.append(Ask([*begin, *own], options))
    return asks


def interleaved(engine: Engine, asks: list[Ask], data: st.DataObject) -> list[list[TokenOut]]:
    """Let readers take tokens in a drawn order; the batch is whoever waits for one."""
    running = {i: engine.generate(ask.prompt, **ask.options) for i, ask in enumerate(asks)}
    got: list[list[TokenOut]] = [[] for _ in asks]
    while running:
        i = data.draw(st.sampled_from(sorted(running)))
        out = next(running[i], None)
        if out is None:
            del running[i]
        else:
            got[i].append(out)
    return got


@pytest.mark.parametrize("name", ["model", "sliding"])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), asks=batches(), kv_type=st.sampled_from(KV_TYPES))
def test_batches_chunks_threads_preemption_hits_and_guesses_change_no_bit(
    name: str, request: pytest.FixtureRequest, data: st.DataObject, asks: list[Ask], kv_type: KvType
):
    model: LoadedModel = request.getfixturevalue(name)
    fresh = [Engine(model, context=CONTEXT, kv_type=kv_type, speculate=False) for _ in asks]
    alone = [list(engine.generate(a.prompt, **a.options)) for engine, a in zip(fresh, asks, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "STALL_S", 0.0)
        eager(patch, data.draw(st.integers(1, 9)))
        shared = Engine(
            model,
            context=CONTEXT,
            kv_type=kv_type,
            step_rows=data.draw(st.sampled_from([3, 16, 64])),
            threads=data.draw(st.sampled_from([1, 2])),
            draft=data.draw(st.sampled_from([None, model])),
        )
        assert interleaved(shared, asks, data) == alone
        assert shared.free_blocks == BLOCKS
        whole = asks[0].prompt + [out.id for out in alone[0]]
        assert np.array_equal(shared.logits(whole), fresh[0].logits(whole))
