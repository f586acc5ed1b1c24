"""models and show as a user meets them: search, filters, sorting, JSON, what is stale, what the hub says today."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from tests.store.standin import COMMIT, Standin, serving

Run = Callable[..., tuple[int, str, str]]
CONFIG = b'{"max_position_embeddings": 40960, "hidden_size": 4096, "vocab_size": 151936}'


@pytest.fixture
def hub() -> Iterator[Standin]:
    with serving(Standin(files={"config.json": CONFIG})) as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, hub: Standin, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.toml").write_text("adopt = false\n")
    for key in [k for k in os.environ if k.startswith(("HF_", "FREEHOLD_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def ids(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:]]


@pytest.mark.parametrize(
    ("args", "among", "not_among"),
    [
        (("qwen", "coder"), "Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen/Qwen3-8B"),
        (("--licence", "mnpl"), "mistralai/Codestral-22B-v0.1", "Qwen/Qwen3-8B"),
        (("--country-not", "cn"), "openai/gpt-oss-20b", "Qwen/Qwen3-8B"),
        (("--country", "FR"), "HuggingFaceTB/SmolLM3-3B", "openai/gpt-oss-20b"),
        (("--lab", "nvidia"), "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "openai/gpt-oss-20b"),
        (("--min-size", "7b", "--max-size", "8b"), "Qwen/Qwen3-8B", "Qwen/Qwen3-14B"),
        (("--max-size", "270m"), "google/gemma-3-270m-it", "Qwen/Qwen3-0.6B"),
        (("--min-context", "128k"), "openai/gpt-oss-20b", "Qwen/Qwen2.5-0.5B-Instruct"),
        (("--architecture", "qwen3moe"), "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B"),
        (
            ("--tier", "xl", "--kind", "dense"),
            "meta-llama/Llama-3.1-405B-Instruct",
            "deepseek-ai/DeepSeek-V3",
        ),
        (("--thinking", "only"), "Qwen/QwQ-32B", "Qwen/Qwen3-8B"),
        (("--modality", "audio"), "google/gemma-4-E2B-it", "google/gemma-3-4b-it"),
        (("--tools", "--family", "qwen3.5"), "Qwen/Qwen3.5-27B", "Qwen/Qwen3-8B"),
    ],
)
def test_models_are_searched_and_filtered(run: Run, args: tuple[str, ...], among: str, not_among: str):
    status, out, err = run("models", *args)
    assert status == 0 and err == ""
    assert among in ids(out) and not_among not in ids(out)


def test_models_are_filtered_by_what_they_make_and_the_languages_their_cards_name(run: Run):
    embedders = ids(run("models", "--role", "embedder", "--language", "de")[1])
    assert "Qwen/Qwen3-Embedding-0.6B" in embedders and "mixedbread-ai/mxbai-embed-large-v1" not in embedders
    assert "BAAI/bge-m3" not in embedders  # claims over 100 and names none
    assert "BAAI/bge-m3" in ids(run("models", "--role", "embedder", "--language", "mul")[1])
    assert "BAAI/bge-reranker-v2-m3" in ids(run("models", "--role", "reranker")[1])


def test_lint_names_the_gaps_of_ones_own_entries_and_finds_none_in_ours(run: Run, home: Path):
    status, out, err = run("models", "lint")
    assert (status, out) == (0, "") and err.endswith(" 0 gaps\n")
    own(home, MINE)
    status, out, _ = run("models", "lint")
    assert status == 1 and out.splitlines()[0].startswith("me/Mine-8B: layers is missing")
    told = json.loads(run("models", "lint", "--json")[1])
    assert {row["id"] for row in told["gaps"]} == {"me/Mine-8B"} and told["models"] > 300


def test_show_words_exact_weights_languages_and_what_is_not_known(run: Run):
    out = run("show", "google/gemma-3-4b-it")[1]
    assert "4,300,079,472 counted, of them 3,880,263,168 for text, published in BF16" in out
    assert "en (named, of 140 claimed)" in out
    out = run("show", "BAAI/bge-m3")[1]
    assert "vectors of 1,024 dimensions" in out
    assert "native: looked for in" in run("show", "xai-org/grok-2")[1]


def test_models_are_sorted_by_sizes_dates_and_published_scores(run: Run):
    by_size = ids(run("models", "--family", "qwen2.5-coder", "--sort", "params")[1])
    assert by_size[0].endswith("0.5B-Instruct") and by_size[-1].endswith("32B-Instruct")
    assert (
        ids(run("models", "--family", "qwen2.5-coder", "--sort", "params", "--reverse")[1]) == by_size[::-1]
    )
    head, *rows = run("models", "--sort", "mmlu_pro")[1].splitlines()
    scores = [float(r.split()[-1]) for r in rows[:40]]
    assert head.split()[-1] == "MMLU_PRO" and scores == sorted(scores, reverse=True)


def test_json_has_every_fact_and_what_follows_from_them(run: Run):
    listing = json.loads(run("models", "deepseek-v3.2", "--json")[1])
    (found,) = listing["models"]
    assert listing["schema"] == 1 and found["id"] == "deepseek-ai/DeepSeek-V3.2"
    assert found["tier"] == "xl" and found["layers"][0]["kind"] == "latent"
    assert found["cache_bytes_per_token"] == 61 * (512 + 64 + 128) * 2
    assert found["stale"] is False and found["checked"].startswith("2026-1")


def test_a_search_without_a_hit_says_which_condition_to_drop(run: Run):
    status, out, err = run("models", "--tier", "nano", "--min-context", "1m")
    assert status == 0 and out == ""
    assert err.startswith("no model matches all conditions: ") and "without --tier" in err


def test_a_wrong_key_or_size_is_refused_with_the_right_ones(run: Run):
    status, _, err = run("models", "--sort", "beauty")
    assert status == 2 and "cannot be sorted by 'beauty'" in err and "swe_bench_verified" in err
    assert "write 8b, 0.5b or 270m" in run("models", "--min-size", "big")[2]
    assert "'long' is not a valid number; write 8192, 32k" in run("models", "--min-context", "long")[2]


def own(home: Path, text: str) -> None:
    (home / "catalogue.toml").write_text(text, encoding="utf-8")


MINE = '[[model]]\nid = "me/Mine-8B"\nparams_b = 8\nlab = "Me"\nsources = ["notes"]\nchecked = 2026-01-15\n'


def test_the_users_entries_are_listed_and_old_facts_show_their_age(run: Run, home: Path):
    own(home, MINE)
    (row,) = [r for r in run("models", "--lab", "me")[1].splitlines() if "me/Mine" in r]
    days = (date.today() - date(2026, 1, 15)).days
    assert row.endswith(f"{days} days old")
    assert f"checked 2026-01-15, {days} days old: check them again" in run("show", "me/Mine-8B")[1]


def test_a_damaged_catalogue_of_the_user_is_named_with_its_line(run: Run, home: Path):
    own(home, MINE + "params_b = \n")
    for verb in (("models",), ("show", "qwen3:8b")):
        status, out, err = run(*verb)
        assert status == 1 and out == ""
        assert f"error: {home / 'catalogue.toml'}:7: is not valid TOML" in err and "hint: " in err


def test_show_tells_what_is_known_of_a_model_without_a_short_name(run: Run):
    status, out, _ = run("show", "Qwen/Qwen3-235B-A22B")
    assert status == 0
    assert "235B-A22B, xl, 128 experts, 8 per token" in out
    assert "94 x attention, keys and values of 4 x 128" in out
    assert "192,512 bytes a token at 16 bits" in out and "checked 2026-" in out


def test_show_names_the_nearest_of_an_unknown_model(run: Run):
    status, _, err = run("show", "Qwen/Qwen3-9B")
    assert status == 1 and "the catalogue has no model 'Qwen/Qwen3-9B'" in err
    assert "did you mean " in err and "Qwen/Qwen3-8B" in err


def test_refresh_shows_what_differs_and_adds_it_dated_only_with_consent(run: Run, home: Path, hub: Standin):
    hub.licence = "llama3.1"
    status, out, err = run("--offline", "models", "refresh", "qwen3:8b")
    assert status == 1 and "offline mode forbids" in err and not hub.requests
    told = json.loads(run("models", "refresh", "qwen3:8b", "--json")[1])
    licence = next(c for c in told["changes"] if c["key"] == "licence")
    assert (licence["known"], licence["found"]) == (
        "Apache-2.0",
        "LicenseRef-scancode-llama-3.1-license-2024",
    )
    assert licence["source"] == f"hub: Qwen/Qwen3-8B@{COMMIT[:12]}"
    assert told["added"] == 0 and not (home / "catalogue.toml").exists()
    own(home, f"# mine\n{MINE}")
    status, out, err = run("models", "refresh", "qwen3:8b", "--yes")
    assert status == 0 and "licence 'Apache-2.0' -> 'LicenseRef-scancode-llama-3.1" in out
    text = (home / "catalogue.toml").read_text()
    assert text.startswith(f"# mine\n{MINE}") and f"checked = {date.today().isoformat()}" in text
    assert "llama-3.1-license-2024" in run("show", "Qwen/Qwen3-8B")[1]
    assert json.loads(run("models", "refresh", "qwen3:8b", "--json")[1])["changes"] == []


def test_refresh_names_what_the_hub_does_not_have_and_goes_on(run: Run, home: Path, hub: Standin):
    own(home, MINE)
    hub.statuses = [(404, {})]
    told = json.loads(run("models", "refresh", "me/Mine-8B", "qwen3:8b", "--json")[1])
    assert [f[0] for f in told["failed"]] == ["me/Mine-8B"] and "has nothing at" in told["failed"][0][1]
    assert {c["id"] for c in told["changes"]} == {"Qwen/Qwen3-8B"}


def test_refresh_of_a_hub_that_cannot_be_reached_fails_with_its_name(run: Run, monkeypatch):
    monkeypatch.setattr("freehold.run.store.hub.TRIES", 1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, _, err = run("models", "refresh", "qwen3:8b")
    assert status == 1 and err.startswith("error: 127.0.0.1:9: ")


def test_the_first_answer_imports_no_engine_and_no_array(home: Path):
    """It took half a second of processor, most of it for what it does not use."""
    command = [sys.executable, "-X", "importtime", "-m", "freehold.cli.main", "models", "--tier", "nano"]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, check=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "freehold.base.catalog" in imported
    assert not imported & {
        "numpy",
        "freehold._native",
        "freehold.run.engine",
        "httpx2",
        "jinja2",
        "tokenizers",
    }


def test_words_that_name_nothing_get_the_nearest_names(run: Run):
    _, _, err = run("models", "qwen2.5-codr:7b")
    assert "or did you mean qwen2.5-coder:7b" in err


@pytest.mark.parametrize("verb", ["show", "license", "why", "fit"])
@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_names_no_model(run: Run, verb: str, name: str):
    status, out, err = run(verb, name)
    assert status != 0 and not out and "error:" in err
