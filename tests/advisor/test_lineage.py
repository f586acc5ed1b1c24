"""A model made from others inherits from every parent, and from teachers as their licences say."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog import Model
from freehold.base.errors import UsageError
from freehold.choose.advisor.lineage import Subject, standing
from freehold.choose.advisor.verdict import Facts, verdict
from tests.advisor.test_verdict import EU_CLAUSE, MNPL, SHOP, facts

OPENAI = "§3.3(e) Restrictions, Permitted Exception (a)"


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


# teacher, facts that differ from SHOP, answer, clause of a deciding reason
TEACHERS = [
    # limits of use: making outputs for a product uses the teacher for a product
    ("mistralai/Mistral-Large-Instruct-2411", {}, "refused", "§3.2 Usage Limitation, §9 Research Purposes"),
    ("mistralai/Mistral-Large-Instruct-2411", {"purpose": "research"}, "conditions", "§4.2 Outputs"),
    ("Qwen/Qwen2.5-3B-Instruct", {}, "refused", "§2 Grant of Rights, §1(i) Non-Commercial"),
    ("Qwen/Qwen2.5-3B-Instruct", {"purpose": "research"}, "conditions", "§4(a) Rules of use"),
    ("meta/llama-1-65b", {}, "refused", "§1(a) License Grant, §2(a)(i) Restrictions"),
    ("meta/llama-1-65b", {"purpose": "research"}, "conditions", "§2(a)(i) Restrictions"),
    ("mistralai/Codestral-22B-v0.1", {}, "refused", MNPL),
    ("mistralai/Codestral-22B-v0.1", {"purpose": "evaluation"}, "conditions", None),
    ("CohereLabs/c4ai-command-a-03-2025", {}, "refused", "§2(a)(1) License grant, §1(i) NonCommercial"),
    ("CC-BY-NC-4.0", {}, "refused", "§2(a)(1) License grant, §1(i) NonCommercial"),
    ("MiniMaxAI/MiniMax-M2.7", {}, "refused", "clauses 3, 4"),
    ("LGAI-EXAONE/EXAONE-4.0-32B", {"purpose": "research"}, "refused", "§3.1 Commercial Use, last sentence"),
    ("mistralai/Devstral-2-123B-Instruct-2512", {"revenue_year": 300e6}, "refused", "condition (b)"),
    ("LiquidAI/LFM2-1.2B", {"revenue_year": 11e6}, "refused", "§5 Commercial Use Limitation, §1 Threshold"),
    ("llama3.3", {"users": 800_000_000}, "refused", "§2 Additional Commercial Terms"),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {"seat": "DE"}, "refused", EU_CLAUSE),
    ("Qwen/Qwen2.5-72B-Instruct", {"users": 200_000_000}, "refused", "§4 Restrictions"),
    ("Qwen/Qwen3.8-Flash-Next", {"model_service": True}, "refused", "clause 2"),
    (
        "moonshotai/Kimi-K3",
        {"offers_access": True, "revenue_year": 50e6},
        "refused",
        "§2 Model as a Service, §4",
    ),
    ("nvidia/Nemotron-Mini-4B-Instruct", {}, "unknown", "§1.1.2, §1.1.3 Grants"),
    # rules on outputs
    ("Qwen/Qwen2-72B-Instruct", {}, "refused", "§5(b) Rules of use"),
    ("llama2", {}, "refused", "§1(b)(v) Redistribution and Use"),
    ("meta-llama/Meta-Llama-3-70B-Instruct", {}, "refused", "§1(b)(v) Redistribution and Use"),
    ("databricks/dbrx-instruct", {}, "refused", "§2.3 Use Restrictions"),
    ("tencent-hunyuan-community", {}, "refused", "§5(b) Rules of Use"),
    ("llama3.3", {}, "conditions", "§1(b)(i) Redistribution and Use"),
    ("llama3.3", {"redistributes": False}, "conditions", "§1(b)(iv) Redistribution and Use"),
    ("google/gemma-3-27b-it", {}, "conditions", "§1.1(e) Model Derivatives"),
    ("deepseek-ai/DeepSeek-V3", {}, "conditions", "§1 Derivatives of the Model"),
    ("deepseek-ai/DeepSeek-R1", {}, "conditions", None),
    ("nvidia-open-model-license", {}, "conditions", None),
    ("nvidia/Cosmos-Reason1-7B", {}, "conditions", "§3.2 Redistribution"),
    ("Apache-2.0", {}, "conditions", None),
    ("Apache-2.0", {"redistributes": False}, "allowed", None),
    ("xai-org/grok-2", {}, "refused", "§2(b) Restrictions"),
    ("xai-org/grok-2", {"narrow": True}, "conditions", "§5 Acceptable Use"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", {}, "conditions", "§1(b)(i) Redistribution and Use"),
    # services
    ("gpt-4o", {}, "refused", OPENAI),
    ("gpt-4o", {"redistributes": False}, "refused", OPENAI),
    ("gpt-4o", {"narrow": True}, "refused", OPENAI),
    ("gpt-4o", {"narrow": True, "redistributes": False}, "conditions", None),
    ("gpt-4o", {"purpose": "research"}, "refused", OPENAI),
    ("claude-sonnet-5", {"narrow": True}, "refused", None),
    ("gemini-3.5-flash", {}, "refused", "Use Restrictions"),
    ("gemini-3.5-flash", {"narrow": True}, "conditions", None),
    ("grok-4.5", {}, "refused", None),
    ("z.ai-api", {}, "refused", "API terms 1.xii"),
    ("deepseek-chat", {}, "conditions", "Terms of Use 3.1"),
    ("mistral-medium-3", {}, "unknown", "restrictions (as quoted)"),
]


@pytest.mark.parametrize(("teacher", "differing", "answer", "clause"), TEACHERS)
def test_a_teachers_limits_and_rules_on_outputs_bind_its_pupil(
    teacher: str, differing: dict, answer: str, clause: str | None
):
    found = verdict("Apache-2.0", facts(**{"redistributes": True, **differing}), teachers=[teacher])
    assert found.answer == answer, found.deciding
    assert clause is None or any(
        r.clause == clause and "outputs of" in r.via[0] for r in found.deciding if r.via
    )


@pytest.mark.parametrize(
    ("pupil", "teacher", "answer"),
    [
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-chat-hf", "conditions"),
        ("codellama/CodeLlama-7b-Instruct-hf", "llama2", "conditions"),
        ("meta-llama/Llama-3.1-8B", "llama2", "refused"),
        ("llama3", "meta-llama/Meta-Llama-3-70B-Instruct", "conditions"),
        ("llama2", "meta-llama/Meta-Llama-3-70B-Instruct", "refused"),
        ("Qwen/Qwen1.5-7B-Chat", "Qwen/Qwen2-72B-Instruct", "conditions"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen2-72B-Instruct", "refused"),
        ("Qwen/Qwen1.5-7B-Chat", "Qwen/Qwen1.5-4B-Chat", "refused"),  # research terms, for a product
        ("databricks/dbrx-base", "databricks/dbrx-instruct", "conditions"),
    ],
)
def test_a_pupil_under_the_teachers_own_licence_is_excepted_where_the_text_says_so(
    pupil: str, teacher: str, answer: str
):
    assert verdict(pupil, SHOP, teachers=[teacher]).answer == answer


def test_two_texts_of_one_model_except_each_others_models():
    found = verdict("Qwen/Qwen1.5-7B-Chat", facts(purpose="research"), teachers=["Qwen/Qwen1.5-4B-Chat"])
    assert found.answer == "conditions"


def test_nobody_gets_the_teacher_itself_so_its_rules_for_passing_it_on_stay_out():
    found = verdict("Apache-2.0", facts(redistributes=True), teachers=["llama3.1"])
    assert not words(found, "notice") and words(found, "prefix") == {"Llama"}


def test_a_refusal_is_kept_where_a_lighter_reason_says_the_same():
    found = verdict("Qwen/Qwen2-72B-Instruct", facts(distils=None), teachers=["Qwen/Qwen2-72B-Instruct"])
    again = verdict("Qwen/Qwen3-8B", facts(distils=None), teachers=["Qwen/Qwen2-72B-Instruct"])
    assert (found.answer, again.answer) == ("unknown", "refused")


def test_a_blank_in_an_entry_stays_unknown_whatever_a_licence_covers():
    blank = Model("Qwen/Qwen2.5-7B", "Qwen", "Alibaba", "CN", date(2026, 11, 25), ("me",))
    assert verdict(blank, SHOP).answer == "unknown"
    own = replace(blank, licence="CC-BY-NC-4.0")
    assert verdict(own, SHOP).answer == "refused"


def test_all_of_gemmas_terms_follow_a_model_trained_on_its_outputs_but_not_all_of_llamas():
    gemma = verdict("Apache-2.0", facts(redistributes=True), teachers=["gemma"])
    llama = verdict("Apache-2.0", facts(redistributes=True), teachers=["llama3.1"])
    assert words(gemma, "notice") and not words(llama, "notice")


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
    monkeypatch.setattr("freehold.choose.advisor.lineage._ancestor", lambda name: ring)
    with pytest.raises(UsageError, match="a/ring -> a/ring"):
        standing(ring)


def test_every_model_of_the_catalogue_has_a_verdict():
    answers = {verdict(m, Facts(purpose="commercial")).answer for m in catalog.models()}
    assert answers == {"allowed", "conditions", "refused", "unknown"} or answers >= {"conditions", "refused"}
