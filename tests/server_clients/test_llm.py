"""Simon Willison's `llm` against a real server, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benches.environments import environment
from tests.server_clients.conftest import Served

pytestmark = pytest.mark.model


@pytest.fixture
def llm(served: Served, tmp_path: Path):
    """Return a function that runs `llm` with a home that knows the server's model as `ours`."""
    python = environment("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: {served.model}\n  api_base: {served.url}\n  supports_schema: true\n"
    )

    def run(*arguments: str, given: str = "") -> str:
        done = subprocess.run(
            [str(python), "-m", "llm", *arguments],
            input=given,
            capture_output=True,
            text=True,
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("stream", [(), ("--no-stream",)])
def test_a_prompt_is_answered_and_logged_with_its_tokens(llm, stream):
    answer = llm("-m", "ours", "-o", "temperature", "0", "-o", "max_tokens", "12", *stream, "Name a colour.")
    assert answer.strip()
    assert '"output"' in llm("logs", "--json", "-n", "1") or '"output_tokens"' in llm(
        "logs", "--json", "-n", "1"
    )


def test_a_chat_goes_on_and_a_pipe_is_read(llm):
    options = ("-o", "temperature", "0", "-o", "max_tokens", "12")
    first = llm("-m", "ours", *options, "-s", "Be brief.", given="Name a colour.")
    second = llm("-c", *options, "And another?")
    assert first.strip() and second.strip()


def test_models_are_listed(llm):
    assert "ours" in llm("models")
