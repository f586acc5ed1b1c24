"""lm-eval, in an environment of its own, scores and questions a real server; the sums are those of LLM.score.

The tasks are made here, from a few lines of JSON: nothing is fetched but lm-eval itself, once (under a minute).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import freehold
from benches.lib.environments import environment
from benches.server.load import ask
from freehold.cli import main as cli_main
from tests.server_clients.conftest import CONTEXT, Served

pytestmark = pytest.mark.model

QUESTIONS = [
    {
        "question": "The capital of France is",
        "choices": [" Paris", " Rome", " a kind of cheese"],
        "answer": 0,
    },
    {"question": "Two and two make", "choices": [" seven", " four", " a crowd of people"], "answer": 1},
    {
        "question": "Water freezes at zero",
        "choices": [" degrees Celsius", " o'clock", " bananas"],
        "answer": 0,
    },
]
TASK = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}", "num_fewshot": 0}
CHOOSING = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
WRITING = {
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"max_gen_toks": 12, "until": ["\n"], "temperature": 0},
    "metric_list": [{"metric": "exact_match"}],
}


def evaluate(
    folder: Path, served: Served, api: str, route: str, task: dict[str, Any], *more: str
) -> list[Any]:
    """Run lm-eval on a task of QUESTIONS; return what it logged of each."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    written = {"task": "ours", **TASK, **task, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (folder / "ours.yaml").write_text(json.dumps(written))  # JSON is YAML
    arguments = f"base_url={served.url}{route},model={served.model},max_length={CONTEXT},num_concurrent=2"
    command = [str(environment("lm_eval")), "-m", "lm_eval", "run", "--model", api, "--model_args", arguments]
    command += ["--tasks", "ours", "--include_path", str(folder), "--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [*command, "--log_samples", *more],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (folder / "out").rglob("samples_ours_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["doc_id"])


@pytest.mark.big
def test_loglikelihoods_through_echo_are_those_of_the_engine(tmp_path: Path, served: Served):
    samples = evaluate(tmp_path, served, "local-completions", "/completions", CHOOSING, "--batch_size", "2")
    with freehold.load(served.path, context=CONTEXT) as model:
        for sample, line in zip(samples, QUESTIONS, strict=True):
            found = [float(answer[0][0]) for answer in sample["resps"]]
            assert found == pytest.approx(
                [expected(model, line["question"], c) for c in line["choices"]], abs=1e-3
            )
    assert [sample["acc"] for sample in samples] == [1.0] * len(QUESTIONS)


def expected(model: Any, question: str, choice: str) -> float:
    """Score a continuation in this process."""
    ids, context = model.tokenize(question + choice), model.tokenize(question)
    return float(sum(model.score(ids)[len(context) - 1 :]))


@pytest.mark.heavy
def test_chat_task_gets_the_answers_that_any_client_gets(tmp_path: Path, served: Served):
    samples = evaluate(
        tmp_path, served, "local-chat-completions", "/chat/completions", WRITING, "--apply_chat_template"
    )
    for sample, line in zip(samples, QUESTIONS, strict=True):
        body = {"model": served.model, "messages": [{"role": "user", "content": line["question"]}]}
        body |= {"max_tokens": 12, "temperature": 0, "stop": ["\n"]}
        answer = asyncio.run(ask(served.port, "/v1/chat/completions", body))
        assert sample["resps"][0][0] == answer.text


@pytest.mark.big
def test_choices_score_in_eval_as_through_the_server(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
):
    samples = evaluate(tmp_path, served, "local-completions", "/completions", CHOOSING)
    lines = [
        {"prompt": q["question"], "choices": q["choices"], "answer": q["answer"], "metric": "q"}
        for q in QUESTIONS
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "fresh"))
    options = ["--data", str(tmp_path / "own.jsonl"), "-o", str(tmp_path / "ours"), "--context", str(CONTEXT)]
    assert cli_main.run(["eval", str(served.path), *options]) == 0
    (path,) = (tmp_path / "ours").rglob("samples_own_*.jsonl")
    ours = [json.loads(line) for line in path.read_text().splitlines()]
    for mine, theirs in zip(ours, samples, strict=True):
        found = [float(answer[0][0]) for answer in theirs["resps"]]
        assert [answer[0][0] for answer in mine["resps"]] == pytest.approx(found, abs=1e-3)
        assert mine["acc"] == theirs["acc"]
