"""A request to a provider and its answer: texts, ends, faults, limits; nothing goes where it may not."""

from __future__ import annotations

import pytest

from tests.providers.asking import FAMILY, chunks, joined, remote
from tests.providers.standin import Answer, StandIn, Tokens


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", FAMILY)
def test_an_answer_arrives_with_its_end_and_its_usage(standin: StandIn, hopping, kind, stream):
    standin.say.append(Answer(("One", " and", " two"), tokens=Tokens(100, 7, cached=40)))
    got = joined(hopping(lambda hop: chunks(hop, remote(standin, kind), stream=stream)))
    assert (got.text, got.finish_reason) == ("One and two", "stop")
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.cached_tokens, got.usage.completion_tokens) == (100, 40, 7)
    assert standin.received[0].ended == "whole"
