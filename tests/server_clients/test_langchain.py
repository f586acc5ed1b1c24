"""langchain-openai under LangChain's standard tests, in an environment of its own: its pytest plugins are many."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benches.environments import environment
from benches.own_server import names_of, own_server
from tests.server_clients.conftest import Served

pytestmark = pytest.mark.model

SUITE = Path(__file__).with_name("langchain_suite.py")


@pytest.fixture(scope="module")
def coder(model_path: Callable[[str], Path]) -> Iterator[Served]:
    """Serve a model that was trained to call tools."""
    path = model_path("qwen2.5-coder:0.5b")
    with own_server(path, context=4096) as server:
        yield Served(server.port, names_of(server)[0], path)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_langchains_standard_tests_pass(coder: Served, tmp_path: Path, api: str):
    shutil.copy(SUITE, tmp_path / "test_suite.py")
    told = {"FREEHOLD_URL": coder.url, "FREEHOLD_MODEL": coder.model, "FREEHOLD_API": api}
    command = [
        str(environment("langchain")),
        "-m",
        "pytest",
        "--asyncio-mode=auto",
        "-oasyncio_default_fixture_loop_scope=session",
        "-oasyncio_default_test_loop_scope=session",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", "test_suite.py"],
        capture_output=True,
        text=True,
        env={**os.environ, **told, "LANGSMITH_TRACING": "false"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 43, done.stdout[-1000:]
