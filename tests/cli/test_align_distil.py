"""`freehold align` and `freehold distil`: what they print, and what is refused before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import freehold
from freehold.choose.advisor.lineage import Subject
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef

pytest.importorskip("torch")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FREEHOLD_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    make.write_gguf(make.config("qwen2"), tmp_path / "tiny.gguf")
    lines = [{"prompt": f"{i}?", "chosen": f"{i}!", "rejected": f"{i} maybe"} for i in range(12)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("prompts.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"{i}?", "regex": "."}) for i in range(8))
    )
    return tmp_path


QUICK = ("--threads", "1", "--rank", "2", "--test-share", "0.3")


@pytest.mark.heavy
def test_align_prints_what_was_learnt_and_the_adapter_runs(home: Path, run: Run):
    status, out, err = run("align", "tiny.gguf", "--pairs", "pairs.jsonl", "-o", "tuned", *QUICK)
    assert status == 0, err
    assert "0.6931 (ln 2" in out
    assert "prefer the chosen answer" in out
    assert "engine and trainer differ by" in out
    assert "answers of" in err and "(ratio" in err
    with freehold.load("tiny.gguf", context=64, threads=1, adapters={"tuned": "tuned"}) as model:
        assert model.chat("hi", max_tokens=3, adapter="tuned").token_ids


@pytest.mark.heavy
def test_json_prints_the_receipt_alone(home: Path, run: Run):
    status, out, _ = run("align", "tiny.gguf", "--pairs", "pairs.jsonl", "-o", "tuned", "--json", *QUICK)
    assert status == 0
    assert json.loads(out) == json.loads(Path("tuned/receipt.json").read_text())


def test_a_result_that_exists_is_not_written_over(home: Path, run: Run):
    Path("tuned").mkdir()
    status, _, err = run("align", "tiny.gguf", "--pairs", "pairs.jsonl", "-o", "tuned", *QUICK)
    assert status == 2
    assert "tuned exists already" in err


def test_bad_pairs_are_two_lines(home: Path, run: Run):
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "c"}')
    status, out, err = run("align", "tiny.gguf", "--pairs", "pairs.jsonl", "-o", "tuned", *QUICK)
    assert (status, out) == (2, "")
    assert err.startswith("error: pairs.jsonl: line 1: chosen and rejected are the same\n")
    assert len(err.splitlines()) == 2


def test_a_pair_that_is_too_long_is_named_with_its_file(home: Path, run: Run):
    Path("test.jsonl").write_text(json.dumps({"prompt": "p" * 99, "chosen": "c", "rejected": "r"}))
    status, _, err = run(
        *("align", "tiny.gguf", "--pairs", "pairs.jsonl", "--test", "test.jsonl", "-o", "tuned"),
        *("--threads", "1", "--rank", "2", "--max-length", "64"),
    )
    assert status == 2 and "test.jsonl: line 1: " in err and "--max-length" in err


def test_distil_says_that_no_answer_was_kept(home: Path, run: Run):
    """A random model hardly ends an answer of eight tokens: all are cut, and none is learnt."""
    status, _, err = run(
        *("distil", "tiny.gguf", "--into", "tiny.gguf", "--prompts", "prompts.jsonl", "-o", "tuned"),
        *("--max-tokens", "8", "--tries", "1", *QUICK),
    )
    assert "answers kept; rejected:" in err
    assert status == 2
    assert "no answer of tiny was kept" in err


def test_distil_on_policy_prints_divergence_and_score(home: Path, run: Run):
    status, out, err = run(
        *("distil", "tiny.gguf", "--into", "tiny.gguf", "--prompts", "prompts.jsonl", "-o", "tuned"),
        *("--on-policy", "--max-tokens", "8", "--epochs", "1", *QUICK),
    )
    assert status == 0, err
    assert "nats per token from the teacher" in out
    assert "not known: unknown for training on its answers" in out


def test_a_teacher_whose_licence_forbids_it_is_refused_before_it_is_loaded(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    def licensed(ref: ModelRef) -> Subject:
        return Subject(
            ref.name, "LicenseRef-scancode-llama-2-license-2023" if ref.name == "big" else "Apache-2.0"
        )

    make.write_gguf(make.config("qwen2", 5), home / "big.gguf")
    monkeypatch.setattr("freehold.adapt.licences.licensed", licensed)
    status, _, err = run(
        *("distil", "big.gguf", "--into", "tiny.gguf", "--prompts", "prompts.jsonl", "-o", "tuned", *QUICK)
    )
    assert status == 2
    assert "§1(b)(v)" in err
    assert "--accept-teacher-terms" in err
    assert not Path(".tuned.part").exists()


def test_help_names_an_example(run: Run):
    for verb in ("align", "distil"):
        status, out, _ = run(verb, "--help")
        assert status == 0
        assert f"Example: freehold {verb}" in out
