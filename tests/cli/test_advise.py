"""freehold advise and why as a user meets them: tables, JSON, reports, what to relax, and bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import freehold
from freehold.choose import choosing
from freehold.choose.advisor import machine, places
from freehold.choose.advisor.advice import Refusal
from freehold.choose.advisor.file_anatomy import from_file
from freehold.choose.advisor.fit import OURS, Place
from freehold.choose.advisor.verdict import Facts
from tests.vectors.files import write_gguf

Run = Callable[..., tuple[int, str, str]]
COMPANY = ("--for", "commercial", "--monthly-users", "2000", "--revenue", "3M", "--no-access")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described_machine: Callable[..., object]) -> Path:
    """A home on a described machine: what these verbs say then rests on data alone."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    described_machine()
    return tmp_path


def test_a_task_is_answered_with_models_reasons_and_a_command(run: Run):
    status, out, err = run("advise", "code completion", *COMPANY)
    assert status == 0 and not err
    assert "code-completion: completing code as it is typed" in out
    assert "qwen2.5-coder:1.5b" in out and "why qwen2.5-coder" in out
    assert "  freehold run qwen2.5-coder" in out
    assert "  by licence: " in out and "  by engine: " in out


def test_json_has_picks_and_what_was_ruled_out(run: Run):
    status, out, _ = run(
        "advise", "chat", "--country-not", "CN", "--min-context", "32k", "--on", "m4:16gb", "--json"
    )
    told = json.loads(out)
    assert status == 0 and told["schema"] == 1 and told["task"] == "chat" and told["context"] == 32000
    assert told["picks"] and told["ruled_out"]
    first = told["picks"][0]
    assert first["placement"]["decode"]["low"] <= first["placement"]["decode"]["high"]
    assert first["quality"]["benchmark"] == told["benchmark"]
    by_country = [j for j in told["ruled_out"] if any(r["rule"] == "country" for r in j["refusals"])]
    assert any(j["id"].startswith("Qwen/") for j in by_country)


@pytest.mark.heavy
def test_named_hardware_and_a_budget_are_places(run: Run):
    _, here, _ = run("advise", "chat", "--on", "m4:16gb", "--json")
    _, there, _ = run("advise", "chat", "--on", "2xh100", "--json")
    _, rented, _ = run("advise", "chat", "--budget", "800", "--json")
    here, there, rented = (json.loads(x)["picks"] for x in (here, there, rented))
    assert there[0]["params_b"] > here[0]["params_b"]
    assert there[0]["placement"]["where"] == "2xh100"
    assert all(p["placement"]["month"] <= 800 for p in rented)


def test_plot_report_and_chart(run: Run, tmp_path: Path):
    page, chart = tmp_path / "advice.html", tmp_path / "advice.svg"
    status, out, err = run(
        "advise", "chat", "--on", "m4:16gb", "--plot", "--html", str(page), "--svg", str(chart)
    )
    assert status == 0 and "tokens a second" in out and "wrote" in err
    text = page.read_text()
    assert (
        "<h1>Models for talking and helping in general</h1>" in text
        and " src=" not in text
        and " href=" not in text
    )
    assert chart.read_text().startswith("<svg")
    assert not list(tmp_path.glob(".*.part"))


def test_what_to_relax_is_told_and_the_exit_is_1(run: Run):
    status, _, err = run("advise", "chat", "--min-context", "90m")
    assert status == 1 and "without --min-context" in err


def test_all_names_every_reason(run: Run):
    _, out, _ = run("advise", "code completion", *COMPANY, "--all")
    line = next(
        x for x in out.splitlines() if x.startswith("mistralai/Codestral-22B-v0.1") and "licence" in x
    )
    assert "refused" in line


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("advise", "zzz"), "names a kind of work"),
        (("advise", "chat", "--on", "h1000"), "no hardware named"),
        (("advise", "chat", "--on", "h100", "--engine", "vlm"), "no engine named"),
        (("advise", "chat", "--on", "h100", "--engine", "mlx"), "does not run on"),
        (("advise", "chat", "--engine", "vllm"), "needs named hardware"),
        (("advise", "chat", "--budget", "1"), "rents no hardware"),
        (("advise", "chat", "--on", "h100", "--budget", "10"), "beyond a budget"),
        (("advise", "chat", "--country-not", "China"), "not a country code"),
        (("advise", "chat", "--for", "fun"), "is not one of"),
        (("advise", "chat", "--html", "/nowhere/x.html"), "cannot be written"),
        (("advise", "chat", "--on", "h100", "--run"), "this machine"),
        (("advise", "chat", "--budget", "nan"), "is not a finite number"),
        (("why", "qwen2.5-codr:1.5b"), "did you mean"),
    ],
)
def test_bad_input_says_what_and_the_way_out(run: Run, args: tuple[str, ...], said: str):
    status, _, err = run(*args)
    assert status == 2 if said != "did you mean" else status != 0
    assert said in err


