"""Rows that begin alike are computed as one tree: the same values and gradients, fewer tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from freehold.adapt.training.graph import RowBatch, TokenTree
from freehold.adapt.training.trainee import Trainee

torch = pytest.importorskip("torch")
Made = Callable[[str], Path]
PROMPT = list(range(10, 40))


def test_answers_to_one_prompt_share_it():
    rows = [[*PROMPT, 1, 2, 3], [*PROMPT, 4, 5], [7, 8, 9], [*PROMPT, 1]]
    batch = RowBatch.of(rows)
    assert batch.trees == (TokenTree(0, 30, (2, 1)), TokenTree(33, 2, ()), TokenTree(35, 30, ()))
    assert len(batch.tokens) == 65
    assert batch.targets.tolist() == [t for row in rows for t in row[1:]]
    assert [batch.tokens[i] for i in batch.chosen] == [t for row in rows for t in row[:-1]]
    assert batch.positions[batch.chosen].tolist() == [t for row in rows for t in range(len(row) - 1)]


def test_what_all_share_does_not_hide_what_neighbours_share():
    """A system prompt is common to all rows; each prompt's two answers share more."""
    rows = [[1, 2, *([prompt] * 50), answer] for prompt in (5, 6, 7) for answer in (8, 9)]
    assert [tree.shared for tree in RowBatch.of(rows).trees] == [52, 52, 52]


def test_a_row_that_another_continues_is_shared_whole():
    batch = RowBatch.of([[*PROMPT], [*PROMPT, 3, 4]], [[False] * 28 + [True], [False] * 30 + [True]])
    assert batch.trees == (TokenTree(0, 29, (0, 2)),)
    assert batch.tokens[batch.chosen].tolist() == [38, 3]
    assert batch.targets.tolist() == [39, 4]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2"])
def test_a_tree_computes_what_its_rows_do(name: str, tiny: Made):
    """Full attention, windows, and a cap on scores."""
    draw = np.random.default_rng(0)
    prompt = draw.integers(1, 200, 40).tolist()
    rows = [[*prompt, *draw.integers(1, 200, n).tolist()] for n in (12, 30, 1)]
    made = Trainee.open(tiny(name), rank=4, seed=1, threads=1)
    with torch.no_grad():
        for half in made.parameters():
            half.copy_(torch.from_numpy(draw.normal(0, 0.05, half.shape).astype(np.float32)))
    grads, values = [], []
    for together in (True, False):
        found = made.log_probs(rows) if together else [made.log_probs([row])[0] for row in rows]
        values.append(torch.cat(found).detach())
        (torch.cat(found) * torch.linspace(-1, 1, len(values[0]))).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None]))
        for p in made.parameters():
            p.grad = None
    assert len(RowBatch.of(rows).tokens) < sum(map(len, rows)) - 3
    assert torch.allclose(*values, atol=1e-5)
    assert torch.allclose(*grads, atol=1e-4, rtol=1e-3)
