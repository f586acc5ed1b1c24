"""A folder and a home for runs of the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.world import AgentWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir(mode=0o700)
    folder.mkdir()
    made_here = AgentWorld(home, folder)
    yield made_here
    for tools in made_here.opened:
        tools.close()
    for journal in made_here.journals:
        journal.close()
