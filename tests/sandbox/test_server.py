"""A real server beside templates that never end, and what is left when it is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.sandbox.bombs import LISTS
from tests.sandbox.conftest import GONE_S, all_end, write_model
from tests.vectors import files

BOMB = LISTS + "{{ n.a == n.b }}"
PLAIN = files.CHAT_TEMPLATE
STOP_S = 60.0  # an end, not a measure: it takes five seconds, and a server that waits for them never ends


def in_ollamas_folder(root: Path, template: str) -> Path:
    """Put a model where Ollama would; the server gets no notice of it."""
    model = write_model(root / "model.gguf", template)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    (root / "blobs").mkdir()
    model.rename(root / "blobs" / f"sha256-{digest}")
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / "bomb" / "1m"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    return root


@pytest.mark.heavy
def test_a_template_that_never_ends_in_another_programs_folder_holds_nobody_up(serve, tmp_path: Path):
    server = serve("--drain", "0", OLLAMA_MODELS=str(in_ollamas_folder(tmp_path / "ollama", BOMB)))
    [listed] = server.client.get("/api/tags").json()["models"]  # at once: the template is being checked
    assert (listed["name"], listed["capabilities"]) == ("bomb:1m", ["completion"])
    until = time.monotonic() + GONE_S
    while not (kept := [*server.home.glob("templates/*")]) and time.monotonic() < until:
        assert server.client.get("/health", timeout=5).status_code == 200
        time.sleep(0.02)
    assert [json.loads(record.read_bytes()) for record in kept] == [{"tools": False, "thinking": False}]
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(STOP_S)


@pytest.mark.heavy
def test_a_chat_with_such_a_template_is_refused_and_the_next_model_answers(serve, tmp_path: Path):
    bomb, good = (write_model(tmp_path / f"{name}.gguf", t) for name, t in (("bomb", BOMB), ("good", PLAIN)))
    server = serve(str(bomb), str(good), "--drain", "0")
    answer = server.chat("bomb")
    assert answer.status_code == 400 and "ran longer than 2 s" in answer.text
    assert server.chat("good").status_code == 200
    assert server.client.get("/health").status_code == 200


@pytest.mark.heavy
def test_what_a_killed_server_had_started_ends_too(serve, tmp_path: Path):
    bomb, good = (write_model(tmp_path / f"{name}.gguf", t) for name, t in (("bomb", BOMB), ("good", PLAIN)))
    server = serve(str(bomb), str(good))
    assert server.chat("good").status_code == 200

    def ask() -> None:
        with suppress(httpx2.HTTPError):
            server.chat("bomb")

    busy = threading.Thread(target=ask)
    busy.start()
    started = server.descendants()
    assert len(started) >= 3  # two engines and a renderer
    server.process.kill()
    server.process.wait()
    busy.join()
    assert all_end(started)


@pytest.mark.heavy
@pytest.mark.parametrize("stopped", ["engine", "renderer"])
def test_sigterm_ends_a_server_whose_children_do_not_move(serve, tmp_path: Path, stopped: str):
    server = serve(str(write_model(tmp_path / "good.gguf", PLAIN)), "--drain", "0")
    assert server.chat("good").status_code == 200
    started = server.descendants()
    for process in started:
        if stopped == ("engine" if "freehold.serve.worker.process" in process.cmdline() else "renderer"):
            os.kill(process.pid, signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(STOP_S)
    assert all_end(started)


@pytest.mark.heavy
def test_requests_with_such_templates_hold_up_none_that_have_their_own(serve, tmp_path: Path):
    server = serve(str(write_model(tmp_path / "good.gguf", PLAIN)), "--drain", "0")
    assert server.chat("good").status_code == 200  # its engine is there: the next one takes a moment
    asked = {"model": "good", "prompt": "x", "stream": False, "template": "{% if true %}{% endif %}" + BOMB}
    answers: list[httpx2.Response] = []
    askers = [
        threading.Thread(target=lambda: answers.append(server.client.post("/api/generate", json=asked)))
        for _ in range(6)
    ]
    for asker in askers:
        asker.start()
    assert server.chat("good").status_code == 200
    assert len(answers) < 6  # six such requests take three seconds of one renderer
    for asker in askers:
        asker.join()
    assert {answer.status_code for answer in answers} == {400}
    assert all("ran longer than 0.5 s" in answer.json()["error"] for answer in answers)
