"""Verdicts: for each case the facts, the answer, and the clause that gives it."""

from __future__ import annotations

import pytest

from freehold.advisor.facts import Facts
from freehold.advisor.verdict import DISCLAIMER, Verdict, verdict
from freehold.errors import ModelNotFound

SHOP = Facts(  # a small firm that runs a product for its customers
    purpose="commercial", users=50_000, revenue_year=3_000_000, offers_access=False, assistant=False,
    redistributes=False, modifies=False, distils=False, seat="US",
)  # fmt: skip
GIANT = {"users": 900_000_000, "revenue_year": 90e9}
QWEN, TONGYI = "Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2-72B-Instruct"
SCOUT, K2, K3 = "meta-llama/Llama-4-Scout-17B-16E-Instruct", "moonshotai/Kimi-K2-Instruct", "kimi-k3"
DEVSTRAL, V3 = "mistralai/Devstral-2-123B-Instruct-2512", "deepseek-ai/DeepSeek-V3"

# name, facts that differ from SHOP, answer, clause of a deciding reason
CASES = [
    # permissive licences
    ("Apache-2.0", {}, "allowed", "§2 Grant of Copyright License"),
    ("Qwen/Qwen3-8B", GIANT, "allowed", "§2 Grant of Copyright License"),
    ("Apache-2.0", {"redistributes": True}, "conditions", "§4(a) Redistribution"),
    ("Apache-2.0", {"redistributes": True, "modifies": True}, "conditions", "§4(b) Redistribution"),
    ("Apache-2.0", {"distils": True}, "allowed", "§2 Grant of Copyright License"),
    ("MIT", {"redistributes": True}, "conditions", "notice condition (second paragraph)"),
    ("deepseek-ai/DeepSeek-R1", {"distils": True}, "allowed", "grant (first paragraph)"),
    ("OpenMDW-1.0", {"distils": True}, "allowed", "outputs (sixth paragraph)"),
    ("OpenMDW-1.1", {"redistributes": True}, "conditions", "distribution condition (fourth paragraph)"),
    ("CC-BY-4.0", {"redistributes": True}, "conditions", "§3(a)(1)(A) Attribution"),
    ("CC-BY-NC-4.0", {}, "refused", "§2(a)(1) License grant, §1(i) NonCommercial"),
    ("CC-BY-NC-4.0", {"purpose": "research"}, "allowed", "§2(a)(1) License grant"),
    # Qwen: 100 million users, "Built with Qwen", research, services
    (QWEN, {}, "conditions", "§5(a) Rules of use"),
    (QWEN, {"users": 100_000_000}, "conditions", "§5(a) Rules of use"),
    (QWEN, {"users": 100_000_001}, "refused", "§4 Restrictions"),
    (QWEN, {"users": 200_000_000, "purpose": "research"}, "conditions", "§5(a) Rules of use"),
    (QWEN, {"users": None}, "unknown", "§4 Restrictions"),
    (QWEN, {"distils": True, "redistributes": True}, "conditions", "§5(b) Rules of use"),
    (TONGYI, {"distils": True}, "refused", "§5(b) Rules of use"),
    (TONGYI, {"distils": None}, "unknown", "§5(b) Rules of use"),
    (TONGYI, {}, "conditions", "§5(a) Rules of use"),
    (TONGYI, {"users": 150_000_000}, "refused", "§4 Restrictions"),
    ("Qwen/Qwen2.5-3B-Instruct", {}, "refused", "grant (non-commercial purposes only)"),
    ("Qwen/Qwen2.5-3B-Instruct", {"purpose": "evaluation"}, "conditions", "rules of use"),
    ("qwen-community-1.0", {"offers_access": True}, "refused", "clause 2"),
    ("qwen-community-1.0", {"assistant": True}, "refused", "clause 2"),
    ("qwen-community-1.0", {}, "allowed", "grant"),
    ("qwen-community-1.0", {"purpose": "internal", "offers_access": None}, "allowed", "grant"),
    ("qwen-community-1.0", {"users": 120_000_000}, "conditions", "clause 1"),
    ("qwen3.8-max", {"offers_access": True}, "allowed", "grant"),
    (
        "qwen3.8-max",
        {"offers_access": True, "revenue_year": 60e6},
        "refused",
        "Model as a Service and AI Work Assistant clause",
    ),
    # Llama: 700 million, naming, outputs, the EU
    ("llama1", {}, "refused", "§1(a) License Grant, §2(a)(i) Restrictions"),
    ("llama1", {"purpose": "research"}, "conditions", "§2(a) Restrictions"),
    ("llama2", {"distils": True}, "refused", "§1(b)(v) Redistribution and Use"),
    ("llama3", {"distils": True}, "refused", "§1(b)(v) Redistribution and Use"),
    ("llama2", {}, "conditions", "§1(b)(iv) Redistribution and Use"),
    ("llama3.1", {"users": 700_000_000}, "conditions", "§1(b)(iv) Redistribution and Use"),
    ("llama3.1", {"users": 700_000_001}, "refused", "§2 Additional Commercial Terms"),
    ("llama3.1", {"users": 900_000_000, "end_user": True}, "conditions", "§1(b)(iv) Redistribution and Use"),
    ("llama3.1", {"users": None}, "unknown", "§2 Additional Commercial Terms"),
    ("llama3.1", {"distils": True, "redistributes": True}, "conditions", "§1(b)(i) Redistribution and Use"),
    ("llama3.3", {"modifies": True, "redistributes": True}, "conditions", "§1(b)(i) Redistribution and Use"),
    ("llama3.3", {"offers_access": True}, "conditions", "§1(b)(i)(B) Redistribution and Use"),
    (SCOUT, {"seat": "DE"}, "refused", "Acceptable Use Policy, last paragraph before the contacts"),
    (SCOUT, {"seat": "DE", "end_user": True}, "conditions", "§1(b)(iv) Redistribution and Use"),
    (SCOUT, {"seat": "GB"}, "conditions", "§1(b)(iv) Redistribution and Use"),
    (SCOUT, {"seat": ""}, "unknown", "Acceptable Use Policy, last paragraph before the contacts"),
    ("meta-llama/Llama-3.2-3B-Instruct", {"seat": "DE"}, "conditions", "§1(b)(iv) Redistribution and Use"),
    ("llama3.2", {"seat": "DE"}, "unknown", "Acceptable Use Policy, last paragraph before the contacts"),
    # Mistral: research, non-production, revenue
    ("mistralai/Mistral-Large-Instruct-2411", {}, "refused", "§3.2 Usage Limitation, §9 Research Purposes"),
    ("mrl", {"purpose": "internal"}, "refused", "§3.2 Usage Limitation, §9 Research Purposes"),
    ("mrl", {"purpose": "evaluation"}, "refused", "§3.2 Usage Limitation, §9 Research Purposes"),
    ("mrl", {"purpose": "research", "distils": True}, "conditions", "§4.2 Outputs"),
    ("mistralai/Codestral-22B-v0.1", {}, "refused", "§3.2 Usage Limitation"),
    ("mistralai/Codestral-22B-v0.1", {"purpose": "internal"}, "refused", "§3.2 Usage Limitation"),
    ("mistralai/Codestral-22B-v0.1", {"purpose": "evaluation"}, "conditions", "§3.1 Misrepresentation"),
    ("mistralai/Codestral-22B-v0.1", {"purpose": ""}, "unknown", "§3.2 Usage Limitation"),
    (DEVSTRAL, {}, "allowed", "grant"),
    (DEVSTRAL, {"revenue_year": None, "revenue_month": 21e6}, "refused", "condition (b)"),
    (DEVSTRAL, {"revenue_year": 300e6}, "refused", "condition (b)"),
    (DEVSTRAL, {"revenue_year": None}, "unknown", "condition (b)"),
    # DeepSeek: use restrictions follow, distilled models too
    (V3, {}, "conditions", "§5 Use-based restrictions, Attachment A"),
    (V3, {"offers_access": True}, "conditions", "§4(a) Distribution and Redistribution"),
    (V3, {"distils": True}, "conditions", "§1 Derivatives of the Model"),
    # NVIDIA: the versions differ
    ("nvidia-open-model-license", {}, "conditions", "§2.3 AI Ethics"),
    ("nvidia-open-model-license", {"bypasses_guardrails": True}, "refused", "§2.1 Conditions for Use"),
    ("nvidia-open-model-license-2025-10", {"redistributes": True}, "conditions", "§3.1 Redistribution"),
    ("nvidia-nemotron-open-model-license", {"bypasses_guardrails": True}, "allowed", "grant"),
    (
        "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
        {"redistributes": True},
        "conditions",
        "redistribution",
    ),
    (
        "nvidia/NVIDIA-Nemotron-3.5-Lightning-30B-A3B",
        {"distils": True},
        "allowed",
        "outputs (sixth paragraph)",
    ),
    # Kimi and GLM: names to show, services
    (K2, {}, "allowed", "grant (first paragraph)"),
    (K2, {"users": 150_000_000}, "conditions", "modification (last paragraph)"),
    (K2, {"revenue_month": 25e6}, "conditions", "modification (last paragraph)"),
    (K3, {"offers_access": True, "revenue_year": 21e6}, "refused", "§2 Model as a Service"),
    (K3, {"offers_access": True, "revenue_year": 19e6}, "conditions", "§1"),
    (K3, {"revenue_year": 1e9}, "conditions", "§3"),
    (K3, {"purpose": "internal", "offers_access": None, "revenue_year": 1e9}, "conditions", "§1"),
    (K3, {"offers_access": None, "revenue_year": 21e6}, "unknown", "§2 Model as a Service"),
    ("zai-org/GLM-5.3", {"offers_access": True, "revenue_year": 11e9}, "refused", "clause 2"),
    ("zai-org/GLM-5.3", {"offers_access": True, "revenue_year": 9e9}, "allowed", "grant (first paragraph)"),
    ("zai-org/GLM-5.3", {"revenue_year": 11e9}, "allowed", "grant (first paragraph)"),
    # Gemma: derivatives, hosted service
    ("google/gemma-3-27b-it", {}, "conditions", "§3.2 Use Restrictions"),
    ("google/gemma-3-27b-it", {"distils": True}, "conditions", "§1.1(e) Model Derivatives"),
    ("gemma", {"offers_access": True}, "conditions", "§3.1 Distribution and Redistribution"),
    # others
    ("LiquidAI/LFM2-1.2B", {"revenue_year": 11e6}, "refused", "commercial use threshold"),
    ("LiquidAI/LFM2-1.2B", {}, "allowed", "§2 Grant of Copyright License"),
    ("tencent-hunyuan-community", {"seat": "FR"}, "refused", "§1(l) Territory, §2, §5(c)"),
    ("tencent-hunyuan-community", {"seat": "KR"}, "refused", "§1(l) Territory, §2, §5(c)"),
    ("tencent-hunyuan-community", {"seat": "GB"}, "refused", "§1(l) Territory, §2, §5(c)"),
    ("tencent-hunyuan-community", {"distils": True}, "refused", "§5(b) Rules of Use"),
    ("tencent-hunyuan-community", {}, "conditions", "§5(a) Rules of Use, Exhibit A"),
    ("stability-community", {}, "refused", "§III Commercial Use License"),
    ("exaone", {"purpose": "research", "distils": True}, "refused", "§3.1 Commercial Use, last sentence"),
    ("xai-org/grok-2", {"distils": True}, "refused", "training clause"),
    ("xai-org/grok-2", {}, "unknown", "not read"),
    ("falcon-180b", {"offers_access": True}, "unknown", "Introductory note"),
    ("minimax-community", {"revenue_year": 25e6}, "refused", "commercial use clause"),
    ("bigcode-openrail-m", {"distils": True}, "conditions", "§1(i) Modifications of the Model"),
    ("ai2-impact-license-low-risk", {}, "unknown", "not read"),
]


