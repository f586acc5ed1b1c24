"""langchain-openai under LangChain's standard tests, in an environment of its own: its pytest plugins are many."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benches.lib.environments import environment
from tests.server_clients.conftest import Served

pytestmark = pytest.mark.model

SUITE = Path(__file__).with_name("langchain_suite.py")


@pytest.mark.big
@pytest.mark.parametrize("api", ["chat", pytest.param("responses", marks=pytest.mark.big)])
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
