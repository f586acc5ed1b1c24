"""Verdicts: for each case the facts, the answer, and the clause that gives it."""

from __future__ import annotations

import pytest

from freehold.base.errors import ModelNotFound
from freehold.choose.advisor.verdict import DISCLAIMER, Facts, Verdict, verdict

SHOP = Facts(  # a small firm that runs a product for its customers
    purpose="commercial", users=50_000, revenue_year=3_000_000, offers_access=False, assistant=False,
    redistributes=False, modifies=False, distils=False, seat="US", embeds=False,
)  # fmt: skip
GIANT = {"users": 900_000_000, "revenue_year": 90e9}
QWEN, TONGYI = "Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2-72B-Instruct"
SCOUT, K2, K3 = "meta-llama/Llama-4-Scout-17B-16E-Instruct", "moonshotai/Kimi-K2-Instruct", "kimi-k3"
MNPL = "§3.2 Usage Limitation, §9 Non-Production Environment"
EU_CLAUSE = "Acceptable Use Policy, last paragraph before the contacts"
STABILITY = "§IV(a)(iii) Distribution & Attribution"
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
    # terms that a card adds, because others' models taught it
    (
        "allenai/Llama-3.1-Tulu-3-8B",
        {"embeds": True},
        "conditions",
        "§3.1 Distribution and Redistribution, §1.1(b)",
    ),
    ("allenai/Llama-3.1-Tulu-3-70B", {"users": 100_000_001}, "refused", "§4 Restrictions"),
    ("allenai/OLMo-2-1124-7B-Instruct", {}, "conditions", "§3.2 Use Restrictions"),
    ("allenai/OLMo-2-0325-32B-Instruct", {"distils": True}, "conditions", "§1.1(e) Model Derivatives"),
    ("allenai/OLMo-2-0325-32B", {}, "allowed", "§2 Grant of Copyright License"),
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
    ("Qwen/Qwen2.5-3B-Instruct", {}, "refused", "§2 Grant of Rights, §1(i) Non-Commercial"),
    ("Qwen/Qwen2.5-3B-Instruct", {"purpose": "evaluation"}, "conditions", "§4(a) Rules of use"),
    ("qwen-community-1.0", {"offers_access": True}, "refused", "clause 2"),
    ("qwen-community-1.0", {"assistant": True}, "refused", "clause 2"),
    ("qwen-community-1.0", {}, "conditions", "last paragraph"),
    ("qwen-community-1.0", {"purpose": "internal", "offers_access": None}, "conditions", "last paragraph"),
    ("qwen-community-1.0", {"users": 120_000_000}, "conditions", "clause 1"),
    ("qwen3.8-max", {"offers_access": True}, "conditions", "last paragraph"),
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
    ("mistralai/Codestral-22B-v0.1", {}, "refused", MNPL),
    ("mistralai/Codestral-22B-v0.1", {"purpose": "internal"}, "refused", MNPL),
    ("mistralai/Codestral-22B-v0.1", {"purpose": "evaluation"}, "conditions", "§3.1 Misrepresentation"),
    ("mistralai/Codestral-22B-v0.1", {"purpose": ""}, "unknown", MNPL),
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
    (K3, {"offers_access": True, "revenue_year": 21e6}, "refused", "§2 Model as a Service, §4"),
    (K3, {"offers_access": True, "revenue_year": 19e6}, "conditions", "§1"),
    (K3, {"revenue_year": 1e9}, "conditions", "§3"),
    (K3, {"purpose": "internal", "offers_access": None, "revenue_year": 1e9}, "conditions", "§1"),
    (K3, {"offers_access": None, "revenue_year": 21e6}, "unknown", "§2 Model as a Service, §4"),
    ("zai-org/GLM-5.3", {"offers_access": True, "revenue_year": 11e9}, "refused", "clause 2"),
    ("zai-org/GLM-5.3", {"offers_access": True, "revenue_year": 9e9}, "conditions", "clause 1"),
    ("zai-org/GLM-5.3", {"revenue_year": 11e9}, "conditions", "clause 1"),
    # Gemma: derivatives, hosted service
    ("google/gemma-3-27b-it", {}, "conditions", "§3.2 Use Restrictions"),
    ("google/gemma-3-27b-it", {"distils": True}, "conditions", "§1.1(e) Model Derivatives"),
    ("gemma", {"offers_access": True}, "conditions", "§3.1 Distribution and Redistribution"),
    # others
    ("LiquidAI/LFM2-1.2B", {"revenue_year": 11e6}, "refused", "§5 Commercial Use Limitation, §1 Threshold"),
    ("LiquidAI/LFM2-1.2B", {}, "allowed", "§2 Grant of Copyright License"),
    ("tencent-hunyuan-community", {"seat": "FR"}, "refused", "§1(l) Territory, §2, §5(c)"),
    ("tencent-hunyuan-community", {"seat": "KR"}, "refused", "§1(l) Territory, §2, §5(c)"),
    ("tencent-hunyuan-community", {"seat": "GB"}, "refused", "§1(l) Territory, §2, §5(c)"),
    ("tencent-hunyuan-community", {"distils": True}, "refused", "§5(b) Rules of Use"),
    ("tencent-hunyuan-community", {}, "conditions", "§5(a) Rules of Use, Exhibit A"),
    ("stability-community", {}, "refused", "§III Commercial Use License"),
    ("exaone", {"purpose": "research", "distils": True}, "refused", "§3.1 Commercial Use, last sentence"),
    ("xai-org/grok-2", {"distils": True}, "refused", "§2(b) Restrictions"),
    ("xai-org/grok-2", {}, "conditions", "§2(a) Permitted Uses"),
    ("falcon-180b", {"offers_access": True}, "refused", "Introductory note, Hosting Use"),
    ("minimax-community", {"revenue_year": 25e6}, "refused", "commercial use clause"),
    ("bigcode-openrail-m", {"distils": True}, "conditions", "§1(i) Modifications of the Model"),
    ("ai2-impact-license-low-risk", {}, "unknown", "not read"),
    # a product built on the model: what counts as offering it
    ("llama3.1", {"embeds": True}, "conditions", "§1(b)(i)(B) Redistribution and Use"),
    ("llama3", {"embeds": True}, "conditions", "§1(b)(i)(B) Redistribution and Use"),
    ("gemma", {"embeds": True}, "conditions", "§3.1 Distribution and Redistribution, §1.1(b)"),
    (V3, {"embeds": True}, "conditions", "§4(a) Distribution and Redistribution"),
    (QWEN, {"embeds": True}, "conditions", "§3(a) Redistribution"),
    ("minimax-model-license", {"embeds": True}, "conditions", "§2(b)(i) Redistribution and Use"),
    ("xai-org/grok-2", {"embeds": True}, "conditions", "§3 Distribution & Attribution"),
    ("glm-4-9b", {"embeds": True}, "conditions", "§2 License (B)"),
    ("stability-community", {"embeds": True, "revenue_year": 5e5}, "conditions", STABILITY),
    ("stability-community", {"end_user": True}, "conditions", "§IV(b) Use Restrictions"),
    ("MIT", {"embeds": True}, "allowed", "grant (first paragraph)"),
    ("stablelm-2-12b", {"embeds": True, "purpose": "research"}, "refused", "§1(b) License Rights"),
    # research terms
    ("Qwen/Qwen1.5-0.5B-Chat", {}, "refused", "§2 Grant of Rights, §1(i) Non-Commercial"),
    ("Qwen/Qwen1.5-1.8B-Chat", {}, "refused", "§2 Grant of Rights, §1(i) Non-Commercial"),
    ("Qwen/Qwen1.5-4B-Chat", {}, "refused", "§2 Grant of Rights, §1(i) Non-Commercial"),
    ("Qwen/Qwen1.5-4B-Chat-GPTQ-Int4", {}, "refused", "§2 Grant of Rights, §1(i) Non-Commercial"),
    ("Qwen/Qwen1.5-4B-Chat", {"purpose": "evaluation"}, "conditions", "§4(a) Rules of use"),
    ("Qwen/Qwen1.5-7B-Chat", {}, "conditions", "§5(a) Rules of use"),
    ("stabilityai/stablelm-3b-4e1t", {}, "allowed", "§2(a)(1) License grant"),
    ("CC-BY-SA-4.0", {"modifies": True, "redistributes": True}, "conditions", "§3(b) ShareAlike"),
    ("mosaicml/mpt-7b-chat", {}, "refused", "§2(a)(1) License grant, §1 NonCommercial"),
    ("mosaicml/mpt-7b", {}, "allowed", "§2 Grant of Copyright License"),
    ("nvidia/Nemotron-H-8B-Base-8K", {}, "refused", "grant (as reported)"),
    ("nvidia/Nemotron-Mini-4B-Instruct", {}, "unknown", "§1.1.2, §1.1.3 Grants"),
    ("nvidia/Nemotron-Mini-4B-Instruct", {"purpose": "evaluation"}, "conditions", "§4.5 Prohibited Uses"),
    ("microsoft/Orca-2-13b", {}, "refused", "§1 Installation and Use Rights"),
    ("facebook/opt-6.7b", {}, "refused", "license grant, restrictions (as reported)"),
    ("LGAI-EXAONE/EXAONE-4.0-32B", {}, "refused", "§2.1(a) Grant of License, §3.1 Commercial Use"),
    ("MiniMaxAI/MiniMax-M2.7", {"purpose": "internal"}, "refused", "clauses 3, 4"),
    # names to show: a product's, at its size; work inside a firm is none
    (K2, {"users": 150_000_000, "purpose": "internal"}, "allowed", "grant (first paragraph)"),
    ("moonshotai/Kimi-K2.6", {"revenue_month": 25e6}, "conditions", "modification (last paragraph)"),
    (K3, {"purpose": "internal", "users": 200_000_000}, "conditions", "§1"),
    (K3, {"revenue_year": 50e6, "model_service": True}, "refused", "§2 Model as a Service, §4"),
    ("MiniMaxAI/MiniMax-M2.1", {}, "conditions", "modification (last paragraph)"),
    ("MiniMaxAI/MiniMax-M2.1", {"purpose": "internal"}, "allowed", "grant (first paragraph)"),
    ("MiniMaxAI/MiniMax-M2", {}, "allowed", "grant (first paragraph)"),
    ("zai-org/GLM-5.3", {"model_service": True, "revenue_year": 11e9}, "refused", "clause 2"),
    # amounts at their edge
    (
        "LiquidAI/LFM2-1.2B",
        {"revenue_year": 10_000_000},
        "refused",
        "§5 Commercial Use Limitation, §1 Threshold",
    ),
    ("LiquidAI/LFM2-1.2B", {"revenue_year": 50e6, "purpose": "research"}, "allowed", None),
    ("databricks/dbrx-instruct", {"users": 700_000_001}, "refused", "§3 Additional Commercial Terms"),
    ("databricks/dbrx-instruct", {}, "conditions", "§2.3 Use Restrictions"),
    ("ai21labs/AI21-Jamba-Large-1.7", {}, "unknown", "not read"),
    ("ai21labs/AI21-Jamba-Large-1.7", {"revenue_year": 60e6}, "refused", "commercial terms (as reported)"),
    ("ai21labs/Jamba-v0.1", {}, "allowed", "§2 Grant of Copyright License"),
    # where outputs may not train others, and what is excepted
    ("llama2", {"distils": True, "same_family": True}, "conditions", "§1(b)(iv) Redistribution and Use"),
    ("llama3", {"distils": True, "same_family": True}, "conditions", "§1(b)(iv) Redistribution and Use"),
    ("databricks/dbrx-base", {"distils": True}, "refused", "§2.3 Use Restrictions"),
    ("command-a-reasoning-08-2025", {"distils": True, "purpose": "research"}, "conditions", None),
    ("stability-community", {"distils": True, "revenue_year": 1e5}, "refused", "§IV(b) Use Restrictions"),
    # the place: domicile or principal place of business; end users of a product are exempt
    ("meta-llama/Llama-3.2-11B-Vision-Instruct", {"seat": "DE"}, "refused", EU_CLAUSE),
    ("meta-llama/Llama-3.2-90B-Vision-Instruct", {"seat": "FR", "purpose": "research"}, "refused", EU_CLAUSE),
    ("meta-llama/Llama-3.2-11B-Vision-Instruct", {"seat": "CH"}, "conditions", None),
    ("meta-llama/Llama-3.2-11B-Vision-Instruct", {"seat": "DE", "end_user": True}, "conditions", None),
    ("llama3.2", {"seat": "DE", "multimodal": True}, "refused", EU_CLAUSE),
    ("llama3.2", {"seat": "DE", "multimodal": False}, "conditions", None),
    # an API has terms and no weights
    ("gpt-5", {}, "conditions", "Services Agreement, usage policies"),
    ("claude-opus-4-8", {"redistributes": True}, "refused", "grant of access"),
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
    assert set(found.missing) == {"purpose", "model_service", "offers_access", "revenue_year"}
    assert "your group's revenue in 12 months, in dollars" in found.questions


