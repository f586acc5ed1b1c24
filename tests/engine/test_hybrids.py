"""Models with recurrent layers keep the promises: hits at snapshots, from disk too, shared, bounded, the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine, TokenOut
from freehold.run.engine.cache.recurrent import PROMPT_SHARE
from freehold.run.models.load import LoadedModel
from tests.engine.pumping import pumped

GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=1.0, seed=7)
CONTEXT = 4608
LONG = [int(t) for t in np.random.default_rng(4).integers(5, 250, 4000)]  # a conversation of 4,000 tokens
NEW = [9, 8, 7, 6, 5]


def cold(model: LoadedModel, prompt: list[int], count: int = 12) -> list[TokenOut]:
    """Answer in an engine that has seen nothing and drafts nothing."""
    with Engine(model, context=CONTEXT, speculate=False) as engine:
        return list(engine.generate(prompt, WARM, max_tokens=count, logprobs=2))


def ids(outs: list[TokenOut]) -> list[int]:
    return [out.id for out in outs]


@pytest.fixture(params=["hybrid", "mamba", "selective", "side_by_side", "delta", "kda"])
def each(request: pytest.FixtureRequest) -> LoadedModel:
    """One model of each sort of state: a convolution's inputs, Mamba-2 alone and beside attention, Mamba-1, deltas."""
    return request.getfixturevalue(request.param)


# --- hits --------------------------------------------------------------------------------------------


def test_the_second_turn_of_a_long_conversation_computes_its_new_tokens_alone(each: LoadedModel):
    with Engine(each, context=CONTEXT) as engine:
        answer = ids(list(engine.generate(LONG, GREEDY, max_tokens=40)))
        second = [*LONG, *answer, *NEW]
        before = engine.stats()
        job = engine.generate(second, WARM, max_tokens=12, logprobs=2)
        outs = list(job)
        after = engine.stats()
    # The answer's last token was chosen and not computed.
    assert job.usage.cached_tokens == len(second) - len(NEW) - 1
    assert after.computed_tokens - before.computed_tokens == len(NEW) + 1
    assert outs == cold(each, second)


@pytest.mark.heavy
def test_the_second_turn_after_a_restart_begins_at_the_last_snapshot_on_disk(
    each: LoadedModel, tmp_path: Path
):
    with Engine(each, context=CONTEXT, disk=tmp_path) as engine:
        answer = ids(list(engine.generate(LONG, GREEDY, max_tokens=40)))
    second = [*LONG, *answer, *NEW]
    with Engine(each, context=CONTEXT, disk=tmp_path) as engine:
        job = engine.generate(second, WARM, max_tokens=12, logprobs=2)
        outs = list(job)
        # The state inside a block at the answer's end is not on disk; the one after its last full block is.
        assert job.usage.cached_tokens == engine.stats().disk_tokens == (len(LONG) + 40 - 1) // 32 * 32
    assert outs == cold(each, second)
    assert list(tmp_path.glob("*.state")) and list(tmp_path.glob("*.kv"))


def test_four_live_streams_share_one_prefix(each: LoadedModel):
    prompts = [[*LONG[:2000], i, *NEW] for i in range(10, 14)]
    alone = [cold(each, prompt) for prompt in prompts]
    with Engine(each, context=CONTEXT, blocks=200) as engine:
        first = engine.generate(LONG[:2000], GREEDY, max_tokens=200)
        next(first)  # still running
        jobs = [engine.generate(prompt, WARM, max_tokens=12, logprobs=2) for prompt in prompts]
        for job in jobs:
            job.start()
        got: list[list[TokenOut]] = [[] for _ in jobs]
        while not all(job.done for job in jobs):
            engine.drive(0.01)
            for job, outs in zip(jobs, got, strict=True):
                outs += job.take()
        assert [job.usage.cached_tokens for job in jobs] == [1984] * 4
        assert not first.done
        stats = engine.stats()
        assert stats.states_live >= 1 and stats.states_cached >= 1
    assert got == alone


def test_a_departure_between_snapshots_goes_back_to_the_one_before(hybrid: LoadedModel):
    with Engine(hybrid, context=CONTEXT) as engine:
        list(engine.generate(LONG[:1500], GREEDY, max_tokens=2))
        other = [*LONG[:1200], *NEW]
        job = engine.generate(other, WARM, max_tokens=12, logprobs=2)
        outs = list(job)
        assert job.usage.cached_tokens == 1024
    assert outs == cold(hybrid, other)


