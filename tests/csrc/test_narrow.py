"""Rows without a requested output end at the last keys and values: what the others give is the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freehold.run.formats import open_model_file
from freehold.run.models.load import load_model
from tests.vectors.files import Dtype, write_gguf

FIRST, SECOND, WIDTH = 280, 20, 20  # rows of two sequences in a step, and blocks of each
ROWS = FIRST + SECOND


class Step:
    """Two sequences read in one step of a fresh cache, and one token more of each in a second."""

    def __init__(self, path: Path) -> None:
        model = load_model(open_model_file(path), threads=2, name="tiny")
        cache = model.new_cache(2 * WIDTH)
        self.plan, self.vocab = model.build(cache, ROWS, model.threads), model.tokens
        self.tokens = np.random.default_rng(3).integers(5, 200, ROWS + 2).astype(np.int32)
        self.tables = np.arange(2 * WIDTH, dtype=np.int32).reshape(2, WIDTH)

    def read(self, wanted, choices=(), hidden=()):
        """Return the logits of `wanted` rows, what was chosen, and the last activations of `hidden` rows."""
        positions = np.concatenate([np.arange(FIRST), np.arange(SECOND)]).astype(np.int32)
        seqs = np.repeat([0, 1], [FIRST, SECOND]).astype(np.int32)
        shown = np.zeros((len(hidden), self.plan.hidden_width), np.float32)
        logits, chosen = self.plan.run(
            self.tokens[:ROWS], positions, seqs, self.tables, np.array(wanted, np.int32), list(choices), self.vocab,
            hidden_rows=np.array(hidden, np.int32), hidden=shown,
        )  # fmt: skip
        return logits, chosen, shown

    def after(self):
        """Return the logits of the tokens behind what was read: they see its keys and values."""
        positions = np.array([FIRST, SECOND], np.int32)
        both = np.array([0, 1], np.int32)
        return self.plan.run(self.tokens[ROWS:], positions, both, self.tables, both, [], self.vocab)[0]


@pytest.mark.parametrize(("family", "dtype"), [("llama", "Q8_0"), ("qwen3", "F32"), ("gemma3", "Q5_0")])
def test_wanted_rows_give_what_they_give_among_all(family: str, dtype: Dtype, tmp_path: Path):
    step = Step(write_gguf(family, tmp_path / "tiny.gguf", dtype=dtype))
    every, _, shown = step.read(range(ROWS), hidden=range(ROWS))
    after = step.after()
    rng = np.random.default_rng(0)
    some = [sorted(rng.choice(ROWS, n, replace=False).tolist()) for n in (1, 3, 20, 50)]
    for wanted in ([FIRST - 1, ROWS - 1], [ROWS - 1, 3, 3, 0], *some):
        logits, _, _ = step.read(wanted)
        assert np.array_equal(logits, every[wanted])
        assert np.array_equal(step.after(), after)
        chosen = step.read([], [(row, 0.0, 0, row) for row in wanted])[1]
        assert chosen.tolist() == every[wanted, : step.vocab].argmax(1).tolist()
    logits, chosen, seen = step.read([7], [(50, 0.0, 0, 50)], hidden=[60, 7, 20])
    assert np.array_equal(logits, every[[7]]) and chosen.tolist() == [every[50, : step.vocab].argmax()]
    assert np.array_equal(seen, shown[[60, 7, 20]])


def test_a_step_that_nobody_wants_anything_of_leaves_its_keys_and_values(tmp_path: Path):
    step = Step(write_gguf("llama", tmp_path / "tiny.gguf"))
    step.read(range(ROWS))
    after = step.after()
    fresh = Step(tmp_path / "tiny.gguf")
    assert fresh.read([])[0].shape[0] == 0
    assert np.array_equal(fresh.after(), after)
