"""Models with latent attention keep the promises: hits at any token, from disk too, the same bits, a bound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine, TokenOut
from freehold.run.engine.cache.capacity import bytes_per_block
from freehold.run.models.load import LoadedModel

WARM = SamplingParams(temperature=1.0, seed=7)
CONTEXT = 1024
FIRST = [int(t) for t in np.random.default_rng(4).integers(5, 250, 600)]
NEW = [9, 8, 7, 6, 5]


def cold(model: LoadedModel, prompt: list[int]) -> list[TokenOut]:
    """Answer in an engine that has seen nothing and drafts nothing."""
    with Engine(model, context=CONTEXT, speculate=False) as engine:
        return list(engine.generate(prompt, WARM, max_tokens=12, logprobs=2))


def test_the_second_turn_computes_its_new_tokens_alone(latent: LoadedModel):
    with Engine(latent, context=CONTEXT) as engine:
        answer = [out.id for out in engine.generate(FIRST, WARM, max_tokens=20)]
        second = [*FIRST, *answer, *NEW]
        job = engine.generate(second, WARM, max_tokens=12, logprobs=2)
        outs = list(job)
    assert job.usage.cached_tokens == len(second) - len(NEW) - 1  # the last token was chosen and not computed
    assert outs == cold(latent, second)


def test_pages_of_latents_come_back_from_disk_with_the_same_bits(latent: LoadedModel, tmp_path: Path):
    with Engine(latent, context=CONTEXT, disk=tmp_path) as engine:
        list(engine.generate(FIRST, WARM, max_tokens=20))
    with Engine(latent, context=CONTEXT, disk=tmp_path) as engine:
        job = engine.generate([*FIRST, *NEW], WARM, max_tokens=12, logprobs=2)
        outs = list(job)
    assert job.usage.cached_tokens == len(FIRST) // native.BLOCK_TOKENS * native.BLOCK_TOKENS
    assert outs == cold(latent, [*FIRST, *NEW])


def test_a_block_holds_a_latent_and_one_key_part_of_each_token_and_layer(latent: LoadedModel):
    assert bytes_per_block(latent) == native.BLOCK_TOKENS * 2 * (32 + 16) * 2


def test_codes_are_refused_by_name(latent: LoadedModel):
    with pytest.raises(UsageError, match="latent attention does not fit q8"):
        Engine(latent, context=CONTEXT, kv_type="q8")


# --- attention to tokens that an indexer picks: 40 of them, prompts of 600 -------------------------


def test_an_index_has_pages_of_its_own_in_every_block(sparse: LoadedModel):
    assert bytes_per_block(sparse) == native.BLOCK_TOKENS * 2 * (32 + 16 + 32) * 2


def test_picked_tokens_are_the_same_after_a_hit_in_chunks_and_from_disk(sparse: LoadedModel, tmp_path: Path):
    whole = cold(sparse, [*FIRST, *NEW])
    with Engine(
        sparse, context=CONTEXT, threads=2, max_num_batched_tokens=48, speculate=False, disk=tmp_path
    ) as engine:
        list(engine.generate(FIRST, WARM, max_tokens=1))
        job = engine.generate([*FIRST, *NEW], WARM, max_tokens=12, logprobs=2)
        assert list(job) == whole and job.usage.cached_tokens >= len(FIRST) - 1
    with Engine(sparse, context=CONTEXT, disk=tmp_path) as engine:
        job = engine.generate([*FIRST, *NEW], WARM, max_tokens=12, logprobs=2)
        assert list(job) == whole and job.usage.cached_tokens >= len(FIRST) // 32 * 32


def test_preempted_streams_pick_the_same_tokens(sparse: LoadedModel):
    prompts = [FIRST[i : i + 300] for i in (0, 100, 200)]
    alone = [cold(sparse, prompt) for prompt in prompts]
    with Engine(sparse, context=384, blocks=24, speculate=False) as engine:
        jobs = [engine.generate(prompt, WARM, max_tokens=12, logprobs=2) for prompt in prompts]
        assert [list(job) for job in jobs] == alone


FOR_ONE_TABLE = """
import sys
from pathlib import Path
from tests.engine.hybrids import hybrid
from tests.engine.test_latents import FIRST, WARM, CONTEXT, cold
from freehold.run.engine import Engine
model = hybrid("latent", Path(sys.argv[1]))
whole = cold(model, FIRST)
with Engine(model, context=CONTEXT, threads=2, max_num_batched_tokens=48) as engine:
    list(engine.generate(FIRST[:333], WARM, max_tokens=4))
    assert list(engine.generate(FIRST, WARM, max_tokens=12, logprobs=2)) == whole
"""


@pytest.mark.heavy
@pytest.mark.parametrize("isa", native.isas())
def test_each_table_agrees_with_itself_over_chunks_threads_and_hits(isa: str, tmp_path: Path):
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", FOR_ONE_TABLE, str(tmp_path / isa)],
        check=True,
        cwd=root,
        env=os.environ | {"FREEHOLD_ISA": isa},
    )
