"""The verbs that train open no connection: everything that they need is on the machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.adapt import teaching
from freehold.adapt.align import AlignSettings, align
from freehold.adapt.distil import DistilSettings, distil
from freehold.adapt.finetune import FinetuneSettings, finetune
from freehold.base.config import Settings
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef, Store

pytest.importorskip("torch")
SMALL: dict[str, Any] = {"rank": 2, "batch": 2, "epochs": 1, "threads": 1, "max_length": 128, "replay": 1}
LINE = {
    "finetune": {"prompt": "a {}", "completion": "b"},
    "align": {"prompt": "a {}", "chosen": "b", "rejected": "c"},
    "distil": {"prompt": "a {}"},
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRef:
    monkeypatch.setattr(teaching, "FACTS", teaching.FACTS[:2])
    monkeypatch.setattr(teaching, "WINDOWS", 2)
    monkeypatch.setattr(teaching, "QUESTIONS", ("Why?",))
    monkeypatch.setattr(teaching, "OPENINGS", ("The",))
    path = make.write_gguf(make.config("qwen2"), tmp_path / "tiny.gguf")
    return Store(Settings(home=tmp_path / "home")).resolve(str(path))


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("finetune", lambda model, data, out: finetune(model, data, out, FinetuneSettings(**SMALL))),
        ("align", lambda model, data, out: align(model, data, out, AlignSettings(**SMALL))),
        (
            "distil",
            lambda model, data, out: distil(
                model, model, data, out, DistilSettings(**SMALL, on_policy=True, max_tokens=4)
            ),
        ),
    ],
)
def test_no_connection_is_made(
    name: str,
    verb: Callable[[ModelRef, Path, Path], dict[str, Any]],
    model: ModelRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was made")

    for call in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, call, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(LINE[name]).replace("{}", str(i)) for i in range(4)))
    assert verb(model, data, tmp_path / "out")["verb"] == name
