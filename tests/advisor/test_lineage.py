"""A model made from others inherits from every parent, and from teachers as their licences say."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from freehold import catalog
from freehold.advisor.facts import Facts
from freehold.advisor.lineage import Subject, standing
from freehold.advisor.verdict import verdict
from freehold.catalog import Model
from freehold.errors import UsageError
from tests.advisor.test_verdict import SHOP, facts


def made(*base: str, licence: str = "Apache-2.0") -> Model:
    return Model("me/mine", "Mine", "Me", "NL", date(2026, 11, 25), ("me",), licence=licence, base=base)


def words(found, duty: str) -> set[str]:
    return {r.term.text for r in found.reasons if r.term and r.term.duty == duty and r.bearing == "requires"}


def test_a_model_under_mit_made_from_llama_keeps_llamas_terms():
    found = verdict("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", facts(redistributes=True))
    assert found.answer == "conditions"
    assert "Built with Llama" in words(found, "display")
    assert verdict("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", facts(users=800_000_000)).answer == "refused"


def test_a_reason_that_is_inherited_says_through_which_models():
    found = verdict("tatsu-lab/alpaca-7b", SHOP)
    inherited = next(r for r in found.deciding if r.via)
    assert (inherited.model, inherited.via) == ("meta/llama-1-7b", ("tatsu-lab/alpaca-7b",))


def test_a_merge_inherits_from_every_parent():
    found = verdict(
        made("meta-llama/Llama-3.1-8B-Instruct", "google/gemma-2-9b-it"), facts(redistributes=True)
    )
    assert len(words(found, "notice")) == 2 and len(found.licences) == 3
    refused = verdict(made("Qwen/Qwen3-8B", "mistralai/Codestral-22B-v0.1"), SHOP)
    assert refused.answer == "refused"


def test_grandparents_count():
    assert verdict(made("tatsu-lab/alpaca-7b"), SHOP).answer == "refused"


def test_a_parent_that_nobody_knows_blocks():
    found = verdict(made("nobody/nothing"), SHOP)
    assert found.answer == "unknown" and "the licence of nobody/nothing" in found.deciding[0].says


def test_a_free_licence_of_its_own_does_not_wash_a_parents_restriction_off():
    assert verdict(made("mistralai/Codestral-22B-v0.1", licence="MIT"), SHOP).answer == "refused"


def test_merging_by_hand_is_judged_like_a_merged_model():
    found = verdict("Qwen/Qwen3-8B", facts(redistributes=True), merged=["llama3.1"])
    assert "Llama" in words(found, "prefix")


@pytest.mark.parametrize(
    ("teacher", "answer", "clause"),
    [
        ("Qwen/Qwen2-72B-Instruct", "refused", "§5(b) Rules of use"),
        ("llama2", "refused", "§1(b)(v) Redistribution and Use"),
        ("llama3.3", "conditions", "§1(b)(i) Redistribution and Use"),
        ("google/gemma-3-27b-it", "conditions", "§1.1(e) Model Derivatives"),
        ("deepseek-ai/DeepSeek-V3", "conditions", "§1 Derivatives of the Model"),
        ("nvidia-open-model-license", "conditions", None),
        ("Apache-2.0", "conditions", None),
        ("xai-org/grok-2", "refused", "training clause"),
    ],
)
def test_a_teachers_rule_on_outputs_binds_its_pupil(teacher: str, answer: str, clause: str | None):
    found = verdict("Apache-2.0", facts(redistributes=True), teachers=[teacher])
    assert found.answer == answer
    assert clause is None or any(
        r.clause == clause and "outputs of" in r.via[0] for r in found.deciding if r.via
    )


def test_all_of_gemmas_terms_follow_a_model_trained_on_its_outputs_but_not_all_of_llamas():
    gemma = verdict("Apache-2.0", facts(redistributes=True), teachers=["gemma"])
    llama = verdict("Apache-2.0", facts(users=800_000_000, redistributes=True), teachers=["llama3.1"])
    assert words(gemma, "policy") and llama.answer == "conditions"


def test_a_choice_of_licences_is_taken_where_it_allows_most():
    either = replace(made(), licence="CC-BY-NC-4.0 OR MIT")
    both = replace(made(), licence="CC-BY-NC-4.0 AND MIT")
    assert verdict(either, SHOP).answer == "allowed"
    assert verdict(both, SHOP).answer == "refused"


def test_a_licence_that_is_none_of_ours_blocks_and_is_named():
    found = verdict(made(licence="LicenseRef-mine"), SHOP)
    assert found.answer == "unknown" and "'LicenseRef-mine'" in found.deciding[0].says


def test_a_line_of_descent_that_bites_its_tail_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    ring = Subject("a/ring", "MIT", base=("a/ring",))
    monkeypatch.setattr("freehold.advisor.lineage._ancestor", lambda name: ring)
    with pytest.raises(UsageError, match="a/ring -> a/ring"):
        standing(ring)


def test_every_model_of_the_catalogue_has_a_verdict():
    answers = {verdict(m, Facts(purpose="commercial")).answer for m in catalog.models()}
    assert answers == {"allowed", "conditions", "refused", "unknown"} or answers >= {"conditions", "refused"}
