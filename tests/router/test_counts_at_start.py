"""Anthropic counts the prompt before its first token: clients see the counts, and a torn answer is booked with them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.route.router.opening import ProviderModels
from tests.providers.standin import Answer, Fault, StandIn
from tests.providers.standin.script import Tokens
from tests.router.house import House, at_standin, open_house

TOKENS = Tokens(prompt=9000, output=14, cached=6000, written=2000)
ASKED = {
    "model": "big",
    "max_tokens": 100,
    "stream": True,
    "messages": [{"role": "user", "content": "hello"}],
}


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def house(standin: StandIn, tmp_path: Path) -> Iterator[House]:
    standin.say.clear()
    running = open_house(
        tmp_path, base=at_standin(standin.url("anthropic"), "anthropic"), rent=ProviderModels
    )
    yield running
    running.end()


def events(house: House) -> list[dict]:
    with house.client.stream("POST", "/v1/messages", json=ASKED) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


@pytest.mark.heavy
def test_a_clients_first_event_has_the_counts_of_the_providers(standin: StandIn, house: House):
    standin.say.append(Answer(tokens=TOKENS))
    usage = events(house)[0]["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (1000, 6000)
    assert usage["cache_creation_input_tokens"] == 2000


@pytest.mark.parametrize("at", [900, 1400])
def test_an_answer_that_is_cut_is_booked_with_the_counts_that_came(at: int, standin: StandIn, house: House):
    pieces = tuple(f"piece {i} " for i in range(60))
    standin.say += [Fault("cut", at=at, answer=Answer(pieces, tokens=TOKENS))] * 2
    assert events(house)[-1]["type"] == "error"
    until = time.monotonic() + 20
    while not house.rows and time.monotonic() < until:
        time.sleep(0.01)
    (row,) = house.rows
    assert (row.usage.prompt_tokens, row.usage.cached_tokens, row.usage.written_tokens) == (9000, 6000, 2000)
    assert row.usage.completion_tokens > 0
