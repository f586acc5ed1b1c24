"""Short forms of benches/server/soak.py and benches/server/chaos.py: the same claims, seconds for minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benches.server.chaos import chaos
from benches.server.soak import soak

pytestmark = [pytest.mark.model, pytest.mark.big]


def test_everything_clients_do_leaves_a_server_as_it_was(model_path: Callable[[str], Path]):
    record = soak(model_path("smollm2-135m"), seconds=10, warm_s=12, clients=4, seed=1)
    assert record["wrong"] == []
    assert record["requests"] > 20 and record["after"]["models"] <= 2


def test_killed_engines_end_no_answer_wrongly(model_path: Callable[[str], Path]):
    record = chaos(model_path("smollm2-135m"), seconds=10, every=2, clients=3, seed=1)
    assert record["wrong"] == []
    assert record["kills"] >= 3 and record["restarts"] >= record["kills"] - 1
