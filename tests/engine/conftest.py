"""Tiny random models for the engine: two layers' worth of arithmetic, no weights, no network."""

from __future__ import annotations

import pytest

from freehold.models.loader import LoadedModel, load_model
from tests.vectors.files import write_gguf


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A qwen2 of 512 positions whose matrices are Q8_0, so that integer kernels are in play."""
    path = write_gguf("qwen2", tmp_path_factory.mktemp("engine") / "qwen2.gguf", dtype="Q8_0")
    return load_model(path, threads=1, name="tiny")


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A gemma3 with windows of 8."""
    path = write_gguf("gemma3", tmp_path_factory.mktemp("engine") / "gemma3.gguf")
    return load_model(path, threads=1, name="tiny-sliding")
