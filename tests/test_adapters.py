"""Adapters beside real models: two and the base in one batch say what each says alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.base.types import SamplingParams
from freehold.run.engine import Engine
from freehold.run.models.load import load_model
from freehold.run.models.lora import load_adapter
from tests.engine.test_bits import pumped
from tests.vectors.adapters import write_for

PROMPT = list(range(1000, 1080))


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize(("name", "strength"), [("smollm2-135m", 0.2), ("qwen2.5-coder-0.5b", 0.05)])
def test_two_adapters_and_the_base_in_one_batch_are_what_each_is_alone(
    name: str, strength: float, model_path: Callable[[str], Path], tmp_path: Path
):
    model = load_model(model_path(name), name=name)
    made = [
        load_adapter(
            write_for(model, tmp_path / str(seed), seed=seed, rank=rank, dtype=dtype, strength=strength),
            model,
            str(seed),
        )
        for seed, rank, dtype in ((1, 16, "F16"), (2, 8, "F32"))
    ]
    asked = [None, made[0], made[1], made[0], None]
    samplings = [SamplingParams(temperature=0.0 if i < 3 else 0.8, seed=i) for i in range(len(asked))]
    alone = []
    for adapter, sampling in zip(asked, samplings, strict=True):
        with Engine(model, context=256, speculate=False) as engine:
            alone.append(list(engine.generate(PROMPT, sampling, max_tokens=24, adapter=adapter)))
    assert len({tuple(out.id for out in answer) for answer in alone[:3]}) == 3  # greedy, and each its own
    with Engine(model, context=256, blocks=64) as engine:
        running = [
            engine.generate(PROMPT, sampling, max_tokens=24, adapter=adapter)
            for adapter, sampling in zip(asked, samplings, strict=True)
        ]
        assert pumped(engine, running) == alone
