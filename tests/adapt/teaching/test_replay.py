"""Text of a base's own: as much as a run rehearses, and the same bits wherever a run begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.adapt import teaching
from freehold.adapt.sampling import SamplingModel, open_sampling
from freehold.adapt.teaching import group, written
from freehold.base.config import Settings
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("tiny")
    path = make.write_gguf(make.config("llama"), folder / "tiny.gguf")
    return Store(Settings(home=folder / "home")).resolve(str(path))


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write rows of a few tokens, which take a tenth of the time."""
    for name in ("ANSWER", "PLAIN"):
        monkeypatch.setattr(teaching, name, 5)


@pytest.fixture(scope="module")
def model(base: ModelRef) -> Iterator[SamplingModel]:
    with open_sampling(base, context=128, threads=1) as opened:
        yield opened


def test_a_short_run_has_the_first_rows_of_a_long_one(model: SamplingModel):
    long, short = written(model, 3, 200), written(model, 3, 9)
    assert len(long) == 64
    assert short == long[:9]
    assert [group(short, 3, step) for step in range(3)] == [group(long, 3, step) for step in range(3)]


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_the_base_is_computed_alike_wherever_a_run_begins(base: ModelRef, model: SamplingModel, count: int):
    pytest.importorskip("torch")
    from freehold.adapt.settings import AdapterSettings
    from freehold.adapt.teaching import BaseActivations

    trainee = AdapterSettings(rank=2, threads=1).trainee(Path(base.path))
    rows = written(model, 0, 20)
    run = BaseActivations(trainee)
    whole = [run.of(rows, count, step) for step in range(30)]
    for step in (5, 19, 29):
        chosen, states = BaseActivations(trainee).of(rows, count, step)
        assert chosen == whole[step][0]
        assert states.shape[0] == sum(sum(row.wanted) for row in chosen)
        assert states.equal(whole[step][1])
