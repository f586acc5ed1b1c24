"""What a server says at its start: the example call is one that its model answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from freehold.base.config import Settings
from freehold.cli.serving import running
from freehold.run.store import Store
from tests.vectors.files import write_gguf
from tests.vectors.whisper import write_whisper

URL = "http://127.0.0.1:1"


class TakesAll:
    """Judges nothing: each model runs."""

    def listed(self, models: Sequence[Any]) -> list[tuple[Any, str]]:
        return [(model, "") for model in models]


@pytest.mark.parametrize(
    "names, held, part",
    [
        (["vectors", "chats"], [], '/v1/chat/completions -H \'Content-Type: application/json\' -d \'{"model": "chats"'),
        ([], ["vectors", "chats"], '"model": "chats"'),
        (["vectors"], [], '/v1/embeddings -H \'Content-Type: application/json\' -d \'{"model": "vectors", "input"'),
        ([], ["vectors"], "/v1/embeddings"),
        (["of-a-route"], [], '"model": "of-a-route", "messages"'),
        (["ears"], [], "/v1/audio/transcriptions -F model=ears -F file=@talk.wav"),
        (["ears", "chats"], [], '"model": "chats"'),
    ],
)  # fmt: skip
def test_the_example_is_a_call_that_the_model_answers(
    names: list[str], held: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = Settings(home=tmp_path / "home", adopt=False)
    store = Store(settings)
    for name, keys in (("vectors", {"qwen3.pooling_type": 3}), ("chats", {})):
        if name in names + held:
            store.pull(str(write_gguf("qwen3", tmp_path / f"{name}.gguf", keys=keys)))
    if "ears" in names:
        (tmp_path / "ears").mkdir()
        store.pull(str(write_whisper(tmp_path / "ears")))
    lines: list[str] = []
    monkeypatch.setattr(running, "tell", lines.append)
    options: Any = SimpleNamespace(keys=None)
    judgements: Any = TakesAll()
    asyncio.run(running.Announcer(settings, store, names, options, judgements)._tell_models(URL))
    (example,) = [line for line in lines if line.startswith("try: ")]
    assert example.startswith(f"try: curl {URL}/v1/") and part in example
