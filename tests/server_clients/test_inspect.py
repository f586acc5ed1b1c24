"""inspect_ai, in an environment of its own, questions a real server; its log holds what any client gets.

The task is made here: nothing is fetched but inspect_ai itself, once (some two minutes).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from benches.lib.environments import environment
from benches.server.load import ask
from tests.server_clients.conftest import Served

pytestmark = pytest.mark.model

QUESTIONS = [("What is the capital of France? One word.", "Paris"), ("What is 2+2? The number only.", "4")]
# inspect_ai reads the key of a service from its name: "fh" is FH_API_KEY.
SCRIPT = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

model, url, folder, questions = sys.argv[1:]
samples = [Sample(input=q, target=t) for q, t in json.loads(questions)]
task = Task(dataset=samples, solver=generate(temperature=0, max_tokens=12), scorer=includes())
(log,) = eval(
    task, model=f"openai-api/fh/{model}", model_base_url=url, log_dir=folder, log_format="json", display="none"
)
assert log.status == "success", log.error
found = [[s.output.completion, s.scores["includes"].value] for s in log.samples]
print(json.dumps({"samples": found, "accuracy": log.results.scores[0].metrics["accuracy"].value}))
"""


@pytest.mark.big
def test_inspect_gets_the_answers_that_any_client_gets(tmp_path: Path, served: Served):
    python = str(environment("inspect_ai"))
    arguments = [served.model, served.url, str(tmp_path / "logs"), json.dumps(QUESTIONS)]
    done = subprocess.run(
        [python, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "FH_API_KEY": "unused", "HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for (question, target), (text, mark) in zip(QUESTIONS, found["samples"], strict=True):
        body = {"model": served.model, "messages": [{"role": "user", "content": question}]}
        answer = asyncio.run(
            ask(served.port, "/v1/chat/completions", {**body, "max_tokens": 12, "temperature": 0})
        )
        assert text == answer.text
        assert (mark == "C") == (target.lower() in text.lower())
    assert found["accuracy"] == sum(mark == "C" for _, mark in found["samples"]) / len(QUESTIONS)
