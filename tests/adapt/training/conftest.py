"""Tiny models in their files, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.run.models.tiny import make

pytest.importorskip("torch")

Made = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return the GGUF of a tiny model, or its folder of safetensors for "NAME/hf"."""
    folder, made = tmp_path_factory.mktemp("tiny"), dict[str, Path]()

    def model(name: str) -> Path:
        if name not in made:
            config = make.config(name.removesuffix("/hf"))
            path = folder / (name.replace("/", "-") + ("" if name.endswith("/hf") else ".gguf"))
            write = make.write_safetensors if name.endswith("/hf") else make.write_gguf
            write(config, path)
            made[name] = path
        return made[name]

    return model