def test_a_fact_that_cannot_change_the_answer_is_not_asked_for():
    assert verdict(K3, facts(offers_access=False, revenue_year=None)).missing == ()


def test_one_refusal_outweighs_every_open_question():
    assert verdict(TONGYI, Facts(distils=True)).answer == "refused"


def test_a_model_whose_licence_nobody_told_is_blocked():
    found = verdict("mistralai/Mistral-Large-4-1T-A52B", SHOP)
    assert found.answer == "unknown"
    assert "the licence of mistralai/Mistral-Large-4-1T-A52B is not known" in found.deciding[0].says


def test_an_unknown_name_is_answered_with_the_nearest_models_and_licences():
    with pytest.raises(ModelNotFound) as e:
        verdict("lama3.1", SHOP)
    assert "llama3.1:8b" in e.value.hint and "licences: llama3.1" in e.value.hint


def test_a_repository_outside_the_catalogue_is_known_by_the_licence_that_covers_it():
    assert verdict("Qwen/Qwen2.5-VL-3B-Instruct", SHOP).answer == "refused"


def test_a_service_waits_for_no_answer_about_weights_that_nobody_has():
    found = verdict("gpt-5", Facts(purpose="commercial", distils=False))
    assert (found.answer, found.missing) == ("conditions", ())


def test_it_says_that_it_is_no_legal_advice():
    assert "not legal advice" in DISCLAIMER


def test_what_is_refused_waits_for_no_fact():
    found = verdict("Codestral-22B", Facts(purpose="commercial"))
    assert found.answer == "refused" and not found.missing and not found.questions
    assert "redistributes" in verdict("Codestral-22B", Facts()).missing