def test_why_is_one_card_with_what_is_not_known(run: Run):
    status, out, _ = run("why", "qwen2.5-coder:1.5b", *COMPANY[2:], "--for", "commercial")
    assert status == 0
    assert (
        "bigcodebench 28 (" in out
        and "less 1.5 for Q4_K_M" in out
        and "licence  " in out
        and "Apache-2.0" in out
    )
    assert "predicted" in out
    assert "not known" in out and "it is not in the store" in out


def test_why_as_json(run: Run):
    _, out, _ = run("why", "Qwen/Qwen3-8B", "--json")
    told = json.loads(out)
    assert told["schema"] == 1 and told["here"]["fits"] is True
    assert {q["basis"] for q in told["quality"]} == {"published", "converted"}


def test_the_same_in_python(home: Path):
    advice = freehold.advise("code completion", facts=Facts(purpose="research"), min_context=8000)
    assert advice.picks and all(j.placement and j.verdict for j in advice.picks)
    assert freehold.fit("qwen2.5-coder:1.5b", 4096).memory.total > 1e9  # type: ignore[union-attr]
    assert freehold.license("qwen3:8b", purpose="commercial", redistributes=False).answer == "allowed"
    assert freehold.license("qwen3:8b", taught_by="gpt-4o", purpose="commercial").answer == "refused"
    assert freehold.license("qwen3:8b", merge=["CC-BY-NC-4.0"], purpose="commercial").answer == "refused"
    assert freehold.license(taught_by="gemini-2.5-pro", purpose="commercial").answer == "refused"
    with pytest.raises(freehold.FreeholdError, match="unknown key"):
        freehold.license("qwen3:8b", purpos="commercial")
    with pytest.raises(freehold.FreeholdError, match="needs a name"):
        freehold.license(merge=["qwen3:8b"])


def test_python_and_the_verb_weigh_a_file_in_another_quantisation_alike(run: Run, tmp_path: Path):
    path = str(write_gguf("llama", tmp_path / "mine.gguf"))
    found = freehold.fit(path, quant="q8_0")
    (row,) = json.loads(run("fit", path, "--quant", "Q8_0", "--json")[1])["fits"]
    assert found.memory and (found.anatomy.quant, found.memory.weights) == ("Q8_0", row["memory"]["weights"])
    assert freehold.fit(path).anatomy.exact and not found.anatomy.exact


def test_an_answer_names_what_it_understood_and_what_it_ignored(run: Run, tmp_path: Path):
    page = tmp_path / "advice.html"
    status, out, _ = run("advise", "RAG over German contracts in vim", "--on", "h100", "--html", str(page))
    assert status == 0
    assert "understood: task rag (rag, contracts); language de (german)" in out and "ignored: vim" in out
    assert "ignored: vim" in page.read_text()
    told = json.loads(run("advise", "RAG over German contracts in vim", "--on", "h100", "--json")[1])
    assert {"what": "language", "value": "de", "words": "german", "says": ""} in told["understood"]
    assert told["ignored"] == ["vim"] and told["context"] == 16000


def test_hardware_in_words_is_the_place_and_an_option_beats_it(run: Run):
    told = json.loads(run("advise", "coding agent on an RTX 4090", "--json")[1])
    assert {p["placement"]["where"] for p in told["picks"]} == {"rtx-4090"}
    told = json.loads(run("advise", "coding agent on an RTX 4090", "--on", "h100", "--json")[1])
    assert {p["placement"]["where"] for p in told["picks"]} == {"h100"}
    assert any("rtx-4090" in note and "the option counts" in note for note in told["notes"])


@pytest.mark.heavy
def test_many_users_at_a_time_need_room_for_all(run: Run):
    one = json.loads(run("advise", "chat", "--on", "h100", "--json")[1])["picks"][0]["placement"]
    told = json.loads(run("advise", "chat for 50 users", "--on", "h100", "--json")[1])
    many = told["picks"][0]["placement"]
    assert many["users"] == 50 and many["engine"] != "llama.cpp"
    assert one["users"] == 1 and any(r["rule"] == "users" for j in told["ruled_out"] for r in j["refusals"])


