"""A store in a temporary home, a stand-in hub, and model files made of noise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.run.store import Store
from tests.store.standin import Standin, serving

UNIT = 64 << 10


def noise(size: int, seed: int = 0) -> bytes:
    """Return a GGUF's magic and `size` - 4 reproducible random bytes."""
    source, step = random.Random(seed), 1 << 20
    blocks = [source.randbytes(min(step, size - 4 - at)) for at in range(0, size - 4, step)]
    return b"GGUF" + b"".join(blocks)


@pytest.fixture
def standin() -> Iterator[Standin]:
    """A server that tests fill and bend."""
    with serving(Standin()) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, standin: Standin) -> Settings:
    """Settings whose hub is the stand-in and whose ranges are small."""
    return Settings(home=tmp_path / "home", hub_endpoint=standin.url, range_bytes=UNIT)


@pytest.fixture
def store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that retries at once."""
    monkeypatch.setattr("freehold.run.store.http.RETRY_S", 0.01)
    return Store(settings)
