"""Models with latent attention keep the promises: hits at any token, from disk too, the same bits, a bound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import ContextOverflow, UsageError
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine, TokenOut
from freehold.run.engine.cache.capacity import bytes_per_block
from freehold.run.models.load import LoadedModel
from tests.engine.hybrids import hybrid as tiny_model

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


def test_the_context_ends_where_an_indexer_would_begin_to_choose(tmp_path: Path):
    sparse = tiny_model("sparse", tmp_path / "sparse")
    assert sparse.context == 64 and any("64 tokens" in note for note in sparse.notes)
    with pytest.raises(ContextOverflow, match="64"):
        Engine(sparse, context=65)
    with Engine(sparse) as engine, pytest.raises(ContextOverflow, match="64"):
        list(engine.generate(FIRST[:65], WARM, max_tokens=1))


def test_within_the_bound_it_computes_what_a_model_without_an_indexer_does(
    latent: LoadedModel, tmp_path: Path
):
    sparse = tiny_model("sparse", tmp_path / "sparse")
    prompt = FIRST[:50]
    with Engine(sparse, speculate=False) as engine:
        assert list(engine.generate(prompt, WARM, max_tokens=12, logprobs=2)) == cold(latent, prompt)


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