def test_the_cheapest_comes_first_among_those_not_shown_to_be_worse(run: Run):
    best = json.loads(run("advise", "classifying support mails", "--on", "h100", "--json")[1])["picks"]
    told = json.loads(
        run("advise", "cheapest model for classifying support mails", "--on", "h100", "--json")[1]
    )["picks"]
    able = [p for p in told if p["quality"]["high"] >= best[0]["quality"]["low"]]
    assert told[: len(able)] == able
    assert [p["placement"]["memory"] for p in able] == sorted(p["placement"]["memory"] for p in able)
    assert able[0]["placement"]["memory"] < best[0]["placement"]["memory"]


def test_pictures_beside_a_task_ask_for_models_that_read_them(run: Run):
    told = json.loads(run("advise", "chatbot that can read screenshots", "--on", "h100", "--json")[1])
    assert any("vision is not answered" in note for note in told["notes"])
    assert not any(p["id"] == "Qwen/Qwen3-32B" for p in told["picks"])


@pytest.mark.heavy
def test_a_busy_machines_measurement_rules_no_model_out(run: Run, described_machine: Callable[..., object]):
    """Measured beside a crowd, this machine seemed to give a quarter; the models that it runs alone stay."""
    quiet = json.loads(run("advise", "code completion", "--json")[1])["picks"]
    described_machine(rates=machine.Rates(7.5, 225.0, busy=True))
    status, out, _ = run("advise", "code completion", "--json")
    busy = {p["id"] for p in json.loads(out)["picks"]}
    assert status == 0 and busy >= {p["id"] for p in quiet}
    assert "this machine was busy" in run("advise", "code completion")[1]


def test_nothing_good_enough_exits_3_and_says_what_would_be(run: Run, tmp_path: Path):
    page = tmp_path / "advice.html"
    status, out, err = run("advise", "maths", "--max-size", "700m", "--html", str(page))
    assert (
        status == 3
        and "no model here is good enough for maths" in err
        and "range begins below the bar of 30" in err
    )
    assert "not ranked, as the range begins below the bar of 30 on aime25" in out
    assert "No model here is good enough" in page.read_text()
    status, out, _ = run("advise", "documents", "--json")
    told = json.loads(out)
    assert status == 3 and not told["good_enough"] and not told["picks"]
    assert told["instead"] and all(j["quality"]["low"] >= told["bar"] for j in told["instead"])
    assert all(j["placement"]["month"] > 0 for j in told["instead"])


def test_counts_are_of_models_and_what_a_quantisation_costs_is_said(run: Run):
    status, out, _ = run("advise", "chat", "--on", "m4:16gb")
    total, of = map(int, re.search(r"excluded: (\d+) of (\d+) models", out).groups())  # type: ignore[union-attr]
    assert status == 0 and total < of
    assert re.search(r"less 0\.\d for Q4_K_M", out)
    assert "without a published result for this kind of work" in out


@pytest.mark.heavy
def test_rag_names_an_embedder_and_where_it_pays_a_reranker(run: Run):
    here = json.loads(run("advise", "RAG over German contracts", "--json")[1])["beside"]
    assert here["embedder"]["command"].startswith("freehold embed ") and here["reranker"] is None
    there = json.loads(run("advise", "RAG over German contracts", "--on", "h100", "--json")[1])["beside"]
    assert there["embedder"]["command"].startswith("vllm serve ") and there["reranker"]
    assert "embeddings: " in run("advise", "RAG over German contracts")[1]
    assert json.loads(run("advise", "chat", "--json")[1])["beside"] is None


def test_a_language_is_evidence_asked_for_and_none_is_said(run: Run):
    told = json.loads(run("advise", "chatbot in French", "--on", "h100", "--json")[1])
    levels = [p["languages"][0]["level"] for p in told["picks"]]
    known = [level in ("result", "stated") for level in levels]
    assert known == sorted(known, reverse=True) and set(levels) >= {"result", "stated", "unknown"}
    assert any(r["rule"] == "language" for j in told["ruled_out"] for r in j["refusals"])
    assert (
        "no evidence for French"
        in run("advise", "chat", "--language", "fr", "--on", "h100", "--top", "999")[1]
    )


def test_embeddings_and_rerankers_are_ranked_by_their_own_results(run: Run):
    told = json.loads(run("advise", "embeddings for multilingual search", "--on", "h100", "--json")[1])
    assert [p["id"] for p in told["picks"][:3]] == [f"Qwen/Qwen3-Embedding-{s}" for s in ("8B", "4B", "0.6B")]
    told = json.loads(run("advise", "rerank search results in Arabic", "--on", "h100", "--json")[1])
    assert told["picks"] and all("rerank" in p["id"].lower() for p in told["picks"])
    status, out, _ = run("advise", "embeddings")
    assert status == 0 and "  freehold embed " in out


