"""Simon Willison's `llm` against a real server, as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_clients.conftest import Served

pytestmark = pytest.mark.model


@pytest.fixture
def llm(served: Served, tmp_path: Path):
    """Return a function that runs `llm` with a home that knows the server's model as `ours`."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: {served.model}\n  api_base: {served.url}\n  supports_schema: true\n"
    )

    def run(*arguments: str, given: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            input=given,
            capture_output=True,
            text=True,
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.heavy
@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_a_prompt_is_answered_and_logged_with_its_tokens(llm, stream):
    answer = llm("-m", "ours", "-o", "temperature", "0", "-o", "max_tokens", "12", *stream, "Name a colour.")
    assert answer.strip()
    (logged,) = json.loads(llm("logs", "--json", "-n", "1"))
    assert logged["output_tokens"] > 0 and logged["response"].strip() == answer.strip()


@pytest.mark.heavy
def test_a_chat_goes_on_and_a_pipe_is_read(llm):
    options = ("-o", "temperature", "0", "-o", "max_tokens", "12")
    first = llm("-m", "ours", *options, "-s", "Be brief.", given="Name a colour.")
    second = llm("-c", *options, "And another?")
    assert first.strip() and second.strip()


@pytest.mark.heavy
def test_models_are_listed(llm):
    assert "ours" in llm("models")
