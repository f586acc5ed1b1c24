"""A pack holds what must be done, word for word where a licence prescribes words, and no licence text."""

from __future__ import annotations

import pytest

from freehold.base.errors import UsageError
from freehold.choose.advisor.verdict import DUTIES, NOTICE, Facts, pack, verdict
from tests.advisor.test_verdict import facts


def test_shipping_a_fine_tuned_llama_asks_for_name_badge_notice_copy_and_policy():
    made = pack(verdict("llama3.1", facts(modifies=True, redistributes=True)))
    assert made.words("prefix") == ("Llama",)
    assert made.words("display") == ("Built with Llama",)
    assert made.files()[NOTICE].startswith("Llama 3.1 is licensed under the Llama 3.1 Community License")
    duties = made.files()[DUTIES]
    assert "pass on a copy of the licence" in duties and "llama3_1/use-policy" in duties
    assert 'show prominently on a page, interface or document: "Built with Llama" (§1(b)(i)(B) ' in duties
    assert "not legal advice" in duties


def test_serving_gemma_passes_the_use_restrictions_on_without_a_notice_file():
    made = pack(verdict("gemma", facts(offers_access=True)))
    assert NOTICE not in made.files()
    assert any(d.reason.term and d.reason.term.duty == "pass-on" for d in made.duties)


def test_a_merge_gets_the_notice_lines_of_every_parent():
    made = pack(verdict("llama3.1", facts(redistributes=True), merged=["gemma", "qwen"]))
    assert len(made.notice_lines) == 3


def test_licence_texts_are_named_with_their_digest_and_not_copied():
    duties = pack(verdict("Apache-2.0", facts(redistributes=True))).files()[DUTIES]
    assert "https://www.apache.org/licenses/LICENSE-2.0 (sha256" in duties
    assert "TERMS AND CONDITIONS" not in duties and len(duties) < 2000


def test_what_hangs_on_a_fact_not_given_is_listed_apart_with_the_question():
    made = pack(verdict("llama3.1", Facts(purpose="commercial")))
    assert made.later and "## Facts that would decide it" in made.files()[DUTIES]


def test_a_refused_model_has_no_pack_and_says_by_which_clause():
    with pytest.raises(UsageError, match="no pack for mistralai/Codestral") as e:
        pack(verdict("mistralai/Codestral-22B-v0.1", facts()))
    assert "§3.2" in e.value.hint
