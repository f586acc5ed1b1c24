"""Public boards: every row is of a known model and benchmark, dated, cited once; a wrong row is named."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog import benchmarks
from freehold.base.errors import StoreError

FILES = sorted(
    resources.files("freehold.base.catalog").joinpath("data", "boards").iterdir(), key=lambda p: p.name
)
MODELS = catalog.models(Path("/nowhere/catalogue.toml"))
HEAD = "# source = a board, 2026-01\nmodel,benchmark,value,setting\n"


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
def test_every_row_is_of_a_known_model_and_told_once(file):
    text = file.read_text(encoding="utf-8")
    rows = benchmarks.parse(file.name, text)
    told = [(model, s.benchmark, s.setting) for model, s in rows]
    assert rows and len(set(told)) == len(told)
    assert {model for model, _ in rows} <= {m.id for m in MODELS}
    comments = "".join(line for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"20\d\d-\d\d", comments) and "github.com/" in comments


def test_a_models_scores_hold_the_boards_rows():
    model = next(m for m in MODELS if m.id == "moonshotai/Kimi-K2.6")
    arena = next(s for s in model.scores if s.benchmark == "arena")
    assert arena.setting == "thinking, 2026-10-10" and "LMArena" in arena.source


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,benchmark,value,setting\n", "one line"),
        (HEAD + "a/b,arena,60\n", "row 1"),
        (HEAD + "a/b,arena,sixty,\n", "row 1"),
        (HEAD + "a/b,arena,160,\n", "row 1"),
        (HEAD + "a/b,arena,nan,\n", "row 1"),
        (HEAD + "a/b,arenna,60,\n", "not known"),
    ],
)
def test_a_wrong_board_is_named_with_its_row(text, said):
    with pytest.raises(StoreError, match=said):
        benchmarks.parse("x.csv", text)
