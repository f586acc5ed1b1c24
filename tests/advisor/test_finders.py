"""What finds texts beside a RAG model, and what is known of models in a language."""

from __future__ import annotations

from dataclasses import replace

import pytest

from freehold.base import catalog
from freehold.base.catalog.benchmarks import BENCHMARKS
from freehold.base.catalog.model import Score
from freehold.base.catalog.questions import language_name, results_in
from freehold.choose.advisor import finders, quality
from freehold.choose.advisor.engines import finder_line
from freehold.run.models.binding.bind import refusal

GIB = 1 << 30


def score(benchmark: str, value: float) -> tuple[Score, ...]:
    return (Score(benchmark, value, "x", "x"),)


def test_a_result_in_the_language_goes_before_what_a_card_states():
    model = next(m for m in catalog.models() if any(s.benchmark == "arena_german" for s in m.scores))
    (told,) = quality.language_evidence(model, ["de"])
    assert told.level == quality.RESULT and told.says.startswith("German: arena_german ")


@pytest.mark.parametrize(
    ("facts", "level", "says"),
    [
        ({"languages": ("de", "en")}, quality.STATED, "German: stated, no result"),
        ({"languages": ()}, quality.UNKNOWN, "no evidence for German"),
        ({"languages": ("en",), "languages_stated": 0}, quality.DENIED, "German is not one of them"),
        (
            {"languages": ("en",), "languages_stated": 100},
            quality.UNKNOWN,
            "no evidence for German",
        ),
    ],
)
def test_without_a_result_the_card_counts_and_nothing_is_guessed(facts: dict, level: str, says: str):
    model = replace(catalog.model("Qwen/Qwen3-8B"), scores=(), **{"languages_stated": 0, **facts})
    (told,) = quality.language_evidence(model, ["de"])
    assert told.level == level and says in told.says


def test_benchmarks_of_languages_are_known_and_each_language_has_a_name():
    for code in ("de", "fr", "ja", "mul", "sw"):
        assert language_name(code) != code
        assert set(results_in(code)) <= set(BENCHMARKS) and results_in(code)
    assert results_in("pl") == [] and language_name("xx") == "xx"


def test_embedders_are_ranked_by_published_retrieval_then_by_language():
    names = [m.id for m in finders.ranked(catalog.models(), "embedder", ["de"])]
    assert names[0] == "Qwen/Qwen3-Embedding-8B"
    assert "BAAI/bge-large-en-v1.5" not in names  # its lab states English alone
    assert "BAAI/bge-m3" in names


def test_a_german_rag_gets_an_embedder_and_a_reranker_that_fit_the_place():
    small = finders.beside(catalog.models(), ["de"], memory=24 * GIB)
    large = finders.beside(catalog.models(), ["de"], memory=141 * GIB)
    assert small.embedder and small.embedder.model.id == "Qwen/Qwen3-Embedding-0.6B"
    assert small.reranker and small.reranker.model.id == "Qwen/Qwen3-Reranker-0.6B"
    assert large.embedder and large.embedder.model.params_b > small.embedder.model.params_b


def test_here_it_is_what_our_engine_makes_vectors_with():
    found = finders.beside(catalog.models(), ["de"], memory=16 * GIB, refuses=refusal)
    assert found.embedder and found.embedder.line.command.startswith("freehold embed ")
    assert found.embedder.model.speaks("de") and not refusal(found.embedder.model.structure)
    assert found.reranker is None and found.no_reranker


def test_a_reranker_that_is_below_the_embedder_alone_does_not_pay():
    embedder = replace(catalog.model("BAAI/bge-m3"), scores=score(finders.MANY, 60.0))
    reranker = replace(catalog.model("BAAI/bge-reranker-v2-m3"), scores=score(finders.RERANKED, 58.0))
    found = finders.beside([embedder, reranker], [], memory=80 * GIB)
    assert found.reranker is None and "58, the embedder 60 alone" in found.no_reranker
    better = replace(reranker, scores=score(finders.RERANKED, 62.0))
    assert finders.beside([embedder, better], [], memory=80 * GIB).reranker


def test_every_embedder_and_reranker_has_a_line_or_a_reason():
    found = [m for m in catalog.models() if m.role != "generator"]
    assert len([m for m in found if m.role == "embedder"]) >= 8
    for model in found:
        for here in (True, False):
            line = finder_line(model, here=here)
            assert bool(line.command) != bool(line.why_none)
