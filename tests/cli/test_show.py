"""`freehold show`: lines that explain what a reader would stumble over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.cli.show import _parameters
from freehold.run.models.tiny import make
from freehold.run.store.space import human
from tests.store.gguf_pair import tower
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


@pytest.fixture
def seeing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model that reads pictures, with its tower beside it."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    make.write_mmproj(make.config("qwen3_vl"), tmp_path / "mmproj-F16.gguf")
    return make.write_gguf(make.config("qwen3_vl"), tmp_path / "m.gguf")


def test_a_model_that_sees_says_so_with_its_tower_s_size(run: Run, seeing: Path, tmp_path: Path):
    mmproj = seeing.with_name("mmproj-F16.gguf")
    assert f"vision        yes, encoder {human(mmproj.stat().st_size)}" in run("show", str(seeing))[1]
    card = json.loads(run("show", str(seeing), "--json")[1])["model"]
    assert (
        f", {card['least_tokens']:,} to {card['most_tokens']:,} tokens per picture"
        in run("show", str(seeing))[1]
    )
    assert card["sees"] is True and card["blind"] == "" and card["eyes"] == str(mmproj)
    folder = make.write_safetensors(make.config("qwen3_vl"), tmp_path / "folder")
    out = run("show", str(folder))[1]
    assert "vision        yes, encoder 2.2 MB" in out and "reads text only" not in out


def test_a_model_says_why_it_reads_no_pictures_and_one_of_text_alone_says_nothing(
    run: Run, seeing: Path, tmp_path: Path
):
    (tmp_path / "text").mkdir()
    text = write_gguf("llama", tmp_path / "text" / "llama.gguf")
    assert "sees" not in run("show", str(text))[1]
    mmproj = seeing.with_name("mmproj-F16.gguf")

    def line() -> str:
        return next(row for row in run("show", str(seeing))[1].splitlines() if row.startswith("vision"))

    mmproj.rename(text.with_name("mmproj.gguf"))
    assert line() == "vision        no: there is no vision encoder (mmproj file) beside it"
    assert "no: mmproj.gguf is an encoder that is not supported with llama" in run("show", str(text))[1]
    for its, why in (
        (tower(96), "mmproj-F16.gguf belongs to another model"),
        (tower(64, projector="tomorrow"), "which is not supported yet"),
    ):
        mmproj.write_bytes(its)
        assert line().startswith("vision        no: ") and why in line()
    assert run("pull", str(seeing), "--no-eyes")[0] == 0
    assert line() == "vision        no: its vision encoder was left out; freehold pull m --eyes downloads it"
