"""HumanEval by `freehold eval` and by lm-eval through our server: the same items, marked alike, in processor time.

lm-eval gets the task's prompts, stops and length from here, as its own copy of the data lies on a hub; its answers
are marked by the same confined process as ours. Both start with a loaded page cache; lm-eval keeps eight requests in
flight. The last line is JSON.
Path: python benches/adapt/humaneval.py MODEL [--limit N] [--python LM_EVAL_PYTHON]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil

from benches.lib.environments import environment
from benches.server.own_server import own_server
from freehold.adapt.evals.evaluate import EvalTask, ModelReply
from freehold.adapt.evals.tasks.humaneval import MOST_TOKENS, STOPS, humaneval
from freehold.base.config import load_settings
from freehold.run.store import Store
from freehold.run.store.contract import ignore

IN_FLIGHT = 8
SLICE = 41  # items of one run of lm-eval: a shared machine is let go in between


def main() -> None:
    """Run both and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--python", type=Path, help="an interpreter that has lm-eval[api]")
    args = parser.parse_args()
    settings = load_settings()
    task = humaneval(settings.home, "completion", offline=settings.offline, on_event=ignore)
    items = task.items[: args.limit]
    with tempfile.TemporaryDirectory(prefix="humaneval-") as folder:
        ours = _ours(args.model, len(items), Path(folder))
        path = Store(settings).resolve(args.model).path
        python = args.python or environment("lm_eval")
        theirs = _theirs(path, EvalTask("humaneval", items, ("pass@1",)), python, Path(folder))
    apart = [i for i, (a, b) in enumerate(zip(ours["passed"], theirs["passed"], strict=True)) if a != b]
    same = sum(a == b for a, b in zip(ours.pop("texts"), theirs.pop("texts"), strict=True))
    figures = {
        "model": args.model,
        "items": len(items),
        "freehold": {**ours, "passed": sum(ours["passed"])},
        "lm_eval": {**theirs, "passed": sum(theirs["passed"])},
        "marked_otherwise": apart,
        "same_texts": same,
        "load_average": round(os.getloadavg()[0], 2),
    }
    for name in ("freehold", "lm_eval"):
        f = figures[name]
        print(f"{name:<10}{f['passed']:>5} of {len(items)}  {f['cpu_s']:>8.1f} CPU-s  {f['wall_s']:>8.1f} s")
    print(json.dumps(figures))


def _ours(model: str, limit: int, folder: Path) -> dict[str, Any]:
    before, started = os.times(), time.monotonic()
    command = [sys.executable, "-m", "freehold.cli.main", "eval", model, "--data", "humaneval", "--fresh"]
    subprocess.run([*command, "--limit", str(limit), "-o", str(folder / "ours")], check=True)
    after = os.times()
    (samples,) = (folder / "ours").rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return {
        "passed": [row["pass@1"] == 1.0 for row in rows],
        "texts": [row["resps"][0][0] for row in rows],
        "cpu_s": round(sum(after[2:4]) - sum(before[2:4]), 1),
        "wall_s": round(time.monotonic() - started, 1),
    }


def _theirs(path: Path, task: EvalTask, python: Path, folder: Path) -> dict[str, Any]:
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item.doc) + "\n" for item in task.items))
    written = {
        "task": "humaneval",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}",
        "generation_kwargs": {"until": list(STOPS), "max_gen_toks": MOST_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "humaneval.yaml").write_text(json.dumps(written))  # JSON is YAML
    started = time.monotonic()
    with own_server(path, context=4096) as server:
        before, children = _spent(server.process.pid), os.times()
        for first in range(0, len(task.items), SLICE):
            chosen = list(range(len(task.items)))[first : first + SLICE]
            _lm_eval(python, folder, server.port, chosen)
        spent = _spent(server.process.pid) - before
        after = os.times()
    rows = sorted(
        (json.loads(line) for p in (folder / "theirs").rglob("samples_*.jsonl") for line in p.open()),
        key=lambda row: task_number(row, task),
    )
    texts = [row["resps"][0][0] for row in rows]
    marks = [item.mark(ModelReply(text)) for item, text in zip(task.items, texts, strict=True)]
    return {
        "passed": [mark.metrics["pass@1"] == 1.0 for mark in marks],
        "texts": texts,
        "cpu_s": round(spent + sum(after[2:4]) - sum(children[2:4]), 1),
        "wall_s": round(time.monotonic() - started, 1),
    }


def task_number(row: dict[str, Any], task: EvalTask) -> int:
    """Return where an item of lm-eval's samples stands in ours."""
    return [item.doc["task_id"] for item in task.items].index(row["doc"]["task_id"])


def _lm_eval(python: Path, folder: Path, port: int, items: list[int]) -> None:
    url = f"http://127.0.0.1:{port}/v1/completions"
    given = f"base_url={url},model=copy-0,max_length=4096,num_concurrent={IN_FLIGHT},timeout=1200"
    command = [str(python), "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", given]
    command += ["--tasks", "humaneval", "--include_path", str(folder), "--log_samples"]
    command += [
        "--samples",
        json.dumps({"humaneval": items}),
        "--output_path",
        str(folder / "theirs" / str(items[0])),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    subprocess.run(command, check=True, env={**os.environ, **offline}, stdout=subprocess.DEVNULL)


def _spent(pid: int) -> float:
    """Return the processor time of a server and its engine processes."""
    server = psutil.Process(pid)
    times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    main()
