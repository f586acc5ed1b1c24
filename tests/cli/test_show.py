"""`freehold show`: lines that explain what a reader would stumble over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.cli.show import _parameters
from tests.vectors.files import write_gguf

Run = Callable[..., tuple[int, str, str]]


def test_a_file_that_repeats_the_embedding_says_why_it_has_more_weights_than_the_model():
    card = {"parameters": 630, "output_parameters": 136, "catalogue": {"parameters": 494}}
    assert _parameters(card) == (
        "630 in the file, 494 in the model: the file repeats the embedding as output.weight"
    )


def test_an_output_matrix_of_its_own_is_counted_like_any_other():
    card = {
        "parameters": 8_000_000_000,
        "output_parameters": 500_000_000,
        "catalogue": {"parameters": 8_000_000_000},
    }
    assert _parameters(card) == "8,000 million" and _parameters({"catalogue": None}) == ""


def test_a_window_that_a_file_may_have_lost_is_told_with_the_context_it_is_exact_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    path = write_gguf("llama", tmp_path / "m.gguf", keys={"llama.context_length": 32768})
    status, out, _ = run("show", str(path))
    assert status == 0 and "4,096 tokens" in out
    assert "note: the file does not state whether it has a sliding window" in out
    plain = write_gguf("llama", tmp_path / "n.gguf", keys={"llama.context_length": 4096})
    assert "sliding window" not in run("show", str(plain))[1]


def test_a_refused_architecture_is_shown_with_what_is_missing(run: Run):
    status, out, _ = run("show", "deepseek-ai/DeepSeek-V4-Flash")
    assert status == 0 and "deepseek4: Freehold's engine does not support" in out
    assert "compressed sparse attention" in out
