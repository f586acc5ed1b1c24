"""Fixtures that several rooms share. Nothing here is loaded before a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# File stem in FREEHOLD_TEST_MODELS -> the name under which the store holds the model.
REAL_MODELS = {
    "smollm2-135m": "smollm2:135m",
    "qwen2.5-coder-0.5b": "qwen2.5-coder:0.5b",
    "qwen2.5-coder-1.5b": "qwen2.5-coder:1.5b",
    "gemma3-270m": "gemma3:270m",
}


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """Return a function from a name above to a GGUF file, for tests marked `model`.

    The folder that FREEHOLD_TEST_MODELS names comes first, then the store. A model that neither holds
    skips the test.
    """

    def find(name: str) -> Path:
        folder = os.environ.get("FREEHOLD_TEST_MODELS")
        if folder and (path := Path(folder) / f"{name}.gguf").is_file():
            return path
        return _in_store(REAL_MODELS[name])

    return find


def _in_store(name: str) -> Path:
    from freehold.config import load_settings
    from freehold.errors import ModelNotFound
    from freehold.store import Store

    try:
        return Path(Store(load_settings()).resolve(name).path)
    except ModelNotFound as error:
        pytest.skip(f"{error.message}; {error.hint}")
