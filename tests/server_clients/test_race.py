"""How a race of servers goes on when one of them fails, and how often a drift is run; no server is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches.server import race as race_module
from benches.server.race import Race
from benches.server.scenarios import SCENARIOS, Figures, Scenario
from benches.server.servers import KINDS, Kind, Options


class Scripted(Race):
    """Answers with what `figures` says of a server and a round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, figures: dict[tuple[str, int], float]) -> None:
        """`figures`: by server and round, tokens a second; where there are none the server fails."""
        monkeypatch.setattr(race_module, "tokenizer_of", lambda _: None)
        self.script, names = figures, sorted({name for name, _ in figures})
        super().__init__([KINDS[name] for name in names], Path(), 3, {name: {} for name in names})

    def _installed(self, kind: Kind) -> bool:
        self.versions[kind.name] = "1"
        return True

    def measured(self, kind: Kind, scenario: Scenario, options: Options, seed: int) -> Figures | None:
        """Look it up."""
        rate = self.script.get((kind.name, seed))
        return None if rate is None else {scenario.headline: rate}


def test_a_server_that_fails_keeps_its_earlier_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Scripted(
        monkeypatch, {("freehold", 0): 1, ("freehold", 1): 2, ("freehold", 2): 3, ("llama.cpp", 0): 4}
    )
    entries = {entry.server: entry.values("output tok/s") for entry in race.run(SCENARIOS["chat-4"])}
    assert entries == {"freehold": [1, 2, 3], "llama.cpp": [4]}


def test_a_server_that_never_answered_has_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scripted(monkeypatch, {("freehold", 7): 1}).run(SCENARIOS["chat-4"]) == []


def test_a_drift_is_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Scripted(monkeypatch, {("freehold", i): 1 + i for i in range(3)})
    assert [entry.values("last output tok/s") for entry in race.run(SCENARIOS["drift"])] == [[1]]
