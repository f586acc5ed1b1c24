"""Token counts that no answer has are a fault of the provider, on every wire: they would be money."""

from __future__ import annotations

import pytest

from freehold.route.providers.anthropic.events import CacheSplit, ClaudeUsage, OutputDetails
from freehold.route.providers.anthropic.events import usage_of as of_claude
from freehold.route.providers.contract import UpstreamFault
from freehold.route.providers.faults import MOST_TOKENS, shared
from freehold.route.providers.gemini.events import GeminiUsage
from freehold.route.providers.gemini.events import usage_of as of_gemini
from freehold.route.providers.openai.events import UsageCounts


@pytest.mark.parametrize("count", [-1, MOST_TOKENS + 1, 1 << 70])
def test_a_count_that_no_answer_has_is_a_fault(count: int):
    for read in (
        lambda: UsageCounts(prompt_tokens=count).usage(),
        lambda: UsageCounts(1, count).usage(),
        lambda: of_gemini(GeminiUsage(thoughts_token_count=count)),
        lambda: of_claude(ClaudeUsage(count, 1)),
        lambda: of_claude(ClaudeUsage(1, 1, output_tokens_details=OutputDetails(count))),
        lambda: shared(count, ["text"]),
    ):
        with pytest.raises(UpstreamFault, match="token counts"):
            read()


def test_thought_tokens_are_never_more_than_the_answers():
    """A dearer or cheaper rate for them would otherwise make a cost below zero."""
    counts = ClaudeUsage(1, 5, cache_creation=CacheSplit(), output_tokens_details=OutputDetails(9))
    usage = of_claude(counts)
    assert usage is not None and usage.thought_tokens == 5