def test_reranking_here_is_done_by_an_embedder_and_advice_says_how(run: Run):
    status, out, err = run("advise", "rerank")
    assert status == 1 and "no model is left" in err
    assert "/v1/rerank sorts texts by their embeddings" in out and "  freehold serve " in out
    assert "/v1/rerank" not in run("advise", "rerank", "--on", "h100")[1]


def test_a_chat_in_one_language_is_ranked_by_votes_in_it(run: Run):
    told = json.loads(run("advise", "chatbot in French", "--on", "h100", "--json")[1])
    assert told["benchmark"] == "arena_french" and told["bar"] == 28
    assert told["picks"][0]["quality"]["basis"] == "published"
    assert json.loads(run("advise", "chatbot in Polish", "--on", "h100", "--json")[1])["benchmark"] == "arena"


def test_a_code_of_no_language_is_refused(run: Run):
    status, _, err = run("advise", "chat", "--language", "xx")
    assert status == 2 and "'xx' is not a language code" in err
    assert run("advise", "chat", "--language", "sm")[0] in (0, 1, 3)


def test_an_empty_question_is_refused(run: Run):
    status, _, err = run("advise", " ")
    assert status == 2 and "a task is missing" in err


def test_the_best_embedder_of_a_size_is_the_first_ranked_of_it(
    run: Run, described_machine: Callable[..., object]
):
    described_machine(
        free=24 * 10**9
    )  # a size of which no model fits has a best one, and none that is ranked
    found = json.loads(run("advise", "embeddings", "--json")[1])
    for tier, best in found["tiers"].items():
        assert best == next(p["id"] for p in found["picks"] if p["tier"] == tier), tier


def test_what_rounds_to_the_bar_is_shown_below_it(run: Run):
    _, out, _ = run("advise", "agents", "--on", "rtx-4090")
    bar, rest = re.search(r"range begins below the bar of (\d+) .*?has (.*)", out).groups()  # type: ignore[union-attr]
    low, exact = re.search(r"\((\d+) to \d+\)(?:, beginning at ([0-9.]+))?", rest).groups()  # type: ignore[union-attr]
    assert float(exact or low) < float(bar)


def test_a_held_file_that_only_bears_a_models_name_is_not_that_model(run: Run, tmp_path: Path):
    """A tiny random `mistral` is found by that name, and is neither the 7B model's file nor of its context."""
    assert run("make-tiny", "mistral", "--out", str(tmp_path), "--format", "gguf")[0] == 0
    assert run("pull", str(tmp_path / "mistral.gguf"))[0] == 0
    status, out, err = run("advise", "chat", "--installed", "--json")
    assert status == 1 and json.loads(out)["picks"] == [] and "without --installed" in err
    shown = json.loads(run("show", "mistral", "--json")[1])["model"]
    assert shown["state"] == "ready" and not shown["model"] and shown["catalogue"] is None
    assert "Mistral-7B" not in run("fit", "mistral")[1]


def test_a_held_file_of_a_shorter_context_excludes_that_model_alone(run: Run, tmp_path: Path):
    run("make-tiny", "qwen2", "--out", str(tmp_path), "--format", "gguf")
    model = freehold.base.catalog.model("qwen2.5:7b")
    place = Place("this machine", OURS, machine.here(tmp_path))
    found = places.here(place, {model.id: from_file(tmp_path / "qwen2.gguf")})(model, 4096)
    assert found == Refusal("context", "its file supports 512 tokens")


# --- models that see --------------------------------------------------------------------------------


def test_sees_leaves_models_that_read_pictures_here_and_says_what_the_ranking_rests_on(run: Run):
    _, out, _ = run("advise", "chat", "--sees", "--min-speed", "0", "--json")
    answer = json.loads(out)
    ranked = [*answer["picks"], *answer["below"], *answer["unproven"]]
    models = [freehold.base.catalog.model(row["id"]) for row in ranked]
    assert models and all("image" in m.modalities and not choosing.blind(m.structure) for m in models)
    assert any("no results on pictures" in note for note in answer["notes"])
    blind = [
        row for row in answer["ruled_out"] if any("does not read images" in r["why"] for r in row["refusals"])
    ]
    towers = [
        row
        for row in answer["ruled_out"]
        if any("does not read pictures" in r["why"] for r in row["refusals"])
    ]
    assert blind and towers


def test_on_other_hardware_the_towers_of_other_engines_count(run: Run):
    answer = json.loads(run("advise", "chat", "--sees", "--on", "2xh100", "--json")[1])
    assert not any(
        "does not read pictures" in r["why"] for row in answer["ruled_out"] for r in row["refusals"]
    )
    assert all("image" in freehold.base.catalog.model(row["id"]).modalities for row in answer["picks"])
