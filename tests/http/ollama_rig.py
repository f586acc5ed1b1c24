"""What the tests of Ollama's routes share: requests, lines read back, and a store with a tiny model in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2

from freehold.run.store import Store
from tests.vectors.files import write_gguf

CHAT = {"model": "fake:1b", "messages": [{"role": "user", "content": "hi you"}]}
TEXT = {"model": "fake:1b", "prompt": "hi you"}


def lines(text: str) -> list[dict[str, Any]]:
    """Return each line's object; every line holds one, and the last line ends."""
    assert text.endswith("\n") and "\n\n" not in text
    return [json.loads(line) for line in text.splitlines()]


def ask(server: Any, route: str, **fields: Any) -> dict[str, Any]:
    """Return a whole answer."""
    base = CHAT if route == "/api/chat" else TEXT
    answer = server.client.post(route, json={**base, "stream": False, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def job_of(server: Any, route: str = "/api/chat", **fields: Any) -> Any:
    """Return the job that a request became."""
    ask(server, route, **fields)
    return server.models.served["fake:1b"].jobs[-1]


def refused(server: Any, route: str, status: int = 400, **fields: Any) -> str:
    """Return the words of a refusal."""
    base = CHAT if route == "/api/chat" else TEXT if route == "/api/generate" else {}
    client = server.client if base else server.owner
    return error_of(client.post(route, json={**base, **fields}), status)


def error_of(answer: httpx2.Response, status: int) -> str:
    """Return the text of an error in this protocol's shape."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    body = answer.json()
    assert list(body) == ["error"] and isinstance(body["error"], str)
    return body["error"]


def with_tiny(store: Store, folder: Path, name: str = "tiny") -> Store:
    """Put a model of two layers into a store, under `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    store.pull(str(write_gguf("llama", folder / f"{name}.gguf", dtype="Q8_0")))
    return store
