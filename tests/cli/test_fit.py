"""fit as a user meets it: the table, named hardware, JSON, what does not fit, unknown names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import freehold
from freehold.base import catalog
from freehold.base.config import load_settings
from freehold.base.machine import show_bytes
from freehold.choose import choosing
from freehold.choose.advisor import calibration
from freehold.choose.advisor.fit import observed
from freehold.choose.advisor.machine import Rates
from freehold.run.models.sight import tower_need
from freehold.run.models.tiny import make
from tests.vectors.files import write_safetensors

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described_machine: Callable[..., object]) -> Path:
    (tmp_path / "config.toml").write_text("adopt = false\n")
    for key in [k for k in os.environ if k.startswith(("HF_", "FREEHOLD_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    described_machine(rates=Rates(40.0, 1000.0))
    return tmp_path


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "fit")


def test_a_table_of_quantisations_and_the_command_that_runs_one(run: Run):
    status, out, err = run("qwen3:8b", "--context", "8k")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert "8,000 tokens of context" in lines[0]
    assert [line.split()[0] for line in lines[2:7]] == ["Q4_K_M", "Q5_K_M", "Q3_K_M", "Q6_K", "Q8_0"]
    assert "F16 does not fit" in out
    assert "40 GB/s and 1,000 int8 GOPS, measured here; no run here yet" in out
    assert lines[-1] == "to run it: freehold run qwen3:8b --context 8000"


def test_json_has_every_part(run: Run):
    status, out, _ = run("qwen3:8b", "--quant", "q4_k_m", "--json")
    told = json.loads(out)
    assert (status, told["schema"], told["model"], told["context"]) == (0, 1, "Qwen/Qwen3-8B", 4096)
    assert told["place"]["read_gb_s"] == 40
    (row,) = told["fits"]
    assert row.keys() == {
        "quant", "held", "exact", "fits", "engine", "memory", "needs", "longest_context", "load_s", "prefill_tok_s",
        "decode_tok_s", "streams", "basis", "command", "pictures",
    }  # fmt: skip
    assert row["needs"] == f"needs {show_bytes(row['memory']['total'])} at 4,096 tokens of context"
    assert row["memory"]["cache"] == {"full": 36 * 8 * 256 * 2 * 4096}
    assert row["decode_tok_s"]["low"] < row["decode_tok_s"]["mid"] < row["decode_tok_s"]["high"]


def test_rounding_at_packing_is_weighed_as_it_is_packed(run: Run, tmp_path: Path):
    folder = str(write_safetensors("qwen3", tmp_path / "tiny"))
    freehold.pull(folder, quant="q8")
    held, q6 = (json.loads(run("tiny", "--quant", quant, "--json")[1])["fits"][0] for quant in ("q8", "q6"))
    assert (held["quant"], held["held"], q6["quant"], q6["held"]) == ("q8", True, "q6", False)
    assert held["memory"]["weights"] == q6["memory"]["weights"]  # its rows are no multiple of 256
    freehold.pull(folder, quant="none")
    (plain,) = json.loads(run("tiny", "--quant", "F32", "--json")[1])["fits"]
    assert plain["memory"]["weights"] > 3 * held["memory"]["weights"]
    bits = [
        json.loads(run("Qwen/Qwen3-8B", "--quant", q, "--json")[1])["fits"][0]["memory"]["weights"]
        for q in ("q4", "q6", "q8")
    ]
    assert bits == sorted(bits) and 4.9 < 8 * bits[0] / 8.19e9 < 5.6


def test_fit_and_why_agree_that_answers_of_the_stored_file_were_timed(run: Run, home: Path, tmp_path: Path):
    freehold.pull(str(write_safetensors("qwen3", tmp_path / "tiny")), quant="q8")
    settings = load_settings()
    timed = observed(
        choosing.weighed(settings, "tiny"), choosing.here(settings), "decode", 64, 9.0, "2026-12-01"
    )
    calibration.record(home, [timed] * calibration.ENOUGH)
    _, out, _ = run("tiny")
    first, *others = [line for line in out.splitlines() if line.startswith("speeds")]
    assert first.startswith("speeds: ") and "last 3 runs of this model here" in first
    assert [line.partition(":")[0] for line in others] == ["speeds of the others"]
    why = run.func("why", "tiny")[1]  # type: ignore[attr-defined]  # a partial
    assert "last 3 runs of this model here" in why and "no answer was timed" not in why


def test_what_does_not_fit_says_why_and_what_would(run: Run):
    status, out, _ = run("qwen3:8b", "--context", "40k", "--quant", "F16")
    assert status == 0
    assert "F16 does not fit" in out
    assert "smaller quantisation" in out
    (row,) = json.loads(run("meta-llama/Llama-3.1-70B-Instruct", "--quant", "Q8_0", "--json")[1])["fits"]
    assert (row["fits"], row["longest_context"]) == (False, None)
    assert "GB before any context" in row["reason"]
    (row,) = json.loads(run("deepseek-ai/DeepSeek-V4-Flash", "--quant", "Q3_K_M", "--json")[1])["fits"]
    assert "does not support the architecture deepseek4" in row["reason"]


def test_named_hardware_and_engines(run: Run):
    _, out, _ = run("Qwen/Qwen3-30B-A3B", "--on", "2xh100")
    assert "ENGINE" in out
    assert "on 2xh100" in out
    _, out, _ = run("Qwen/Qwen3-30B-A3B", "--on", "2xh100", "--engine", "vllm", "--quant", "BF16")
    assert "vllm serve Qwen/Qwen3-30B-A3B --tensor-parallel-size 2 --max-model-len 4096" in out
    assert "ENGINE" not in out


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (("qwen3:8x",), "no model", "qwen3:8b"),
        (("qwen3:8b", "--on", "h10"), "h10", "h100"),
        (("qwen3:8b", "--on", "1024xh100"), "'1024xh100': 1,024 devices are not within 1..72", "8xh100"),
        (("qwen3:8b", "--on", "h100", "--engine", "vlm"), "vlm", "vllm"),
        (("qwen3:8b", "--engine", "vllm"), "needs --on", "rtx-4090"),
        (("qwen3:8b", "--quant", "Q4_M"), "Q4_M", "Q4"),
        (("qwen3:8b", "--context", "200k"), "200,000 tokens", "name 1 to"),
    ],
)
def test_bad_input_is_two_lines(run: Run, args: tuple[str, ...], error: str, hint: str):
    status, out, err = run(*args)
    assert (status > 0, out) == (True, "")
    assert error in err.splitlines()[0]
    assert hint in err.splitlines()[1]


def test_damaged_runs_are_told(run: Run, home: Path):
    (home / calibration.FILE).write_text("not a run\n")
    status, out, _ = run("qwen3:8b", "--quant", "Q4_K_M")
    assert status == 0
    assert "1 damaged lines of runs.jsonl were left out" in out


@pytest.mark.parametrize(
    ("model", "first", "never"),
    [
        ("gpt-oss:20b", "Q4_K_M", {"Q8_0", "FP8", "BF16"}),
        ("moonshotai/Kimi-K2.6", "INT4-32", {"Q8_0", "FP8", "BF16"}),
        ("deepseek-ai/DeepSeek-R1", "Q4_K_M", {"BF16"}),
        ("qwen3:8b", "Q4_K_M", set()),
    ],
)
def test_nothing_finer_than_what_is_published_is_told_of(run: Run, model: str, first: str, never: set[str]):
    told = json.loads(run(model, "--on", "8xh200", "--json")[1])
    quants = [row["quant"] for row in told["fits"]]
    assert quants[0] == first and not never & set(quants) and "MXFP4" in quants
    assert ("BF16" in quants) is (model == "qwen3:8b")


def test_commands_name_files_that_are_known_to_be_there(run: Run):
    """llama-server gets no repository without GGUF, and no quantisation that none is known to hold."""
    for model in ("qwen3:8b", "allenai/OLMo-7B-Instruct-hf"):
        status, out, _ = run(model, "--on", "h200", "--engine", "llama.cpp", "--json")
        commands = {row["quant"]: row["command"] for row in json.loads(out)["fits"] if row.get("command")}
        assert status == 0 and set(commands) <= {"Q4_K_M"}
        assert all("GGUF" in command for command in commands.values())


def test_weights_published_in_four_bits_are_shown_as_published(run: Run):
    told = json.loads(run("openai/gpt-oss-20b", "--json")[1])
    assert {"MXFP4", "Q3_K_M"} <= {row["quant"] for row in told["fits"]}


def test_quantisations_stand_by_their_size_in_memory_and_point_to_one_that_fits(run: Run):
    """Q3_K_M has no kernel here: converted at load, it takes more memory than Q4_K_M."""
    _, out, _ = run("qwen3:8b", "--context", "8k", "--json")
    rows = json.loads(out)["fits"]
    weights = [row["memory"]["weights"] for row in rows]
    assert weights == sorted(weights)
    assert [row["quant"] for row in rows].index("Q3_K_M") > 0
    (misfit,) = (row for row in rows if not row["fits"])
    assert misfit["hint"] == "Q8_0 fits, or --on larger hardware"


# --- models that see --------------------------------------------------------------------------------


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """A tiny model that reads pictures, with its tower beside it."""
    make.write_mmproj(make.config("qwen3_vl"), tmp_path / "mmproj-F16.gguf")
    return make.write_gguf(make.config("qwen3_vl"), tmp_path / "m.gguf")


def test_a_model_that_sees_is_counted_with_its_tower_and_a_picture_s_times(run: Run, seeing: Path):
    tower = tower_need(seeing.with_name("mmproj-F16.gguf"))
    assert tower is not None and tower.screen is not None
    status, out, err = run(str(seeing), "--context", "64", "--quant", "all", "--json")
    assert (status, err) == (0, "")
    row = next(row for row in json.loads(out)["fits"] if row["held"])
    memory, pictures = row["memory"], row["pictures"]
    assert (memory["tower"], memory["features"]) == (tower.weights, tower.kept)
    parts = [v for k, v in memory.items() if k not in ("cache", "total")]
    assert memory["total"] == sum(parts) + sum(memory["cache"].values())
    assert (pictures["at_once"], pictures["at_once_bytes"]) == (32, tower.at_once)
    assert (pictures["least_tokens"], pictures["most_tokens"]) == (tower.least, tower.most)
    screen = pictures["screen"]
    assert screen["tokens"] == tower.screen.tokens
    assert 0 < screen["encode_s"]["low"] < screen["encode_s"]["mid"] < screen["encode_s"]["high"]
    assert 0 < screen["prefill_s"]["low"] <= screen["prefill_s"]["mid"] <= screen["prefill_s"]["high"]
    out = run(str(seeing), "--context", "64")[1]
    features = f"up to {show_bytes(tower.kept)} of their features"
    assert f"pictures: {show_bytes(tower.weights)} for the vision encoder and {features}" in out
    assert f"a picture of 1920 x 1080 pixels: {tower.screen.tokens:,} tokens, " in out
    assert f"32 of them at once: {show_bytes(tower.at_once)} more" in out


def test_a_text_model_has_no_tower_and_a_published_one_its_weights(run: Run):
    (text,) = json.loads(run("qwen3:8b", "--quant", "q4_k_m", "--json")[1])["fits"]
    assert text["pictures"] is None and text["memory"]["tower"] == text["memory"]["features"] == 0
    known = next(
        m
        for m in catalog.models()
        if m.name and "image" in m.modalities and m.text_parameters and not choosing.blind(m.structure)
    )
    (row,) = json.loads(run(known.name, "--quant", "q4_k_m", "--json")[1])["fits"]
    weights = known.parameters - known.text_parameters
    assert (
        row["memory"]["tower"] == pytest.approx(weights * 8.5 / 8, abs=1)
        and row["pictures"]["screen"] is None
    )
    (there,) = json.loads(run(known.name, "--quant", "q4_k_m", "--on", "2xh100", "--json")[1])["fits"]
    assert there["pictures"] is None


def test_python_s_fit_counts_the_tower_too(seeing: Path):
    fitted = freehold.fit(str(seeing), 64)
    assert fitted.memory is not None and fitted.memory.tower > 0
