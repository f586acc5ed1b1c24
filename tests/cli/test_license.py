"""freehold license as a user meets it: lists, cards, verdicts, comparisons, packs, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from freehold.cli import main as cli_main

Run = Callable[..., tuple[int, str, str]]
SMALL = (
    "--for",
    "commercial",
    "--monthly-users",
    "50k",
    "--revenue",
    "3M",
    "--no-access",
    "--no-ships",
    "--seat",
    "US",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "license")


def test_without_a_name_it_lists_every_licence(run: Run):
    status, out, _ = run()
    assert status == 0 and len(out.splitlines()) > 40
    assert next(line for line in out.splitlines() if line.startswith("tongyi")).split()[1:4] == [
        "custom",
        "yes",
        "no",
    ]


def test_a_licence_shows_its_card_with_clauses_and_digest(run: Run):
    _, out, _ = run("qwen")
    assert "§4 Restrictions" in out and "c04f7c8d5721b408" in out and "It is not legal advice" in out


def test_card_quotes_the_words_that_a_licence_prescribes(run: Run):
    _, out, _ = run("llama3.1")
    card = " ".join(out.split("\nsubject", 1)[0].split())
    assert 'must: give a model trained on its outputs a name that starts with "Llama" (' in card
    assert '"https://llama.meta.com/llama3_1/use-policy"' in card  # no line breaks within an address


def test_a_model_is_judged_and_the_clause_is_named(run: Run):
    status, out, _ = run("Qwen/Qwen2.5-72B-Instruct", "--for", "commercial", "--monthly-users", "200M")
    assert status == 0
    assert "refused, for purpose commercial, users 200,000,000" in out and "[§4 Restrictions]" in " ".join(
        out.split()
    )


def test_what_would_decide_is_asked(run: Run):
    _, out, _ = run("llama3.1:8b")
    assert "not decided" in out and "for a verdict, state: monthly users of your products" in out


def test_the_verb_is_spelled_either_way(capsys: pytest.CaptureFixture[str]):
    assert cli_main.run(["licence", "MIT"]) == 0
    assert "MIT License" in capsys.readouterr().out


def test_several_names_are_compared(run: Run):
    _, out, _ = run("qwen3:8b", "mistralai/Codestral-22B-v0.1", *SMALL)
    assert "Qwen/Qwen3-8B" in out and "refused" in out and "§3.2 Usage Limitation" in out
    _, out, _ = run("qwen3:8b", "mit")
    assert "3 duties if --modifies or --ships" in out and "1 duty if --ships" in out


def test_json_has_a_schema_reasons_and_openness(run: Run):
    _, out, _ = run("tongyi-qianwen", "--distils", "--json")
    found = json.loads(out)
    verdict = found["verdicts"][0]
    assert found["schema"] == 1 and verdict["answer"] == "refused"
    assert verdict["reasons"][0]["clause"] == "§5(b) Rules of use" and verdict["openness"]["level"] == 3
    assert json.loads(run("--json")[1])["licences"][0]["terms"]


def test_a_merge_and_a_teacher_are_judged(run: Run):
    assert "refused" in run("qwen3:8b", *SMALL, "--taught-by", "Qwen/Qwen2-72B-Instruct")[1]
    assert "Gemma Terms of Use" in run("qwen3:8b", *SMALL, "--merge", "google/gemma-2-9b-it")[1]


def test_a_teacher_alone_is_asked_for_a_model_of_your_own(run: Run):
    _, out, _ = run("--taught-by", "claude", *SMALL)
    assert "your own model" in out and "refused" in out and "D.4 Use Restrictions" in " ".join(out.split())
    assert run("--taught-by", "gpt-5", *SMALL, "--check")[0] == 1
    assert run("--taught-by", "deepseek-ai/DeepSeek-R1", *SMALL, "--check")[0] == 0
    _, out, _ = run("--taught-by", "Llama-3.1-405B", *SMALL, "--ships", "--distils", "--pack", "-")
    assert "Llama" in out
    status, _, err = run("--merge", "qwen3:8b", "--taught-by", "gpt-5")
    assert status == 2 and "--merge needs a NAME" in err


def test_a_years_revenue_is_at_least_a_months(run: Run):
    _, out, _ = run("stabilityai/stablelm-2-1_6b", *SMALL, "--revenue", "1k", "--monthly-revenue", "5M")
    assert "refused" in out


@pytest.mark.parametrize(
    ("seat", "answer"),
    [("EL", "refused"), ("RE", "refused"), ("de", "refused"), ("UK", "allowed"), ("CH", "allowed")],
)
def test_greece_and_the_parts_of_france_with_their_own_codes_lie_in_the_union(
    run: Run, seat: str, answer: str
):
    _, out, _ = run("llama4:scout", *SMALL, "--product", "--no-modifies", "--no-distils", "--seat", seat)
    assert f"answer    {answer}" in out


def test_check_makes_the_status_say_no(run: Run):
    assert run("mrl", *SMALL, "--check")[0] == 1
    assert run("MIT", *SMALL, "--check")[0] == 0


def test_a_pack_is_written_or_printed(run: Run, tmp_path: Path):
    status, out, err = run("llama3.1", *SMALL[:-4], "--ships", "--pack", str(tmp_path / "pack"))
    assert status == 0 and "wrote" in err and "wrote" not in out
    assert sorted(p.name for p in (tmp_path / "pack").iterdir()) == ["NOTICE", "OBLIGATIONS.md"]
    assert run("llama3.1", "--ships", "--pack", "-")[1].startswith("==> NOTICE\nLlama 3.1 is licensed")


def test_facts_may_stand_in_the_settings_and_options_win(run: Run, home: Path):
    (home / "config.toml").write_text('[company]\npurpose = "commercial"\nusers = 200_000_000\n')
    assert "refused" in run("qwen")[1]
    assert "allowed, with conditions" in run("qwen", "--monthly-users", "5M")[1]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("lama3.1",), 1, "licences: llama3.1"),
        (("qwen", "--for", "fun"), 2, "purpose 'fun' is not one of"),
        (("qwen", "--monthly-users", "lots"), 2, "'lots' is not a valid number"),
        (("qwen", "--seat", "Germany"), 2, "not a country code"),
        (("qwen", "--seat", "XX"), 2, "not a country code"),
        (("mistral", "small", "4"), 2, "quote it: freehold license 'mistral small 4'"),
        (("4",), 1, "no model or licence named"),
        (("qwen3:8b", "--no-modifies", "--taught-by", "qwen3:32b"), 2, "--no-modifies contradicts"),
        (("mrl", "--for", "commercial", "--pack", "-"), 2, "no pack for"),
        (("llama3.2:3b", "--multimodal"), 2, "--multimodal contradicts"),
        (("llama4:scout", "--text-only", "--seat", "DE"), 2, "--text-only contradicts"),
        (("--check",), 2, "need a NAME"),
        (("--for", "commercial"), 2, "--for needs a NAME"),
        (("--narrow", "--json"), 2, "--narrow needs a NAME"),
        (("qwen", "mrl", "--pack", "-"), 2, "take one NAME"),
    ],
)
def test_bad_input_is_two_lines(run: Run, args: tuple[str, ...], status: int, words: str):
    got, out, err = run(*args)
    assert got == status and not out and words in err and len(err.splitlines()) <= 2


def test_a_wrong_key_in_the_settings_names_the_nearest(run: Run, home: Path):
    (home / "config.toml").write_text("[company]\nuser = 5\n")
    status, _, err = run("qwen")
    assert status == 2 and "[company]: unknown key 'user'" in err and "did you mean users?" in err


def test_no_heavy_library_is_loaded_for_an_answer():
    code = "import sys; from freehold.cli import main; main.run(['license', 'qwen3:8b']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "httpx2", "jinja2", "tokenizers"} & set(out.replace("'", "").split(", "))