def test_turns_that_end_with_a_stop_token_are_snapshots(hybrid: LoadedModel):
    stop = 3
    system = [*LONG[:70], stop]
    first = [*system, *LONG[100:300], stop, *LONG[300:350]]
    with Engine(hybrid, context=CONTEXT) as engine:
        list(engine.generate(first, GREEDY, max_tokens=2, stop_ids=[stop]))
        other = [*system, *LONG[400:420]]
        job = engine.generate(other, WARM, max_tokens=8, stop_ids=[stop])
        list(job)
        assert job.usage.cached_tokens == 64


# --- bounds ------------------------------------------------------------------------------------------


def test_snapshots_are_bounded_and_counted(hybrid: LoadedModel):
    with Engine(hybrid, context=512) as engine:
        slots = engine.stats().states
        assert engine.stats().state_bytes == hybrid.new_cache(1, slots=1).bytes_per_slot
        for i in range(40):
            list(engine.generate([i + 5, *LONG[i : i + 100]], GREEDY, max_tokens=3))
            stats = engine.stats()
            assert stats.states_live == 0 < stats.states_cached <= stats.states == slots
        blocks = engine._cache_bytes.block * engine.stats().blocks
        assert engine.cache_bytes == blocks + slots * engine.stats().state_bytes <= 2 * blocks + 4 * 1536


def test_one_prompt_takes_a_share_of_the_slots_at_most(hybrid: LoadedModel):
    with Engine(hybrid, context=CONTEXT) as engine:
        kind = engine._blocks.kinds[1]
        list(engine.generate(LONG, GREEDY, max_tokens=2))
        assert 1 < kind.cached <= max(kind.count // PROMPT_SHARE, 1) + 4


# --- bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 31, 33, 512])
def test_chunk_edges_of_the_convolution_change_no_bit(each: LoadedModel, rows: int):
    """A convolution of three inputs, in chunks shorter than what it keeps, and around a block's end."""
    prompt = LONG[:100]
    with Engine(each, context=CONTEXT, max_num_batched_tokens=rows, speculate=False) as engine:
        assert list(engine.generate(prompt, WARM, max_tokens=12, logprobs=2)) == cold(each, prompt)


_CHILD = """
import sys
from pathlib import Path
import numpy as np
from freehold import _native as native
from freehold.run.engine import Engine, scoring
from freehold.run.models.load import load_model
model = load_model(Path(sys.argv[1]), threads=1, name="tiny")
prompt = list(range(5, 125))
logits = []
for rows, threads in ((512, 1), (7, 2), (33, 1)):
    with Engine(model, context=256, max_num_batched_tokens=rows, threads=threads, speculate=False) as engine:
        logits.append(scoring.logits(engine, prompt).tobytes())
assert native.isa() == sys.argv[2] and len(set(logits)) == 1
print("same")
"""


@pytest.mark.heavy
@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", ["model", "hybrid", "delta", "kda"])
def test_each_kernel_table_agrees_with_itself(name: str, request: pytest.FixtureRequest, isa: str):
    model: LoadedModel = request.getfixturevalue(name)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(model.path), isa],
        env={**os.environ, "FREEHOLD_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr


def test_a_preempted_hybrid_continues_with_the_same_tokens(hybrid: LoadedModel):
    prompts = [LONG[i : i + 60] for i in range(0, 600, 100)]
    alone = [cold(hybrid, prompt, 40) for prompt in prompts]
    with Engine(hybrid, context=128, blocks=8, speculate=False) as engine:
        jobs = [engine.generate(prompt, WARM, max_tokens=40, logprobs=2) for prompt in prompts]
        assert pumped(engine, jobs) == alone and engine.stats().preemptions > 0


def test_steps_around_a_snapshot_are_the_bits_of_a_run_without_any(hybrid: LoadedModel):
    """A chunk that is cut where a snapshot is due computes what an uncut one does."""
    prompt = LONG[:1100]
    with Engine(hybrid, context=CONTEXT, max_num_batched_tokens=600, speculate=False) as engine:
        outs = list(engine.generate(prompt, WARM, max_tokens=12, logprobs=2))
        assert [kind.cached for kind in engine._blocks.kinds if not kind.paged] > [2]
    for rows, _ in pairwise((64, 511, 513)):
        with Engine(hybrid, context=CONTEXT, max_num_batched_tokens=rows, speculate=False) as engine:
            assert list(engine.generate(prompt, WARM, max_tokens=12, logprobs=2)) == outs