def facts(**differing) -> Facts:
    return Facts(**{f: getattr(SHOP, f) for f in SHOP.__slots__} | differing)


def clauses(found: Verdict) -> list[str]:
    return [r.clause for r in found.deciding]


@pytest.mark.parametrize(("name", "differing", "answer", "clause"), CASES)
def test_the_answer_and_its_clause(name: str, differing: dict, answer: str, clause: str | None):
    found = verdict(name, facts(**differing))
    assert found.answer == answer, found.deciding
    assert clause is None or clause in clauses(found)
    assert all(r.source for r in found.reasons)


def test_there_are_sixty_cases_and_more():
    assert len(CASES) >= 90


def test_what_was_not_said_is_named_as_what_would_decide():
    found = verdict(K3, Facts())
    assert found.answer == "unknown"
    assert set(found.missing) == {"commercial", "offers_access", "revenue_year"}
    assert "your group's revenue in 12 months, in dollars" in found.questions


def test_a_fact_that_cannot_change_the_answer_is_not_asked_for():
    assert verdict(K3, facts(offers_access=False, revenue_year=None)).missing == ()


def test_one_refusal_outweighs_every_open_question():
    assert verdict(TONGYI, Facts(distils=True)).answer == "refused"


def test_a_model_whose_licence_nobody_told_is_blocked():
    found = verdict("nvidia/Nemotron-Cascade-2-30B-A3B", SHOP)
    assert found.answer == "unknown"
    assert "the licence of nvidia/Nemotron-Cascade-2-30B-A3B is not known" in found.deciding[0].says


def test_an_unknown_name_is_answered_with_the_nearest_models_and_licences():
    with pytest.raises(ModelNotFound) as e:
        verdict("lama3.1", SHOP)
    assert "llama3.1:8b" in e.value.hint and "licences: llama3.1" in e.value.hint


def test_a_repository_outside_the_catalogue_is_known_by_the_licence_that_covers_it():
    assert verdict("Qwen/Qwen2.5-VL-3B-Instruct", SHOP).answer == "refused"


def test_it_says_that_it_is_no_legal_advice():
    assert "not legal advice" in DISCLAIMER
