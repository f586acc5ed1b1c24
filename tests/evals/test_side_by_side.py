"""Two models on the same text: rows are paired token by token, whatever pieces they come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.evals import divergence
from freehold.adapt.evals.divergence import (
    SHA256,
    WINDOW,
    LogitSource,
    diverge,
    held_out_text,
    tokenizer_of,
    windows,
)
from freehold.base.errors import UsageError
from freehold.run.formats import QuantType
from freehold.run.models.tiny import make

F32 = NDArray[np.float32]


class Pieces:
    """Gives rows that name their position, in pieces of a size."""

    def __init__(self, size: int) -> None:
        self._size, self.asked = size, 0

    def rows(self, ids: Sequence[int]) -> Iterator[F32]:
        for first in range(0, len(ids), self._size):
            count = min(self._size, len(ids) - first)
            self.asked += count
            yield np.arange(first, first + count, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5), (4, 3), (7, 2), (100, 1)])
def test_rows_pair_up_whatever_their_pieces(sizes: tuple[int, int]):
    one, other = Pieces(sizes[0]), Pieces(sizes[1])
    ids = list(range(50, 60))
    seen = []
    for a, b, targets in divergence._paired(one, other, ids):  # type: ignore[arg-type]
        assert np.array_equal(a, b) and len(a) == len(targets)
        seen += [(int(row[0]), int(t)) for row, t in zip(a, targets, strict=True)]
    assert seen == [(i, 50 + i + 1) for i in range(9)]
    assert (one.asked, other.asked) == (10, 10)  # each text was read to its end


def tiny(folder: Path, name: str, seed: int) -> Path:
    return make.write_gguf(make.config("llama", seed), folder / name)


def test_a_model_does_not_diverge_from_itself_and_does_from_another(tmp_path: Path):
    one, other = tiny(tmp_path, "a.gguf", 1), tiny(tmp_path, "b.gguf", 2)
    blocks = windows(tokenizer_of(one), "The quick brown fox. " * 60)
    pool = native.Threads(1)
    with (
        LogitSource.open(one, pool) as a,
        LogitSource.open(one, pool) as b,
        LogitSource.open(other, pool) as c,
    ):
        same, differs = diverge(a, b, blocks), diverge(a, c, blocks)
    assert same.mean == 0.0 and same.same_top == 1.0
    assert differs.mean > 0.05 and differs.tokens == sum(len(block) - 1 for block in blocks)


def test_a_lossless_type_diverges_by_what_activations_are_rounded_alone(tmp_path: Path):
    """Weights of tiny models lie on Q8_0's grid; matrices of that type take int8 inputs, those of floats do not."""
    config = make.config("llama")
    plain = make.write_gguf(config, tmp_path / "f32.gguf")
    pool = native.Threads(1)

    def encode(name: str, values: F32) -> tuple[QuantType, bytes]:
        if values.ndim < 2:
            return QuantType.F32, values.tobytes()
        return QuantType.Q8_0, native.quantize_rows(values, "Q8_0", pool).tobytes()

    coded = make.write_gguf(config, tmp_path / "q8.gguf", encode=encode)
    blocks = windows(tokenizer_of(plain), "Hello there. " * 40)
    with LogitSource.open(plain, pool) as a, LogitSource.open(coded, pool) as b:
        assert 0 < diverge(a, b, blocks).mean < 0.01


def test_measurement_stops_once_it_is_sure_enough(tmp_path: Path):
    one, other = tiny(tmp_path, "a.gguf", 1), tiny(tmp_path, "b.gguf", 2)
    blocks = windows(tokenizer_of(one), "abc def ghi jkl mno. " * 300)
    assert len(blocks) > 10
    seen = []
    with LogitSource.open(one, native.Threads(1)) as a, LogitSource.open(other, native.Threads(1)) as b:
        found = diverge(a, b, blocks, until=0.5, on_block=lambda done, total, _: seen.append((done, total)))
    assert found.stopped_early and found.blocks == 8 and seen[-1] == (8, len(blocks))


def test_windows_leave_out_a_short_end_and_an_empty_text_is_refused(tmp_path: Path):
    tokenizer = tokenizer_of(tiny(tmp_path, "a.gguf", 1))
    cut = windows(tokenizer, "x" * (WINDOW + 100))
    assert [len(each) for each in cut] == [WINDOW]
    assert [len(each) for each in windows(tokenizer, "x" * 30)] == [30]
    assert [len(each) for each in windows(tokenizer, "x" * 3000, limit=WINDOW + 300)] == [WINDOW, 300]
    with pytest.raises(UsageError, match="fewer than two tokens"):
        windows(tokenizer, "")


def test_held_out_text_is_the_one_its_digest_names():
    import hashlib

    assert hashlib.sha256(held_out_text().encode()).hexdigest() == SHA256
