"""Real servers for all tests of real clients: `freehold serve`, started once for each model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benches.server.own_server import names_of, own_server

CONTEXT = 1024


@dataclass(frozen=True)
class Served:
    """Where it is, and what its model is called."""

    port: int
    model: str
    path: Path

    @property
    def url(self) -> str:
        """What a client calls the base URL."""
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture(scope="session")
def served(model_path: Callable[[str], Path]) -> Iterator[Served]:
    """Serve smollm2."""
    path = model_path("smollm2-135m")
    with own_server(path, context=CONTEXT) as server:
        yield Served(server.port, names_of(server)[0], path)


@pytest.fixture(scope="session")
def coder(model_path: Callable[[str], Path]) -> Iterator[Served]:
    """Serve a model that was trained to call tools."""
    path = model_path("qwen2.5-coder-0.5b")
    with own_server(path, context=4096) as server:
        yield Served(server.port, names_of(server)[0], path)
